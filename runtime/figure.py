"""The picture of a run (loss, coefficients and hypergradients against steps), and how all figures look."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from runtime.recorder import COLUMNS, read_metrics

# Okabe and Ito's colours, told apart by every eye. A coefficient keeps its colour in all figures of the project.
COEFFICIENTS = {
    "beta1": "#0072B2",
    "beta2": "#E69F00",
    "beta3": "#009E73",
    "rho": "#CC79A7",
    "c": "#56B4E9",
    "gamma": "#D55E00",
}
SYMBOLS = {"beta1": "β₁", "beta2": "β₂", "beta3": "β₃", "rho": "ρ", "c": "c", "gamma": "γ", "eps": "ε"}
RC: dict[str, Any] = {  # how all figures look
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
}


def draw(out_dir: str | Path) -> Path:
    """Write out_dir/figure.png from out_dir/metrics.csv and return its path.

    Raises:
        ValueError: there is no metrics.csv, or no row in it yet.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    path = Path(out_dir) / "metrics.csv"
    if not path.is_file():
        raise ValueError(f"{path} does not exist: give the out_dir of a run")
    rows = read_metrics(path)
    if not rows:
        raise ValueError(f"{path} has no row yet: try again when the run has taken some steps")
    names = [name for name in rows[0] if name not in COLUMNS and not name.startswith("h_")]
    learned = [name for name in names if f"h_{name}" in rows[0]]
    names = [name for name in names if name != "eps" or name in learned]  # too small for the axis it would share

    with plt.rc_context(RC):  # type: ignore[arg-type]
        figure, (loss, values, gradients) = plt.subplots(3, 1, figsize=(8, 9), sharex=True, layout="constrained")
        _draw_loss(loss, rows)
        colors = {name: COEFFICIENTS.get(name, f"C{i}") for i, name in enumerate(names)}
        for i, name in enumerate(names):  # ever thinner, so that equal ones show beneath each other
            style = {"linestyle": "-" if name in learned else ":", "linewidth": 3.2 - 0.3 * i}
            _line(values, rows, name, name, color=colors[name], **style)
        values.set(title="Coefficients" + (" (dotted: fixed)" if len(learned) < len(names) else ""), ylim=(-0.03, 1.03))
        for name in learned:
            style = {"linestyle": "", "marker": ".", "markersize": 4, "alpha": 0.7}
            _line(gradients, rows, f"h_{name}", name, color=colors[name], **style)
        sizes = [abs(x) for name in learned for x in _series(rows, f"h_{name}")[1] if x]
        if sizes:  # linear around zero, below the size that most of them exceed
            gradients.set_yscale("symlog", linthresh=10 ** math.floor(math.log10(sorted(sizes)[len(sizes) // 4])))
        else:
            gradients.text(0.5, 0.5, "nothing is learned", transform=gradients.transAxes, ha="center", color="0.5")
        gradients.set(title="Hypergradients (before momentum)", xlabel="step")
        for axes in (values, gradients):
            if axes.lines:
                axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, markerscale=2)
        figure.suptitle(str(Path(out_dir)), x=0.01, ha="left", color="0.4")
        target = path.with_name("figure.png")
        temporary = path.with_name(".figure.png.tmp")
        figure.savefig(temporary, dpi=150, format="png")
        temporary.replace(target)  # whoever looks at it now sees the old picture or the new one
        plt.close(figure)
    return target


def _series(rows: list[dict[str, str]], column: str) -> tuple[list[int], list[float]]:
    """Steps and values where the column was measured."""
    measured = [(int(row["step"]), float(row[column])) for row in rows if row[column]]
    return [step for step, _ in measured], [value for _, value in measured]


def _line(axes: Any, rows: list[dict[str, str]], column: str, coefficient: str, **style: Any) -> None:
    axes.plot(*_series(rows, column), label=SYMBOLS.get(coefficient, coefficient), **style)


def _draw_loss(axes: Any, rows: list[dict[str, str]]) -> None:
    steps, train = _series(rows, "train_loss")
    axes.plot(steps, train, color="0.75", linewidth=0.8, label="train, one batch")
    if len(train) >= 20:
        width = max(2, len(train) // 40)  # rows in the moving mean
        smooth = [sum(train[i - width : i]) / width for i in range(width, len(train) + 1)]
        axes.plot(steps[width - 1 :], smooth, color="0.35", linewidth=1.4, label=f"train, mean of {width} rows")
    axes.plot(*_series(rows, "val_loss"), color="#0072B2", marker="o", markersize=3.5, label="validation")
    axes.set(title="Loss (nats per token)")
    axes.legend(frameon=False)
