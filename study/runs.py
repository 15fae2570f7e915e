"""Runs of train.py read back from their folders or from records of experiments/, and grouped over seeds."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from cli import Mistake

from data.manifest import read_json
from runtime.records import coefficient_columns, read_metrics

from .statistics import mean

Row = dict[str, float | None]
# Settings that say where a run was made, how fast, and who looked on: two runs that differ in these are the same run.
ELSEWHERE = ("out_dir", "init_from", "device", "compile", "wandb_log", "wandb_project", "wandb_run_name",
             "dist_timeout", "checkpoint_interval", "always_save_checkpoint", "keep_checkpoints",
             "verify_data")  # fmt: skip
COMPARABLE = ("dataset", "block_size", "eval_iters", "max_iters")  # runs that differ in these are not compared
LAST = 0.1  # the final training loss is the mean over this fraction of the steps


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a config.json, coefficients by their own names, entries of other dicts as "hyper_lr.beta1"."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if key == "coefficients":
            found |= value or {}
        elif isinstance(value, Mapping):
            found |= {f"{key}.{entry}": number for entry, number in value.items()}
        else:
            found[key] = value
    return found


def differences(asked: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    """How a run's config differs from what is asked of it (read_files with `adapt`): "seed=2, not 1"."""
    plain = json.loads(json.dumps(dict(asked)))  # lists for tuples
    wanted, there = ({**one, **one.get("coefficients", {})} for one in (plain, config))
    for one in (wanted, there):
        one["hyper_momentum"] = one.get("hyper_momentum") or 0.0  # {} is no momentum too
        one["box"] = one.get("box") or {}  # newer than some records
    return [f"{key}={there.get(key)}, not {value}" for key, value in wanted.items()
            if key not in (*ELSEWHERE, "coefficients") and there.get(key) != value]  # fmt: skip


def read_rows(path: Path) -> list[Row]:
    """The rows of a metrics.csv; None for what was not measured or is not finite. Raises ValueError."""

    def number(text: str) -> float | None:
        return value if text and math.isfinite(value := float(text)) else None

    return [{key: number(text) for key, text in row.items()} for row in read_metrics(path)]


def measured(rows: Sequence[Row], column: str) -> list[float]:
    return [value for row in rows if (value := row[column]) is not None]


def final_values(rows: Sequence[Row], steps: int) -> dict[str, float | None]:
    """Losses (nats per token) and coefficients at the end of a run; a loss that is not finite is None.

    val_loss         of the last step
    best_val_loss    the lowest
    train_loss       mean over the batches of the last tenth of the steps
    """
    late = measured([row for row in rows if (row["step"] or 0) > (1 - LAST) * steps], "train_loss")
    return {
        "val_loss": rows[-1]["val_loss"],
        "best_val_loss": min(measured(rows, "val_loss"), default=None),
        "train_loss": mean(late) if late else None,
        **{name: rows[-1][name] for name in coefficient_columns(rows[-1])},
    }


@dataclass(frozen=True)
class Result:
    """What one run came to.

    config   its settings, flat
    rows     of metrics.csv, or the points that a record keeps of them
    final    `final_values` and the run's seconds; empty unless it is finished
    state    "finished", or in words how far it is
    """

    name: str
    config: Mapping[str, Any]
    rows: Sequence[Row]
    final: Mapping[str, float]
    state: str
    facts: Mapping[str, Any]  # all of config.json or of the record

    @property
    def seed(self) -> int:
        return int(self.config["seed"])

    def curve(self, column: str) -> dict[int, float]:
        """{step: value} where the column was measured."""
        return {int(row["step"] or 0): value for row in self.rows if (value := row.get(column)) is not None}

    def reached(self, loss: float) -> tuple[float, float] | None:
        """Steps and seconds until the validation loss first was `loss` or lower, linear between validations; None if it
        never was."""
        before: tuple[float, float, float] | None = None
        for row in self.rows:
            if row["val_loss"] is None:
                continue
            now = (row["val_loss"], row["step"] or 0.0, row["seconds"] or 0.0)
            if now[0] <= loss:
                if before is None:
                    return now[1:]
                part = (before[0] - loss) / (before[0] - now[0])
                return before[1] + part * (now[1] - before[1]), before[2] + part * (now[2] - before[2])
            before = now
        return None


def read_result(path: Path) -> Result:
    """A run from its out_dir, or from its record. Raises Mistake for what is neither."""
    try:
        if path.is_dir():
            about = read_json(path / "config.json")
            rows = read_rows(path / "metrics.csv") if (path / "metrics.csv").is_file() else []
        else:
            about = read_json(path)
            columns = about.get("curves", {})
            rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        config, steps = flat(about["config"]), int(about["config"]["max_iters"])
        config |= {"seed": int(config["seed"]), "optimizer": str(config["optimizer"])}
        if path.is_dir():
            step = int(rows[-1]["step"] or 0) if rows else 0
            final = final_values(rows, steps) | {"seconds": rows[-1]["seconds"]} if step == steps else {}
        else:
            final = about["final"] | {"seconds": about.get("seconds")}
            step = int(final.get("step", steps))
            for row in rows:  # a record has the seconds of the whole run alone
                row["seconds"] = about.get("seconds", 0.0) * row["step"] / steps
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError):
        raise Mistake(f"{path} is neither the out_dir nor the record of a run: it needs a config.json") from None
    refused = bool(rows) and step > 0 and rows[-1].get("train_loss") is None and path.is_dir()
    if "diverged" in final or refused or final.get("val_loss", 0) is None:
        return Result(str(path), config, rows, {}, f"diverged at step {step}", about)
    whole = {key: value for key, value in final.items() if value is not None}
    return Result(str(path), config, rows, whole, "finished" if whole else f"at step {step} of {steps}", about)


@dataclass(frozen=True)
class Group:
    """Runs that differ in the seed alone. `settings` are those in which the groups differ."""

    label: str
    settings: Mapping[str, Any]
    runs: Mapping[int, Result]  # by seed

    def values(self, column: str) -> dict[int, float]:
        """{seed: final value} of the runs that have it."""
        return {seed: run.final[column] for seed, run in self.runs.items() if column in run.final}


@dataclass(frozen=True)
class Grouping:
    """All groups, in which settings they differ, and one line for each run that is in none."""

    groups: Sequence[Group]
    differs: Mapping[str, Sequence[Any]]  # {setting: its values}, enough to tell the groups apart
    implied: Sequence[str]  # other settings that differ along with these
    left_out: Sequence[str]


def group_runs(results: Sequence[Result]) -> Grouping:
    """Group finished runs of the same data and length (those that most of them have) that differ in the seed alone."""
    left_out = [f"{run.name}: {run.state}" for run in results if run.state != "finished"]
    finished = [run for run in results if run.state == "finished"]

    def length(run: Result) -> tuple[Any, ...]:
        return tuple(run.config.get(name) for name in COMPARABLE)

    most = Counter(map(length, finished)).most_common(1)[0][0] if finished else ()
    chosen = []
    for run in finished:
        others = [f"{name}={mine}, not {usual}" for name, mine, usual in zip(COMPARABLE, length(run), most, strict=True)
                  if mine != usual]  # fmt: skip
        if others:
            left_out.append(f"{run.name}: {', '.join(others)} as most have")
        else:
            chosen.append(run)
    names = dict.fromkeys(["optimizer", "learning_rate", *(name for run in chosen for name in run.config)])
    names = {name: None for name in names if name not in (*ELSEWHERE, "seed")}
    by_settings: dict[str, dict[int, Result]] = {}
    for run in chosen:
        seeds = by_settings.setdefault(_key(run, names), {})
        if run.seed in seeds:
            left_out.append(f"{run.name}: the same settings and seed as {seeds[run.seed].name}")
        else:
            seeds[run.seed] = run
    firsts = [next(iter(seeds.values())) for seeds in by_settings.values()]
    varied = [name for name in names if len({_key(run, [name]) for run in firsts}) > 1]
    telling: list[str] = []
    for name in varied:  # as few as tell all groups apart, the optimizer first
        if len({_key(run, [*telling, name]) for run in firsts}) > len({_key(run, telling) for run in firsts}):
            telling.append(name)
    groups = []
    for first, seeds in zip(firsts, by_settings.values(), strict=True):
        settings = {name: first.config.get(name) for name in telling}
        label = ", ".join(shown(name, value) for name, value in settings.items()) or str(first.config["optimizer"])
        groups.append(Group(label, settings, dict(sorted(seeds.items()))))
    differs = {name: list(dict.fromkeys(group.settings[name] for group in groups)) for name in telling}
    return Grouping(groups, differs, [name for name in varied if name not in telling], left_out)


def _key(run: Result, names: Mapping[str, Any] | Sequence[str]) -> str:
    return json.dumps([run.config.get(name) for name in names])


def shown(name: str, value: Any) -> str:
    """Such as "adam" for the optimizer, "learning_rate 0.001" for other settings."""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if name in ("optimizer", "") else f"{name} {text}"


def mean_curve(
    curves: Sequence[Mapping[int, float]], over: Callable[[Sequence[float]], float] = mean
) -> dict[int, float]:
    """{step: `over` the values} at the steps that all curves have."""
    common = set(curves[0]).intersection(*curves[1:]) if curves else set()
    return {step: over([curve[step] for curve in curves]) for step in sorted(common)}
