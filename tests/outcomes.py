"""What a run came to, and whether two came to the same."""

import csv
from pathlib import Path

import torch

from runtime import checkpoint


def rows(out_dir: Path) -> list[dict[str, str]]:
    with (out_dir / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def without_seconds(out_dir: Path) -> list[dict[str, str]]:
    return [{name: cell for name, cell in row.items() if name != "seconds"} for row in rows(out_dir)]


def same(a: object, b: object) -> bool:
    """Bitwise equality of nested checkpoints."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def ends_equal(one: Path, other: Path) -> None:
    """The rows and the last checkpoint, bit by bit."""
    assert without_seconds(one) == without_seconds(other)
    ends = [checkpoint.load(checkpoint.newest(out_dir)) for out_dir in (one, other)]
    assert ends[0]["step"] == ends[1]["step"]
    for part in ("model", "optimizer"):
        assert same(ends[0][part], ends[1][part]), part
