"""Bring your own: a rule that this repository does not have, learning its coefficients, compiled."""

from typing import NamedTuple

import pytest
import torch
from problem import error, groups, loss, parameters, train_beside
from reference import oracle
from torch import Tensor

from optim import MADA, Adam, Coefficient, Lion, Reference, RuleOptimizer, check_hypergradient, sqrt

pytestmark = pytest.mark.filterwarnings("error:the optimizer runs uncompiled")


class AdaBelief(RuleOptimizer):
    """Zhuang et al., 2020: a step is large where the gradient is close to what was expected of it."""

    table = {
        "beta1": Coefficient(0.9, 0.0, 0.99, "decay of the expected gradient m", hyper_lr=1e-3),
        "beta2": Coefficient(0.99, 0.5, 0.999, "decay of the surprise s"),
    }
    constants = {"eps": 1e-8}
    learns = ("beta1",)

    class State(NamedTuple):
        m: Tensor
        s: Tensor

    @staticmethod
    def advance(q, state, g, t):
        m = q.beta1 * state.m + (1 - q.beta1) * g
        s = q.beta2 * state.s + (1 - q.beta2) * (g - m) ** 2 + q.eps
        return m / (1 - q.beta1**t) / (sqrt(s / (1 - q.beta2**t)) + q.eps), AdaBelief.State(m, s)


def adabelief(q, s, g, t):
    """The same as a formula for the reference."""
    m = q["beta1"] * s.get("m", 0) + (1 - q["beta1"]) * g
    v = q["beta2"] * s.get("s", 0) + (1 - q["beta2"]) * (g - m) ** 2 + q["eps"]
    return m / (1 - q["beta1"] ** t) / ((v / (1 - q["beta2"] ** t)) ** 0.5 + q["eps"]), {"m": m, "s": v}


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("compiled", [True, False])
def test_a_rule_of_one_s_own_learns_its_coefficients(compiled: bool) -> None:
    start = {"beta1": 0.9, "beta2": 0.99, "lr": 1.0}
    options = {**start, "hyper_lr": dict.fromkeys(start, 0.05), "max_grad_norm": 1.5}
    params = parameters()
    optimizer = AdaBelief(groups(params), **options, compile=compiled)
    reference = Reference(oracle(AdaBelief, adabelief), params, **options)
    assert len(list(train_beside(optimizer, params, reference, 15))) == 15
    assert error([p.detach() for p in params], [x.detach() for x in reference.x]) < 1e-9
    assert optimizer.coefficients == pytest.approx({k: reference.q[k] for k in start}, rel=1e-9)
    assert all(optimizer.coefficients[k] != value for k, value in start.items())


class Cautious(Adam):
    """Liang et al., 2024: no step against the gradient. The mask is a matrix, but not of numbers."""

    @staticmethod
    def advance(q, s, g, t):
        direction, s = Adam.advance(q, s, g, t)
        return direction * (direction * g > 0), s


@pytest.mark.parametrize("real", [False, pytest.param(True, marks=pytest.mark.long)])
def test_a_rule_with_a_mask_learns_the_same_compiled(real: bool, request: pytest.FixtureRequest) -> None:
    if not real:
        request.getfixturevalue("traced")
    seen = []
    for compiled in (True, False):
        params = parameters()
        optimizer = Cautious(groups(params), hyper_lr={"beta1": 0.05, "beta2": 0.05}, compile=compiled)
        for t in range(1, 6):
            optimizer.zero_grad()
            loss(params, t).backward()
            optimizer.step()
        seen.append(optimizer.hypergradients | {f"{k} now": v for k, v in optimizer.coefficients.items()})
    assert seen[0] == pytest.approx(seen[1], rel=1e-9)
    assert all(abs(h) > 1e-6 for h in optimizer.hypergradients.values())


def test_a_box_may_reach_below_zero() -> None:
    class Tilted(AdaBelief):
        table = {"beta1": Coefficient(-0.5, -1.0, 1.0, "a decay that alternates", hyper_lr=1e-3)}
        constants = {"beta2": 0.99, "eps": 1e-8}

    assert Tilted(parameters()).coefficients == {"beta1": -0.5}
    with pytest.raises(ValueError, match=r"beta1 = -1\.5 must lie in \[-1, 1\]"):
        Tilted(parameters(), beta1=-1.5)


def test_it_says_what_it_has() -> None:
    with pytest.raises(ValueError, match="AdaBelief: no coefficient 'beta3', it has beta1, beta2, eps"):
        AdaBelief(parameters(), beta3=0.1)
    assert AdaBelief(parameters()).learned == ("beta1",)
    assert AdaBelief(parameters(), hyper_lr={"beta2": 0.1}).learned == ("beta2",)


def rule(returned) -> type[RuleOptimizer]:
    class Rule(RuleOptimizer):
        table = {"beta": Coefficient(0.5, 0.0, 1.0, "decay", hyper_lr=1e-3)}
        learns = ("beta",)

        class State(NamedTuple):
            m: Tensor

        @staticmethod
        def advance(q, s, g, t):
            return returned(q, s, g, t, Rule.State)

    return Rule


MISTAKES = {
    r"Rule: advance returned only a direction: return \(direction, State\(m\)\)": lambda q, s, g, t, State: q.beta * g,
    "Rule: advance returned list: return": lambda q, s, g, t, State: [g, State(g)],
    "Rule: advance returned a state of 0 fields": lambda q, s, g, t, State: (g, ()),
    "Rule: advance returned m a float, not a tensor shaped like g": lambda q, s, g, t, State: (g, State(0.0)),
    r"Rule: advance returned direction of shape \(\), not": lambda q, s, g, t, State: (g.sum(), State(g)),
    "Rule: advance asks for the truth of a tensor, as in `if t > 1`": lambda q, s, g, t, State: (
        g if t > 1 else q.beta * g, State(g)
    ),
    "Rule: advance is not elementwise: direction of": lambda q, s, g, t, State: (q.beta * g / g.norm(), State(g)),
    "Rule: the derivative of the direction by beta is not finite where": lambda q, s, g, t, State: (
        g / ((q.beta * s.m + g * g).sqrt() + 1e-8), State(s.m + g * g)
    ),
    "Rule: advance is not elementwise: m of": lambda q, s, g, t, State: (q.beta * g, State(g - g.mean())),
}  # fmt: skip


@pytest.mark.parametrize("message", MISTAKES)
def test_the_mistakes_of_a_first_rule_are_named(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rule(MISTAKES[message])([torch.nn.Parameter(torch.ones(3))])


@pytest.mark.parametrize("box", [{"high": 1.0, "below": 1.0}, {"low": 0.9, "high": 0.8}, {"high": 0.9, "kind": "log"}])
def test_a_table_that_cannot_be_is_refused(box: dict) -> None:
    with pytest.raises(ValueError, match=r"must be low <= high|kind = 'log' must be decay, weight or scale"):
        Coefficient(**{"start": 0.85, "low": 0.0, "meaning": "decay"} | box)


def test_a_hypergradient_is_checked_against_differences(capsys) -> None:
    inside = {"beta3": 0.5, "rho": 0.5, "c": 0.5, "gamma": 0.5}
    errors = check_hypergradient(MADA, **inside, hyper_lr=dict.fromkeys((*MADA.table, "lr"), 0.01))
    assert list(errors) == [*MADA.table, "lr"] and max(errors.values()) < 1e-6
    assert check_hypergradient(AdaBelief)["beta1"] < 1e-6
    assert check_hypergradient(AdaBelief, scope="tensor")["beta1"] < 1e-6
    assert check_hypergradient(Lion, hyper_lr={"beta1": 0.1}) == {"beta1": 0.0}
    cut = rule(lambda q, s, g, t, State: (q.beta.detach() * s.m + q.beta * g, State(s.m + g)))
    assert check_hypergradient(cut)["beta"] > 1e-3
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 11 and all(line.endswith(": right") for line in lines[:9])
    assert "zero: the direction does not depend on it" in lines[9] and "WRONG" in lines[10]
    with pytest.raises(ValueError, match="Adam learns nothing here"):
        check_hypergradient(Adam)
