"""Small runs in this process, for experiments that need many of them or look into each step."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from data import Tokens, open_dataset, train_batch, val_starts
from model import GPT, GPTConfig
from optim import RuleOptimizer

from .training_loss import mean_loss

MODEL = {"n_layer": 2, "n_head": 4, "n_embd": 80, "bias": False, "vocab_multiple": 64}


def characters(split: str = "train") -> Tokens:
    """Of Shakespeare."""
    return open_dataset("shakespeare_char", prepare=True).split(split)


def new_model(settings: Mapping[str, Any], seed: int) -> GPT:
    """A model of these characters, by `model` and `block_size` of the settings."""
    torch.manual_seed(seed)
    size = {"vocab_size": characters().vocab_size, "block_size": settings["block_size"], "dropout": 0.0}
    return GPT(GPTConfig(**size, **settings["model"]))


def schedule(settings: Mapping[str, Any], lr: float) -> list[float]:
    """The rate of each of `steps`: linear over `warmup`, then a cosine down to a tenth, as train.py has it."""
    steps, warmup, low = settings["steps"], settings["warmup"], lr / 10
    rates = [lr * step / (warmup + 1) for step in range(1, warmup + 1)]
    left = steps - warmup
    return rates + [low + 0.5 * (1 + math.cos(math.pi * done / left)) * (lr - low) for done in range(left)]


def train(
    model: GPT, optimizer: RuleOptimizer, tokens: Tokens, batch_size: int, rates: Sequence[float], seed: int,
    before_step: Callable[[int, tuple[Tensor, Tensor]], None] | None = None,
) -> None:  # fmt: skip
    """Train for a step at each of `rates`. `before_step` is called between backward and each step with (the step's
    number, its batch)."""
    for step, rate in enumerate(rates, 1):
        x, y = batch = train_batch(tokens, seed, step, range(batch_size), model.config.block_size)
        optimizer.zero_grad(set_to_none=False)
        model(x, y)[1].backward()
        for group in optimizer.param_groups:
            group["lr"] = rate
        if before_step:
            before_step(step, batch)
        optimizer.step()


def loss(model: GPT, split: str = "val", windows: int | None = None) -> float:
    """Mean loss (nats per token) over the characters of a split, or so many windows spread evenly over it."""
    tokens = characters(split)
    return mean_loss(model, tokens, val_starts(tokens, model.config.block_size, windows), 64)
