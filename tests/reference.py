"""Section 3 of the design, out of place and by plain autograd: the measure of optim/, sharing nothing with it.

A rule here is a function (q, s, g, t) -> (direction, new state) of dicts of tensors, written from the design's formulas
and not from optim/. `Reference` keeps, for each parameter, what made its current value (x, state, gradient, step,
learning rate, decay), rebuilds that value from the coefficients as a graph, and differentiates the real loss through
it.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor


def mada(q, s, g, t, *, largest: bool = False):
    """All six coefficients; with `largest`, the largest second moment (AMSGrad) in place of the average (AVGrad)."""
    zero = torch.zeros_like(g)
    m, n, v, va, l, last = (s.get(k, zero) for k in ("m", "n", "v", "va", "l", "g"))
    beta1, beta2, beta3, rho, c, gamma = (q[k] for k in ("beta1", "beta2", "beta3", "rho", "c", "gamma"))
    d = zero if t == 1 else g - last
    m = beta1 * m + (1 - beta1) * g
    n = beta3 * n + (1 - beta3) * d
    gh = g + beta3 * d
    gq = c * gh**2 + (1 - c) * (v + gh**2 * torch.sign(gh**2 - v))
    v = beta2 * v + (1 - beta2) * gq
    va = torch.where(va > v, va, v) if largest else (v + (t - 1) * va) / t
    vm = (rho * v + (1 - rho) * va) / (1 - beta2**t)
    root = torch.where(vm > 1e-30, vm, 1e-30).sqrt()
    adaptive = (m / (1 - beta1**t) + beta3 * n / (1 - beta3**t)) / (root + q["eps"])
    u = 0.95 * l + 0.05 * g
    l = 0.98 * l + 0.02 * g
    direction = gamma * adaptive + (1 - gamma) * torch.sign(u)
    return direction, {"m": m, "n": n, "v": v, "va": va, "l": l, "g": g}


def lion(q, s, g, t):
    l = s.get("l", torch.zeros_like(g))
    return torch.sign(q["beta1"] * l + (1 - q["beta1"]) * g), {"l": q["beta2"] * l + (1 - q["beta2"]) * g}


def sgd(q, s, g, t):
    b = g if t == 1 else q["momentum"] * s["b"] + g
    return b, {"b": b}


def corner(beta3=None, rho=1.0, c=1.0, largest=False):
    """MADA with these coefficients fixed (gamma = 1), the others being the rule's own."""
    fixed = {"rho": rho, "c": c, "gamma": 1.0} | ({} if beta3 is None else {"beta3": beta3})
    return lambda q, s, g, t: mada({**q, **fixed}, s, g, t, largest=largest)


RULES: dict[str, Callable] = {
    "adam": corner(beta3=0.0),
    "amsgrad": corner(beta3=0.0, rho=0.0, largest=True),
    "avgrad": corner(beta3=0.0, rho=0.0),
    "yogi": corner(beta3=0.0, c=0.0),
    "adan": corner(),
    "lion": lion,
    "sgd": sgd,
    "hyperadam": corner(beta3=0.0),
    "mada": mada,
    "madamax": partial(mada, largest=True),
}
UNIT = {"rho": (0.0, 1.0), "c": (0.0, 1.0), "gamma": (0.0, 1.0)}
BOXES = {"beta1": (0.01, 0.99), "beta2": (0.501, 0.99), "beta3": (0.0, 0.99), "lr": (0.0, float("inf")), **UNIT}


class Reference:
    """Runs `rule` from the values `xs`, with the coefficients and constants q, learning those that hyper_lr names."""

    def __init__(self, rule: Callable, xs: Sequence[Tensor], q: Mapping[str, float], *,
                 hyper_lr: Mapping[str, float] = {}, hyper_momentum: Mapping[str, float] = {}, hyper_start: int = 0,
                 hyper_clip: float = 10.0, order: str = "coefficients_first", max_grad_norm: float | None = None,
                 boxes: Mapping[str, tuple[float, float]] = BOXES) -> None:  # fmt: skip
        self.rule, self.order, self.max_grad_norm = rule, order, max_grad_norm
        self.hyper_lr, self.hyper_momentum, self.boxes = hyper_lr, hyper_momentum, boxes
        self.hyper_start, self.hyper_clip = hyper_start, hyper_clip
        self.x = [x.detach().clone() for x in xs]
        self.q = dict(q)  # q_t
        self.made = dict(q)  # the coefficients that made x
        self.lr0 = q.get("lr", 1.0)  # a learned learning rate multiplies the groups' by q["lr"] / lr0
        self.momentum = dict.fromkeys(hyper_lr, 0.0)
        self.h: dict[str, float] = {}  # hypergradients
        self.steps = 0
        self.s: list[dict[str, Tensor]] = [{} for _ in xs]
        self.t = [0] * len(xs)
        self.last: list[Callable | None] = [None] * len(xs)  # x as a function of q, where the last step made it

    def moved(self, x: Tensor, s: dict[str, Tensor], g: Tensor, t: int, lr: float, decay: float) -> Callable:
        """q -> (new x, new state)."""

        def make(q):
            direction, state = self.rule(q, s, g, t)
            return (1 - lr * decay) * x - lr * q.get("lr", 1.0) / self.lr0 * direction, state

        return make

    def step(self, loss: Callable, lrs: Sequence[float], decays: Sequence[float]) -> None:
        """One step on `loss`, a function of the list of parameters; a learning rate and a decay for each parameter."""
        self.steps += 1
        q = {k: torch.tensor(v, dtype=self.x[0].dtype) for k, v in self.made.items()}
        learned = [q[k].requires_grad_() for k in self.hyper_lr]
        xs = [x if make is None else make(q)[0] for x, make in zip(self.x, self.last, strict=True)]
        xs = [x if x.requires_grad else x.requires_grad_() for x in xs]
        grads = torch.autograd.grad(loss(xs), [*xs, *learned], allow_unused=True)
        gs, hs = grads[: len(xs)], grads[len(xs) :]
        self.h = {k: 0.0 if h is None else h.item() for k, h in zip(self.hyper_lr, hs, strict=True)}

        before = dict(self.q)
        if self.steps >= 2 and self.steps > self.hyper_start:
            for k, h in self.h.items():
                h = max(-self.hyper_clip, min(self.hyper_clip, h))
                self.momentum[k] = self.hyper_momentum.get(k, 0.0) * self.momentum[k] + h
                low, high = self.boxes[k]
                self.q[k] = max(low, min(high, self.q[k] - self.hyper_lr[k] * self.momentum[k]))
        self.made = dict(self.q if self.order == "coefficients_first" else before)

        norm = torch.stack([(g**2).sum() for g in gs if g is not None]).sum().sqrt().item()
        clip = 1.0 if self.max_grad_norm is None else min(1.0, self.max_grad_norm / (norm + 1e-6))
        self.clipped = clip < 1
        for i, g in enumerate(gs):
            self.last[i] = None
            self.x[i] = xs[i].detach()
            if g is not None:
                self.t[i] += 1
                make = self.moved(self.x[i], self.s[i], clip * g.detach(), self.t[i], lrs[i], decays[i])
                self.last[i] = make
                self.x[i], self.s[i] = make(self.made)
