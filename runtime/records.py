"""What a run left, read back: the rows of metrics.csv, and the coefficients that it ended with."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Iterable
from pathlib import Path
from cli import reason

from data.manifest import read_json, read_text
from runtime.settings import ConfigError

COLUMNS = ("step", "tokens", "seconds", "train_loss", "val_loss", "lr", "grad_norm")


def coefficient_columns(columns: Iterable[str]) -> list[str]:
    """The columns of coefficients, without those of single groups or of quantiles over tensors (`beta1[0]`)."""
    return [name for name in columns if name not in COLUMNS and not name.startswith("h_") and "[" not in name]


def read_metrics(path: Path) -> list[dict[str, str]]:
    """The rows of a metrics.csv as text, without an incomplete last line. Raises OSError, ValueError."""
    return parse_metrics(read_text(path))


def parse_metrics(text: str) -> list[dict[str, str]]:
    try:
        return list(csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1])))
    except csv.Error as error:
        raise ValueError(str(error)) from None


def rows_until(path: Path, step: int) -> str:
    """The text of metrics.csv up to a step; "" if there is no file. Raises ConfigError."""
    try:
        lines = read_text(path).splitlines(keepends=True) if path.exists() else []
        kept = [line for line in lines[1:] if line.endswith("\n") and int(line.partition(",")[0]) <= step]
        if {line.count(",") for line in kept} - {line.count(",") for line in lines[:1]}:
            raise ValueError("rows of other lengths than the header")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is damaged ({reason(error)}), and a checkpoint of an earlier version has no copy of "
                          "it: repair it, or move it away") from None  # fmt: skip
    return "".join(lines[:1] + kept)


def final_coefficients(source: str, names: Collection[str]) -> dict[str, float]:
    """The coefficients at the end of a finished run.

    Args:
        source: the run's folder, or its record (experiments/records).
        names: the coefficients of the rule that starts with them; the run must have the same.
    Raises:
        ConfigError: the run or record does not exist, is not finished, or has other coefficients.
    """
    path = Path(source)
    try:
        about = read_json(path / "config.json" if path.is_dir() else path)
        last = read_metrics(path / "metrics.csv")[-1] if path.is_dir() else about["final"]
        config = about.get("config", {})
        end = config["max_iters"] if path.is_dir() else None
        found = {name: float(last[name]) for name in coefficient_columns(last) if last[name] not in (None, "")
                 and "loss" not in name and not name.startswith("lr")}  # fmt: skip
        rule = f" ({config['optimizer']})" if "optimizer" in config else ""
    except (OSError, IndexError, KeyError, TypeError, ValueError, AttributeError):
        raise ConfigError(f"coefficients_from={source!r} is neither the out_dir nor the record of a run") from None
    if end is not None and int(last["step"]) != end:
        raise ConfigError(f"coefficients_from={source!r} is at step {last['step']} of {end}: let it finish")
    if found.keys() != set(names):
        raise ConfigError(f"coefficients_from={source!r} is a run of another rule{rule}: it has the coefficients "
                          f"{', '.join(found) or 'none'}, not {', '.join(names) or 'none'}")  # fmt: skip
    return found
