"""The comparison of runs: a table, a picture, a page and JSON (compare.py and sweep.py)."""

import json
import math
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from cli import Mistake

from data.manifest import make_folder
from runtime.movement import Movement, describe, movement
from study.page import COLORS, Block, Figure, Table, Text, render, whole_page
from study.pictures import caption, draw, size
from study.runs import Group, Grouping, coefficient_columns, group_runs, read_result, shown
from study.statistics import Paired, holm, mean, p_text, paired, spread


def write(paths: Iterable[Path], out: Path, baseline: str | None = None) -> str:
    """Compare the runs, write compare.json, .png and .html to `out`; return the table and what else is to be said.

    Raises Mistake, one line, if there is nothing to compare or no such baseline.
    """
    grouping = group_runs([read_result(path) for path in expanded(paths)])
    if not grouping.groups:
        raise Mistake("no finished run among them: " + "; ".join(grouping.left_out or ["no run at all"]))
    base = choose_baseline(grouping.groups, baseline)
    rows = [measure(group, base) for group in grouping.groups]
    corrected = holm({row["label"]: row["difference"]["p"] for row in rows if row["difference"]})
    for row in rows:
        if row["difference"]:
            row["difference"]["p_holm"] = corrected[row["label"]]
    table = as_table(rows, base.label)
    drawn = sorted(grouping.groups, key=lambda group: (group is not base, final_loss(group)))[: len(COLORS)]
    words = caption(grouping, base, drawn)
    figure = Figure("compare", words, partial(draw, grouping, base, drawn), size(grouping, drawn))
    notes = [introduction(grouping, base), *advice(grouping.groups)]
    blocks: list[Block] = [Text(notes[0]), table, figure, *map(Text, notes[1:])]
    make_folder(out)
    content = {"baseline": base.label, "differs": grouping.differs, "also_differ": grouping.implied, "groups": rows,
               "left_out": grouping.left_out}  # fmt: skip
    (out / "compare.json").write_text(json.dumps(without_nan(content), indent=1) + "\n", encoding="utf-8")
    body = [render(block, out / "compare.png")[1] for block in blocks]
    page = whole_page("Runs compared", "\n".join(["<h1>Runs compared</h1>", *body]))
    (out / "compare.html").write_text(page, encoding="utf-8")
    written = f"written: {out}/compare.json, compare.png, compare.html"
    return "\n\n".join([notes[0], aligned(table), *notes[1:], written])


def expanded(paths: Iterable[Path]) -> list[Path]:
    """The runs: for a folder that is none, those directly in it, at most two folders down."""
    found: list[Path] = []
    for path in paths:
        if path.is_dir() and not (path / "config.json").is_file():
            inner = sorted(at.parent for depth in ("*", "*/*") for at in path.glob(f"{depth}/config.json"))
            if not inner:
                raise Mistake(f"{path} holds no run: give an out_dir, a folder of them, or a record")
            found += [at for at in inner if not at.name.startswith("previous-")]
        else:
            found.append(path)
    return list(dict.fromkeys(found))


def choose_baseline(groups: Sequence[Group], wanted: str | None) -> Group:
    """The group that `wanted` names, else the best of Adam's, else the first. Raises Mistake."""
    if wanted is not None:
        found = [g for g in groups if g.label == wanted] or [g for g in groups if wanted in g.label]
        if len(found) != 1:
            labels = "; ".join(group.label for group in groups)
            raise Mistake(f"baseline={wanted!r} names {len(found)} groups: choose one of {labels}")
        return found[0]
    kinds = [[g for g in groups if optimizer_of(g).rpartition(":")[2].lower() == name] for name in ("adam", "adamw")]
    return min(next(filter(None, kinds), groups[:1]), key=final_loss)


def final_loss(group: Group) -> float:
    return mean([*group.values("val_loss").values()])


def optimizer_of(group: Group) -> str:
    return str(next(iter(group.runs.values())).config["optimizer"])


def measure(group: Group, base: Group) -> dict[str, Any]:
    """What the table and compare.json say of a group; losses in nats per token."""
    difference = paired(base.values("val_loss"), group.values("val_loss")) if group is not base else None
    targets = base.values("val_loss")  # of the same seed, or the mean where there is no such
    usual = mean([*targets.values()])
    reached = [at for seed, run in group.runs.items() if (at := run.reached(targets.get(seed, usual)))]
    first = next(iter(group.runs.values()))
    names = coefficient_columns(first.rows[-1]) if first.rows else []
    return {
        "label": group.label,
        "settings": group.settings,
        "seeds": list(group.runs),
        "runs": [run.name for run in group.runs.values()],
        **{kind: {"mean": mean([*losses.values()]), "spread": spread([*losses.values()])}
           for kind in ("val_loss", "best_val_loss", "train_loss") if (losses := group.values(kind))},
        "difference": difference and {key: getattr(difference, key) for key in ("n", "difference", "low", "high", "p")},
        "steps_to_baseline": mean([at[0] for at in reached]) if reached else None,
        "seconds_to_baseline": mean([at[1] for at in reached]) if reached else None,
        "reached": len(reached),
        "seconds": mean([*group.values("seconds").values()]) if group.values("seconds") else None,
        "coefficients": {name: mean([*values.values()]) for name in names if (values := group.values(name))},
        "movement": {name: vars(moved) for name, moved in movements(group).items()},
    }  # fmt: skip


def as_table(rows: Sequence[dict[str, Any]], base: str) -> Table:
    header = ["group", "n", "final validation loss", "best", f"minus {base}", "p (Holm)", "steps to its final loss",
              "seconds", "coefficients at the end"]  # fmt: skip
    cells = []
    for row in rows:
        losses = [f"{row[kind]['mean']:.4f}" + ("" if len(row["seeds"]) < 2 else f" ± {row[kind]['spread']:.4f}")
                  for kind in ("val_loss", "best_val_loss")]  # fmt: skip
        found = row["difference"]
        n, reached = len(row["seeds"]), row["reached"]
        difference = str(Paired(*(found[key] for key in ("n", "difference", "low", "high", "p")))) if found else ""
        if not found and row["label"] != base:
            difference = "no seed in common"
        corrected = p_text(found["p_holm"]) if found and not math.isnan(found["p_holm"]) else ""
        some = f" ({reached} of {n})" if reached < n else ""
        steps = f"{row['steps_to_baseline']:,.0f}{some}" if reached else "never"
        seconds = f"{row['seconds_to_baseline']:,.1f}" if reached else ""
        ends = ", ".join(f"{name} {value:.4g}" for name, value in row["coefficients"].items())
        cells.append([row["label"], str(n), *losses, difference, corrected, steps, seconds, ends])
    return Table(header, cells)


def introduction(grouping: Grouping, base: Group) -> str:
    """What was compared with what, and which runs were left out."""
    config = next(iter(base.runs.values())).config
    parts = [f"{sum(len(group.runs) for group in grouping.groups)} runs in {len(grouping.groups)} groups, "
             f"{config['dataset']}, {config['max_iters']:,} steps; baseline: {base.label}."]  # fmt: skip
    if grouping.differs:
        values = [f"{name} ({', '.join(shown('', v) for v in values)})" for name, values in grouping.differs.items()]
        also = f"; along with these {', '.join(grouping.implied)}" if grouping.implied else ""
        parts.append(f"The groups differ in {', '.join(values)}{also}.")
    parts.append("± is the standard deviation over seeds, brackets the 95% interval of the mean paired difference.")
    parts += [f"Left out: {line}." for line in grouping.left_out]
    return " ".join(parts)


def movements(group: Group) -> dict[str, Movement]:
    """{coefficient: its movement} of those that are learned, from the hypergradients that the runs wrote down."""
    found: dict[str, list[Movement]] = {}
    for run in group.runs.values():
        for name in coefficient_columns(run.rows[-1]) if run.rows else ():
            h = run.curve(f"h_{name.removesuffix('_learned')}")
            if moved := movement(run.curve(name), h):
                found.setdefault(name, []).append(moved)
    return {
        name: Movement(mean([m.net for m in each]), mean([m.path for m in each]), mean([m.one_sign for m in each]),
                       all(m.at_end for m in each))
        for name, each in found.items()
    }  # fmt: skip


def advice(groups: Sequence[Group]) -> list[str]:
    """One line for each group that learns: how far its coefficients moved, and which hyper rates to change."""
    lines = []
    for group in groups:
        moved = movements(group)
        if moved:
            lines.append(f"Hyper rates, {group.label}: {describe(moved)}.")
    return lines


def aligned(table: Table) -> str:
    """A table for a terminal."""
    widths = [max(map(len, column)) for column in zip(table.header, *table.rows, strict=True)]
    lines = [table.header, ["-" * width for width in widths], *table.rows]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def without_nan(value: Any) -> Any:
    """The same with None for NaN, which JSON lacks."""
    if isinstance(value, dict):
        return {key: without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value
