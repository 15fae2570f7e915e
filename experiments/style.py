"""How the figures look: one set of colours, few lines, words at the axes."""

from __future__ import annotations

from typing import Any

# Okabe and Ito's colours, told apart by every eye.
COLORS = ("#000000", "#0072B2", "#009E73", "#D55E00", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#999999", "#882255")
# A coefficient has its colour in all figures of the project, plot.py's too.
COEFFICIENTS = {
    "beta1": "#0072B2",
    "beta2": "#E69F00",
    "beta3": "#009E73",
    "rho": "#CC79A7",
    "c": "#56B4E9",
    "gamma": "#D55E00",
}
SYMBOLS = {"beta1": "β₁", "beta2": "β₂", "beta3": "β₃", "rho": "ρ", "c": "c", "gamma": "γ"}

RC: dict[str, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
}


def axes_of(axes: Any, title: str, xlabel: str, ylabel: str = "") -> None:
    axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
