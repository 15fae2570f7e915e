"""Hypergradients from one micro-batch, as in the authors' code, where the optimizer's are those of the whole batch.

The hypergradient is linear in the new gradient, <g_t, d x_{t-1} / d q>. So a twin of the optimizer is given its state
and the micro-batch's gradient, learns from that, and hands its coefficients to the optimizer, which steps with the
whole batch's gradient and, its own rates being next to nothing, learns nothing more.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from optim import RuleOptimizer, build_optimizer

from . import small
from .experiment import Record
from .training_loss import EVALUATION_BATCHES

STILL = 1e-300  # a rate above 0, so that the coefficient counts as learned, at which nothing moves


class Twins:
    """An optimizer whose coefficients follow the gradients that `learn` is given for them."""

    def __init__(self, params: Sequence[Any], options: Mapping[str, Any]) -> None:
        clones = [{**group, "params": [p.detach().clone() for p in group["params"]]} for group in params]
        still = {**options, "hyper_lr": dict.fromkeys(options["hyper_lr"], STILL)}
        self.optimizer = build_optimizer("mada", params, **still)
        self.learner = build_optimizer("mada", clones, **options)

    def learn(self, gradients: Sequence[torch.Tensor]) -> None:
        """Set the coefficients for the optimizer's next step by these gradients."""
        momentum = self.learner.param_groups[0]["q_momentum"].clone()
        self.learner.load_state_dict(self.optimizer.state_dict())
        self.learner.param_groups[0]["q_momentum"] = momentum
        for p, gradient in zip(params_of(self.learner), gradients, strict=True):
            p.grad = gradient
        self.learner.step()
        for k in self.optimizer.learned:
            self.optimizer.param_groups[0][k] = self.learner.param_groups[0][k]


def params_of(optimizer: RuleOptimizer) -> list[torch.Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def train(settings: Mapping[str, Any]) -> Record:
    """One run of MADA in the Shakespeare setting, config/tiny.py's size, each batch in `micro_batches` parts.

    Settings: seed, micro_batches, learn_from ("all", "one", or "one divided": its loss divided by their number, as the
    authors accumulate), and the model's, the schedule's and the optimizer's.
    """
    seed, B, parts = settings["seed"], settings["batch_size"], settings["micro_batches"]
    model = small.new_model(settings, seed)
    twins = Twins(model.param_groups(settings["weight_decay"]), settings["optimizer"])
    params = params_of(twins.optimizer)

    def learn(step: int, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
        gradients: Sequence[Any] = [p.grad for p in params]
        if settings["learn_from"] != "all":
            x, y = (rows.tensor_split(parts)[-1] for rows in batch)
            gradients = torch.autograd.grad(model(x, y)[1], params)
        if settings["learn_from"] == "one divided":
            gradients = [gradient / parts for gradient in gradients]
        twins.learn(gradients)

    rates = small.schedule(settings, settings["learning_rate"])
    small.train(model, twins.optimizer, small.characters(), B, rates, seed, learn)
    on_train = small.loss(model, "train", EVALUATION_BATCHES * B)
    return {"final": {"val_loss": small.loss(model), "loss_on_train": on_train, **twins.optimizer.coefficients}}
