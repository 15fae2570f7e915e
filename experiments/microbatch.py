"""Hypergradients from one micro-batch, as in the authors' code, where the optimizer's are those of the whole batch.

The hypergradient is linear in the new gradient, <g_t, d x_{t-1} / d q>. So a twin of the optimizer is given its state
and the micro-batch's gradient, learns from that, and hands its coefficients to the optimizer, which steps with the
whole batch's gradient and, its own rates being next to nothing, learns nothing more.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from data import open_dataset, train_batch, val_starts
from model import GPT, GPTConfig
from optim import RuleOptimizer, build_optimizer

from .experiment import Record
from .small import rate
from .training_loss import EVALUATION_BATCHES, mean_loss

STILL = 1e-300  # a rate above 0, so that the coefficient counts as learned, at which nothing moves


class Twins:
    """An optimizer whose coefficients follow the gradients that `step` is given for them."""

    def __init__(self, params: Sequence[Any], options: Mapping[str, Any]) -> None:
        clones = [{**group, "params": [p.detach().clone() for p in group["params"]]} for group in params]
        still = {**options, "hyper_lr": dict.fromkeys(options["hyper_lr"], STILL)}
        self.optimizer = build_optimizer("mada", params, **still)
        self.learner = build_optimizer("mada", clones, **options)

    def step(self, learn_from: Sequence[torch.Tensor]) -> None:
        """One step; the gradients of the weights are in place, `learn_from` are those for the coefficients."""
        momentum = self.learner.param_groups[0]["q_momentum"].clone()
        self.learner.load_state_dict(self.optimizer.state_dict())
        self.learner.param_groups[0]["q_momentum"] = momentum
        for p, gradient in zip(params_of(self.learner), learn_from, strict=True):
            p.grad = gradient
        self.learner.step()
        for k in self.optimizer.learned:
            self.optimizer.param_groups[0][k] = self.learner.param_groups[0][k]
        self.optimizer.step()


def params_of(optimizer: RuleOptimizer) -> list[torch.Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def train(settings: Mapping[str, Any]) -> Record:
    """One run of MADA in the Shakespeare setting, config/tiny.py's size, each batch in `micro_batches` parts.

    Settings: seed, micro_batches, learn_from ("all", "one", or "one divided": its loss divided by their number, as the
    authors accumulate), and the model's, the schedule's and the optimizer's.
    """
    data = open_dataset("shakespeare_char", prepare=True)
    B, T, k, steps = settings["batch_size"], settings["block_size"], settings["micro_batches"], settings["steps"]
    torch.manual_seed(settings["seed"])
    model = GPT(GPTConfig(vocab_size=data.vocab_size, block_size=T, dropout=0.0, **settings["model"]))
    twins = Twins(model.param_groups(settings["weight_decay"]), settings["optimizer"])
    params = params_of(twins.optimizer)
    for step in range(1, steps + 1):
        parts = []
        for i in range(k):
            rows = range(i * B // k, (i + 1) * B // k)
            x, y = train_batch(data.train, settings["seed"], step, rows, T)
            parts.append([*torch.autograd.grad(model(x, y)[1], params)])
        whole = [torch.stack(gradients).mean(0) for gradients in zip(*parts, strict=True)]
        for p, gradient in zip(params, whole, strict=True):
            p.grad = gradient
        for group in twins.optimizer.param_groups:
            group["lr"] = rate(step, settings)
        last = {"all": whole, "one": parts[-1], "one divided": [gradient / k for gradient in parts[-1]]}
        twins.step(last[settings["learn_from"]])
    on_train = mean_loss(model, data.train, val_starts(data.train, T, EVALUATION_BATCHES * B), B)
    on_val = mean_loss(model, data.val, val_starts(data.val, T), B)
    return {"final": {"val_loss": on_val, "loss_on_train": on_train, **twins.optimizer.coefficients}}

