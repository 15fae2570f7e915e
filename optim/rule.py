"""What a rule is made of: its coefficients, and the few functions that rules share.

A rule is one pure function of tensors, written elementwise,

    advance(q, state, g, t) -> (direction, new_state)

    q      named tuple of the coefficients and constants, tensors that broadcast against g
    state  named tuple of tensors shaped like g, all zero before the first step. A field may be None where the rule
           says so: with unused_at = {"rho": (1.0, ("va",))}, va is None while rho is fixed at 1
    g      the gradient (after clipping by global norm) of all parameters of a dtype, flat and padded with zeros: not
           the shape of any one of them, so nothing may depend on a norm or a row of a tensor
    t      how many gradients the parameter has had, this one included: 1, 2, ..., a tensor that broadcasts against g
           (0 in rows whose result is discarded: a NaN is fine there, an exception is not)

and the engine does x_t = (1 - lr_t * weight_decay) * x_{t-1} - lr_t * direction. It differentiates `direction` with
respect to whatever in q is learned; nobody writes a derivative. Take `sqrt` from here: padding has v = 0.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Coefficient:
    """A number of the rule that can be learned while it trains.

    start     value before the first step, where the user gives none
    low, high box in which a learned value starts and onto which it is projected; one that is not learned may lie
              anywhere in [0, 1] too
    below     what every value has to be below: 1 where the rule divides by 1 - value**t
    hyper_lr  its rate where the rule's `learns` names it and the user gives no hyper_lr (MADA, HyperAdam)
    meaning   one line, for --help and docs
    kind      which logarithm hyper_space="log" takes: "decay" (by default where `below` is 1; not if the
              box contains 1), "weight" (a box within [0, 1]) or "scale"
    """

    start: float
    low: float
    high: float
    meaning: str
    hyper_lr: float = 0.0
    below: float = math.inf
    kind: str = ""

    def __post_init__(self) -> None:
        if not self.kind:  # of the rule's own box: one that a user narrows does not change it
            kind = "decay" if self.below == 1 else "weight" if self.low >= 0 and self.high <= 1 else "scale"
            object.__setattr__(self, "kind", kind)
        if self.kind not in ("decay", "weight", "scale"):
            raise ValueError(f"kind = {self.kind!r} must be decay, weight or scale")
        if not self.low <= self.high or self.high >= self.below < math.inf:
            below = f" < {self.below:g}" if self.below < math.inf else ""
            raise ValueError(f"a box [{self.low:g}, {self.high:g}] must be low <= high{below}")

    def check(self, name: str, value: float, learned: bool) -> None:
        """Raise ValueError if the coefficient called `name` cannot start at `value`."""
        low, high = (self.low, self.high) if learned else (min(0.0, self.low), max(1.0, self.high))
        if not low <= value <= high:
            raise ValueError(f"{name} = {value} must lie in [{low:g}, {high:g}]{' to be learned' * learned}")
        if value >= self.below:
            raise ValueError(f"{name} = {value} must be below {self.below:g}")


def sqrt(v: Tensor) -> Tensor:
    """Square root whose derivative is finite at v = 0 too: a row that never had a gradient stays finite. A sum, not a
    clamp, since the derivative of that is a selection, and one mask more costs the vjp a tenth of its time."""
    return torch.sqrt(v + 1e-30)


def mix(w: Tensor | float, a: Tensor, b: Tensor) -> Tensor:
    """w a + (1 - w) b, written so that it is exactly a at w = 1 and costs the vjp one product, not two."""
    return a + (1 - w) * (b - a)


# The boxes are the paper's.
BETA1 = Coefficient(0.9, 0.01, 0.99, "decay of the first moment m", hyper_lr=1e-4, below=1.0)
BETA2 = Coefficient(0.95, 0.501, 0.99, "decay of the second moment v", hyper_lr=1e-4, below=1.0)
