"""Yogi (Zaheer et al., 2018; table 1): the second moment grows by addition, not by multiplication."""

from typing import NamedTuple

import torch
from torch import Tensor

from .engine import RuleOptimizer
from .rule import BETA1, BETA2, mix, sqrt


class Yogi(RuleOptimizer):
    table = {"beta1": BETA1, "beta2": BETA2}
    constants = {"eps": 1e-6}

    class State(NamedTuple):
        m: Tensor  # first moment
        v: Tensor  # second moment

    @staticmethod
    def advance(q, s, g, t):
        m = mix(q.beta1, s.m, g)  # table 1
        gq = s.v + g * g * torch.sign(g * g - s.v)  # table 1
        v = mix(q.beta2, s.v, gq)  # table 1
        direction = m / (1 - q.beta1**t) / (sqrt(v / (1 - q.beta2**t)) + q.eps)  # (1), bias corrected
        return direction, Yogi.State(m, v)
