"""Figures 3 and 4: validation and training losses against steps."""

from collections.abc import Sequence
from typing import Any

from study.page import COLORS, Block, Figure
from study.statistics import mean

from . import language
from .experiment import Experiment, Record, Training

KEYS = ("adam", "hyperadam", "mada", "mada_shakespeare", "mada_rho0", "avgrad", "adan", "lion", "mada_poor",
        "adam_poor")  # fmt: skip


def runs(scale: str) -> Sequence[Training]:
    return language.runs(scale, KEYS)


def show(scale: str, records: dict[str, Record]) -> Sequence[Block]:
    return [losses("figure3", records)]


def losses(name: str, records: dict[str, Record]) -> Figure:
    """Both losses of each row against steps, the whole run and its last half."""
    found = language.by_row(records)
    n = {len(seeds) for seeds in found.values()}

    def draw(figure: Any) -> None:
        panels = figure.subplots(2, 2)
        for row, (which, title) in zip(
            panels, {"val_loss": "Validation loss", "train_loss": "Training loss, smoothed"}.items(), strict=True
        ):
            for (key, seeds), color in zip(found.items(), COLORS, strict=False):
                curves = [record["curves"] for record in seeds.values()]
                points = [
                    (step, mean([curve[which][i] for curve in curves]))
                    for i, step in enumerate(curves[0]["step"])
                    if step and all(curve[which][i] is not None for curve in curves)
                ]
                for axes in row:
                    axes.plot(*zip(*points, strict=True), color=color, linewidth=1.3, label=language.ROWS[key].label,
                              marker="o" if which == "val_loss" else None, markersize=3)  # fmt: skip
            row[0].set(title=title, xlabel="step", ylabel="nats per token")
            row[1].set(title="the last half", xlabel="step")
            lines = [line for line in row[1].lines if len(line.get_xdata())]
            end = max(line.get_xdata()[-1] for line in lines)
            points = [point for line in lines for point in zip(line.get_xdata(), line.get_ydata(), strict=True)]
            late = [y for x, y in points if x >= end / 2]
            row[1].set(xlim=(end / 2, end), ylim=(min(late) - 0.01, max(late) + 0.01))
        handles, labels = panels[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)

    seeds = " to ".join(str(k) for k in sorted({min(n), max(n)}))
    return Figure(name, f"Losses, means over n = {seeds} seeds. {language.about(records)}", draw, (9, 6.5))


EXPERIMENT = Experiment(
    "figure3", "Figures 3 and 4: losses against steps",
    "Does MADA reach a given loss earlier than the fixed optimizers?", runs, show,
)  # fmt: skip
