"""Checkpoints of a model whose parameters are spread over the processes (FSDP2), each process's part a file.

A folder holds one safetensors file of each process, written by torch.distributed.checkpoint, and rest.pt with what all
of them have. Any number of processes reads it again, each only what it needs. Like every checkpoint it cannot run code:
torch.distributed.checkpoint's other format begins with a pickle.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter

from model import GPT

Facts = dict[str, tuple[int, str]]  # size in bytes and sha256 of each file


def write(folder: Path, content: dict[str, Any]) -> Facts:
    """Write a checkpoint's content, all processes together; what lies in the folder now, on every one of them.

    Raises OSError on every process if any of them could not write.
    """
    tensors, rest = _split(content)
    facts: Facts = {}
    error: OSError | None = None
    try:
        dcp.save(tensors, storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))
        if dist.get_rank() == 0:
            with (folder / "rest.pt").open("wb") as file:
                torch.save(rest, file)
                file.flush()
                os.fsync(file.fileno())
        written = sorted(folder.glob("*.safetensors"))[dist.get_rank() :: dist.get_world_size()]  # probably its own
        facts = described([*written, folder / "rest.pt"] if dist.get_rank() == 0 else written)
    except dcp.CheckpointException as failed:  # the same on all processes
        causes = [cause for cause, _ in failed.failures.values()]
        raise next((cause for cause in causes if isinstance(cause, OSError)), OSError(5, str(causes[0]))) from None
    except OSError as failed:
        error = failed
    outcomes: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(outcomes, error or facts)
    for outcome in outcomes:
        if isinstance(outcome, OSError):
            raise outcome
    return {name: fact for outcome in outcomes for name, fact in outcome.items()}


def described(paths: list[Path]) -> Facts:
    """Size and sha256 of files."""
    facts = {}
    for path in paths:
        with path.open("rb") as file:
            facts[path.name] = (path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())
    return facts


def read(folder: Path, parts: tuple[str, ...] = ("model", "optimizer")) -> dict[str, Any]:
    """The content as it was before it was spread, on the CPU: rest.pt and these of its parts."""
    content = torch.load(folder / "rest.pt", map_location="cpu", weights_only=True)
    if not parts:
        return content
    known = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    tensors = {name: torch.empty(facts.size, dtype=facts.properties.dtype)  # type: ignore[union-attr]
               for name, facts in known.items() if name.partition("/")[0] in parts}  # fmt: skip
    _load(tensors, folder, alone=True)
    if "model" in parts:
        model = {name.partition("/")[2]: t for name, t in tensors.items() if name.startswith("model/")}
        content["model"] = model | {name: model[same] for name, same in content.pop("same").items()}
    if "optimizer" in parts:
        state: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            part, _, key = name.partition("/")
            if part == "optimizer":
                index, _, field = key.partition("/")
                state.setdefault(int(index), {})[field] = tensor
        content["optimizer"]["state"] = state
    return content


def fill(folder: Path, optimizer_rest: dict[str, Any], model: GPT, optimizer: Any) -> None:
    """Read a checkpoint into a model and its optimizer, sharded or not: all processes together, each its own part.

    Raises ValueError if the optimizer is another.
    """
    own = optimizer.state_dict()
    state = optimizer_rest | {"state": own["state"]}
    optimizer.load_state_dict(state)  # refuses another rule before anything is read
    tensors, _ = _split({"model": model.state_dict(keep_vars=True), "optimizer": own})
    _load(tensors, folder, alone=not dist.is_initialized())
    optimizer.load_state_dict(state)  # one value of each column was read, all its rows need it


def _split(content: dict[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The parameters' tensors by name ("model/...", "optimizer/INDEX/FIELD"), and the rest.

    A parameter that goes by two names is there once; the rest says which is the same as which.
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
    rest = content | {"same": same, "optimizer": {k: v for k, v in content["optimizer"].items() if k != "state"}}
    del rest["model"]
    return tensors, rest


def _load(tensors: dict[str, torch.Tensor], folder: Path, alone: bool) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        try:
            dcp.load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=alone)
        except dcp.CheckpointException as failed:
            raise ValueError(str(next(iter(failed.failures.values()))[0])) from None
