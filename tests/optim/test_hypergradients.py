"""Hypergradients against central differences of the real loss and against the reference (optim/reference.py).

Float64, 20 steps, both orders, every coefficient that any rule can learn, its learning rate too. All of it at once with
two groups of different learning rate and decay, learning rates that change, a parameter that never has a gradient and
one that has it in some steps, a row whose gradient is always zero, and clipping by norm in some steps.
"""

import copy
import math

import pytest
import torch
from problem import (
    DECAYS,
    EMBEDDING,
    LRS,
    NEVER,
    SOMETIMES,
    UNSEEN,
    error,
    groups,
    loss,
    parameters,
    scale,
    set_lr,
    train_beside,
)
from reference import oracle

from optim import OPTIMIZERS, HyperAdam, Reference, RuleOptimizer
from optim.values import key_of

STEPS = 20
ORDERS = ("coefficients_first", "weights_first")
MAX_NORM = 1.5  # the gradients' norms are 0.7 to 3.7
STEP = 1e-6  # of the differences, which are good to 3e-10 by round-off

INSIDE = {"beta3": 0.6, "rho": 0.4, "c": 0.7, "gamma": 0.6}
CASES = {
    "adam": {"beta1": 0.9, "beta2": 0.95, "eps": 1e-6},
    "amsgrad": {"beta1": 0.9, "beta2": 0.95, "eps": 1e-6},
    "avgrad": {"beta1": 0.9, "beta2": 0.95, "eps": 1e-6},
    "yogi": {"beta1": 0.9, "beta2": 0.95, "eps": 1e-6},
    "adan": {"beta1": 0.9, "beta2": 0.95, "beta3": 0.8, "eps": 1e-8},
    "lion": {"beta1": 0.95, "beta2": 0.98},
    "sgd": {"momentum": 0.9},
    "mada": {"beta1": 0.9, "beta2": 0.95, **INSIDE, "eps": 1e-6},
    "madamax": {"beta1": 0.9, "beta2": 0.95, **INSIDE, "eps": 1e-6},
    "mada at Adam's corner": {"beta1": 0.9, "beta2": 0.95, "beta3": 0.0, "rho": 1.0, "c": 1.0, "gamma": 1.0,
                              "eps": 1e-6},
}  # fmt: skip
HYPER = {"hyper_start": 3, "hyper_clip": 0.05, "max_grad_norm": MAX_NORM}


def rule_of(case: str) -> type[RuleOptimizer]:
    return OPTIMIZERS[case.split()[0]]


def hyper(case: str) -> dict:
    """Everything is learned, each coefficient with a rate and a momentum of its own."""
    names = (*rule_of(case).table, "lr")
    return HYPER | {
        "hyper_lr": {k: 0.4 + 0.02 * i for i, k in enumerate(names)},
        "hyper_momentum": {k: 0.1 * i for i, k in enumerate(names)},
    }


def make(case: str, params, order: str, **changes) -> RuleOptimizer:
    return rule_of(case)(groups(params), lr=1.0, **CASES[case], order=order, **(hyper(case) | changes))


class Differences:
    """d loss_t / d q of the coefficients that made x_{t-1}, by making step t-1 again with others."""

    def __init__(self, case: str, order: str) -> None:
        self.params = parameters()
        self.optimizer = make(case, self.params, order, hyper_start=10**9)  # uses the coefficients that it is given

    def loss(self, before, q: torch.Tensor, t: int) -> float:
        xs, state, grads = before
        learned = dict(zip(map(key_of, self.optimizer.learned), q, strict=True))
        self.optimizer.load_state_dict(state | {"param_groups": [group | learned for group in state["param_groups"]]})
        set_lr(self.optimizer, t - 1)
        for p, x, g in zip(self.params, xs, grads, strict=True):
            p.data.copy_(x)
            p.grad = None if g is None else g.clone()
        self.optimizer.step()
        with torch.no_grad():
            return loss(self.params, t).item()

    def __call__(self, before, q: torch.Tensor, t: int) -> list[float]:
        result = []
        for k in range(len(q)):
            step = STEP * torch.eye(len(q), dtype=q.dtype)[k]
            result.append((self.loss(before, q + step, t) - self.loss(before, q - step, t)) / (2 * STEP))
        return result


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("case", CASES)
def test_hypergradients_are_the_differences_of_the_real_loss(case: str, order: str) -> None:
    params, differences = parameters(), Differences(case, order)
    optimizer = make(case, params, order)
    before, compared = None, 0
    for t in range(1, STEPS + 1):
        set_lr(optimizer, t)
        optimizer.zero_grad()
        value = loss(params, t)
        value.backward()
        now = ([p.detach().clone() for p in params], copy.deepcopy(optimizer.state_dict()),
               [None if p.grad is None else p.grad.clone() for p in params])  # fmt: skip
        made = optimizer.param_groups[0]["q_applied"].clone()  # the coefficients of the last step's x
        optimizer.step()
        if before is not None:
            assert differences.loss(before, made, t) == value.item()  # it is that step which is made again
            for got, expected in zip(optimizer.hypergradients.values(), differences(before, made, t), strict=True):
                assert got == pytest.approx(expected, rel=1e-6, abs=1e-9)
                compared += abs(expected) > 1e-3
        before = now
    assert compared > STEPS / 2


@pytest.mark.parametrize("by", [oracle, lambda rule: rule], ids=["formulas", "rule"])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("case", CASES)
def test_learning_is_that_of_the_reference(case: str, order: str, by) -> None:
    """Hypergradients, coefficients and weights at each step: by the papers' formulas, and by the rule itself."""
    params = parameters()
    optimizer = make(case, params, order)
    reference = Reference(by(rule_of(case)), params, lr=1.0, order=order, **CASES[case], **hyper(case))
    boxes = {k: (c.low, c.high) for k, c in reference.options.table.items()}
    clipped, clamped, projected, before = set(), set(), set(), dict(reference.q)
    for t in train_beside(optimizer, params, reference, STEPS):
        if t > 1:
            assert optimizer.hypergradients == pytest.approx(reference.h, rel=1e-9, abs=1e-13)
        assert optimizer.coefficients == pytest.approx({k: reference.q[k] for k in boxes}, rel=1e-9)
        assert error([p.detach() for p in params], [x.detach() for x in reference.x]) < 1e-9
        clipped.add(reference.norm > MAX_NORM)
        clamped |= {abs(h) > HYPER["hyper_clip"] for h in reference.h.values()}
        projected |= {k for k in boxes if reference.q[k] in boxes[k] and reference.q[k] != before[k]}
        before = dict(reference.q)
    assert clipped == clamped == {True, False}  # all of it was at work
    assert projected or "mada" not in case


def test_hyperadam_is_the_reference_s_for_100_steps() -> None:
    params = parameters()
    options = {"lr": 1.0, "beta1": 0.9, "beta2": 0.95, "eps": 1e-6, "hyper_lr": {"beta1": 1e-2, "beta2": 1e-2}}
    optimizer, reference = HyperAdam(groups(params), **options), Reference(oracle(HyperAdam), params, **options)
    assert len(list(train_beside(optimizer, params, reference, 100))) == 100
    assert optimizer.coefficients == pytest.approx({k: reference.q[k] for k in ("beta1", "beta2")}, rel=1e-9)
    assert all(abs(optimizer.coefficients[k] - options[k]) > 1e-3 for k in ("beta1", "beta2"))
    assert error([p.detach() for p in params], [x.detach() for x in reference.x]) < 1e-9


@pytest.mark.parametrize("case", CASES)
def test_what_has_no_gradient_moves_by_decay_alone(case: str) -> None:
    """Not at all where the gradient is None, and without a NaN in the hypergradients where it has always been zero."""
    params, start = parameters(), parameters()
    optimizer = make(case, params, "coefficients_first")
    for t in range(1, STEPS + 1):
        before = [p.detach().clone() for p in params]
        set_lr(optimizer, t)
        optimizer.zero_grad()
        loss(params, t).backward()
        optimizer.step()
        assert torch.equal(params[SOMETIMES], before[SOMETIMES]) == (t % 3 == 2)
        decayed = before[EMBEDDING][UNSEEN] * (1 - LRS[0] * scale(t) * DECAYS[0])
        assert error(params[EMBEDDING][UNSEEN].detach(), decayed) < 1e-15
        assert t == 1 or all(map(math.isfinite, optimizer.hypergradients.values()))
    assert torch.equal(params[NEVER], start[NEVER])
    state = optimizer.state[params[EMBEDDING]]
    assert all(not state[k][UNSEEN].any() for k in optimizer.fields)
    assert any(state[k].any() for k in optimizer.fields)
