"""Lion (Chen et al., 2023): the sign of an interpolated momentum.

The sign has no derivative: its betas' hypergradients are zero. In MADA, gamma decides how much of Lion there is.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .engine import RuleOptimizer
from .rule import Coefficient, mix


class Lion(RuleOptimizer):
    table = {
        "beta1": Coefficient(0.95, 0.0, 1.0, "weight of the momentum against the gradient, in the direction"),
        "beta2": Coefficient(0.98, 0.0, 1.0, "decay of the momentum"),
    }

    class State(NamedTuple):
        l: Tensor  # momentum

    @staticmethod
    def advance(q, s, g, t):
        u = mix(q.beta1, s.l, g)  # Lion's program, line 1
        l = mix(q.beta2, s.l, g)  # line 3
        return torch.sign(u) + 0 * u, Lion.State(l)  # sign(NaN) is 0, which would hide a NaN in l for ever
