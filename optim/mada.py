"""MADA (Ozkara et al., 2024): the union of Adam, AVGrad, Yogi, Adan and Lion in one rule of six coefficients.

| corner | beta3 | c   | rho | gamma | states that matter |
|--------|-------|-----|-----|-------|--------------------|
| Adam   | 0     | 1   | 1   | 1     | m, v               |
| AVGrad | 0     | 1   | 0   | 1     | m, v, va           |
| Yogi   | 0     | 0   | 1   | 1     | m, v               |
| Adan   | any   | 1   | 1   | 1     | m, v, n, g         |
| Lion   | any   | any | any | 0     | l                  |

To add an optimizer to the family: its term in `advance`, weighted by a new coefficient; a row in `table`; its buffer in
`State` and, if the buffer is not needed at one value of the coefficient, in `unused_at`; and a corner test
(tests/optim/test_corners.py) against an implementation of that optimizer which you did not write. docs/MADA.md walks
through the equations.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .engine import RuleOptimizer
from .rule import BETA1, BETA2, Coefficient, mix, sqrt


def average(va: Tensor, v: Tensor, t: Tensor) -> Tensor:
    """(v_1 + ... + v_t) / t, from the average of one step less: (5)."""
    return mix(1 / t, v, va)


def largest(va: Tensor, v: Tensor, t: Tensor) -> Tensor:
    """max(v_1, ..., v_t): AMSGrad's, as equation (3) is printed."""
    return torch.maximum(va, v)


class MADA(RuleOptimizer):
    table = {
        "beta1": BETA1,
        "beta2": BETA2,
        "beta3": Coefficient(0.0, 0.0, 0.99, "decay, weight of gradient differences (Adan)", hyper_lr=2e-2, below=1.0),
        "rho": Coefficient(1.0, 0.0, 1.0, "second moment: 1 = v (Adam), 0 = its average (AVGrad)", hyper_lr=2e-2),
        "c": Coefficient(1.0, 0.0, 1.0, "growth of v: 1 = multiplicative (Adam), 0 = additive (Yogi)", hyper_lr=2e-2),
        "gamma": Coefficient(1.0, 0.0, 1.0, "direction: 1 = adaptive, 0 = sign of momentum (Lion)", hyper_lr=2e-2),
    }
    constants = {"eps": 1e-6}
    learns = ("beta1", "beta2", "beta3", "rho", "c", "gamma")
    unused_at = {"beta3": (0.0, ("n", "g")), "rho": (1.0, ("va",)), "gamma": (1.0, ("l",))}

    class State(NamedTuple):
        m: Tensor  # first moment of the gradient
        n: Tensor | None  # first moment of the gradient differences (Adan)
        v: Tensor  # second moment
        va: Tensor | None  # average over time of v (AVGrad)
        l: Tensor | None  # momentum of Lion
        g: Tensor | None  # last gradient (Adan)

    @staticmethod
    def advance(q, s, g, t, long_term=average):
        m = mix(q.beta1, s.m, g)  # (2)
        first = m / (1 - q.beta1**t)

        gh, n = g, None
        if s.n is not None:  # Adan
            d = (t > 1).to(g.dtype) * (g - s.g)  # (2), d_1 = 0
            n = mix(q.beta3, s.n, d)  # (2)
            gh = g + q.beta3 * d  # (3)
            first = first + q.beta3 / (1 - q.beta3**t) * n  # (2)

        # (3) is gq = c gh^2 + (1 - c) (v + gh^2 sign(gh^2 - v)); v = beta2 v + (1 - beta2) gq. Here growth is gq - v,
        # in which v cancels: one product and one sum less in the vjp.
        gh2 = gh * gh
        rest = gh2 - s.v
        growth = mix(q.c, rest, gh2 * torch.sign(rest))
        v = s.v + (1 - q.beta2) * growth

        vm, va = v, None
        if s.va is not None:  # AVGrad
            va = long_term(s.va, v, t)
            vm = mix(q.rho, v, va)  # (3) with (5) in place of the maximum
        direction = first / (sqrt(vm / (1 - q.beta2**t)) + q.eps)  # (1)

        l = None
        if s.l is not None:  # Lion, in its authors' order and with its betas fixed
            u = mix(0.95, s.l, g)
            l = mix(0.98, s.l, g)
            direction = mix(q.gamma, direction, torch.sign(u))

        return direction, MADA.State(m, n, v, va, l, g if s.g is not None else None)


class MADAMax(MADA):
    """An ablation: AMSGrad's largest v so far in place of AVGrad's average, (3) as printed."""

    @staticmethod
    def advance(q, s, g, t, long_term=largest):
        return MADA.advance(q, s, g, t, long_term)
