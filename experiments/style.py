"""How the figures of several runs look; runtime/figure.py says the rest."""

from __future__ import annotations

from typing import Any

# Okabe and Ito's colours and two more, for runs.
COLORS = ("#000000", "#0072B2", "#009E73", "#D55E00", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#999999", "#882255")


def axes_of(axes: Any, title: str, xlabel: str, ylabel: str = "") -> None:
    axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
