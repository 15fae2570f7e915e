"""Figures 5 to 7 at larger batches

Is it the size of the batch that decides where the coefficients go?

At three batch sizes, beside the authors' coefficients.
"""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

from runtime.figure import COEFFICIENTS, SYMBOLS
from study.page import Block, Figure, Table, Text
from study.statistics import mean

from . import language
from .experiment import PAPER, Record, Training, by_seed
from .figure5 import TITLES

SCALES = ("laptop",)
IN_ALL = False

STARTS = ("mada_rho0", "mada_poor", "mada")  # of figures 5, 6, 7
BATCHES = {12: (0.5, (1, 2, 3)), 48: (1.0, (1, 2, 3)), 256: (4.0, (1, 2, 3))}  # sequences: minutes a run, seeds
AUTHORS: dict[str, Any] = PAPER["coefficients"]  # released with their code: values at `steps` of 100,000
STEPS = (100, 300, 500)
FRACTIONS = (0.01, 0.1, 0.5, 1.0)
DIGITS = {"beta1": 4, "beta2": 5, "beta3": 3, "rho": 3, "c": 4, "gamma": 3}  # shown after the point
STILL = 1e-5  # a change of the authors' below this is none
NEAR = 0.01  # ... and agrees with less than this; the six coefficients lie in [0, 1]
COLORS = {12: "#E69F00", 48: "#009E73", 256: "#0072B2"}

Curves = Mapping[str, Sequence[float]]  # "step", and the coefficients at those steps
Found = Mapping[str, Mapping[int, Sequence[Curves]]]  # by start and batch, one for each seed


class Outcome(NamedTuple):
    """How a coefficient's change at a batch compares with the authors' at the last point of a table."""

    start: str
    name: str
    same: int  # seeds that agree
    n: int
    ratio: float | None  # of our mean change to theirs; None where theirs stays


def is_free(outcome: Outcome) -> bool:
    """Whether the coefficient starts inside its box: one that starts at an end can only stay or leave it."""
    return 0 < AUTHORS[outcome.start][outcome.name][0] < 1


Outcomes = dict[int, list[Outcome]]  # by batch


def runs(scale: str) -> Sequence[Training]:
    """All batches take the same number of steps at the same learning rate; only what a gradient averages differs."""
    return [
        Training(f"regime/{start}-{batch}-{seed}", scale,
                 (f"config/{language.ROWS[start].config}.py", "config/tiny.py"),
                 {"seed": seed, "batch_size": batch}, minutes=minutes)
        for batch, (minutes, seeds) in BATCHES.items()
        for seed in seeds
        for start in STARTS
    ]  # fmt: skip


def change(curves: Curves, name: str, step: float) -> float:
    """From the start to the last value at or before `step`."""
    reached = [value for at, value in zip(curves["step"], curves[name], strict=True) if at <= step]
    return reached[-1] - reached[0]


def agrees(authors: float, ours: float) -> bool:
    """The same sign; where the authors' coefficient stays, ours moves by less than NEAR."""
    return ours * authors > 0 if abs(authors) >= STILL else abs(ours) < NEAR


def compare(found: Found, points: Sequence[tuple[float, float]]) -> tuple[list[list[str]], Outcomes]:
    """Rows of a table of changes at `points`, [(our step, the authors')], and the outcomes at the last of them."""
    rows: list[list[str]] = []
    outcomes: Outcomes = {}
    for start, batches in found.items():
        for name in COEFFICIENTS:
            theirs = [change(authors(start), name, there) for _, there in points]
            row = [f"{TITLES[start]}: {name}", changes(theirs, name)]
            for batch in BATCHES:
                ours = [[change(curves, name, here) for here, _ in points] for curves in batches.get(batch, ())]
                if not ours:
                    row.append("")
                    continue
                same = sum(agrees(theirs[-1], of_a_seed[-1]) for of_a_seed in ours)
                means = [mean(values) for values in zip(*ours, strict=True)]
                ratio = means[-1] / theirs[-1] if abs(theirs[-1]) >= STILL else None
                outcomes.setdefault(batch, []).append(Outcome(start, name, same, len(ours), ratio))
                row.append(f"{changes(means, name)} ({same} of {len(ours)})")
            rows.append(row)
    return rows, outcomes


def verdict(outcomes: Outcomes) -> str:
    """How many agree in every seed, in the median by how much, and which do not."""
    parts = []
    for batch, each in sorted(outcomes.items()):
        seeds = " to ".join(str(n) for n in sorted({min(o.n for o in each), max(o.n for o in each)}))
        ratios = [o.ratio for o in each if o.ratio is not None]
        size = f", median of ours / theirs {median(ratios):.2g}" if ratios else ""
        wrong: dict[str, list[str]] = {}
        for o in each:
            if o.same < o.n:
                wrong.setdefault(TITLES[o.start].partition(":")[0].lower(), []).append(o.name)
        missing = "; ".join(f"{figure} {', '.join(names)}" for figure, names in wrong.items()) or "none"
        parts.append(f"at {batch} sequences {sum(o.same == o.n for o in each)} of {len(each)} (n = {seeds}{size}; "
                     f"not: {missing})")  # fmt: skip
    return ", ".join(parts)


def authors(start: str) -> Curves:
    return {"step": AUTHORS["steps"], **AUTHORS[start]}


def changes(values: Sequence[float], name: str) -> str:
    """Such as "+0.0003, +0.0041, +0.0121"; 0 for no change at all."""
    return ", ".join(f"{value:+.{DIGITS[name]}f}" if abs(value) > 1e-9 else "0" for value in values)


def by_start(records: Mapping[str, Record]) -> Found:
    seeds = by_seed(records, "regime/")
    curves = {key: [record["curves"] for record in of_a_batch.values()] for key, of_a_batch in seeds.items()}
    return {start: {batch: curves[key] for batch in BATCHES if (key := f"{start}-{batch}") in curves}
            for start in STARTS if any(key.startswith(f"{start}-") for key in curves)}  # fmt: skip


def fractions(records: Mapping[str, Record]) -> list[tuple[float, float]]:
    """(our step, the authors') at FRACTIONS of a run."""
    steps, total = next(iter(records.values()))["config"]["max_iters"], AUTHORS["steps"][-1]
    return [(part * steps, part * total) for part in FRACTIONS]


def show(scale: str, records: dict[str, Record]) -> Sequence[Block]:
    found = by_start(records)
    learned = next(iter(records.values()))
    config, parameters = learned["config"], learned["parameters"]
    steps, total, still = config["max_iters"], AUTHORS["steps"][-1], config["hyper_start"]
    by_step, same_at_step = compare(found, [(step, step) for step in STEPS])
    by_fraction, same_at_end = compare(found, fractions(records))
    header = ["change of", "authors", *(f"{batch} sequences" for batch in BATCHES)]
    return [
        Text(
            f"{parameters:,} parameters, {config['dataset']}, {config['block_size']} tokens a sequence, {steps:,} "
            f"steps. The authors' runs: 124M parameters, OpenWebText, 480 sequences of 1,024 tokens a step, {total:,} "
            f"steps, one seed. Source of their numbers: {AUTHORS['source']}."
        ),
        Text(
            f"What a short run can show: coefficients stand still until step {still} (`hyper_start`), "
            f"{still / total:.2%} of the authors' run and {still / steps:.0%} of ours, so that ours are at their start "
            f"at 1% and at 10%. A hyper rate acts per step: {steps - still} steps here, {total - still:,} there, each "
            "of hyper rate x hypergradient, which is itself proportional to the learning rate. Ours is at its peak "
            f"({config['learning_rate']:g}) from step {config['warmup_iters']} on and then falls; theirs is in its "
            "warm-up (6e-4 at step 2,000) for all the steps of the first table. The learning rate is the same for all "
            "our batches, so that they differ in nothing else; Adam's best at 256 sequences is four to eight times it, "
            "and losses are compared there (large_batch)."
        ),
        Text(
            f"Coefficients (six a start) whose change has the authors' sign in every seed. At step {STEPS[-1]}: "
            f"{verdict(same_at_step)}. At the end of the run: {verdict(same_at_end)}. Where the authors' coefficient "
            f"stays (a change below {STILL:g}), ours agrees if it changes by less than {NEAR:g}."
        ),
        Text(
            f"Changes at steps {', '.join(str(step) for step in STEPS)}, ours and the authors', means over seeds; in "
            "brackets, in how many seeds the last one agrees:"
        ),
        Table(header, by_step),
        Text(f"At {', '.join(f'{part:.0%}' for part in FRACTIONS)} of the run, of {steps:,} steps and of {total:,}:"),
        Table(header, by_fraction),
        figure(found, steps),
    ]


def figure(found: Found, steps: int) -> Figure:
    """A row of panels for each start, a column for each coefficient but gamma, which the authors' first steps keep."""
    names = [name for name in COEFFICIENTS if name != "gamma"]

    def draw(canvas: Any) -> None:
        panels = canvas.subplots(len(found), len(names), sharex=True, squeeze=False)
        for row, (start, batches) in zip(panels, found.items(), strict=True):
            row[0].set_ylabel(TITLES[start].replace(": ", "\n"))
            for axes, name in zip(row, names, strict=True):
                for batch, of_a_batch in batches.items():
                    for curves in of_a_batch:
                        axes.plot(curves["step"], curves[name], color=COLORS[batch], linewidth=1.1, alpha=0.8)
                early = [(s, v) for s, v in zip(AUTHORS["steps"], AUTHORS[start][name], strict=True) if s <= steps]
                axes.plot(*zip(*early, strict=True), "o-", color="black", markersize=3)
                axes.ticklabel_format(useOffset=False)
                axes.locator_params(nbins=4)
        for axes, name in zip(panels[0], names, strict=True):
            axes.set_title(SYMBOLS[name])
        for axes in panels[-1]:
            axes.set_xlabel("step")
        for batch, color in COLORS.items():
            panels[0, 0].plot([], [], color=color, label=f"{batch} sequences")
        panels[0, 0].plot([], [], "o-", color="black", markersize=3, label="authors, 480 longer sequences")
        canvas.legend(loc="outside lower center", ncols=4, frameon=False)

    caption = f"Coefficients against steps, one line a seed; the authors' first {steps} steps in black."
    return Figure("regime", caption, draw, (9.5, 0.6 + 1.7 * len(found)))
