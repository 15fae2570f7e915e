"""Adan (Xie et al., 2023; table 1): Nesterov momentum through the differences of successive gradients.

Its authors write (beta1, beta2, beta3) for what is (beta1, beta3, beta2) in the MADA paper and here; the defaults are
theirs, (0.98, 0.92, 0.99) in their order. Decoupled weight decay is their variant `no_prox`.
"""

from dataclasses import replace
from typing import NamedTuple

from torch import Tensor

from .engine import RuleOptimizer
from .rule import BETA1, BETA2, Coefficient, mix, sqrt


class Adan(RuleOptimizer):
    table = {
        "beta1": replace(BETA1, start=0.98),
        "beta2": replace(BETA2, start=0.99),
        "beta3": Coefficient(0.92, 0.0, 0.99, "decay and weight of the gradient differences n", below=1.0),
    }
    constants = {"eps": 1e-8}

    class State(NamedTuple):
        m: Tensor  # first moment of the gradient
        n: Tensor  # first moment of the gradient differences
        v: Tensor  # second moment
        g: Tensor  # last gradient

    @staticmethod
    def advance(q, s, g, t):
        d = (t > 1).to(g.dtype) * (g - s.g)  # (2), d_1 = 0
        m = mix(q.beta1, s.m, g)  # (2)
        n = mix(q.beta3, s.n, d)  # (2)
        gh = g + q.beta3 * d  # (3)
        v = mix(q.beta2, s.v, gh * gh)  # (3)
        first = m / (1 - q.beta1**t) + q.beta3 * n / (1 - q.beta3**t)  # (2), bias corrected
        direction = first / (sqrt(v / (1 - q.beta2**t)) + q.eps)  # (1)
        return direction, Adan.State(m, n, v, g)
