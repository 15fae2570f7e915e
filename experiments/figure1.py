"""Figures 1 and 2: the bound of theorem 1

Which interpolation of AVGrad (rho = 0) and Adam (rho = 1) has the smallest bound on the squared gradient norm?

For beta2 = 0.9, against rho, with T = 10,000 (figure 1) and T = 1,000 (figure 2).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from study.page import COLORS, Block, Figure, Table, Text

from .experiment import Computation, Record

SCALES = ("laptop",)
EXACT = True

BETA2 = 0.9
CASES = {"Figure 1": 10_000, "Figure 2": 1_000}


def bound(rho: np.ndarray, beta2: float, T: int, C: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> np.ndarray:
    """Right side of (6). The paper leaves its constants C1, C2, C3 open; they are 1 here."""
    E = np.sqrt(rho + (1 - rho) * T) / np.sqrt(1 - beta2)
    return E * (C[0] / T + C[1] * np.log(E) / T + C[2] * np.maximum(np.log(np.maximum(rho, 1e-300) / beta2), 0))


def compute(settings: Mapping[str, Any]) -> Record:
    """{"cases": {figure: {"rho": [...], "bound": [...], "best": rho, "others": [best rho for other constants]}}}"""
    rho = np.linspace(0, 1, settings["points"])
    cases = {}
    for name, T in settings["cases"].items():
        value = bound(rho, settings["beta2"], T)
        shown = np.linspace(0, len(rho) - 1, 201).astype(int)
        best = {
            f"C1, C2, C3 = {', '.join(f'{c:g}' for c in C)}": float(rho[bound(rho, settings["beta2"], T, C).argmin()])
            for C in [(1, 1, 1), *((10.0**a, 10.0**b, 1) for a in (-1, 1) for b in (-1, 1))]
        }
        cases[name] = {
            "T": T, "rho": rho[shown].tolist(), "bound": value[shown].tolist(), "least": float(value.min()),
            "at": {f"{r:g}": float(bound(np.array([r]), settings["beta2"], T)[0]) for r in (0.0, 1.0)}, "best": best,
        }  # fmt: skip
    return {"cases": cases}


def runs(scale: str) -> Sequence[Computation]:
    settings = {"beta2": BETA2, "cases": CASES, "points": 100_001}
    return [Computation("figure1", scale, compute, settings, minutes=0.1)]


def show(scale: str, records: dict[str, Record]) -> Sequence[Block]:
    cases = records["figure1"]["cases"]

    def draw(figure: Any) -> None:
        for axes, (name, case) in zip(figure.subplots(1, len(cases)), cases.items(), strict=True):
            axes.plot(case["rho"], case["bound"], color=COLORS[1])
            axes.axvline(BETA2, color="0.6", linestyle=":", linewidth=1)
            axes.text(BETA2 - 0.015, max(case["bound"]), r"$\rho=\beta_2$", ha="right", va="top", color="0.4")
            axes.set(title=f"{name}: T = {case['T']:,}", xlabel=r"$\rho$", ylabel="right side of (6)")

    header = ["figure", "smallest at rho =", "its value", "at rho = 0 (AVGrad)", "at rho = 1 (Adam)", "the paper says"]
    says = {"Figure 1": "least at rho = beta2; T favours AVGrad", "Figure 2": "least at rho = beta2; T favours Adam"}
    rows = [
        [name, f"{case['best']['C1, C2, C3 = 1, 1, 1']:.3f}", f"{case['least']:.4f}", f"{case['at']['0']:.4f}",
         f"{case['at']['1']:.4f}", says[name]]
        for name, case in cases.items()
    ]  # fmt: skip
    others = [
        f"{name}, {constants}: smallest at rho = {best:.3f}"
        for name, case in cases.items()
        for constants, best in case["best"].items()
        if constants != "C1, C2, C3 = 1, 1, 1"
    ]
    return [
        Figure("figure1", "The bound of theorem 1 against rho, beta2 = 0.9.", draw, (8, 3.2)),
        Table(header, rows),
        Text("The paper does not give C1, C2, C3; the figures take 1 for each. Others: " + "; ".join(others) + "."),
    ]
