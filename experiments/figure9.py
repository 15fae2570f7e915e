"""Figure 9: a convex problem on which Adam fails

Started at Adam, does MADA find the optimizer that reaches the optimum, and what does the order of its two updates have
to do with it?
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from study.page import COLORS, Block, Figure, Table, Text

from .convex import UNROLLED, Runner, simulate
from .experiment import Computation, Record

SCALES = ("laptop",)
EXACT = True

FIXED = {"beta1": 0.9, "beta2": 0.99}
LEARNED = {"beta3": 0.1, "rho": 0.1, "c": 0.1}  # beta1, beta2 and gamma rest, as in the authors' released code
RUNNERS = {
    "Adam": Runner("adam", FIXED),
    "AMSGrad": Runner("amsgrad", FIXED),
    "AVGrad": Runner("avgrad", FIXED),
    "MADA from Adam": Runner("mada", FIXED, LEARNED),
    "MADA, weights first": Runner("mada", FIXED, LEARNED, "weights_first"),
    "MADA, rho alone": Runner("mada", FIXED, {"rho": 0.1}),
}
SAYS = {
    "Adam": "does not reach -1",
    "AMSGrad": "reaches -1",
    "AVGrad": "reaches -1",
    "MADA from Adam": "rho to 0, x to -1",
}


def marks(steps: int) -> list[int]:
    """Where to look: 100 steps at equal ratios and 150 at equal distances, at the same place in the period of 101."""
    whole = 101 * UNROLLED
    chosen = [10 ** (3 + i / 100 * (math.log10(steps) - 3)) for i in range(100)] + [steps * i / 150 for i in range(150)]
    return sorted({whole * round(step / whole) for step in chosen if step >= whole} | {1000, steps})


def compute(settings: Mapping[str, Any]) -> Record:
    """{"runs": {name: {"step": [...], "x": [...], "regret": [...], coefficient: [...]}}}"""
    curves: dict[str, dict[str, list[float]]] = {}
    for rule in dict.fromkeys(run.rule for run in RUNNERS.values()):
        names = [name for name, run in RUNNERS.items() if run.rule == rule]
        tables = simulate([RUNNERS[name] for name in names], marks(settings["steps"]))
        for name, rows in zip(names, tables, strict=True):
            curves[name] = {key: [row[key] for row in rows] for key in rows[0]}
    return {"runs": curves}


def runs(scale: str) -> Sequence[Computation]:
    setup = {name: dataclasses.asdict(run) for name, run in RUNNERS.items()}
    return [Computation("figure9", scale, compute, {"steps": 2_000_000, "runs": setup}, minutes=6)]


def show(scale: str, records: dict[str, Record]) -> Sequence[Block]:
    curves = records["figure9"]["runs"]
    rows = []
    steps = next(iter(curves.values()))["step"]  # the same for all
    early, middle = steps.index(1000), next(i for i, step in enumerate(steps) if step >= 100_000)
    for name, curve in curves.items():
        rho = [f"{curve['rho'][i]:.4f}" for i in (early, middle, -1)] if "rho" in curve else [""] * 3
        beta3 = f"{curve['beta3'][-1]:.2f}" if "beta3" in curve else ""
        moved = curve["x"][-2] - curve["x"][-15]  # both at the same place in the period of 101 steps
        direction = "at rest" if abs(moved) < 1e-3 else "rising" if moved > 0 else "falling"
        rows.append(
            [name, *rho, beta3, f"{max(curve['x']):+.3f}", f"{curve['x'][-1]:+.4f}", direction,
             f"{curve['regret'][-1]:.3f}", SAYS.get(name, "not in the paper")]
        )  # fmt: skip
    header = ["run", "rho at 1,000", f"at {steps[middle]:,}", "at the end", "beta3 at the end", "largest x", "last x",
              "x is", "average regret", "the paper says"]  # fmt: skip

    def draw(figure: Any) -> None:
        panels = figure.subplots(1, 3)
        titles = {"regret": "Average regret", "x": "$x_t$ (the best is -1)", "rho": r"$\rho_t$"}
        for axes, (key, title) in zip(panels, titles.items(), strict=True):
            for (name, curve), color in zip(curves.items(), COLORS, strict=False):
                if key in curve:
                    dash = "-" if name in SAYS else "--"
                    axes.plot(curve["step"], curve[key], dash, color=color, label=name, linewidth=1.6)
            axes.set(title=title, xlabel="step", xscale="log")
        panels[0].axhline(0, color="0.8", linewidth=0.8)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)

    return [
        Text("2,000,000 steps from x = 0, constant rate 1e-3, beta1 = 0.9, beta2 = 0.99; MADA learns beta3, rho and c "
             "with rate 0.1 and momentum 0.9. Coefficients first is this project's default and the authors' code; "
             "weights first is algorithm 1 as the paper prints it."),
        Figure("figure9", "Average regret, x and rho. Dashed: runs that the paper does not have.", draw, (10, 4)),
        Table(header, rows),
    ]  # fmt: skip
