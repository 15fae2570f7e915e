"""The picture of a comparison: differences from the baseline, losses against swept settings, coefficients."""

from collections.abc import Sequence
from typing import Any

from runtime.figure import SYMBOLS

from .page import COLORS
from .runs import Group, Grouping, coefficient_columns, mean_curve
from .statistics import mean, spread


def swept(grouping: Grouping) -> list[str]:
    """The settings that take several numbers."""
    return [name for name, values in grouping.differs.items()
            if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)]  # fmt: skip


def moving(groups: Sequence[Group]) -> list[str]:
    """The coefficients that do not stay where they start, in some run."""
    runs = [run for group in groups for run in group.runs.values() if run.rows]
    names = dict.fromkeys(name for run in runs for name in coefficient_columns(run.rows[-1]))
    return [name for name in names if any(len({*run.curve(name).values()}) > 1 for run in runs)]


def size(grouping: Grouping, drawn: Sequence[Group]) -> tuple[float, float]:
    """Width and height in inches."""
    panels = 1 + len(swept(grouping)) + len(moving(drawn))
    return 10.0, 3.0 * -(-panels // 2) + 0.25 * (len(drawn) + 1) // 2


def caption(grouping: Grouping, base: Group, drawn: Sequence[Group]) -> str:
    number = len(grouping.groups)
    some = f" Drawn are the {len(drawn)} of {number} groups with the lowest final loss." if len(drawn) < number else ""
    return f"Lines: means over seeds; bands and bars: standard deviation. Differences from {base.label}, paired.{some}"


def draw(grouping: Grouping, base: Group, drawn: Sequence[Group], figure: Any) -> None:
    settings, names = swept(grouping), moving(drawn)
    panels = list(figure.subplots(-(-(1 + len(settings) + len(names)) // 2), 2, squeeze=False).flat)
    for empty in panels[1 + len(settings) + len(names) :]:
        empty.set_axis_off()
    draw_differences(panels[0], base, drawn)
    for axes, name in zip(panels[1:], settings, strict=False):
        draw_against(axes, name, grouping)
    for axes, name in zip(panels[1 + len(settings) :], names, strict=False):
        for group, color in zip(drawn, COLORS, strict=False):
            draw_band(axes, [run.curve(name) for run in group.runs.values()], color, group.label)
        axes.set(title=SYMBOLS.get(name, name), xlabel="step")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)


def draw_differences(axes: Any, base: Group, drawn: Sequence[Group]) -> None:
    """Validation loss minus the baseline's of the same seed; where there is no such seed, minus the baseline's mean."""
    usual = mean_curve([run.curve("val_loss") for run in base.runs.values()])
    for group, color in zip(drawn, COLORS, strict=False):
        curves = []
        for seed, run in group.runs.items():
            other = base.runs[seed].curve("val_loss") if seed in base.runs else usual
            mine = run.curve("val_loss")
            curves.append({step: mine[step] - other[step] for step in mine if step in other and step})
        draw_band(axes, curves, color, group.label)
    axes.axhline(0, color="0.8", linewidth=0.8)
    axes.set(title="Validation loss minus the baseline's", xlabel="step", ylabel="nats per token")


def draw_band(axes: Any, curves: Sequence[dict[int, float]], color: str, label: str) -> None:
    centre = mean_curve([curve for curve in curves if curve])
    if not centre:
        return
    marker = "." if len(centre) < 30 else None
    axes.plot(list(centre), list(centre.values()), color=color, linewidth=1.5, label=label, marker=marker)
    if len(curves) > 1:
        width = mean_curve(curves, spread)
        low, high = ([centre[step] + sign * width[step] for step in centre] for sign in (-1, 1))
        axes.fill_between(list(centre), low, high, color=color, alpha=0.15, linewidth=0)


def draw_against(axes: Any, name: str, grouping: Grouping) -> None:
    """Final validation loss against one swept setting, a line for each combination of the others."""
    lines: dict[str, list[Group]] = {}
    for group in grouping.groups:
        others = ", ".join(f"{value}" for key, value in group.settings.items() if key != name)
        lines.setdefault(others, []).append(group)
    for (others, groups), color in zip(lines.items(), COLORS, strict=False):
        points = sorted((float(group.settings[name]), [*group.values("val_loss").values()]) for group in groups)
        x, losses = [point[0] for point in points], [point[1] for point in points]
        errors = [spread(values) if len(values) > 1 else 0.0 for values in losses]
        style = {"color": color, "marker": "o", "markersize": 4, "capsize": 2}
        axes.errorbar(x, [mean(values) for values in losses], errors, label=others, **style)
    if min(grouping.differs[name]) > 0:
        axes.set_xscale("log")
    axes.set(title="Final validation loss", xlabel=name, ylabel="nats per token")
    if len(lines) > 1:
        axes.legend(frameon=False, fontsize=7)
