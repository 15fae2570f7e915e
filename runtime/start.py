"""Where a run starts: from random or pretrained weights, or from a checkpoint of its own or of another run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from data import Dataset, val_starts
from model import GPT, GPTConfig
from runtime import checkpoint, huggingface, memory
from runtime.checkpoint import CheckpointError
from runtime.optimizers import learned_and_bytes
from runtime.out_dir import space_problem
from runtime.parallel import World
from runtime.settings import ConfigError
from runtime.spikes import Rollback, Spikes

STARTS = ("scratch", "resume", "auto")


@dataclass
class Start:
    """Where a run starts."""

    cfg: Any  # the run's config; with pretrained weights, the shape of the model is theirs
    model_config: GPTConfig
    saved: dict[str, Any] | None  # the checkpoint's content
    pretrained: GPT | None
    changes: list[str]  # settings that differ from the checkpoint's
    no_room: str | None  # for its checkpoints
    spikes: Spikes
    step: int  # optimizer steps done
    seconds: float  # that they took
    resume_step: int | None  # `step` if the checkpoint is one of out_dir; None: out_dir is cleared
    unlogged: torch.Tensor | None  # training loss of `step` if it is not logged yet; 0 at step 0

    def lines(self) -> Iterator[str]:
        """A description for the user."""
        if self.saved:
            without = [f"without the {count} batches after step {after}" for after, count in self.spikes.skipped]
            yield ", ".join([f"resuming after step {self.step}", *without, *self.changes])
        elif self.pretrained:
            cfg, config = self.cfg, self.model_config
            yield (f"weights of {cfg.weights}: {cfg.n_layer} layers of {cfg.n_embd} features, the first "
                   f"{cfg.block_size} positions, {config.vocab_size} tokens in {config.padded_vocab_size} rows")
        if self.no_room:
            yield self.no_room


def find_start(cfg: Any, world: World, dataset: Dataset, compiled: bool, learning_rate: Callable[[int, Any], float],
               rollback: Rollback | None) -> Start:  # fmt: skip
    """Choose the start, the same on all processes, before anything is allocated and before any file is moved.

    Args:
        compiled: whether the model will be compiled, which saves memory.
        learning_rate: (step, config) -> rate, to report a change of the rate at the resumed step.
        rollback: start from its checkpoint instead of the config's `init_from`.
    Raises:
        ConfigError, CheckpointError: data, weights, checkpoint and settings do not match, or exceed the memory.
    """
    for tokens in (dataset.train, dataset.val):
        val_starts(tokens, cfg.block_size, 1)  # raises DataError if a block is longer than the data
    weights = cfg.weights or named_weights(cfg)
    init_from = str(rollback.to.path) if rollback else "scratch" if cfg.init_from == weights else cfg.init_from
    saved, damaged = checkpoint.choose(init_from, cfg.out_dir)
    step = saved["step"] if saved else 0
    if step > cfg.max_iters:
        raise ConfigError(f"the checkpoint in {cfg.out_dir} is at step {step}, beyond max_iters={cfg.max_iters}")
    if world.rank == 0:
        for line in damaged:
            print(f"train.py: skipping a damaged checkpoint: {line}", file=sys.stderr)
    content = hashlib.sha256(json.dumps(dataset.manifest, sort_keys=True).encode()).hexdigest()
    # Also a barrier: all processes have read before prepare_out_dir moves files.
    world.require_same(dataclasses.asdict(cfg) | {"the data's manifest": content[:8], "the checkpoint's step": step})
    learned, state_bytes = learned_and_bytes(cfg)
    changes: list[str] = []
    saved_facts = saved or {}
    with checkpoint.reading(saved_facts.get("path", "")):
        cfg, model_config = _resolve_model_config(cfg, weights, saved, dataset.vocab_size)
        spikes = Spikes(**saved_facts.get("spikes", {}))
        seconds, pending_loss = float(saved_facts.get("seconds", 0.0)), saved_facts.get("pending_loss")
        pending_loss = None if pending_loss is None else float(pending_loss)
        if saved:
            optimizer = cfg.optimizer.rpartition(":")[2]  # without the path of a user's file
            identity = dataclasses.asdict(model_config) | {"optimizer": optimizer, "learned": learned}
            changes = checkpoint.changes(saved, identity, dataclasses.asdict(cfg))
            before = dataclasses.replace(cfg, **{k: v for k, v in saved["config"].items() if hasattr(cfg, k)})
            was, now = learning_rate(step + 1, before), learning_rate(step + 1, cfg)
            if was != now:
                changes.append(f"so the learning rate of step {step + 1} is {now:.3g} (was {was:.3g})")
    need = memory.needed(model_config, cfg.batch_size, state_bytes, world.size, cfg.parallel, world.dtype,
                         cfg.activation_checkpointing)  # fmt: skip
    if too_much := memory.problem(need, world.device, compiled):
        raise ConfigError(f"{too_much}: {memory.advice(cfg.batch_size)}")
    if world.rank == 0:
        available = memory.capacity(world.device) / 1e9
        print(f"memory per process: about {need} of {available:.2f} GB available", flush=True)
    pretrained = None
    if cfg.weights and not saved:
        pretrained = huggingface.load(cfg.weights, cfg.vocab_multiple, cfg.dropout, cfg.block_size)
    elsewhere = init_from.endswith(checkpoint.KINDS) and Path(init_from).parent.resolve() != Path(cfg.out_dir).resolve()
    spikes.skipped = rollback.skipped if rollback else spikes.skipped
    whole, goes_on = memory.needed(model_config, 1, state_bytes), saved is not None and not elsewhere
    no_room = space_problem(cfg.out_dir, whole.weights + whole.states, cfg.keep_checkpoints, goes_on)
    if no_room and not saved and world.rank == 0:  # a resumed run tries: where a save fails it goes on
        raise ConfigError(no_room)
    unlogged = None
    if not saved or pending_loss is not None:  # saved as a sum over the processes
        unlogged = torch.tensor((pending_loss or 0.0) if world.rank == 0 else 0.0, device=world.device)
    return Start(
        cfg, model_config, saved, pretrained, changes, no_room, spikes, step, seconds,
        resume_step=step if goes_on else None,
        unlogged=unlogged,
    )  # fmt: skip


def named_weights(cfg: Any) -> str | None:
    """The weights that `init_from` names, if it names any."""
    return cfg.init_from if cfg.init_from not in STARTS and huggingface.known(cfg.init_from) else None


def problems(cfg: Any) -> Iterator[tuple[str, str]]:
    """Problems of `init_from` and `weights`, for `parse`."""
    choices = f"{', '.join(huggingface.RELEASED)} or a folder with config.json and model.safetensors"
    named = named_weights(cfg)
    if cfg.init_from not in STARTS and not cfg.init_from.endswith(checkpoint.KINDS) and not named:
        yield "init_from", (f"init_from={cfg.init_from!r} must be scratch, resume, auto, the path of a ckpt_*.pt or "
                            f".shards, {choices}")  # fmt: skip
    if cfg.weights is not None and not huggingface.known(cfg.weights):
        yield "weights", f"weights={cfg.weights!r} must be {choices}"
    elif cfg.weights and named not in (None, cfg.weights):
        yield "init_from weights", f"init_from={cfg.init_from!r} and weights={cfg.weights!r} name different weights"


def _resolve_model_config(
    cfg: Any, weights: str | None, saved: dict[str, Any] | None, vocab_size: int
) -> tuple[Any, GPTConfig]:
    """(the run's config, the model's config): with the shape of the pretrained weights, if the run starts or started
    with some. Raises ConfigError or CheckpointError if data, weights and checkpoint do not match."""
    own = [field.name for field in dataclasses.fields(GPTConfig) if field.name != "vocab_size"]
    shape = {name: getattr(cfg, name) for name in own} | {"vocab_size": vocab_size}
    before = saved["config"].get("weights") if saved else None
    if weights is None and before is None:
        return cfg, GPTConfig(**shape)
    if saved and weights not in (None, before):
        raise CheckpointError(f"the checkpoint in {cfg.out_dir} does not match: weights={weights} "
                              f"(checkpoint: {before})")  # fmt: skip
    theirs = saved["model_config"] if saved else dataclasses.asdict(huggingface.describe(str(weights), cfg.block_size))
    shape |= {name: theirs[name] for name in ("n_layer", "n_head", "n_embd", "bias")}
    if theirs["vocab_size"] != vocab_size:
        raise ConfigError(f"{cfg.dataset} has {vocab_size} tokens, {weights or before} has {theirs['vocab_size']}: "
                          "choose a data set with the tokens of the weights")
    cfg = dataclasses.replace(cfg, weights=weights or before, **{name: shape[name] for name in own})
    return cfg, GPTConfig(**shape)
