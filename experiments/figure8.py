"""Figure 8: robustness to the initial coefficients

Is MADA's final training loss flatter over the initial (beta1, beta2) than Adam's and HyperAdam's?

The final training loss over a grid of initial (beta1, beta2), for Adam, HyperAdam and MADA.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from study.page import Block, Figure, Table, Text

from .experiment import PAPER, Record, Training
from .training_loss import WINDOWS

WITH_DIVERGED = True

CONFIGS = {"Adam": "shakespeare_char_adam", "HyperAdam": "shakespeare_char_hyperadam", "MADA": "shakespeare_char"}
# beta2 starts at 0.501, where MADA's box begins; the paper's grid starts at 0.5.
GRIDS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "laptop": ((0.01, 0.5, 0.9, 0.99), (0.501, 0.75, 0.99)),
    "gpu": ((0.01, 0.875, 0.99), (0.501, 0.99)),
    "paper": (
        (*(round(0.01 + 0.05 * i, 2) for i in range(20)), 0.99),
        (0.501, *(round(0.55 + 0.05 * i, 2) for i in range(9)), 0.99),
    ),
}
OVERLAY: dict[str, tuple[str, ...]] = {"laptop": ("config/tiny.py",), "gpu": (), "paper": ()}  # gpu: a coarser grid
MINUTES = {"laptop": 0.5, "gpu": 2.0, "paper": 4.0}
NEAR = 1.05  # robust: within 5% of the best
FAR = 1.12  # losses beyond this multiple of the best count as that: one that diverged says nothing about its neighbours
CAPTION = (
    "Final losses over the initial coefficients, a cell for each run: training above, validation below. Colour: "
    f"training loss, cut at {FAR:g} times the best."
)


def name_of(optimizer: str, beta1: float, beta2: float) -> str:
    return f"grid/{optimizer.lower()}-{beta1:g}-{beta2:g}"


def runs(scale: str) -> Sequence[Training]:
    found = []
    for beta1 in GRIDS[scale][0]:
        for beta2 in GRIDS[scale][1]:
            for optimizer, config in CONFIGS.items():
                settings = {"beta1": beta1, "beta2": beta2, "seed": 1}
                configs = (f"config/{config}.py", *OVERLAY[scale])
                name = name_of(optimizer, beta1, beta2)
                found.append(Training(
                    name, scale, configs, settings, minutes=MINUTES[scale], curves=False, on_train=True
                ))
    return found


def losses(scale: str, records: dict[str, Record], kind: str = "loss_on_train") -> dict[str, np.ndarray]:
    """{optimizer: (beta2, beta1) final losses}, NaN where there is no record, infinite where it diverged."""
    beta1s, beta2s = GRIDS[scale]

    def loss(name: str) -> float:
        final = records[name]["final"] if name in records else {kind: np.nan}
        return final.get(kind, np.inf)

    return {o: np.array([[loss(name_of(o, b1, b2)) for b1 in beta1s] for b2 in beta2s]) for o in CONFIGS}


def area_near(grid: np.ndarray, beta1s: Sequence[float], beta2s: Sequence[float], limit: float) -> float:
    """Fraction of the rectangle on which the loss, interpolated linearly along both axes, is at most `limit`."""
    fine1, fine2 = np.linspace(beta1s[0], beta1s[-1], 401), np.linspace(beta2s[0], beta2s[-1], 401)
    along1 = np.array([np.interp(fine1, beta1s, row) for row in grid])  # (beta2, 401)
    fine = np.array([np.interp(fine2, beta2s, column) for column in along1.T])  # (401, 401)
    return float((fine <= limit).mean())


def show(scale: str, records: dict[str, Record]) -> Sequence[Block]:
    beta1s, beta2s = GRIDS[scale]
    grids = losses(scale, records)
    first = next(iter(records.values()))
    config = first["config"]
    about = (
        f"One seed, {first['parameters']:,} parameters, {config['max_iters']:,} steps. The loss is that of the last "
        f"checkpoint over {WINDOWS}, dropout off; the paper's over 200 batches at random."
    )
    if any(np.isnan(grid).any() for grid in grids.values()):
        return incomplete(scale, records, about)
    note = Text(
        f"{about} For the share of the area, losses above {FAR:g} times the best of all are cut to that and all are "
        f"interpolated linearly between the runs; a run that diverged counts as one of those. These two constants "
        f"({NEAR:g} and {FAR:g}) decide the order of the shares."
    )
    header = ["optimizer", "initial beta1", *(f"beta2 = {beta2:g}" for beta2 in beta2s)]
    table = Table(header, [[optimizer, f"{beta1:g}", *map(cell, grid[:, i])]
                           for optimizer, grid in grids.items() for i, beta1 in enumerate(beta1s)])  # fmt: skip
    best = min(grid.min() for grid in grids.values())
    if np.isinf(best):
        return [note, table]
    robust = []
    for optimizer, grid in grids.items():
        area = area_near(np.minimum(grid, FAR * best), beta1s, beta2s, NEAR * best)
        near = f"{(grid <= NEAR * best).sum()} of {grid.size}"
        says = PAPER["figure8"].get(optimizer, "not given")
        robust.append([optimizer, *map(cell, (grid.min(), np.median(grid), grid.max())), near, f"{area:.0%}", says])
    header = ["optimizer", "lowest loss", "median", "highest", "runs within 5% of the best", "share of the area",
              "paper, highest to lowest loss"]  # fmt: skip
    on_val = losses(scale, records, "val_loss")
    figure = Figure("figure8", CAPTION, partial(draw, grids, on_val, beta1s, beta2s, best), (10, 3.4))
    return [note, figure, Table(header, robust), table]


def incomplete(scale: str, records: dict[str, Record], about: str) -> Sequence[Block]:
    """What there is of a grid, with both losses: a low training loss may be that of a model that overfits."""
    rows = [
        [record["config"]["optimizer"], *(f"{record['settings'][name]:g}" for name in ("beta1", "beta2")),
         *(cell(record["final"].get(kind, np.inf)) for kind in ("loss_on_train", "val_loss"))]
        for record in records.values()
    ]  # fmt: skip
    size = " That is the paper's own size." if scale != "laptop" else ""
    words = f"{about}{size} {len(records)} of the {len(runs(scale))} points, so no picture."
    header = ["optimizer", "initial beta1", "initial beta2", "training loss", "validation loss"]
    return [Text(words), Table(header, rows)]


def draw(
    grids: dict[str, np.ndarray], on_val: dict[str, np.ndarray], beta1s: Sequence[float], beta2s: Sequence[float],
    best: float, figure: Any,
) -> None:  # fmt: skip
    """A cell for each run, coloured by its training loss, with both losses in it where there is room."""
    room = len(beta1s) * len(beta2s) <= 50
    for axes, (optimizer, grid) in zip(figure.subplots(1, len(grids), sharey=True), grids.items(), strict=True):
        limits = {"vmin": best, "vmax": FAR * best}
        drawn = axes.imshow(np.minimum(grid, FAR * best), origin="lower", aspect="auto", cmap="viridis", **limits)
        for i, j in np.ndindex(grid.shape) if room else ():
            light = grid[i, j] > (1 + FAR) / 2 * best
            words = "\n".join(f"{x:.3f}" if x < 10 else "far" for x in (grid[i, j], on_val[optimizer][i, j]))
            axes.text(j, i, words, ha="center", va="center", fontsize=7, color="black" if light else "white")
        for axis, values in ((axes.xaxis, beta1s), (axes.yaxis, beta2s)):
            shown = range(0, len(values), max(1, len(values) // 6))
            axis.set_ticks([*shown], [f"{values[i]:g}" for i in shown])
        axes.set(title=optimizer, xlabel=r"initial $\beta_1$")
        axes.grid(False)
    figure.axes[0].set_ylabel(r"initial $\beta_2$")
    figure.colorbar(drawn, ax=figure.axes, label="final training loss", format="%.2f")


def cell(loss: float) -> str:
    return "diverged" if np.isinf(loss) else f"{loss:.4f}"
