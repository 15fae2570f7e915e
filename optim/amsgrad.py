"""AMSGrad (Reddi et al., 2018; table 1): Adam over the largest second moment so far."""

from typing import NamedTuple

import torch
from torch import Tensor

from .engine import RuleOptimizer
from .rule import BETA1, BETA2, mix, sqrt


class AMSGrad(RuleOptimizer):
    table = {"beta1": BETA1, "beta2": BETA2}
    constants = {"eps": 1e-6}

    class State(NamedTuple):
        m: Tensor  # first moment
        v: Tensor  # second moment
        vmax: Tensor  # largest second moment so far

    @staticmethod
    def advance(q, s, g, t):
        m = mix(q.beta1, s.m, g)  # table 1
        v = mix(q.beta2, s.v, g * g)  # table 1
        vmax = torch.maximum(s.vmax, v)  # table 1
        direction = m / (1 - q.beta1**t) / (sqrt(vmax / (1 - q.beta2**t)) + q.eps)  # (1), bias corrected
        return direction, AMSGrad.State(m, v, vmax)
