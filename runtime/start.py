"""Where a run begins: with random weights, with released ones, or at a checkpoint, its own or one that it names."""

from __future__ import annotations

import dataclasses
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
from runtime.parallel import World
from runtime.settings import ConfigError
from runtime.spikes import Rollback, Spikes

STARTS = ("scratch", "resume", "auto")


@dataclass
class Start:
    """Where a run begins."""

    cfg: Any  # the run's config; the shape of the model is that of the weights, if it starts with some
    model_config: GPTConfig
    saved: dict[str, Any] | None  # the checkpoint's content
    pretrained: GPT | None  # released weights to begin with
    changes: list[str]  # settings that differ from the checkpoint's
    in_out_dir: bool  # the checkpoint is one of out_dir's own
    spikes: Spikes  # of the steps before

    @property
    def resume_step(self) -> int | None:
        """The step of out_dir's own checkpoint that the run goes on from; None: out_dir begins anew."""
        return self.step if self.saved and self.in_out_dir else None

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.saved["step"] if self.saved else 0

    @property
    def seconds(self) -> float:
        """That the steps before took."""
        return self.saved["seconds"] if self.saved else 0.0

    @property
    def pending_loss(self) -> float | None:
        """Training loss of a step interrupted before logging."""
        return self.saved.get("pending_loss") if self.saved else None

    def unlogged(self, world: World) -> torch.Tensor | None:
        """The training loss of `step`, a 0-D tensor, where `step` was not logged before it was saved: 0 for step 0.

        It was summed over the processes already, so that the first one has all of it.
        """
        if self.saved is not None and self.pending_loss is None:
            return None
        return torch.tensor((self.pending_loss or 0.0) if world.rank == 0 else 0.0, device=world.device)

    def lines(self) -> Iterator[str]:
        """What to tell the user about it."""
        if self.saved:
            without = [f"without the {count} batches after step {after}" for after, count in self.spikes.skipped]
            yield ", ".join([f"resuming after step {self.step}", *without, *self.changes])
        elif self.pretrained:
            cfg, config = self.cfg, self.model_config
            yield (f"weights of {cfg.weights}: {cfg.n_layer} layers of {cfg.n_embd} features, the first "
                   f"{cfg.block_size} positions, {config.vocab_size} tokens in {config.padded_vocab_size} rows")


def find_start(cfg: Any, world: World, dataset: Dataset, compiled: bool, learning_rate: Callable[[int, Any], float],
               rollback: Rollback | None) -> Start:  # fmt: skip
    """Decide it, the same on all processes, before anything is allocated or moved.

    Args:
        compiled: whether the model will be compiled, which saves memory.
        learning_rate: (step, config) -> rate, to say where a resumed run continues at another one.
        rollback: begin at its checkpoint, whatever the config says.
    Raises:
        ConfigError, CheckpointError: data, weights, checkpoint and settings do not belong together, or do not fit into
            memory.
    """
    for tokens in (dataset.train, dataset.val):
        val_starts(tokens, cfg.block_size, 1)  # refuses a block that is longer than the data
    weights = cfg.weights or named_weights(cfg)
    init_from = str(rollback.to.path) if rollback else "scratch" if cfg.init_from == weights else cfg.init_from
    saved, damaged = checkpoint.choose(init_from, cfg.out_dir)
    step = saved["step"] if saved else 0
    if step > cfg.max_iters:
        raise ConfigError(f"the checkpoint in {cfg.out_dir} is at step {step}, beyond max_iters={cfg.max_iters}")
    if world.rank == 0:
        for line in damaged:
            print(f"train.py: passing over a checkpoint: {line}", file=sys.stderr)
    if not world.same(step):  # after which all have read: prepare_out_dir moves files
        raise CheckpointError(f"the processes do not see the same checkpoints: out_dir={cfg.out_dir!r} must be shared")
    cfg, model_config = resolve_model_config(cfg, weights, saved, dataset.vocab_size)
    learned, state_bytes = learned_and_bytes(cfg)
    changes: list[str] = []
    if saved:
        optimizer = cfg.optimizer.rpartition(":")[2]  # a user's file may have moved
        identity = dataclasses.asdict(model_config) | {"optimizer": optimizer, "learned": learned}
        changes = checkpoint.changes(saved, identity, dataclasses.asdict(cfg))
        before = dataclasses.replace(cfg, **{k: v for k, v in saved["config"].items() if hasattr(cfg, k)})
        was, now = learning_rate(step + 1, before), learning_rate(step + 1, cfg)
        if was != now:  # another length stretches the cosine, and the rate jumps
            changes.append(f"so the learning rate of step {step + 1} is {now:.3g} (was {was:.3g})")
    need = memory.needed(model_config, cfg.batch_size, state_bytes, world.size, cfg.parallel, world.dtype,
                         cfg.activation_checkpointing)  # fmt: skip
    if too_much := memory.problem(need, world.device, compiled):
        raise ConfigError(f"{too_much}: {memory.advice(cfg.batch_size)}")
    if world.rank == 0:
        there = memory.capacity(world.device)
        print(f"memory of a process: about {need}, there are {there / 1e9:.2f} GB", flush=True)
    pretrained = None
    if cfg.weights and not saved:
        pretrained = huggingface.load(cfg.weights, cfg.vocab_multiple, cfg.dropout, cfg.block_size)
    named = init_from.endswith(checkpoint.KINDS)
    in_out_dir = not named or Path(init_from).parent.resolve() == Path(cfg.out_dir).resolve()
    spikes = Spikes(**saved.get("spikes", {})) if saved else Spikes()
    spikes.skipped = rollback.skipped if rollback else spikes.skipped
    return Start(cfg, model_config, saved, pretrained, changes, in_out_dir, spikes)


def named_weights(cfg: Any) -> str | None:
    """The weights that `init_from` names, if it names any."""
    return cfg.init_from if cfg.init_from not in STARTS and huggingface.known(cfg.init_from) else None


def problems(cfg: Any) -> list[tuple[str, str]]:
    """What is wrong with `init_from` and `weights` in a config, as `parse` wants it."""
    choices = f"{', '.join(huggingface.RELEASED)} or a folder with config.json and model.safetensors"
    named = named_weights(cfg)
    found = []
    if cfg.init_from not in STARTS and not cfg.init_from.endswith(checkpoint.KINDS) and not named:
        found.append(("init_from", f"init_from={cfg.init_from!r} must be scratch, resume, auto, the path of a "
                                   f"ckpt_*.pt or .shards, {choices}"))  # fmt: skip
    if cfg.weights is not None and not huggingface.known(cfg.weights):
        found.append(("weights", f"weights={cfg.weights!r} must be {choices}"))
    elif cfg.weights and named not in (None, cfg.weights):
        found.append(("init_from weights", f"init_from={cfg.init_from!r} and weights={cfg.weights!r} are two starts"))
    return found


def resolve_model_config(
    cfg: Any, weights: str | None, saved: dict[str, Any] | None, vocab_size: int
) -> tuple[Any, GPTConfig]:
    """(the run's config, the model's): the shape is the config's, or that of the weights that the run starts with or
    once started with. Raises ConfigError or CheckpointError if data, weights and checkpoint do not belong together."""
    own = [field.name for field in dataclasses.fields(GPTConfig) if field.name != "vocab_size"]
    shape = {name: getattr(cfg, name) for name in own} | {"vocab_size": vocab_size}
    before = saved["config"].get("weights") if saved else None
    if weights is None and before is None:
        return cfg, GPTConfig(**shape)
    if saved and weights not in (None, before):
        raise CheckpointError(f"the checkpoint in {cfg.out_dir} does not fit: weights={weights} (there {before})")
    theirs = saved["model_config"] if saved else dataclasses.asdict(huggingface.describe(str(weights), cfg.block_size))
    shape |= {name: theirs[name] for name in ("n_layer", "n_head", "n_embd", "bias")}
    if theirs["vocab_size"] != vocab_size:
        raise ConfigError(f"{cfg.dataset} has {vocab_size} tokens, {weights or before} has {theirs['vocab_size']}: "
                          "choose a data set with the tokens of the weights")
    cfg = dataclasses.replace(cfg, weights=weights or before, **{name: shape[name] for name in own})
    return cfg, GPTConfig(**shape)
