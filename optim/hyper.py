"""The coefficients' own optimizer: K scalars q and their hypergradients h, in tensors on the device.

    u  = T(q)           hyper_space "linear": q itself; "log": -log(1 - q) for a decay, log(q / (1 - q)) for a weight,
                        log(q) for another, such as the learning rate
    g  = h dq/du        with hyper_optimizer "sign" its sign
    b  = mu b + g       with "adam" the mean of g (decay mu)
    d  = b              with "adam" b over the root of the mean of g^2 (decay 0.999), both bias-corrected
    q' = clip(T^-1(u - rate d), low, high)

The paper's is "sgd" in "linear" space.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

ADAM_BETA2, ADAM_EPS = 0.999, 1e-12
EDGE = 1e-3  # in log space a weight leaves 0 and 1 from this far inside, where dq/du is not 0, and never returns there


class Hyper(NamedTuple):
    """Settings, one value for each coefficient that is learned (K,)."""

    rate: Tensor
    mu: Tensor  # momentum
    low: Tensor
    high: Tensor
    is_decay: Tensor  # bool: such as beta1
    is_weight: Tensor  # bool: such as rho


def update_coefficients(
    options: Any, hyper: Hyper, q: Tensor, b: Tensor, square: Tensor, h: Tensor, t: Tensor
) -> tuple[Tensor, ...]:
    """q, b and the mean of squares after move number t (1, 2, ...), (1,) or (owners, 1); the others are of the shape of
    q, (K,) or (owners, K)."""
    log = options.hyper_space == "log"
    if log:
        p = torch.where(hyper.is_weight, q.clamp(EDGE, 1 - EDGE), q)
        h = h * torch.where(hyper.is_decay, 1 - p, torch.where(hyper.is_weight, p * (1 - p), p))
    if options.hyper_optimizer == "sign":
        h = h.sign()
    if options.hyper_optimizer == "adam":
        t = t.to(q.dtype)
        b = hyper.mu * b + (1 - hyper.mu) * h
        square = ADAM_BETA2 * square + (1 - ADAM_BETA2) * h * h
        step = b / (1 - hyper.mu**t) / ((square / (1 - ADAM_BETA2**t)).sqrt() + ADAM_EPS)
    else:
        step = b = hyper.mu * b + h
    if log:
        up = torch.exp(hyper.rate * step)  # T^-1(T(q) - rate step) in closed form, without logarithms
        to = torch.where(hyper.is_decay, 1 - (1 - p) * up, torch.where(hyper.is_weight, p / (p + (1 - p) * up), p / up))
        to = torch.where(step == 0, q, to)
    else:
        to = q - hyper.rate * step
    return torch.clamp(to, hyper.low, hyper.high), b, square
