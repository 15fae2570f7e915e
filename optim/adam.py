"""Adam (Kingma and Ba, 2015; table 1 of the MADA paper), decoupled weight decay (AdamW) where it is asked for."""

from typing import NamedTuple

from torch import Tensor

from .engine import RuleOptimizer
from .rule import BETA1, BETA2, mix, sqrt


class Adam(RuleOptimizer):
    table = {"beta1": BETA1, "beta2": BETA2}
    constants = {"eps": 1e-6}

    class State(NamedTuple):
        m: Tensor  # first moment
        v: Tensor  # second moment

    @staticmethod
    def advance(q, s, g, t):
        m = mix(q.beta1, s.m, g)  # table 1
        v = mix(q.beta2, s.v, g * g)  # table 1
        direction = m / (1 - q.beta1**t) / (sqrt(v / (1 - q.beta2**t)) + q.eps)  # (1), bias corrected
        return direction, Adam.State(m, v)


class HyperAdam(Adam):
    """Adam that learns beta1 and beta2 (Chandra et al., 2022): Adam's rule, nothing else."""

    learns = ("beta1", "beta2")
