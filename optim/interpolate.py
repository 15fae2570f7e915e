"""The convex hull of some optimizers (paper, section 2): their directions, averaged with learned weights."""

from collections import namedtuple
from dataclasses import replace
from typing import Any

from .engine import RuleOptimizer
from .rule import Coefficient


def interpolate(*rules: type[RuleOptimizer]) -> type[RuleOptimizer]:
    """An optimizer that moves along sum_i w_i direction_i / sum_i w_i of the given rules.

        optimizer = interpolate(Adam, Lion)(model.parameters(), lr=1e-3, adam=0.8, lion=0.2)

    Its coefficients are a weight for each rule, by the rule's name in lower case and learned unless `hyper_lr` says
    otherwise, and those of the rules as RULE_COEFFICIENT (`adam_beta1`). Each rule keeps its own states: where some can
    be shared, as in MADA, one rule with the union is the better program. Raises ValueError for fewer than two rules or
    the same one twice.
    """
    names = [rule.__name__.lower() for rule in rules]
    if len(set(names)) < 2 or len(set(names)) < len(names):
        raise ValueError(f"interpolate takes two or more different rules, not {names}")
    if any(a.startswith(f"{b}_") for a in names for b in names):
        raise ValueError(f"interpolate: of {names} one is the beginning of another: rename a class")
    parts = dict(zip(names, rules, strict=True))
    weight = Coefficient(1 / len(names), 1e-3, 1.0, "weight of this rule's direction", hyper_lr=2e-2)

    class Interpolation(RuleOptimizer):
        table = {name: weight for name in names} | {
            f"{name}_{k}": replace(coefficient, hyper_lr=0.0)
            for name, rule in parts.items()
            for k, coefficient in rule.table.items()
        }
        constants = {f"{name}_{k}": value for name, rule in parts.items() for k, value in rule.constants.items()}
        learns = tuple(names)
        State = namedtuple("State", [f"{n}_{f}" for n, rule in parts.items() for f in rule.State._fields])  # type: ignore

        @staticmethod
        def advance(q, s, g, t):
            states: dict[str, Any] = {}
            total, weights = 0.0, 0.0
            for name, rule in parts.items():
                own = lambda values, prefix=f"{name}_": {  # noqa: E731
                    k.removeprefix(prefix): v for k, v in values._asdict().items() if k.startswith(prefix)
                }
                coefficients = own(q)
                direction, new = rule.advance(namedtuple("Q", coefficients)(**coefficients), rule.State(**own(s)), g, t)
                total, weights = total + getattr(q, name) * direction, weights + getattr(q, name)
                states |= {f"{name}_{k}": v for k, v in new._asdict().items()}
            return total / weights, Interpolation.State(**states)

    Interpolation.__name__ = Interpolation.__qualname__ = "".join(rule.__name__ for rule in rules)
    return Interpolation
