"""Figures 5 to 7: the coefficients

Where do the coefficients go, from three starting points?
"""

from collections.abc import Sequence
from typing import Any

from runtime.figure import COEFFICIENTS, SYMBOLS, stretch
from study.page import Block, Figure, Table, Text
from study.statistics import mean_and_spread

from . import language
from .experiment import PAPER, Record, Training

TITLES = {
    "mada_rho0": "Figure 5: from (0.9, 0.95, 0)",
    "mada_poor": "Figure 6: from (0.7, 0.8, 0)",
    "mada": "Figure 7: from (0.9, 0.95, 0.9)",
    "mada_shakespeare": "From Adam, Shakespeare setting",
}
AUTHORS: dict[str, Any] = PAPER["coefficients"]
CAPTION = (
    "Coefficients against steps, one line a seed, on a scale that is stretched near 0 and 1. Dots: the authors' run at "
    "the same steps, where their learning rate is still in its warm-up."
)
SAYS = {
    "mada_rho0": "beta1 rises, then falls; rho up, to 0, up again",
    "mada_poor": "larger moves than in figure 5; beta1 rises, then falls",
    "mada": "beta1 to 0.99 and stays; beta3 falls slowly",
    "mada_shakespeare": "not in the paper",
}


def runs(scale: str) -> Sequence[Training]:
    return language.runs(scale, tuple(TITLES))


def show(scale: str, records: dict[str, Record]) -> Sequence[Block]:
    found = {key: seeds for key in TITLES if (seeds := language.by_row(records).get(key))}

    def draw(figure: Any) -> None:
        panels = figure.subplots(-(-len(found) // 2), 2, sharey=True, squeeze=False).flat
        for empty in panels[len(found) :]:
            empty.set_axis_off()
        for axes, (key, seeds) in zip(panels, found.items(), strict=False):
            for record in seeds.values():
                for i, (name, color) in enumerate(COEFFICIENTS.items()):  # ever thinner: equal ones show beneath
                    label = SYMBOLS[name] if record is next(iter(seeds.values())) else None
                    curve = record["curves"]
                    axes.plot(curve["step"], curve[name], color=color, linewidth=2.6 - 0.3 * i, label=label, alpha=0.8)
            if authors := AUTHORS.get(key):
                last = max(next(iter(seeds.values()))["curves"]["step"])
                early = [i for i, step in enumerate(AUTHORS["steps"]) if step <= last]
                for name, color in COEFFICIENTS.items():
                    axes.plot([AUTHORS["steps"][i] for i in early], [authors[name][i] for i in early], "o",
                              color=color, markeredgecolor="black", markersize=4, clip_on=False)  # fmt: skip
            stretch(axes)
            axes.set(title=TITLES[key], xlabel="step")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=6, frameon=False)

    rows = []
    for key, seeds in found.items():
        curves = [record["curves"] for record in seeds.values()]
        moved = [f"{curves[0][name][0]:.3g} to {mean_and_spread([curve[name][-1] for curve in curves], 3)}"
                 for name in COEFFICIENTS]  # fmt: skip
        rows.append([TITLES[key], str(len(seeds)), *moved, SAYS[key]])
    return [
        Figure("figure5", CAPTION, draw, (10, 0.6 + 3.4 * -(-len(found) // 2))),
        Text(f"{language.about(records)} Each cell: start to end, mean and standard deviation over seeds."),
        Table(["run", "n", *COEFFICIENTS, "the paper says"], rows),
    ]
