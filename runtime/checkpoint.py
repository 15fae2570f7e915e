"""Checkpoints that are either complete or absent.

A checkpoint consists of `ckpt_000500.pt` and `ckpt_000500.json`, which has its step, validation loss, size and sha256,
and a checksum of these. Both are written under temporary names and renamed, the .pt last: this rename completes the
checkpoint, so that a run killed at any moment leaves complete checkpoints only. The .pt holds tensors and plain data
and is only loaded with `weights_only=True`, which cannot run code. A sharded run writes a folder `ckpt_000500.shards`
instead of the .pt (shards.py); everything below reads either.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from cli import Mistake

import torch
import torch.distributed as dist

from data.manifest import publish, read_json, replacing, sync_folder, write_json
from model import GPT, GPTConfig
from optim.flat import share, whole

KINDS = (".pt", ".shards")
FORMAT = "nanomada-2"  # changes when an older reader would misread what is written
CONTENT: dict[str, Any] = {"step": int, "config": dict, "model_config": dict, "model": dict, "optimizer": dict,
                           "learned": list, "seconds": float}  # fmt: skip
EARLIER = ("nanomada-1",)  # only the model of these is read: their optimizer states and settings have other names


class CheckpointError(Mistake):
    """A checkpoint is missing, damaged or does not match; the message says which and what to do."""


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk, as described by its json."""

    path: Path
    step: int
    val_loss: float | None  # at this step; None if it was not measured
    size: int  # bytes
    sha256: str  # for a folder: of the list of its files in the json


def save(out_dir: str | Path, step: int, val_loss: float | None, content: dict[str, Any], keep: int) -> Checkpoint:
    """Write a checkpoint, then delete all but the newest `keep`, the best, and the newest with a val_loss, which a run
    returns to after a loss spike."""
    path = Path(out_dir) / f"ckpt_{step:06d}.pt"
    with replacing(path) as file:
        hashed = _Hashed(file)
        try:
            torch.save({"format": FORMAT, "step": step, **content}, hashed)  # type: ignore[arg-type]
        except Exception as error:
            raise hashed.error or error from None  # torch hides the OSError of a full disk
        file.flush()
        os.fsync(file.fileno())
        _describe(path, {"step": step, "val_loss": val_loss, "size": hashed.size, "sha256": hashed.digest.hexdigest()})
    _tidy(path, keep)
    return _described(path)


def save_shards(out_dir: str | Path, step: int, val_loss: float | None, content: dict[str, Any], keep: int) -> None:
    """The same for a sharded run, called by all processes. Raises OSError on all of them if one could not write."""
    from runtime import shards

    path = Path(out_dir) / f"ckpt_{step:06d}.shards"
    partial = path.with_name(f".{path.name}.tmp")

    def create() -> None:
        _remove(partial)  # left by a run that was killed during a save
        partial.mkdir()

    def complete() -> None:
        size = sum(size for size, _ in files.values())
        digest = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
        sync_folder(partial)
        if path.exists():  # saved at this step before its validation
            path.rename(path.with_name(f".{path.name}.old.tmp"))
        _describe(path, {"step": step, "val_loss": val_loss, "size": size, "sha256": digest, "files": files})
        publish(partial, path)
        _tidy(path, keep)

    _on_first(create)
    try:
        files = shards.write(partial, {"format": FORMAT, "step": step, **content})
        _on_first(complete)
    finally:
        if dist.get_rank() == 0:
            with contextlib.suppress(OSError):
                _remove(partial)


def _on_first(action: Callable[[], None]) -> None:
    """Run `action` on rank 0; all ranks wait for it and raise its OSError."""
    outcome: list[OSError | None] = [None]
    if dist.get_rank() == 0:
        try:
            action()
        except OSError as error:
            outcome = [error]
    dist.broadcast_object_list(outcome)
    if outcome[0]:
        raise outcome[0]


def _describe(path: Path, facts: dict[str, Any]) -> None:
    """Write the json; the checkpoint is complete when `path` gets its name after this."""
    write_json(path.with_suffix(".json"), facts | {"check": _check(facts)})


def _tidy(path: Path, keep: int) -> None:
    """Delete old checkpoints, and that of the same step in the other form, whose json was replaced."""
    with contextlib.suppress(OSError, CheckpointError):  # failing to delete a file must not end the run
        for other in (path.with_suffix(kind) for kind in KINDS if kind != path.suffix):
            _remove(other)
        _prune(path.parent, keep)


def find(out_dir: str | Path) -> list[Checkpoint]:
    """The complete checkpoints of a run, sorted by step, without reading their content."""
    checkpoints = []
    for path in _paths(out_dir):
        with contextlib.suppress(CheckpointError):
            checkpoints.append(_described(path))
    return checkpoints


def newest(out_dir: str | Path) -> Checkpoint:
    found = find(out_dir)
    if not found:
        raise _nothing(out_dir)
    return found[-1]


def best(out_dir: str | Path) -> Checkpoint:
    """The checkpoint with the lowest validation loss, or the newest if none was measured."""
    measured = [found for found in find(out_dir) if found.val_loss is not None and math.isfinite(found.val_loss)]
    return min(measured, key=lambda checkpoint: checkpoint.val_loss or 0.0) if measured else newest(out_dir)


def chosen(out_dir: str | Path, which: str) -> Checkpoint:
    """The "best" or "newest" checkpoint of a run; those that are damaged are passed over with a line on stderr."""
    for path in _paths(out_dir):
        try:
            _described(path)
        except CheckpointError as error:
            print(f"skipping a damaged checkpoint: {error}", file=sys.stderr)
    return best(out_dir) if which == "best" else newest(out_dir)


def choose(init_from: str, out_dir: str | Path) -> tuple[dict[str, Any] | None, list[str]]:
    """(content of the checkpoint to start from, None for a start from scratch; a message per damaged checkpoint).

    Args:
        init_from: "scratch"; "resume", the newest undamaged checkpoint; "auto", the same, or scratch if there is none;
            or the path of a checkpoint, without alternatives.
    """
    if init_from == "scratch":
        return None, []
    if init_from not in ("resume", "auto"):
        return _to_resume(Path(init_from)), []
    damaged: list[str] = []
    for path in reversed(_paths(out_dir)):
        try:
            return _to_resume(path), damaged
        except CheckpointError as error:
            damaged.append(str(error))
    if init_from == "resume":
        raise CheckpointError("; ".join(damaged)) if damaged else _nothing(out_dir)
    return None, damaged


def _to_resume(path: Path) -> dict[str, Any]:
    saved = load(_described(path), parts=())
    if saved["format"] == FORMAT and saved.get("optimizer") != {}:  # `changes` says why others cannot be resumed
        _require(path, saved, *(name for name in CONTENT if name != "model" or "shards" not in saved))
        if not isinstance(saved.get("metrics", ""), str):  # earlier versions have none
            raise CheckpointError(f"{path} is not whole: it garbles 'metrics'")
    return saved | {"path": str(path)}


def _require(path: Path, saved: dict[str, Any], *names: str) -> None:
    """Raise CheckpointError if one of CONTENT is missing, or is no such thing."""
    for name in names:
        if not isinstance(saved.get(name), CONTENT[name]):
            raise CheckpointError(f"{path} is not whole: it lacks or garbles {name!r}")


@contextlib.contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Raise what fails on the content of a checkpoint, whose sha256 is right, as a CheckpointError that names it."""
    try:
        yield
    except Mistake:
        raise
    except (LookupError, TypeError, AttributeError, ValueError, OverflowError, RuntimeError) as error:
        if dist.is_initialized() and type(error) is RuntimeError:
            raise  # of another process
        what = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise CheckpointError(f"{path} is not whole ({what})") from error


def open_model(out_dir: str | Path, which: str) -> tuple[Checkpoint, dict[str, Any], GPT]:
    """(the "best" or "newest" checkpoint of a run, the run's config, the model in float32 on the CPU)."""
    found = chosen(out_dir, which)
    saved = load(found, ("model",))
    _require(found.path, saved, "config", "model_config", "model")
    with reading(found.path):
        config = GPTConfig(**saved["model_config"])
        if not 0 < config.n_layer <= len(saved["model"]):
            raise ValueError(f"n_layer={config.n_layer}")  # before so many layers are built
        model = GPT(config)
        model.load_state_dict(saved["model"])
    if found.val_loss is not None and not math.isfinite(found.val_loss):
        raise CheckpointError(f"{found.path} has the validation loss {found.val_loss}: choose an earlier checkpoint")
    require_finite(model, found.path)
    return found, saved["config"], model


def require_finite(model: GPT, path: str | Path) -> None:
    """Raise CheckpointError if a weight is not finite."""
    if wrong := [name for name, p in model.named_parameters() if not p.isfinite().all()]:
        raise CheckpointError(f"{path} holds NaN or infinity in {wrong[0]}: choose an earlier checkpoint")


def load(checkpoint: Checkpoint, parts: tuple[str, ...] = ("model", "optimizer")) -> dict[str, Any]:
    """The content of a checkpoint on the CPU, with its checksum verified.

    Args:
        parts: to read from a folder of shards. Without "model", "shards" is its path, for `restore`.
    """
    path = checkpoint.path
    try:
        content = _load_shards(path, parts) if path.is_dir() else _load_file(checkpoint)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror})") from None
    except CheckpointError:
        raise
    except Exception:  # torch documents no exception types for invalid files
        raise CheckpointError(f"{path} is not a checkpoint of this project (plain tensors and data only)") from None
    if not isinstance(content, dict) or content.get("format") not in (FORMAT, *EARLIER):
        raise CheckpointError(f"{path} is not a checkpoint of this project (its format is not {FORMAT!r})")
    if content.get("step") != checkpoint.step:
        raise CheckpointError(f"{path} is of step {content.get('step')!r}, but its json of {checkpoint.step}")
    return content


def _load_file(checkpoint: Checkpoint) -> Any:
    with checkpoint.path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != checkpoint.sha256:
            raise CheckpointError(f"{checkpoint.path} is damaged (sha256 {digest[:12]}..., but its json has "
                                  f"{checkpoint.sha256[:12]}...)")  # fmt: skip
        file.seek(0)
        return torch.load(file, map_location="cpu", weights_only=True)


def _load_shards(path: Path, parts: tuple[str, ...]) -> dict[str, Any]:
    from runtime import shards

    expected = _facts(path)["files"]
    actual = shards.sizes_and_digests([path / name for name in expected])
    if wrong := [name for name, facts in expected.items() if actual[name] != tuple(facts)]:
        raise CheckpointError(f"{path} is damaged (sha256 of {wrong[0]} differs from its json)")
    return shards.read(path, parts) | ({} if "model" in parts else {"shards": str(path)})


def changes(saved: dict[str, Any], identity: dict[str, Any], config: dict[str, Any]) -> list[str]:
    """The settings of a run that differ from those of the checkpoint that it resumes from.

    Args:
        identity: what must not differ: the model's config, `optimizer`, and the names of the `learned` coefficients.
    Raises:
        CheckpointError: the identity differs, or the checkpoint cannot be resumed from.
    """
    was = saved["config"]
    if saved["format"] in EARLIER:
        raise CheckpointError(f"the checkpoint in {config['out_dir']} was saved by an earlier version: sample.py, "
                              "evaluate.py and export.py read it, but no run resumes from it (--init_from=scratch)")
    if not saved["optimizer"]:  # written by export.py --from_folder
        raise CheckpointError(f"the checkpoint in {config['out_dir']} holds only weights, so it cannot be resumed: "
                              f"start a run in another out_dir with --weights={was['weights']}")
    other = saved["model_config"] | {"optimizer": was["optimizer"].rpartition(":")[2], "learned": saved["learned"]}
    wrong = [f"{name}={value} (checkpoint: {other.get(name)})" for name, value in identity.items()
             if name != "dropout" and value != other.get(name)]
    if wrong:
        raise CheckpointError(f"the checkpoint in {config['out_dir']} does not match: {', '.join(wrong)}")
    return [f"{name}={value!r} (was {was.get(name)!r})" for name, value in config.items()
            if name != "init_from" and value != was.get(name)]


def restore(saved: dict[str, Any], model: Any, optimizer: Any) -> None:
    """Load weights and optimizer state of a checkpoint, and remove them from `saved`. Weight decay and what is not
    learned stay as this run's config has them."""
    own = [{k: group[k] for k in ("weight_decay", *optimizer.fixed) if k != "lr" and k in group}
           for group in optimizer.param_groups]  # fmt: skip
    try:
        if "shards" in saved:
            from runtime import shards

            shards.restore(Path(saved["shards"]), saved["optimizer"], model, optimizer)
        else:
            mine, weights = model.state_dict(), saved.pop("model")
            model.load_state_dict({name: whole(share(t, mine[name]), mine[name]) for name, t in weights.items()})
            optimizer.load_state_dict(saved.pop("optimizer"))
    except (ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        if type(error) is RuntimeError and "state_dict" not in str(error):
            raise  # of another process
        what = " ".join(str(error).split())[:300]  # for instance other states, if a coefficient is 0 and not learned
        raise CheckpointError(f"the checkpoint {saved['path']} does not match: {what}") from error
    for group, values in zip(optimizer.param_groups, own, strict=True):
        group.update(values)


def _paths(out_dir: str | Path) -> list[Path]:
    """The .pt and .shards, sorted by step. Raises CheckpointError if the folder cannot be read."""
    try:
        listed = set(os.listdir(out_dir or "."))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:  # permission denied, a name too long, a loop of links
        raise CheckpointError(f"{out_dir} cannot be read ({error.strerror})") from None
    paths = [Path(out_dir, name) for name in listed if re.fullmatch(r"ckpt_\d+\.(pt|shards)", name)]
    return sorted(paths, key=lambda path: int(path.stem.removeprefix("ckpt_")))


def _nothing(out_dir: str | Path) -> CheckpointError:
    return CheckpointError(f"no complete checkpoint in {out_dir}: check out_dir (a new run starts from scratch)")


def _described(path: Path) -> Checkpoint:
    try:
        facts = _facts(path)
        checkpoint = Checkpoint(path, facts["step"], facts["val_loss"], facts["size"], facts["sha256"])
        files = [path / name for name in facts["files"]] if path.is_dir() else [path]
        complete = sum(file.stat().st_size for file in files) == checkpoint.size
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        what = "has no valid json beside it" if os.path.lexists(path) else "does not exist"
        raise CheckpointError(f"{path} {what}") from None
    if not complete:
        raise CheckpointError(f"{path} is truncated")
    return checkpoint


def _facts(path: Path) -> dict[str, Any]:
    """The json beside a checkpoint. Raises ValueError, TypeError, AttributeError or KeyError if it is not what was
    written: `check` covers all fields, those of earlier versions have none."""
    facts = read_json(path.with_suffix(".json"))
    if "check" in facts and facts.pop("check") != _check(facts):
        raise ValueError("check")
    number = f"ckpt_{facts['step']:06d}"
    if facts.keys() - {"files"} != {"step", "val_loss", "size", "sha256"} or number != path.stem:
        raise ValueError("fields")
    if facts["val_loss"] is not None:
        facts["val_loss"] = float(facts["val_loss"])
    return facts


def _check(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _remove(path: Path) -> None:
    """Delete a file or a folder; a folder is renamed first, so that it is never partly there under its name."""
    if path.is_dir():
        hidden = path if path.name.endswith(".tmp") else path.rename(path.with_name(f".{path.name}.removed.tmp"))
        shutil.rmtree(hidden)
    else:
        path.unlink(missing_ok=True)


def _prune(out_dir: Path, keep: int) -> None:
    for leftover in out_dir.glob(".ckpt_*.tmp"):  # of a run that was killed during a save
        _remove(leftover)
    found = find(out_dir)
    validated = [checkpoint for checkpoint in found if checkpoint.val_loss is not None]
    kept = {checkpoint.path for checkpoint in [*found[-keep:], *validated[-1:], best(out_dir)]}
    for checkpoint in found:
        if checkpoint.path not in kept:
            with contextlib.suppress(OSError):
                _remove(checkpoint.path)
    for described in out_dir.glob("ckpt_*.json"):  # last, so that the next save completes an interrupted deletion
        orphan = not any(described.with_suffix(kind).exists() for kind in KINDS)
        if re.fullmatch(r"ckpt_\d+", described.stem) and orphan:
            described.unlink(missing_ok=True)


class _Hashed:
    """A file to write to that computes its size and sha256 on the way."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.digest, self.size = file, hashlib.sha256(), 0
        self.flush = file.flush
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        self.size += memoryview(data).nbytes
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise
