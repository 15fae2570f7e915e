"""Stochastic gradient descent with (heavy-ball) momentum, as torch.optim.SGD has it."""

from typing import NamedTuple

from torch import Tensor

from .engine import RuleOptimizer
from .rule import Coefficient


class SGD(RuleOptimizer):
    table = {"momentum": Coefficient(0.9, 0.0, 0.99, "decay of the sum of gradients b", kind="decay")}

    class State(NamedTuple):
        b: Tensor  # decaying sum of gradients

    @staticmethod
    def advance(q, s, g, t):
        b = q.momentum * s.b + g
        return b, SGD.State(b)
