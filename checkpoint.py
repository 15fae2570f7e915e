"""Checkpoints that are complete or not there at all.

A checkpoint is `ckpt_000500.pt` and, written after it, `ckpt_000500.json` with its step, validation loss, size and
sha256. Both reach the disk under a temporary name and are renamed into place, so a run killed at any moment leaves
complete checkpoints only. The .pt holds tensors and plain data and is only ever read with `weights_only=True`, which
cannot run code.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

FORMAT = "nanomada-1"  # changes when an older reader would misread what is written


class CheckpointError(ValueError):
    """There is no checkpoint, or it is not what it should be; the message says which and what to do."""


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk, as its json describes it."""

    path: Path
    step: int
    val_loss: float | None  # at this very step, None where it was not measured
    size: int  # bytes
    sha256: str


def save(out_dir: str | Path, step: int, val_loss: float | None, content: dict[str, Any], keep: int) -> Checkpoint:
    """Write a checkpoint, then delete older ones beyond the newest `keep` and the one with the lowest val_loss."""
    path = Path(out_dir) / f"ckpt_{step:06d}.pt"
    path.with_suffix(".json").unlink(missing_ok=True)  # an older run's, which would not fit the new .pt
    written: list[_Hashed] = []

    def write(file: IO[bytes]) -> None:
        written.append(_Hashed(file))
        torch.save({"format": FORMAT, "step": step, **content}, written[0])  # type: ignore[arg-type]

    _write_atomically(path, write)
    facts = {"step": step, "val_loss": val_loss, "size": written[0].size, "sha256": written[0].digest.hexdigest()}
    _write_atomically(path.with_suffix(".json"), lambda file: file.write((json.dumps(facts) + "\n").encode()))
    _prune(Path(out_dir), keep)
    return _described(path)


def find(out_dir: str | Path) -> list[Checkpoint]:
    """The checkpoints of a run, oldest step first; a .pt without its json was never finished and is not one."""
    names = (path for path in Path(out_dir).glob("ckpt_*.json") if re.fullmatch(r"ckpt_\d+", path.stem))
    checkpoints = []
    for path in names:
        with contextlib.suppress(CheckpointError):
            checkpoints.append(_described(path.with_suffix(".pt")))
    return sorted(checkpoints, key=lambda checkpoint: checkpoint.step)


def newest(out_dir: str | Path) -> Checkpoint:
    """The checkpoint to resume from."""
    found = find(out_dir)
    if not found:
        raise CheckpointError(f"no complete checkpoint in {out_dir}: check out_dir (a new run starts from scratch)")
    return found[-1]


def best(out_dir: str | Path) -> Checkpoint:
    """The checkpoint with the lowest validation loss; the newest where none was measured."""
    measured = [checkpoint for checkpoint in find(out_dir) if checkpoint.val_loss is not None]
    return min(measured, key=lambda checkpoint: checkpoint.val_loss or 0.0) if measured else newest(out_dir)


def load(checkpoint: Checkpoint) -> dict[str, Any]:
    """The content of a checkpoint, on the CPU, after its checksum was verified."""
    path = checkpoint.path
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest != checkpoint.sha256:
                raise CheckpointError(f"{path} is damaged (sha256 {digest[:12]}..., not {checkpoint.sha256[:12]}... of "
                                      "its json): delete both to go on from an older one")
            file.seek(0)
            content = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror})") from None
    except CheckpointError:
        raise
    except Exception:  # torch names no type for what a foreign file can do to its reader
        raise CheckpointError(f"{path} is no checkpoint of this project (plain tensors and data only)") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path} is no checkpoint of this project (its format is not {FORMAT!r})")
    return content


def _described(path: Path) -> Checkpoint:
    try:
        facts = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        checkpoint = Checkpoint(path, facts["step"], facts["val_loss"], facts["size"], facts["sha256"])
        complete = path.stat().st_size == checkpoint.size
    except (OSError, ValueError, KeyError, TypeError):
        raise CheckpointError(f"{path} has no readable json beside it") from None
    if not complete:
        raise CheckpointError(f"{path} is truncated")
    return checkpoint


def _prune(out_dir: Path, keep: int) -> None:
    for leftover in out_dir.glob(".ckpt_*.tmp"):  # of a run that was killed while it saved
        leftover.unlink(missing_ok=True)
    found = find(out_dir)
    kept = {checkpoint.path for checkpoint in [*found[-keep:], best(out_dir)]}
    for checkpoint in found:
        if checkpoint.path not in kept:
            with contextlib.suppress(OSError):  # a file that stays must not end a run
                checkpoint.path.with_suffix(".json").unlink()  # first, so that the rest is no checkpoint any more
                checkpoint.path.unlink()


class _Hashed:
    """A file that is only written to, and its sha256 on the way: no second reading."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.digest, self.size = file, hashlib.sha256(), 0

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        self.size += memoryview(data).nbytes
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def _write_atomically(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """The file appears under its name when all of it is on the disk; a failed attempt leaves nothing behind."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)  # the new name itself is only on disk when its folder is
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
