"""The figure of a run (loss, coefficients and hypergradients against steps), and the style of all figures."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any
from cli import Mistake, reason

import numpy as np

from data.manifest import expand
from runtime.records import coefficient_columns, read_metrics

# Okabe and Ito's colours, which colour-blind readers can tell apart. A coefficient has the same colour in all figures.
COEFFICIENTS = {
    "beta1": "#0072B2",
    "beta2": "#E69F00",
    "beta3": "#009E73",
    "rho": "#CC79A7",
    "c": "#56B4E9",
    "gamma": "#D55E00",
}
SYMBOLS = {"beta1": "β₁", "beta2": "β₂", "beta3": "β₃", "rho": "ρ", "c": "c", "gamma": "γ", "eps": "ε",
           "lr_learned": "learning rate"}  # fmt: skip
RC: dict[str, Any] = {  # style of all figures
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
}
FLOOR = 1e-3  # smallest distance from 0 or 1 that the axis of the coefficients resolves
Rows = list[dict[str, str]]


def draw(out_dir: str | Path) -> Path:
    """Write out_dir/figure.png from out_dir/metrics.csv and return its path. Panels without data are left out. Where
    each tensor has coefficients of its own (tensors.csv), tensors.png beside it shows them.

    Raises:
        Mistake: metrics.csv cannot be read or has no row yet, or figure.png cannot be written.
    """
    path = expand(out_dir) / "metrics.csv"
    try:
        rows = read_metrics(path)
    except (FileNotFoundError, NotADirectoryError):
        raise Mistake(f"{path} does not exist: give the out_dir of a run") from None
    except (OSError, UnicodeDecodeError) as error:
        raise Mistake(f"{path} cannot be read ({reason(error)})") from None
    if not rows:
        raise Mistake(f"{path} has no row yet: try again when the run has taken some steps")
    target, temporary = path.with_name("figure.png"), path.with_name(".figure.png.tmp")
    try:
        make_figure(rows, str(out_dir)).savefig(temporary, dpi=150, format="png")
        temporary.replace(target)  # readers see the old picture or the new one
        if (tensors := path.with_name("tensors.csv")).exists():
            make_picture(read_metrics(tensors), str(out_dir)).savefig(path.with_name("tensors.png"), dpi=150)
    except OSError as error:
        raise Mistake(f"{target} cannot be written ({reason(error)})") from None
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise Mistake(f"{path} is not the metrics of a run ({type(error).__name__}: {error})") from None
    return target


def make_picture(rows: Rows, title: str) -> Any:
    """The learned coefficients of each tensor (from the top in the model's order) against steps, from tensors.csv."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    names = [name for name in rows[0] if name not in ("step", "parameter")]
    steps = [*dict.fromkeys(int(row["step"]) for row in rows)]
    tensors = [*dict.fromkeys(row["parameter"] for row in rows)]
    with rc_context(RC | {"axes.grid": False}):  # type: ignore[arg-type]
        figure = Figure(figsize=(10, 1 + len(names) * max(2, len(tensors) / 10)), layout="constrained")
        for name, axes in zip(names, figure.subplots(len(names), 1, squeeze=False)[:, 0], strict=True):
            found = {(row["parameter"], int(row["step"])): float(row[name]) for row in rows}
            values = np.array([[found.get((tensor, step), math.nan) for step in steps] for tensor in tensors])
            last = 2 * steps[-1] - steps[-2] if len(steps) > 1 else steps[-1] + 1
            edges = [*steps, last]  # a value holds until the next
            figure.colorbar(axes.pcolormesh(edges, range(len(tensors) + 1), values, cmap="viridis"), ax=axes)
            each = max(1, len(tensors) // 25)
            axes.set_yticks([i + 0.5 for i in range(0, len(tensors), each)], tensors[::each], fontsize=5)
            axes.invert_yaxis()
            axes.set(title=SYMBOLS.get(name, name))
        axes.set_xlabel("step")
        figure.suptitle(title, x=0.01, ha="left", color="0.4")
    return figure


def make_figure(rows: Rows, title: str) -> Any:
    """The figure as a matplotlib object. Raises KeyError, TypeError or ValueError for rows that are not a run's."""
    os.environ.pop("MPLBACKEND", None)  # a notebook's, for instance; a picture in a file needs none
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    names = coefficient_columns(rows[0])
    learned = {name: column for name in names if (column := f"h_{name.removesuffix('_learned')}") in rows[0]}
    values = [name for name in learned if name != "lr_learned"]
    panels = [lambda axes: _draw_loss(axes, rows)]
    if values:
        panels.append(lambda axes: _draw_values(axes, rows, values))
    if "lr_learned" in learned:
        panels.append(lambda axes: _draw_rate(axes, rows))
    if learned:
        panels.append(lambda axes: _draw_gradients(axes, rows, learned))
    fixed = {name: series(rows, name)[1][-1:] for name in names if name not in learned}
    constants = ", ".join(f"{SYMBOLS.get(name, name)} = {end[0]:.4g}" for name, end in fixed.items() if end)
    with rc_context(RC):  # type: ignore[arg-type]
        figure = Figure(figsize=(8, 0.5 + 3 * len(panels)), layout="constrained")
        all_axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        for panel, axes in zip(panels, all_axes, strict=True):
            panel(axes)
            axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, markerscale=2)
        all_axes[-1].set_xlabel("step")
        figure.suptitle(title + (f"\nfixed: {constants}" if constants else ""), x=0.01, ha="left", color="0.4")
    return figure


def series(rows: Rows, column: str) -> tuple[list[int], list[float]]:
    """Steps and values where the column was measured."""
    measured = [(int(row["step"]), float(row[column])) for row in rows if row[column]]
    return [step for step, _ in measured], [value for _, value in measured]


def _draw_loss(axes: Any, rows: Rows) -> None:
    steps, train = series(rows, "train_loss")
    axes.plot(steps, train, color="0.75", linewidth=0.8, label="train, one batch")
    if len(train) >= 20:
        width = max(2, len(train) // 40)  # rows in the moving mean
        smooth = [sum(train[i - width : i]) / width for i in range(width, len(train) + 1)]
        axes.plot(steps[width - 1 :], smooth, color="0.35", linewidth=1.4, label=f"train, mean of {width} rows")
    axes.plot(*series(rows, "val_loss"), color="#0072B2", marker="o", markersize=3.5, label="validation")
    axes.set(title="Loss (nats per token)")


def stretched(x: np.ndarray) -> np.ndarray:
    """A scale for [0, 1], logarithmic in the distances from 0 and 1 down to FLOOR: 0.99 and 0.999 are far apart."""
    x = np.clip(x, 0, 1)
    return np.log10((x + FLOOR) / (1 - x + FLOOR))


def unstretched(y: np.ndarray) -> np.ndarray:
    """The inverse of `stretched`."""
    return (10.0**y * (1 + FLOOR) - FLOOR) / (1 + 10.0**y)


def stretch(axes: Any) -> None:
    """Give the y axis this scale."""
    axes.set_yscale("function", functions=(stretched, unstretched))
    axes.set_yticks(ticks := [0, 0.01, 0.1, 0.5, 0.9, 0.99, 1], [f"{tick:g}" for tick in ticks])
    axes.set_ylim(0, 1)


def _draw_values(axes: Any, rows: Rows, names: list[str]) -> None:
    within = True
    for i, name in enumerate(names):  # each thinner than the one before: equal lines stay visible
        steps, values = series(rows, name)
        within = within and all(0 <= value <= 1 for value in values)
        change = f" {values[0]:.5g} → {values[-1]:.5g}" if values else ""
        style = {"linewidth": max(3.2 - 0.3 * i, 0.8), "clip_on": False}
        axes.plot(steps, values, label=SYMBOLS.get(name, name) + change, color=_color(name, i), **style)
        for part in (column for column in rows[0] if column.startswith(f"{name}[")):  # of groups, or quantiles
            axes.plot(*series(rows, part), color=_color(name, i), linewidth=0.6, alpha=0.6, clip_on=False)
    if within:
        stretch(axes)
    axes.set(title="Learned coefficients (scale stretched near 0 and 1)" if within else "Learned coefficients")


def _draw_rate(axes: Any, rows: Rows) -> None:
    axes.plot(*series(rows, "lr"), color="0.6", linestyle="--", label="schedule")
    axes.plot(*series(rows, "lr_learned"), color="#000000", label="learned")
    axes.set(title="Learning rate", yscale="log")


def _draw_gradients(axes: Any, rows: Rows, learned: dict[str, str]) -> None:
    style = {"linestyle": "", "marker": ".", "markersize": 4, "alpha": 0.7}
    sizes = []
    for i, (name, column) in enumerate(learned.items()):
        steps, values = series(rows, column)
        sizes += [abs(value) for value in values if value and math.isfinite(value)]
        axes.plot(steps, values, label=SYMBOLS.get(name, name), color=_color(name, i), **style)
    if sizes:  # linear around zero, logarithmic above the lower quartile of the sizes
        axes.set_yscale("symlog", linthresh=10 ** math.floor(math.log10(sorted(sizes)[len(sizes) // 4])))
    axes.set(title="Hypergradients before momentum (a negative one raises its coefficient)")


def _color(name: str, i: int) -> str:
    return COEFFICIENTS.get(name, "#000000" if name == "lr_learned" else f"C{i}")
