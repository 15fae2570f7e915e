"""A rule as a user would write it, in a file of their own, and a function that makes a torch optimizer."""

from typing import NamedTuple

import torch
from torch import Tensor

from optim import Coefficient, RuleOptimizer, mix, sqrt


class AdaMomentum(RuleOptimizer):
    table = {
        "beta": Coefficient(0.9, 0.0, 0.99, "decay of the momentum", hyper_lr=1e-2),
        "power": Coefficient(0.5, 0.0, 1.0, "0 is momentum, 1 divides by the root mean square", hyper_lr=1e-2),
    }
    learns = ("beta", "power")

    class State(NamedTuple):
        m: Tensor
        v: Tensor

    @staticmethod
    def advance(q, s, g, t):
        m = mix(q.beta, s.m, g)
        v = mix(0.99, s.v, g * g)
        return m / (sqrt(v) + 1e-8) ** q.power, AdaMomentum.State(m, v)


def build(groups, lr, momentum=0.9, head_lr=None):
    """SGD with a rate of its own for the parameters that are not decayed."""
    groups[1]["lr"] = head_lr or lr
    return torch.optim.SGD(groups, lr=lr, momentum=momentum)


def nothing(groups, **keywords):
    return "no optimizer"
