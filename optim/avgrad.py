"""AVGrad (MADA paper, equation 5): AMSGrad with the average over time in place of the maximum."""

from typing import NamedTuple

from torch import Tensor

from .engine import RuleOptimizer
from .rule import BETA1, BETA2, mix, sqrt


class AVGrad(RuleOptimizer):
    table = {"beta1": BETA1, "beta2": BETA2}
    constants = {"eps": 1e-6}

    class State(NamedTuple):
        m: Tensor  # first moment
        v: Tensor  # second moment
        va: Tensor  # average over time of v

    @staticmethod
    def advance(q, s, g, t):
        m = mix(q.beta1, s.m, g)  # (5)
        v = mix(q.beta2, s.v, g * g)  # (5)
        va = (v + (t - 1) * s.va) / t  # (5)
        direction = m / (1 - q.beta1**t) / (sqrt(va / (1 - q.beta2**t)) + q.eps)  # (1), bias corrected
        return direction, AVGrad.State(m, v, va)
