"""The loss that figure 8, table 4 and the ablations are about: the last checkpoint's on its own training split."""

import json
from pathlib import Path
from typing import Any
from cli import Mistake

import numpy as np
import torch

from data import open_dataset, val_starts
from evaluation.perplexity import open_subject
from runtime import checkpoint

EVALUATION_BATCHES = 200  # nanoGPT's, and so the paper's, who draw them at random
WINDOWS = f"{EVALUATION_BATCHES} batches of windows spread evenly over the training split (all of it if that is less)"


def saved_last(out_dir: Path, steps: int) -> bool:
    """Whether the newest complete checkpoint is of the last step: a failed or killed save leaves an older one."""
    return any(found.step == steps for found in checkpoint.find(out_dir)[-1:])


def training_loss(out_dir: Path) -> float:
    """Mean loss (nats per token) of the last checkpoint over 200 batches of its training split, dropout off.

    The windows are spread evenly over the split, each there once: the same ones for every run, and no more than it has.
    Raises Mistake if the newest checkpoint is not that of the last step.
    """
    about = json.loads((out_dir / "config.json").read_text(encoding="utf-8"))
    config = about["config"]
    if not saved_last(out_dir, config["max_iters"]):
        raise Mistake(f"{out_dir} has no checkpoint of its last step, {config['max_iters']}")
    device = "cuda" if about["device"] != "cpu" and torch.cuda.is_available() else "cpu"
    model = open_subject(str(out_dir), "newest").model.to(device)
    tokens, B, T = open_dataset(config["dataset"]).train, config["batch_size"], config["block_size"]
    return mean_loss(model, tokens, val_starts(tokens, T, EVALUATION_BATCHES * B), B)


def mean_loss(model: Any, tokens: Any, starts: Any, batch_size: int) -> float:
    """Mean loss (nats per token), dropout off, of the windows of block_size that begin there."""
    model.eval()
    T, device, total = model.config.block_size, next(model.parameters()).device, 0.0
    with torch.no_grad():
        for part in np.split(starts, range(batch_size, len(starts), batch_size)):
            window = torch.from_numpy(tokens.windows(part, T + 1)).to(device)  # (B, T + 1)
            total += float(model(window[:, :-1], window[:, 1:], reduction="sum")[1])
    return total / (len(starts) * T)
