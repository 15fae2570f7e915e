"""The folder of a run: one process owns it, and nothing in it that a user or an earlier run wrote is lost."""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from data import manifest
from runtime.checkpoint import find
from runtime.records import COLUMNS
from runtime.settings import ConfigError

RUN_FILES = re.compile(
    r"(metrics|tensors)\.csv|(config|perplexity)\.json|(figure|tensors)\.png|wandb|wandb_id|ckpt_\d+\.[\w.]+"
)
LOCKS: dict[Path, Any] = {}  # open files that lock the out_dirs of this process; the system unlocks them at its end


def prepare_out_dir(folder: str, keep: int | None) -> None:
    """Create a run's folder, check that it is writable, and move the files of an earlier run to FOLDER/previous-N.

    Args:
        keep: None for a new run, which moves all files of an earlier run; for a run that resumes after a step, this
            step: only later checkpoints, which are damaged or abandoned, are moved.
    Raises:
        ConfigError: the folder cannot be created or written, another run writes there, or it holds files with the names
            of a run's that none wrote.
    """
    out_dir = Path(folder)
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        if keep is None and (theirs := _run_files(out_dir)) and not _is_run(out_dir):
            raise ConfigError(f"out_dir={folder!r} holds {theirs[0].name}, which no run wrote: choose another")
        probe = out_dir / f".probe.{os.getpid()}"
        probe.touch()
        probe.unlink()
        _lock(out_dir)
        if keep is None:  # files of the user's stay where they are
            old = _run_files(out_dir)
        else:
            stems = {path.stem for path in out_dir.glob("ckpt_*") if path.suffix in (".pt", ".shards")
                     and int(re.sub(r"\D", "", path.stem) or 0) > keep}  # fmt: skip
            old = [path for path in out_dir.glob("ckpt_*") if path.name.partition(".")[0] in stems]
        if old:
            what = "an earlier run" if keep is None else "later checkpoints"
            print(f"moved {what} in {out_dir} to {set_aside(out_dir, old)}")
    except OSError as error:
        raise ConfigError(f"out_dir={folder!r} cannot be written ({error.strerror}): choose another") from None


def space_problem(out_dir: str | Path, size: int, keep: int, goes_on: bool) -> str | None:
    """A message if the disk cannot hold the newest `keep` checkpoints, the best, and one that is being written.

    Args:
        size: of a checkpoint (bytes).
        goes_on: the run replaces the checkpoints that are there; otherwise it moves them away.
    """
    path = Path(out_dir).absolute()
    free = shutil.disk_usage(next(folder for folder in (path, *path.parents) if folder.exists())).free
    needed = (keep + 2) * size - goes_on * sum(found.size for found in find(out_dir))
    if needed <= free:
        return None
    return (f"out_dir={str(out_dir)!r} has {free / 1e6:,.1f} MB free, the checkpoints need {needed / 1e6:,.1f} MB "
            f"({keep + 2} of {size / 1e6:,.1f} MB): choose another, or lower keep_checkpoints={keep}")


def _run_files(out_dir: Path) -> list[Path]:
    return [path for path in out_dir.iterdir() if RUN_FILES.fullmatch(path.name)]


def _is_run(out_dir: Path) -> bool:
    """Whether a run was here: by its lock, a checkpoint, config.json or metrics.csv, of which any may be lost."""
    if (out_dir / ".lock").exists() or any(out_dir.glob("ckpt_*")):
        return True
    with contextlib.suppress(OSError, ValueError, TypeError):
        return "commit" in manifest.read_json(out_dir / "config.json")
    with contextlib.suppress(OSError, ValueError):
        return manifest.read_text(out_dir / "metrics.csv").startswith(",".join(COLUMNS[:3]))
    return False


def set_aside(out_dir: Path, paths: Iterable[Path]) -> Path:
    """Move them to a new folder previous-N, and return it. Raises OSError."""
    earlier = [re.fullmatch(r"previous-(\d+)", path.name) for path in out_dir.iterdir()]
    previous = out_dir / f"previous-{1 + max((int(found[1]) for found in earlier if found), default=0)}"
    previous.mkdir()
    for path in paths:
        path.rename(previous / path.name)
    return previous


def _lock(out_dir: Path) -> None:
    """Keep other processes from writing here until this one ends, however it ends. Raises ConfigError, OSError."""
    path = out_dir.resolve() / ".lock"
    if path in LOCKS:
        return
    file = path.open("a+b", buffering=0)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        owner = file.read().decode(errors="replace").strip() or "another process"
        raise ConfigError(f"out_dir={str(out_dir)!r} belongs to a run of {owner}: choose another, or wait") from None
    LOCKS[path] = file
    file.truncate(0)
    with contextlib.suppress(OSError):  # a full disk: the lock holds without its owner's name
        file.write(f"{platform.node()}, process {os.getpid()}\n".encode())
