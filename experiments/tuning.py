"""An optimizer tuned and then run on fresh seeds: what a comparison of tuned optimizers is made of.

An arm is one `sweep.py --tune`. Its record holds every point of its grid, and the fresh seeds at the lowest.
"""

import itertools
import json
import math
import subprocess
import sys
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, TypeVar
from cli import Mistake

from study.page import COLORS, Block, Figure, Table, Text
from study.runs import Result, read_result
from study.statistics import Losses, Paired, holm, mean, mean_and_spread, p_text, signed_rank

from .experiment import ROOT, Computation, Record

TUNED_ON, FRESH = "1,2", 10  # seeds at each point of a grid; how many others at the lowest
EQUAL = 0.005  # nats: two losses whose difference certainly lies within this count as equal, stated before the runs

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class Arm:
    """An optimizer: what its grid spans, lists such as "1e-3,2e-3", and what it keeps, single values."""

    label: str
    settings: Mapping[str, str]
    config: str = "shakespeare_char"

    def run(self, name: str, scale: str, overlays: Sequence[str], common: Mapping[str, str], minutes: float
            ) -> Computation:  # fmt: skip
        """Its run of that name, on config files laid over its own and with settings that all arms share."""
        settings = {**common, **self.settings, "seed": TUNED_ON}
        arguments = [f"config/{self.config}.py", *overlays, "--tune", f"--fresh={FRESH}",
                     *(f"--{key}={value}" for key, value in settings.items())]  # fmt: skip
        return Computation(name, scale, partial(tune, f"out/{scale}/{name}"), {"arguments": arguments}, minutes=minutes)


def learned(record: Record) -> dict[str, float]:
    """The coefficients at the end of an arm's runs, means over the seeds it was tuned on; in the records of before
    2026-11-27 over the fresh ones."""
    ends = record["learned" if "learned" in record else "coefficients"]
    return {name: float(f"{mean(values):.6g}") for name, values in ends.items()}


def tune(folder: str, settings: Mapping[str, Any]) -> Record:
    """Run the sweep, or go on with it, and read its runs."""
    subprocess.run([sys.executable, "sweep.py", *settings["arguments"], f"--out={folder}"], cwd=ROOT, check=True)
    arguments = dict(a.removeprefix("--").split("=", 1) for a in settings["arguments"] if "=" in a)
    axes = [name for name, value in arguments.items() if "," in value and name not in ("seed", "box")]
    results = [read_result(path.parent) for path in sorted(Path(ROOT, folder).glob("*/config.json"))]
    return record_of(results, axes, {int(seed) for seed in arguments["seed"].split(",")})


def record_of(results: Sequence[Result], axes: Sequence[str], tuned_on: set[int]) -> Record:
    """All points of a grid, where the lowest mean loss lies, and the fresh seeds there. A loss of None: it diverged."""
    points: dict[str, list[Result]] = {}
    for result in results:
        points.setdefault(json.dumps([value_of(result, name) for name in axes]), []).append(result)
    grid: list[dict[str, Any]] = []
    for key, of_a_point in points.items():
        losses = [result.final.get("val_loss") for result in of_a_point if result.seed in tuned_on]
        grid.append({"point": dict(zip(axes, json.loads(key), strict=True)), "val_loss": losses})
    means = [mean([math.inf if loss is None else loss for loss in point["val_loss"]])
             if len(point["val_loss"]) == len(tuned_on) else math.inf for point in grid]  # fmt: skip
    chosen = grid[means.index(min(means))]["point"]
    there = sorted(points[json.dumps([*chosen.values()])], key=lambda r: r.seed)
    fresh = [r for r in there if r.seed not in tuned_on]
    ended = [r for r in fresh if r.state == "finished"]
    if not ended:
        raise Mistake(f"all {len(fresh)} fresh seeds at {chosen} diverged")
    columns = [name for name in ended[0].rows[-1] if name in ended[0].config and ended[0].rows[-1][name] is not None]
    curves = [result.curve("val_loss") for result in ended]
    return {
        "parameters": results[0].facts.get("parameters"), "axes": list(axes), "grid": grid,
        "optimum": {name: f"{value:g}" for name, value in chosen.items()},
        "inside": all(inside(grid, chosen, name) for name in axes),
        "seeds": [r.seed for r in ended], "diverged": len(fresh) - len(ended),
        **{kind: [r.final[kind] for r in ended] for kind in ("val_loss", "train_loss", "seconds")},
        "curves": {"step": sorted(curves[0]), "val_loss": [[c[step] for step in sorted(c)] for c in curves]},
        "coefficients": {name: [r.rows[-1][name] for r in ended] for name in columns},
        "learned": {name: [r.rows[-1][name] for r in there if r.seed in tuned_on] for name in columns},
        "final": {"val_loss": mean([r.final["val_loss"] for r in ended])},
    }  # fmt: skip


def value_of(result: Result, name: str) -> float:
    """A setting of a run; one hyper rate for all coefficients is that of any."""
    name = name.removeprefix("coefficients.")
    return float(result.config[name] if name in result.config else result.config[f"{name}.beta1"])


def inside(grid: Sequence[Mapping[str, Any]], best: Mapping[str, float], name: str) -> bool:
    """Whether values on both sides of the best one were tried; 0 is a natural end."""
    values = {point["point"][name] for point in grid}
    return (min(values) < best[name] or best[name] == 0) and best[name] < max(values)


# ------------------------------------------------------------------------------------------------------------ report


def losses_of(found: Mapping[str, Record]) -> dict[str, Losses]:
    """{arm: {fresh seed: validation loss}}"""
    return {name: dict(zip(r["seeds"], r["val_loss"], strict=True)) for name, r in found.items()}


def table(found: Mapping[str, Record], labels: Mapping[str, str], baseline: str, plateau: float | None = None,
          test: bool = True) -> Table:  # fmt: skip
    """A row for each arm, the lowest median loss first, with its difference from the baseline.

    plateau   losses above it are counted, and a second difference leaves the pairs with one out
    test      give p with Holm's correction, and a verdict; a label whose arm is not recorded counts as a comparison
    """
    losses = losses_of(found)
    base = losses.get(baseline, {})
    differences = {name: d for name, its in losses.items() if name != baseline and (d := signed_rank(base, its))}
    corrected = holm_of([name for name in labels if name != baseline], differences)
    target = median(base.values()) if base else None
    rows = []
    for name, record in sorted(found.items(), key=lambda item: median(item[1]["val_loss"])):
        difference, optimum = differences.get(name), ", ".join(f"{k} {v}" for k, v in record["optimum"].items())
        lost = f", {record['diverged']} diverged" if record["diverged"] else ""
        row = [labels[name], str(len(record["grid"])), optimum + ("" if record["inside"] else " (at an edge)"),
               f"{len(record['seeds'])}{lost}", f"{median(record['val_loss']):.4f}",
               f"{max(record['val_loss']):.4f}", str(difference or "")]  # fmt: skip
        if test:
            p = corrected.get(name, math.nan)
            row += [p_text(p), verdict(difference, p)] if difference else ["", ""]
        if plateau is not None:
            above, kept = (without(its, plateau) for its in (base, losses[name]))
            row += [str(len(losses[name]) - len(kept)), str((difference and signed_rank(above, kept)) or "")]
        rows.append([*row, f"{median(record['train_loss']):.4f}", steps_to(record, target)])
    header = ["optimizer", "points tried", "optimum", "n", "median loss", "worst seed's", "minus Adam's",
              *(["p, Holm", "verdict"] if test else []),
              *(["seeds on the plateau", "minus Adam's, without them"] if plateau is not None else []),
              "median training loss", "steps to tuned Adam's loss"]  # fmt: skip
    return Table(header, rows)


def without(losses: Losses, plateau: float) -> dict[int, float]:
    return {seed: loss for seed, loss in losses.items() if loss <= plateau}


def holm_of(family: Iterable[K], found: Mapping[K, Paired]) -> dict[K, float]:
    """Holm's p of those of a family that are found; the others count as comparisons that show nothing."""
    corrected = holm({key: found[key].p if key in found else 1.0 for key in family})
    return {key: p for key, p in corrected.items() if key in found}


def verdict(difference: Paired, corrected: float) -> str:
    if difference.low > -EQUAL and difference.high < EQUAL:
        return f"equal within {EQUAL}"
    if corrected < 0.05:
        return "lower" if difference.difference < 0 else "higher"
    return "undecided"


def steps_to(record: Record, target: float | None) -> str:
    """Until the median validation loss is tuned Adam's final one, linear between validations."""
    if target is None:
        return ""
    medians = [median(losses) for losses in zip(*record["curves"]["val_loss"], strict=True)]
    curve = zip(record["curves"]["step"], medians, strict=True)
    for (before, high), (after, low) in itertools.pairwise(curve):
        if low <= target:
            return f"about {round(before + (high - target) / (high - low) * (after - before), -1):.0f}"
    return "not reached"


def where_they_end(found: Mapping[str, Record], labels: Mapping[str, str]) -> Sequence[Block]:
    """Of the arms whose coefficients differ between seeds."""
    learns = [name for name, r in found.items() if any(len({*values}) > 1 for values in r["coefficients"].values())]
    parts = [f"{labels[name]}: " + ", ".join(f"{k} {mean_and_spread(v)}" for k, v in ends.items())
             for name in learns for ends in [found[name]["coefficients"]]]  # fmt: skip
    return [Text(f"Where learned coefficients end at the optimum: {'; '.join(parts)}.")] if parts else []


def figure(name: str, found: Mapping[str, Record], labels: Mapping[str, str]) -> Figure:
    """The loss against the learning rate, at the best of the other axis."""

    def draw(canvas: Any) -> None:
        axes = canvas.subplots()
        for i, (arm, record) in enumerate(found.items()):
            best: dict[float, float] = {}
            for point in record["grid"]:
                rate = point["point"]["learning_rate"]
                if point["val_loss"] and None not in point["val_loss"]:
                    best[rate] = min(mean(point["val_loss"]), best.get(rate, float("inf")))
            at = sorted(best)
            style = {"color": COLORS[i % len(COLORS)], "linestyle": "-" if i < len(COLORS) else "--"}
            axes.plot([rate * (1 if arm != "prodigy" else 1e-2) for rate in at], [best[rate] for rate in at], "o",
                      label=labels[arm], markersize=3, **style)  # fmt: skip
        xlabel = "learning rate" + (" (Prodigy's divided by 100)" if "prodigy" in found else "")
        axes.set(xscale="log", xlabel=xlabel, ylabel="validation loss, 2 seeds")
        canvas.legend(loc="outside right upper", frameon=False, fontsize=8)

    return Figure(name, "The lowest loss at each learning rate, over the grid's other axis.", draw, (9, 4.5))
