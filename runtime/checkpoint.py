"""Checkpoints that are complete or not there at all.

A checkpoint is `ckpt_000500.pt` and `ckpt_000500.json`, with its step, validation loss, size and sha256. Both reach the
disk under a temporary name and are renamed into place, the .pt last: with that one rename the checkpoint is there, and
a run killed at any moment leaves complete checkpoints only. The .pt holds tensors and plain data and is only ever read
with `weights_only=True`, which cannot run code. A sharded run writes a folder `ckpt_000500.shards` in place of the .pt
(sharded.py); everything below reads either.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

from model import GPT, GPTConfig
from optim.flat import part, share, whole

KINDS = (".pt", ".shards")
FORMAT = "nanomada-2"  # changes when an older reader would misread what is written
EARLIER = ("nanomada-1",)  # of these only the model is read: their optimizer states and settings have other names


class CheckpointError(ValueError):
    """There is no checkpoint, or it is not what it should be; the message says which and what to do."""


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk, as its json describes it."""

    path: Path
    step: int
    val_loss: float | None  # at this very step, None where it was not measured
    size: int  # bytes
    sha256: str  # of a folder: of the list of its files in the json


def save(out_dir: str | Path, step: int, val_loss: float | None, content: dict[str, Any], keep: int) -> Checkpoint:
    """Write a checkpoint, then delete older ones but the newest `keep`, the best, and the newest that has a val_loss,
    to which a run goes back before a loss spike."""
    path = Path(out_dir) / f"ckpt_{step:06d}.pt"
    with _temporary(path) as temporary:
        with temporary.open("wb") as file:
            hashed = _Hashed(file)
            try:
                torch.save({"format": FORMAT, "step": step, **content}, hashed)  # type: ignore[arg-type]
            except Exception as error:
                raise hashed.error or error from None  # torch reports a full disk as an error of its own
            _sync(file)
        facts = {"step": step, "val_loss": val_loss, "size": hashed.size, "sha256": hashed.digest.hexdigest()}
        _publish(temporary, path, facts, keep)
    return _described(path)


def save_shards(out_dir: str | Path, step: int, val_loss: float | None, content: dict[str, Any], keep: int) -> None:
    """The same by all processes of a sharded run together. Raises OSError on all of them if one could not write."""
    import torch.distributed as dist

    from runtime import shards

    path = Path(out_dir) / f"ckpt_{step:06d}.shards"
    partial = path.with_name(f".{path.name}.tmp")
    outcome: list[OSError | None] = [None]
    if dist.get_rank() == 0:
        try:
            _remove(partial)  # of a run that was killed while it saved
            partial.mkdir()
        except OSError as error:
            outcome = [error]
    dist.broadcast_object_list(outcome)
    if outcome[0]:
        raise outcome[0]
    try:
        files = shards.write(partial, {"format": FORMAT, "step": step, **content})
        if dist.get_rank() == 0:
            try:
                size = sum(size for size, _ in files.values())
                facts = {"step": step, "val_loss": val_loss, "size": size, "sha256": _digest(files), "files": files}
                _sync_folder(partial)
                if path.exists():  # saved before its step was measured
                    path.rename(path.with_name(f".{path.name}.old.tmp"))
                _publish(partial, path, facts, keep)
            except OSError as error:
                outcome = [error]
        dist.broadcast_object_list(outcome)
        if outcome[0]:
            raise outcome[0]
    finally:
        if dist.get_rank() == 0:
            with contextlib.suppress(OSError):
                _remove(partial)


def _publish(temporary: Path, path: Path, facts: dict[str, Any], keep: int) -> None:
    """The json, then the one rename that makes a checkpoint of `temporary`, then old ones go."""
    described = path.with_suffix(".json")
    with _temporary(described) as small:
        with small.open("wb") as file:
            file.write((json.dumps(facts) + "\n").encode())
            _sync(file)
        os.replace(small, described)
    os.replace(temporary, path)
    _sync_folder(path.parent)  # the new names themselves are only on disk when their folder is
    with contextlib.suppress(OSError, CheckpointError):  # an old file that stays must not end a run
        for other in (path.with_suffix(kind) for kind in KINDS if kind != path.suffix):  # the json is not its own now
            _remove(other)
        _prune(path.parent, keep)


def find(out_dir: str | Path) -> list[Checkpoint]:
    """The checkpoints of a run, oldest step first; one of the two files alone was never finished."""
    checkpoints = []
    for path in _paths(out_dir):
        with contextlib.suppress(CheckpointError):
            checkpoints.append(_described(path))
    return sorted(checkpoints, key=lambda checkpoint: checkpoint.step)


def newest(out_dir: str | Path) -> Checkpoint:
    """The checkpoint of the latest step, without a look inside."""
    found = find(out_dir)
    if not found:
        raise _nothing(out_dir)
    return found[-1]


def best(out_dir: str | Path) -> Checkpoint:
    """The checkpoint with the lowest validation loss; the newest where none was measured."""
    measured = [checkpoint for checkpoint in find(out_dir) if checkpoint.val_loss is not None]
    return min(measured, key=lambda checkpoint: checkpoint.val_loss or 0.0) if measured else newest(out_dir)


def last_of(found: list[Checkpoint], which: str) -> str:
    """Words for a message: the last of these checkpoints, or that there is none."""
    return f"the last checkpoint {which} is {found[-1].path}" if found else f"no checkpoint is {which}"


def choose(init_from: str, out_dir: str | Path) -> tuple[dict[str, Any] | None, list[str]]:
    """What a run starts from (None: from scratch), and a line on each damaged checkpoint that was passed over.

    Args:
        init_from: "scratch"; "resume", the newest checkpoint that is whole; "auto", the same but scratch where there is
            none; or the path of a checkpoint, and then no other will do.
    """
    if init_from == "scratch":
        return None, []
    if init_from not in ("resume", "auto"):
        return load(_described(Path(init_from)), parts=()), []
    damaged: list[str] = []
    for path in reversed(_paths(out_dir)):
        try:
            return load(_described(path), parts=()), damaged
        except CheckpointError as error:
            damaged.append(str(error))
    if init_from == "resume":
        raise CheckpointError("; ".join(damaged)) if damaged else _nothing(out_dir)
    return None, damaged


def open_model(out_dir: str | Path, which: str) -> tuple[Checkpoint, dict[str, Any], GPT]:
    """The "best" or "newest" checkpoint of a run, the run's config, and the model, in float32 on the CPU."""
    chosen = best(out_dir) if which == "best" else newest(out_dir)
    saved = load(chosen, ("model",))
    model = GPT(GPTConfig(**saved["model_config"]))
    model.load_state_dict(saved["model"])
    return chosen, saved["config"], model


def load(checkpoint: Checkpoint, parts: tuple[str, ...] = ("model", "optimizer")) -> dict[str, Any]:
    """The content of a checkpoint, on the CPU, after its checksum was verified.

    Args:
        parts: of a folder of shards these alone are read; without "model" its path is there as "shards", for `restore`.
    """
    path = checkpoint.path
    try:
        content = _load_shards(checkpoint, parts) if path.is_dir() else _load_file(checkpoint)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror})") from None
    except CheckpointError:
        raise
    except Exception:  # torch names no type for what a foreign file can do to its reader
        raise CheckpointError(f"{path} is no checkpoint of this project (plain tensors and data only)") from None
    if not isinstance(content, dict) or content.get("format") not in (FORMAT, *EARLIER):
        raise CheckpointError(f"{path} is no checkpoint of this project (its format is not {FORMAT!r})")
    return content


def _load_file(checkpoint: Checkpoint) -> Any:
    with checkpoint.path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != checkpoint.sha256:
            raise CheckpointError(f"{checkpoint.path} is damaged (sha256 {digest[:12]}..., not "
                                  f"{checkpoint.sha256[:12]}... of its json)")
        file.seek(0)
        return torch.load(file, map_location="cpu", weights_only=True)


def _load_shards(checkpoint: Checkpoint, parts: tuple[str, ...]) -> dict[str, Any]:
    from runtime import shards

    path = checkpoint.path
    files = {name: tuple(facts) for name, facts in _facts(path)["files"].items()}
    found = shards.described([path / name for name in files])
    if wrong := [name for name in files if found[name] != files[name]]:
        raise CheckpointError(f"{path} is damaged (sha256 of {wrong[0]} is not that of its json)")
    return shards.read(path, parts) | ({} if "model" in parts else {"shards": str(path)})


def changes(saved: dict[str, Any], identity: dict[str, Any], config: dict[str, Any]) -> list[str]:
    """The settings of a run that differ from those of the checkpoint that it goes on from.

    Another learning rate or length is the user's choice. Another `identity` (the model's config, `optimizer`, and the
    names of the coefficients `learned`) is refused, before it takes any memory; so are weights without an optimizer.
    """
    was = saved["config"]
    if saved["format"] in EARLIER:
        raise CheckpointError(f"the checkpoint in {config['out_dir']} was saved by an earlier version: sample.py, "
                              "evaluate.py and export.py read it, but no run resumes from it (--init_from=scratch)")
    if not saved["optimizer"]:  # export.py --from_folder wrote it
        raise CheckpointError(f"the checkpoint in {config['out_dir']} holds weights only, and no run to go on with: "
                              f"start one in another out_dir with --weights={was['weights']}")
    there = saved["model_config"] | {"optimizer": was["optimizer"].rpartition(":")[2], "learned": saved["learned"]}
    wrong = [f"{name}={value} (there {there.get(name)})" for name, value in identity.items()
             if name != "dropout" and value != there.get(name)]
    if wrong:
        raise CheckpointError(f"the checkpoint in {config['out_dir']} does not fit: {', '.join(wrong)}")
    return [f"{name}={value!r} (was {was.get(name)!r})" for name, value in config.items()
            if name != "init_from" and value != was.get(name)]


def restore(saved: dict[str, Any], model: Any, optimizer: torch.optim.Optimizer) -> None:
    """Put a checkpoint's weights and optimizer state in place, and out of `saved`, which a run keeps for its facts."""
    decay = [group["weight_decay"] for group in optimizer.param_groups]
    try:
        if "shards" in saved:
            from runtime import shards

            shards.fill(Path(saved["shards"]), saved["optimizer"], model, optimizer)
        else:
            own, whole_ones = model.state_dict(), saved.pop("model")
            model.load_state_dict({name: whole(share(t, own[name]), own[name]) for name, t in whole_ones.items()})
            optimizer.load_state_dict(saved.pop("optimizer"))
    except ValueError as error:  # a coefficient that rested where it does nothing has no state there, for instance
        raise CheckpointError(f"the checkpoint in {saved['config']['out_dir']} does not fit: {error}") from None
    for group, weight_decay in zip(optimizer.param_groups, decay, strict=True):
        group["weight_decay"] = weight_decay  # this run's, not the checkpoint's


def space_problem(out_dir: str | Path, model: Any, optimizer: Any, keep: int) -> str | None:
    """Whether the disk will not hold what a run keeps: the newest `keep`, the best, and one that is being written."""
    size = _bytes([model.state_dict(), optimizer.state_dict()], set())
    there = sum(found.size for found in find(out_dir))
    needed, free = (keep + 2) * size - there, shutil.disk_usage(out_dir).free
    if needed <= free:
        return None
    return (f"out_dir={str(out_dir)!r} has {free / 1e6:,.1f} MB free, the checkpoints need {needed / 1e6:,.1f} MB "
            f"({keep + 2} of {size / 1e6:,.1f} MB): choose another, or lower keep_checkpoints={keep}")


def _bytes(content: Any, seen: set[int]) -> int:
    """Of all tensors in nested dicts and lists; a buffer that several of them share counts once, as in the file."""
    if isinstance(content, torch.Tensor):
        storage = part(content).untyped_storage()
        new = storage.data_ptr() not in seen
        seen.add(storage.data_ptr())
        if part(content) is not content:  # the other parts will lie in the same folder
            return content.numel() * content.element_size() if new else 0
        return storage.nbytes() if new else 0
    parts = content.values() if isinstance(content, dict) else content if isinstance(content, list | tuple) else ()
    return sum(_bytes(part, seen) for part in parts)


def _paths(out_dir: str | Path) -> list[Path]:
    """The .pt and .shards that have a json, oldest step first."""
    names = (path.with_suffix(kind) for path in Path(out_dir).glob("ckpt_*.json") for kind in KINDS)
    paths = [path for path in names if re.fullmatch(r"ckpt_\d+", path.stem) and path.exists()]
    return sorted(paths, key=lambda path: int(path.stem.removeprefix("ckpt_")))


def _nothing(out_dir: str | Path) -> CheckpointError:
    return CheckpointError(f"no complete checkpoint in {out_dir}: check out_dir (a new run starts from scratch)")


def _described(path: Path) -> Checkpoint:
    try:
        facts = _facts(path)
        checkpoint = Checkpoint(path, facts["step"], facts["val_loss"], facts["size"], facts["sha256"])
        files = [path / name for name in facts["files"]] if path.is_dir() else [path]
        complete = sum(file.stat().st_size for file in files) == checkpoint.size
    except (OSError, ValueError, KeyError, TypeError):
        raise CheckpointError(f"{path} has no readable json beside it") from None
    if not complete:
        raise CheckpointError(f"{path} is truncated")
    return checkpoint


def _facts(path: Path) -> dict[str, Any]:
    return json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))


def _digest(files: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def _remove(path: Path) -> None:
    """A file, or a folder: as one step, so that no half of it looks like a whole."""
    if path.is_dir():
        hidden = path if path.name.endswith(".tmp") else path.rename(path.with_name(f".{path.name}.gone.tmp"))
        shutil.rmtree(hidden)
    else:
        path.unlink(missing_ok=True)


def _prune(out_dir: Path, keep: int) -> None:
    for leftover in out_dir.glob(".ckpt_*.tmp"):  # of a run that was killed while it saved
        _remove(leftover)
    found = find(out_dir)
    validated = [checkpoint for checkpoint in found if checkpoint.val_loss is not None]
    kept = {checkpoint.path for checkpoint in [*found[-keep:], *validated[-1:], best(out_dir)]}
    for checkpoint in found:
        if checkpoint.path not in kept:
            with contextlib.suppress(OSError):  # go on with the others
                _remove(checkpoint.path)
    for described in out_dir.glob("ckpt_*.json"):  # last: a run killed before this line does it the next time
        gone = not any(described.with_suffix(kind).exists() for kind in KINDS)
        if re.fullmatch(r"ckpt_\d+", described.stem) and gone:
            described.unlink(missing_ok=True)


class _Hashed:
    """A file that is only written to, and its sha256 on the way: no second reading."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.digest, self.size = file, hashlib.sha256(), 0
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        self.size += memoryview(data).nbytes
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """A name to write under before the file is renamed to `path`; a failed attempt leaves nothing behind."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
    finally:
        with contextlib.suppress(OSError):  # a disk that became read-only keeps it
            temporary.unlink(missing_ok=True)


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
