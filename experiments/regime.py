"""Figures 5 to 7 at three batch sizes, beside the authors' coefficients: is it the batch that decides their signs?"""

from collections.abc import Mapping, Sequence
from typing import Any

from runtime.figure import COEFFICIENTS, SYMBOLS
from study.page import Block, Figure, Table, Text
from study.statistics import mean

from . import language
from .experiment import PAPER, Experiment, Record, Training, by_seed
from .figure5 import TITLES

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


def runs(scale: str) -> Sequence[Training]:
    """All batches take the same number of steps at the same learning rate; only what a gradient averages differs."""
    if scale != "laptop":
        return ()
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


class View:
    """The changes of all runs and of the authors' at some points, and which of the last ones agree.

    points: [(step of ours, step of the authors')]
    """

    def __init__(self, found: Mapping[str, Mapping[int, Record]], points: Sequence[tuple[float, float]]) -> None:
        self.rows: list[list[str]] = []
        self.same: dict[int, list[int]] = {batch: [] for batch in BATCHES}  # by coefficient: seeds that agree
        self.of: dict[int, list[int]] = {batch: [] for batch in BATCHES}  # ... of how many
        for start in STARTS:
            if any(f"{start}-{batch}" in found for batch in BATCHES):
                for name in COEFFICIENTS:
                    self.add(start, name, found, points)

    def add(self, start: str, name: str, found: Mapping[str, Mapping[int, Record]],
            points: Sequence[tuple[float, float]]) -> None:  # fmt: skip
        theirs = [change(authors(start), name, step) for _, step in points]
        row = [f"{TITLES[start]}: {name}", changes(theirs, name)]
        for batch in BATCHES:
            curves = [record["curves"] for record in found.get(f"{start}-{batch}", {}).values()]
            if not curves:
                row.append("")
                continue
            ours = [[change(curve, name, step) for step, _ in points] for curve in curves]
            same = sum(agrees(theirs[-1], one[-1]) for one in ours)
            self.same[batch].append(same)
            self.of[batch].append(len(ours))
            means = [mean(values) for values in zip(*ours, strict=True)]
            row.append(f"{changes(means, name)} ({same} of {len(ours)})")
        self.rows.append(row)

    def verdict(self) -> str:
        """Such as "3 of 18 at a batch of 12, 9 of 18 at 48"."""
        parts = []
        for batch, same in self.same.items():
            whole = sum(n == of for n, of in zip(same, self.of[batch], strict=True))
            if same:
                parts.append(f"{whole} of {len(same)} at {batch} (n = {min(self.of[batch])} to {max(self.of[batch])})")
        return ", ".join(parts)

    def table(self, point: str) -> Table:
        return Table([f"change at {point}", "authors", *(f"{batch} sequences" for batch in BATCHES)], self.rows)


def authors(start: str) -> Curves:
    return {"step": AUTHORS["steps"], **AUTHORS[start]}


def changes(values: Sequence[float], name: str) -> str:
    """Such as "+0.0003, +0.0041, +0.0121"; 0 for no change at all."""
    return ", ".join(f"{value:+.{DIGITS[name]}f}" if abs(value) > 1e-9 else "0" for value in values)


def show(scale: str, records: dict[str, Record]) -> Sequence[Block]:
    found = by_seed(records, "regime/")
    config, parameters = (next(iter(records.values()))[key] for key in ("config", "parameters"))
    steps, total, still = config["max_iters"], AUTHORS["steps"][-1], config["hyper_start"]
    by_step = View(found, [(step, step) for step in STEPS])
    by_fraction = View(found, [(part * steps, part * total) for part in FRACTIONS])
    parts = ", ".join(f"{part:.0%}" for part in FRACTIONS)
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
            "our batches."
        ),
        Text(
            "Coefficients (six for each start) whose change at the last point has the authors' sign in every seed: "
            f"at the same step, {by_step.verdict()}; at the end of the run, {by_fraction.verdict()}. "
            f"Where the authors' stays (a change below {STILL:g}), ours agrees if it changes by less than {NEAR:g}."
        ),
        Text(
            f"The same steps ({', '.join(str(step) for step in STEPS)}), means over seeds; in brackets, in how many "
            "seeds the last one agrees:"
        ),
        by_step.table(f"steps {', '.join(str(step) for step in STEPS)}"),
        Text(f"The same fractions of the run ({parts}):"),
        by_fraction.table(parts),
        figure(found, steps),
    ]


def figure(found: Mapping[str, Mapping[int, Record]], steps: int) -> Figure:
    """A row of panels for each start, a column for each coefficient but gamma, which stays at 1 for the authors."""
    names = [name for name in COEFFICIENTS if name != "gamma"]

    def draw(canvas: Any) -> None:
        panels = canvas.subplots(len(STARTS), len(names), sharex=True)
        for row, start in zip(panels, STARTS, strict=True):
            row[0].set_ylabel(TITLES[start].replace(": ", "\n"))
            for axes, name in zip(row, names, strict=True):
                for batch, color in COLORS.items():
                    for i, record in enumerate(found.get(f"{start}-{batch}", {}).values()):
                        curve = record["curves"]
                        axes.plot(curve["step"], curve[name], color=color, linewidth=1.1, alpha=0.8,
                                  label=None if i else f"{batch} sequences")  # fmt: skip
                early = [(s, v) for s, v in zip(AUTHORS["steps"], AUTHORS[start][name], strict=True) if s <= steps]
                axes.plot(*zip(*early, strict=True), "o-", color="black", markersize=3, label="authors")
        for axes, name in zip(panels[0], names, strict=True):
            axes.set_title(SYMBOLS[name])
        for axes in panels[-1]:
            axes.set_xlabel("step")
        handles = {label: line for axes in panels.flat for line, label in zip(*axes.get_legend_handles_labels(),
                                                                               strict=True)}  # fmt: skip
        canvas.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False)

    caption = f"Coefficients against steps, one line a seed; the authors' first {steps} steps in black."
    return Figure("regime", caption, draw, (12, 7))


EXPERIMENT = Experiment(
    "regime", "Figures 5 to 7 at larger batches",
    "Is it the size of the batch that decides where the coefficients go?", runs, show,
)  # fmt: skip
