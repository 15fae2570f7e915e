"""One small run in this process, for experiments that need many of them or look into each step."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from data import open_dataset, train_batch, val_starts
from model import GPT, GPTConfig
from optim import RuleOptimizer

from .training_loss import mean_loss

Batch = tuple[Tensor, Tensor]

MODEL = {"n_layer": 2, "n_head": 4, "n_embd": 80, "bias": False, "vocab_multiple": 64}


def rate(step: int, settings: Mapping[str, Any]) -> float:
    """Linear warm-up, then a cosine, as train.py has it."""
    peak, low, warmup = settings["learning_rate"], settings["min_lr"], settings["warmup"]
    if step <= warmup:
        return peak * step / (warmup + 1)
    return low + 0.5 * (1 + math.cos(math.pi * (step - 1 - warmup) / (settings["steps"] - warmup))) * (peak - low)


def train(
    settings: Mapping[str, Any], lr: float, seed: int, make: Callable[[GPT], RuleOptimizer],
    before_step: Callable[[int, GPT, RuleOptimizer, Callable[[int], Batch]], None] | None = None,
) -> tuple[GPT, RuleOptimizer]:  # fmt: skip
    """Train on Shakespeare's characters; (the model, its optimizer).

    settings      model, batch_size, block_size, steps, warmup
    make          the optimizer of a model
    before_step   called between backward and each step with (step, model, optimizer, number of a step -> its batch)
    """
    data = open_dataset("shakespeare_char", prepare=True)
    B, T, steps = settings["batch_size"], settings["block_size"], settings["steps"]
    torch.manual_seed(seed)
    model = GPT(GPTConfig(vocab_size=data.vocab_size, block_size=T, dropout=0.0, **settings["model"]))
    optimizer = make(model)
    schedule = {"learning_rate": lr, "min_lr": lr / 10, "warmup": settings["warmup"], "steps": steps}

    def batch(step: int) -> Batch:
        return train_batch(data.train, seed, step, range(B), T)

    for step in range(1, steps + 1):
        optimizer.zero_grad(set_to_none=False)
        model(*batch(step))[1].backward()
        for group in optimizer.param_groups:
            group["lr"] = rate(step, schedule)
        if before_step:
            before_step(step, model, optimizer, batch)
        optimizer.step()
    return model, optimizer


def loss(model: GPT, split: str = "val", windows: int | None = None) -> float:
    """Mean loss (nats per token) over a split, or over so many windows spread evenly over it."""
    tokens = open_dataset("shakespeare_char").split(split)
    return mean_loss(model, tokens, val_starts(tokens, model.config.block_size, windows), 64)
