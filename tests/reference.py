"""The update rules written from the papers' formulas, sharing nothing with optim/: what its rules are measured by.

A formula is a function (q, s, g, t) -> (direction, new state) of dicts of tensors. optim/reference.py runs it.
"""

from collections.abc import Callable
from functools import partial

import torch

from optim import RuleOptimizer


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


def oracle(rule: type[RuleOptimizer], formula: Callable | None = None) -> type[RuleOptimizer]:
    """The rule with its `advance` computed by `formula`, or else by the one of RULES that has its name."""
    formula = formula or RULES[rule.__name__.lower()]
    names = {"vmax": "va"}  # of AMSGrad's state in the formula

    class Oracle(rule):  # type: ignore[misc, valid-type]
        @staticmethod
        def advance(q, s, g, t):
            kept = {field: names.get(field, field) for field, value in s._asdict().items() if value is not None}
            direction, new = formula(q._asdict(), {name: getattr(s, field) for field, name in kept.items()}, g, t)
            return direction, rule.State(**dict.fromkeys(s._fields) | {f: new[name] for f, name in kept.items()})

    return Oracle
