"""Figures 3 and 4: losses against steps

Does MADA reach a given loss earlier than the fixed optimizers?
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from study.page import COLORS, Block, Figure

from . import language
from .experiment import Record, Training

KEYS = ("adam", "hyperadam", "mada", "mada_shakespeare", "mada_rho0", "avgrad", "adan", "lion", "mada_poor",
        "adam_poor")  # fmt: skip


def runs(scale: str) -> Sequence[Training]:
    return language.runs(scale, KEYS)


def show(scale: str, records: dict[str, Record]) -> Sequence[Block]:
    return [losses("figure3", records)]


def losses(name: str, records: dict[str, Record]) -> Figure:
    """Losses minus Adam's of the same seed against steps, bands over the seeds; Adam's own above."""
    found = language.by_row(records)
    n = {len(seeds) for seeds in found.values()}
    kinds = {"val_loss": "Validation loss", "train_loss": "Training loss, smoothed"}

    def draw(figure: Any) -> None:
        panels = figure.subplots(2, 2, sharex=True, height_ratios=(1, 2.2))
        adam = found.get("adam", {})
        for column, (which, title) in zip(panels.T, kinds.items(), strict=True):
            for record in adam.values():
                steps, values = curve(record, which)
                column[0].plot(steps, values, color=COLORS[0], linewidth=1)
            column[0].set(title=f"{title}: Adam's")
            column[1].axhline(0, color=COLORS[0], linewidth=1)
            column[1].set(title=f"{title}, minus Adam's", xlabel="step")
            for (key, seeds), color in zip(found.items(), COLORS, strict=False):
                both = sorted(seeds.keys() & adam.keys())
                if key == "adam" or not both:
                    continue
                steps, _ = curve(seeds[both[0]], which)
                differences = np.array([curve(seeds[s], which)[1] - curve(adam[s], which)[1] for s in both])
                column[1].plot(steps, differences.mean(0), color=color, label=language.ROWS[key].label)
                column[1].fill_between(steps, differences.min(0), differences.max(0), color=color, alpha=0.2)
            column[1].set_yscale("symlog", linthresh=0.05)
            column[1].yaxis.set_major_formatter("{x:+g}")
        panels[0, 0].set_ylabel("nats per token")
        panels[1, 0].set_ylabel("difference, nats per token")
        handles, labels = panels[1, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)

    seeds = " to ".join(str(k) for k in sorted({min(n), max(n)}))
    caption = (
        f"Lines: means over n = {seeds} seeds of the difference from Adam with the same seed; bands: least to largest. "
        f"Linear within 0.05 of 0, logarithmic beyond. {language.about(records)}"
    )
    return Figure(name, caption, draw, (9, 6.5))


def curve(record: Record, which: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values where it was measured, after the first step."""
    curves = record["curves"]
    points = [(step, value) for step, value in zip(curves["step"], curves[which], strict=True)
              if step and value is not None]  # fmt: skip
    steps, values = zip(*points, strict=True)
    return np.array(steps), np.array(values)
