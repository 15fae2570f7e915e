"""Every optimizer tuned with the same budget

Does learning the coefficients beat constants that were tuned as long?

Equal grids, widened until the optimum is inside, then fresh seeds (sweep.py --tune). What is tuned beside the learning
rate is what the optimizer is known for: Adam's beta2, MADA's hyper rates, the weight decay of the others. An arm is one
`sweep.py --tune`; its record holds every point of its grid.
"""

import itertools
import json
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from study.page import COLORS, Block, Figure, Table, Text
from study.runs import Result, read_result
from study.statistics import Losses, Paired, holm, mean, mean_and_spread, p_text, signed_rank

from .experiment import RECORDS, ROOT, Computation, Record, Run, Training, by_seed, final_losses

SCALES = ("laptop", "gpu")
IN_ALL = False

# MADA's Shakespeare setting; the others ignore its part. Narrower models stay for hundreds of steps, which differ from
# seed to seed, at what single characters predict.
CONFIGS = {"laptop": ("config/shakespeare_char.py", "config/tiny.py"), "gpu": ("config/shakespeare_char.py",)}
COMMON = {
    "laptop": {"n_embd": "128", "n_head": "4", "batch_size": "24", "block_size": "32", "max_iters": "300",
               "warmup_iters": "30", "eval_interval": "100"},
    "gpu": {"n_layer": "4", "n_embd": "128", "n_head": "4", "dropout": "0", "batch_size": "256", "block_size": "64",
            "max_iters": "2000", "warmup_iters": "100", "eval_interval": "200", "eval_iters": "0"},
}  # fmt: skip
SIZES = {"laptop": "406,272 parameters, 768 tokens a step, 300 steps",
         "gpu": "0.8 million parameters, 16,384 tokens a step, 2,000 steps"}  # fmt: skip
TUNED_ON, FRESH = "1,2", 10
EQUAL = 0.005  # nats: two losses whose difference certainly lies within this count as equal, stated before the runs
RATES, DECAYS = "4e-3,8e-3,16e-3", "0,0.1,1"
BETA2 = "0.95,0.99,0.999"
BASELINE = "adam"


@dataclass(frozen=True)
class Arm:
    """An optimizer, what its grid spans, and what it keeps."""

    label: str
    settings: Mapping[str, str]  # learning_rate and one more list; the others single values

    def arguments(self, scale: str) -> list[str]:
        settings = {"learning_rate": RATES, **COMMON[scale], **self.settings, "seed": TUNED_ON}
        named = [f"--{name}={value}" for name, value in settings.items()]
        return [*CONFIGS[scale], "--tune", f"--fresh={FRESH}", *named]


def foreign(name: str, **settings: str) -> dict[str, str]:
    return {"optimizer": name, "weight_decay": DECAYS} | settings


ARMS = {
    "adam": Arm("Adam", {"optimizer": "adam", "beta2": BETA2}),
    "mada": Arm("MADA from Adam (0.9, 0.95)", {"optimizer": "mada", "hyper_lr": "2.5e-4,2.5e-3,2.5e-2"}),
    "avgrad": Arm("AVGrad", foreign("avgrad")),
    "mada_avgrad": Arm("MADA from AVGrad", {"optimizer": "mada", "rho": "0", "hyper_lr": "2.5e-4,2.5e-3,2.5e-2"}),
    "muon": Arm("Muon, the rest by AdamW", {
        "optimizer": "torch.optim:Muon", "coefficients.adjust_lr_fn": "match_rms_adamw",
        "coefficients.adamw_lr": "4e-3,8e-3,16e-3"}),
    "sign": Arm("MADA, sign steps in log space", {
        "optimizer": "mada", "hyper_optimizer": "sign", "hyper_space": "log", "box": "{'beta2': (0.501, 0.9999)}",
        "hyper_momentum": "0", "hyper_lr": "3e-3,1e-2,3e-2"}),
    "adam_08": Arm("Adam, beta1 = 0.8", {"optimizer": "adam", "beta1": "0.8", "beta2": BETA2}),
    "lion": Arm("Lion", foreign("lion", learning_rate="1e-3,2e-3,4e-3", beta1="0.95", beta2="0.98")),
    "soap": Arm("SOAP", foreign("pytorch_optimizer:SOAP")),
    "schedule_free": Arm("Schedule-Free AdamW", foreign("pytorch_optimizer:ScheduleFreeAdamW", decay_lr="False")),
    "hyperadam": Arm("HyperAdam", {"optimizer": "hyperadam", "hyper_lr": "2.5e-4,2.5e-3,2.5e-2"}),
    "prodigy": Arm("Prodigy", foreign("pytorch_optimizer:Prodigy", learning_rate="0.5,1,2")),
    "adan": Arm("Adan", foreign("adan", beta1="0.98", beta2="0.99", beta3="0.92")),
    "adam_decay": Arm("Adam, weight decay", foreign("adam", beta2="0.99")),
}  # fmt: skip


def arms(scale: str) -> dict[str, Arm]:
    """With those that start where another one's record ends: the constants that MADA learned, and MADA from Adam's best
    constants."""
    found = dict(ARMS)
    if (mada := load(scale, "mada")) is not None:
        learned = {name: f"{mean(values):.6g}" for name, values in mada["coefficients"].items()}
        found["mada_fs"] = Arm("MADA-FS: what MADA learned, kept", {
            "optimizer": "mada", "hyper_lr": "0", "weight_decay": DECAYS} | learned)  # fmt: skip
    if (adam := load(scale, "adam")) is not None:
        found["mada_best"] = Arm("MADA from Adam's best beta2", {
            "optimizer": "mada", "beta2": adam["optimum"]["beta2"], "box": "{'beta2': (0.501, 0.9999)}",
            "hyper_lr": "2.5e-4,2.5e-3,2.5e-2"})  # fmt: skip
    return found


def load(scale: str, arm: str) -> Record | None:
    path = RECORDS / scale / "tuned" / f"{arm}.json"
    record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    return None if record is None or record["settings"]["arguments"] != ARMS[arm].arguments(scale) else record


# Runs at the optimum of an arm that learns, on its fresh seeds: {name: (the arm, what it is)}.
CONTROLS = {
    "fs": ("mada", "the constants that MADA learned, kept"),
    "adam": ("mada", "Adam, betas (0.8, 0.99)"),
    "sign_fs": ("sign", "the constants that sign steps learned, kept"),
    "sign_adam_95": ("sign", "Adam, betas (0.8, 0.95)"),
    "sign_adam_999": ("sign", "Adam, betas (0.8, 0.999)"),
    "sign_beta2": ("sign", "sign steps on beta2 alone, the rest Adam's"),
    "sign_above": ("sign", "sign steps, beta2 from 0.9995"),
}


def controls(scale: str) -> list[Training]:
    """Constants near those that an arm learned, and other ways to learn them. They are tuned for nothing."""
    found: list[Training] = []
    for name, (arm, _) in CONTROLS.items():
        if (record := load(scale, arm)) is None:
            continue
        kept = {k: float(f"{mean(values):.6g}") for k, values in record["coefficients"].items()}
        rate, hyper = (float(record["optimum"][k]) for k in ("learning_rate", "hyper_lr"))
        common: dict[str, Any] = {k: int(value) for k, value in COMMON[scale].items()}
        common |= {"learning_rate": rate, "min_lr": float(f"{rate / 10:.6g}"), "weight_decay": 0.1}
        sign = {"hyper_optimizer": "sign", "hyper_space": "log", "box": {"beta2": [0.501, 0.9999]}, "hyper_momentum": 0}
        settings: dict[str, Any] = {
            "fs": {"optimizer": "mada", "hyper_lr": 0, **kept},
            "adam": {"optimizer": "adam", "beta1": 0.8, "beta2": 0.99},
            "sign_fs": {"optimizer": "mada", "hyper_lr": 0, **kept},
            "sign_adam_95": {"optimizer": "adam", "beta1": 0.8, "beta2": 0.95},
            "sign_adam_999": {"optimizer": "adam", "beta1": 0.8, "beta2": 0.999},
            "sign_beta2": {"optimizer": "adam", "hyper_lr": {"beta2": hyper}} | sign,
            "sign_above": {"optimizer": "mada", "hyper_lr": hyper, "beta2": 0.9995} | sign,
        }[name]
        found += [Training(f"tuned/control-{name}-{seed}", scale, CONFIGS[scale], common | settings | {"seed": seed},
                           minutes=0.6, curves=False) for seed in record["seeds"]]  # fmt: skip
    return found


def of_controls(records: Mapping[str, Record]) -> dict[str, dict[int, float]]:
    """{control: {seed: validation loss}}"""
    found = final_losses(by_seed(records, "tuned/control-"), "val_loss")
    return {name: found[name] for name in CONTROLS if name in found}


def runs(scale: str) -> Sequence[Run]:
    return [*controls(scale), *(
        Computation(f"tuned/{name}", scale, partial(tune, f"out/{scale}/tuned/{name}"),
                    {"arguments": arm.arguments(scale)}, minutes=15.0)
        for name, arm in arms(scale).items())]  # fmt: skip


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
    means = [mean([math.inf if loss is None else loss for loss in point["val_loss"]]) if point["val_loss"] else math.inf
             for point in grid]  # fmt: skip
    chosen = grid[means.index(min(means))]["point"]
    fresh = sorted((r for r in points[json.dumps([*chosen.values()])] if r.seed not in tuned_on), key=lambda r: r.seed)
    ended = [r for r in fresh if r.state == "finished"]
    columns = [name for name in ended[0].rows[-1] if name in ended[0].config and ended[0].rows[-1][name] is not None]
    curves = [result.curve("val_loss") for result in ended]
    return {
        "axes": list(axes), "grid": grid, "optimum": {name: f"{value:g}" for name, value in chosen.items()},
        "inside": all(inside(grid, chosen, name) for name in axes),
        "seeds": [r.seed for r in ended], "diverged": len(fresh) - len(ended),
        **{kind: [r.final[kind] for r in ended] for kind in ("val_loss", "train_loss", "seconds")},
        "curves": {"step": sorted(curves[0]), "val_loss": [[c[step] for step in sorted(c)] for c in curves]},
        "coefficients": {name: [r.rows[-1][name] for r in ended] for name in columns},
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


def verdict(difference: Paired, corrected: float) -> str:
    if difference.low > -EQUAL and difference.high < EQUAL:
        return f"equal within {EQUAL}"
    if corrected < 0.05:
        return "lower" if difference.difference < 0 else "higher"
    return "undecided"


def show(scale: str, records: dict[str, Record]) -> Sequence[Block]:
    found = {name: records[f"tuned/{name}"] for name in arms(scale) if f"tuned/{name}" in records}
    if not found:
        return [Text("No optimizer is tuned yet.")]
    labels = {name: arm.label for name, arm in arms(scale).items()}
    losses = {name: dict(zip(r["seeds"], r["val_loss"], strict=True)) for name, r in found.items()}
    base = losses.get(BASELINE, {})
    differences = {name: signed_rank(base, its) for name, its in losses.items() if name != BASELINE and base}
    corrected = holm({name: d.p for name, d in differences.items() if d})
    target = median(base.values()) if base else None
    rows = []
    for name, record in sorted(found.items(), key=lambda item: median(item[1]["val_loss"])):
        difference, optimum = differences.get(name), ", ".join(f"{k} {v}" for k, v in record["optimum"].items())
        p = corrected.get(name, math.nan)
        cells = [str(difference), p_text(p), verdict(difference, p)] if difference else [""] * 3
        rows.append([
            labels[name], str(len(record["grid"])), optimum + ("" if record["inside"] else " (at an edge)"),
            f"{median(record['val_loss']):.4f}", f"{max(record['val_loss']):.4f}", *cells,
            f"{median(record['train_loss']):.4f}",
            steps_to(record, target), f"{mean(record['seconds']):.0f}",
        ])  # fmt: skip
    header = ["optimizer", "points tried", "optimum", "median loss", "worst seed's", "minus Adam's", "p, Holm",
              "verdict", "median training loss", "steps to tuned Adam's loss", "seconds"]  # fmt: skip
    about = (
        f"{SIZES[scale]}. Each optimizer has a grid of 3 learning rates times 3 values of one thing more, seeds "
        f"{TUNED_ON} at each. Where the lowest mean loss lies at an end, that end is moved out by the grid's ratio "
        f"until it does not (points tried: all of them). Then {FRESH} fresh seeds at the optimum, the same for all, "
        "paired by seed. MADA's hyper rates are its second axis: they are charged to its budget as beta2 is to Adam's. "
        "A tuned rate lies near the edge at which a model of this size stays on the plateau of single characters "
        "(2.47), and in some seeds it does: so the difference is the median of all pairs' averages, with the interval "
        "and p of Wilcoxon's signed-rank test, chosen when Adam's ten seeds were seen and no other's; Holm's "
        f"correction over all rows. Equal: the 95% interval of the difference lies within {EQUAL} nats, a bound set "
        "before the runs."
    )
    return [Text(about), Table(header, rows), *constants(losses, records), figure(found, labels),
            Text(where_they_end(found, labels))]  # fmt: skip


def constants(losses: Mapping[str, Losses], records: Mapping[str, Record]) -> Sequence[Block]:
    """What learns beside constants near those that it learned, and beside other ways to learn them."""
    rows = []
    seeds = by_seed(records, "tuned/control-")
    for name, its in of_controls(records).items():
        arm, label = CONTROLS[name]
        if difference := signed_rank(its, losses.get(arm, {})):
            beta2 = mean_and_spread([record["final"]["beta2"] for record in seeds[name].values()])
            cells = [str(difference.n), f"{median(its.values()):.4f}", beta2, str(difference)]
            rows.append([ARMS[arm].label, label, *cells])
    words = (
        "Is it the learning, or where it arrives? And is a coefficient led to a better value, or only away from its "
        "start? Runs at the learning rate and on the seeds of the arm that learns, tuned for nothing:"
    )
    header = ["learned", "control", "n", "median loss", "beta2 at the end", "learned minus control"]
    return [Text(words), Table(header, rows)] if rows else []


def steps_to(record: Record, target: float | None) -> str:
    """Until the median validation loss is tuned Adam's final one, linear between validations."""
    if target is None:
        return ""
    medians = [median(losses) for losses in zip(*record["curves"]["val_loss"], strict=True)]
    curve = zip(record["curves"]["step"], medians, strict=True)
    for (before, high), (after, low) in itertools.pairwise(curve):
        if low <= target:
            return f"{before + (high - target) / (high - low) * (after - before):.0f}"
    return "not reached"


def where_they_end(found: Mapping[str, Record], labels: Mapping[str, str]) -> str:
    parts = [f"{labels[name]}: " + ", ".join(f"{k} {mean_and_spread(v)}" for k, v in record["coefficients"].items())
             for name, record in found.items() if "hyper_lr" in record["axes"]]  # fmt: skip
    return "Where learned coefficients end at the optimum: " + "; ".join(parts) + "." if parts else ""


def figure(found: Mapping[str, Record], labels: Mapping[str, str]) -> Figure:
    """The loss against the learning rate, at the best of the other axis."""

    def draw(canvas: Any) -> None:
        axes = canvas.subplots()
        for i, (name, record) in enumerate(found.items()):
            best: dict[float, float] = {}
            for point in record["grid"]:
                rate = point["point"]["learning_rate"]
                if point["val_loss"] and None not in point["val_loss"]:
                    best[rate] = min(mean(point["val_loss"]), best.get(rate, float("inf")))
            at = sorted(best)
            style = {"color": COLORS[i % len(COLORS)], "linestyle": "-" if i < len(COLORS) else "--"}
            axes.plot([rate * (1 if name != "prodigy" else 1e-2) for rate in at], [best[rate] for rate in at], "o",
                      label=labels[name], markersize=3, **style)  # fmt: skip
        axes.set(xscale="log", xlabel="learning rate (Prodigy's divided by 100)", ylabel="validation loss, 2 seeds")
        canvas.legend(loc="outside right upper", frameon=False, fontsize=8)

    return Figure("tuned", "The lowest loss at each learning rate, over the grid's other axis.", draw, (9, 4.5))
