"""A training iteration as train.py makes it, for the benchmarks: what they need of train.py is called here alone."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

import train
from benchmarks.measure import SIX
from data import DataError, open_dataset
from model import GPT, GPTConfig, peak_flops
from optim import build_optimizer
from runtime import graph, memory, parallel
from runtime.settings import parse

CONTENDERS: dict[str, dict[str, Any]] = {  # the name up to the first _ is the optimizer's
    "adamw": {},
    "adam": {},
    "mada": {"hyper_lr": SIX},
    "mada_half": {"hyper_lr": SIX, "half": ("m", "n", "v", "va", "l", "g", "pending")},
    "mada_without_lion": {"hyper_lr": {name: rate for name, rate in SIX.items() if name != "gamma"}},
    "mada_weights_first": {"hyper_lr": SIX, "order": "weights_first"},
}


class RandomTokens:
    """Stands in for a data set that is not here."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def __len__(self) -> int:
        return 10_000_000

    def windows(self, starts: np.ndarray, length: int) -> np.ndarray:
        return np.random.default_rng(int(starts[0])).integers(0, self.vocab_size, (len(starts), length))


@dataclass
class Trainer:
    """One contender with a model of its own.

    Attributes:
        iterate: takes one training step.
        parameters: of the model.
        tokens, flops: of a step.
        peak_flops: of all devices together in a second, at the run's precision; None where that is not known.
        need: what runtime/memory.py counts for it.
    """

    iterate: Callable[[], None]
    parameters: int
    tokens: int
    flops: float
    peak_flops: float | None
    need: memory.Memory

    def speed(self, seconds: float) -> dict[str, float | None]:
        """Tokens a second, and the part of the devices' peak that it takes, where a step takes `seconds`."""
        mfu = self.flops / seconds / self.peak_flops if self.peak_flops else None
        return {"tokens_per_second": self.tokens / seconds, "mfu": mfu}


def config(argv: list[str], program: str) -> train.Config:
    """train.py's settings from a command line. Raises ConfigError and HelpRequested."""
    return parse(train.Config, argv, train.check, program)


def join(cfg: train.Config) -> parallel.World:
    parallel.deterministic(cfg.deterministic)
    return parallel.join(cfg.device, cfg.dtype, 600, cfg.parallel == "fsdp")


def shape(cfg: train.Config, vocab_size: int) -> GPTConfig:
    fields = {name: getattr(cfg, name) for name in GPTConfig.__dataclass_fields__ if name != "vocab_size"}
    return GPTConfig(vocab_size=vocab_size, **fields)


def new_model(cfg: train.Config, vocab_size: int) -> GPT:
    """The model of a config, with the weights that its seed gives."""
    torch.manual_seed(cfg.seed)
    return GPT(shape(cfg, vocab_size))


def trainer(name: str, cfg: train.Config, world: parallel.World) -> Trainer:
    """A contender, ready to train; on random tokens where the data set of the config is not to be had."""
    tokens: Any
    try:
        dataset = open_dataset(cfg.dataset, prepare=True)
        tokens, vocab_size = dataset.train, dataset.vocab_size
    except DataError:
        vocab_size = 50257
        tokens = RandomTokens(vocab_size)
    with world.device:  # a CPU would need many seconds for the random weights of GPT-2 XL
        model = new_model(cfg, vocab_size)
    model.activation_checkpointing(cfg.activation_checkpointing)
    net = world.parallelize(model, bool(cfg.compile or world.device.type == "cuda"))
    groups = model.param_groups(cfg.weight_decay)
    settings: dict[str, Any] = {"lr": cfg.learning_rate, "max_grad_norm": cfg.grad_clip, "compile": cfg.compile}
    optimizer: Any
    step, state = 0, 8  # state: bytes a parameter
    if name == "adamw":
        optimizer = torch.optim.AdamW(groups, lr=cfg.learning_rate, betas=(0.9, 0.95), eps=1e-6, fused=True)
    else:
        rule, settings = name.split("_")[0], settings | CONTENDERS[name]
        optimizer = build_optimizer(rule, groups, **settings)
        optimizer.zero_grad(set_to_none=False)
        state = optimizer.options.state_bytes()
        net, update = graph.captured(cfg, net, optimizer, world)

    def iterate() -> None:
        nonlocal step
        step += 1
        train.accumulate(net, tokens, step, cfg, world)
        if name != "adamw":
            return update()
        torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.grad_clip)
        optimizer.step()
        optimizer.zero_grad()  # set to None, which is best for it

    count = cfg.gradient_accumulation_steps * cfg.batch_size * cfg.block_size
    peak = peak_flops(world.device, world.dtype)
    need = memory.needed(shape(cfg, vocab_size), cfg.batch_size, state, world.size, cfg.parallel, world.dtype,
                         cfg.activation_checkpointing)  # fmt: skip
    flops = model.flops_per_token() * count
    return Trainer(iterate, model.num_parameters(), count, flops, peak * world.size if peak else None, need)
