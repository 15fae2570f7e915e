"""Checkpoints of models sharded by FSDP2: each process writes a file with its shards.

A checkpoint is a folder with one safetensors file per process, written by torch.distributed.checkpoint, and rest.pt
with everything else. Any number of processes can read it, each only what it needs. Like every checkpoint it cannot run
code; torch.distributed.checkpoint's default format contains a pickle.
"""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter

from data.manifest import replacing
from model import GPT

Facts = dict[str, tuple[int, str]]  # size in bytes and sha256 of each file


def write(folder: Path, content: dict[str, Any]) -> Facts:
    """Write a checkpoint's content, called by all processes; returns the facts of all files on each of them.

    Raises OSError on every process if any of them could not write.
    """
    tensors, rest = _split(content)
    rank, size = dist.get_rank(), dist.get_world_size()
    result: Facts | OSError
    try:
        dcp.save(tensors, storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))
        files = sorted(folder.glob("*.safetensors"))[rank::size]
        if rank == 0:
            files.append(folder / "rest.pt")
            with replacing(files[-1]) as file:
                torch.save(rest, file)
        result = sizes_and_digests(files)
    except dcp.CheckpointException as failed:  # the same on all processes
        causes = [cause for cause, _ in failed.failures.values()]
        raise next((cause for cause in causes if isinstance(cause, OSError)), OSError(5, str(causes[0]))) from None
    except OSError as failed:
        result = failed
    results: list[Any] = [None] * size
    dist.all_gather_object(results, result)
    for one in results:
        if isinstance(one, OSError):
            raise one
    return {name: fact for one in results for name, fact in one.items()}


def sizes_and_digests(paths: list[Path]) -> Facts:
    facts = {}
    for path in paths:
        with path.open("rb") as file:
            facts[path.name] = (path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())
    return facts


def read(folder: Path, parts: tuple[str, ...]) -> dict[str, Any]:
    """The unsharded content on the CPU: rest.pt, and "model" or "optimizer" if they are in `parts`."""
    content = torch.load(folder / "rest.pt", map_location="cpu", weights_only=True)
    if not parts:
        return content
    known = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    tensors = {name: torch.empty(facts.size, dtype=facts.properties.dtype)  # type: ignore[union-attr]
               for name, facts in known.items() if name.partition("/")[0] in parts}  # fmt: skip
    _load(tensors, folder, no_dist=True)
    model, state = {}, content["optimizer"].setdefault("state", {})
    for name, tensor in tensors.items():
        part, _, key = name.partition("/")
        if part == "model":
            model[key] = tensor
        else:
            index, _, field = key.partition("/")
            state.setdefault(int(index), {})[field] = tensor
    if "model" in parts:
        content["model"] = model | {name: model[first] for name, first in content.pop("same").items()}
    return content


def restore(folder: Path, optimizer_rest: dict[str, Any], model: GPT, optimizer: Any) -> None:
    """Load a checkpoint into a model and its optimizer, sharded or not; called by all processes, each reads its shards.

    Raises ValueError if the checkpoint is of another optimizer.
    """
    own = optimizer.state_dict()
    state = optimizer_rest | {"state": own["state"]}
    optimizer.load_state_dict(state)  # raises ValueError before anything is read
    tensors, _ = _split({"model": model.state_dict(keep_vars=True), "optimizer": own})
    _load(tensors, folder, no_dist=not dist.is_initialized())
    optimizer.load_state_dict(state)  # expands the columns, of which one value per parameter was read


def _split(content: dict[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """(the tensors by name: "model/NAME", "optimizer/INDEX/FIELD"; the rest of the content).

    A tied parameter is among the tensors once; "same" maps its other names to the first.
    """
    first: dict[int, str] = {}
    same: dict[str, str] = {}
    tensors: dict[str, torch.Tensor] = {}
    for name, p in content["model"].items():
        if id(p) in first:
            same[name] = first[id(p)]
        else:
            first[id(p)] = name
            tensors[f"model/{name}"] = p.detach()
    for index, fields in content["optimizer"]["state"].items():
        tensors |= {f"optimizer/{index}/{field}": tensor for field, tensor in fields.items()}
    optimizer = {key: value for key, value in content["optimizer"].items() if key != "state"}
    rest = {key: value for key, value in content.items() if key != "model"}
    return tensors, rest | {"same": same, "optimizer": optimizer}


def _load(tensors: dict[str, torch.Tensor], folder: Path, no_dist: bool) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        try:
            dcp.load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=no_dist)
        except dcp.CheckpointException as failed:
            raise ValueError(str(next(iter(failed.failures.values()))[0])) from None
