"""The hull of chosen rules: the weighted mean of their directions, weights and coefficients learned."""

import pytest
from problem import DECAYS, GROUP, LRS, error, groups, loss, parameters, scale, set_lr
from reference import BOXES, RULES, Reference

from optim import SGD, Adam, Lion, Yogi, interpolate


def hull(q, s, g, t):
    """Adam and Yogi, for tests/reference.py."""
    total, states = 0.0, {}
    for name in ("adam", "yogi"):
        own = {k.removeprefix(f"{name}_"): v for k, v in q.items() if k.startswith(f"{name}_")}
        direction, states[name] = RULES[name](own, s.get(name, {}), g, t)
        total = total + q[name] * direction
    return total / (q["adam"] + q["yogi"]), states


def test_weights_and_coefficients_are_learned_as_by_the_reference() -> None:
    start = {"adam": 0.8, "yogi": 0.3, "adam_beta1": 0.9, "adam_beta2": 0.95, "yogi_beta1": 0.8, "yogi_beta2": 0.9}
    rates = dict.fromkeys(start, 0.1)
    params = parameters()
    optimizer = interpolate(Adam, Yogi)(groups(params), **start, hyper_lr=rates)
    boxes = {k: BOXES.get(k.removeprefix("adam_").removeprefix("yogi_"), (1e-3, 1.0)) for k in start}
    reference = Reference(hull, params, start | {"adam_eps": 1e-6, "yogi_eps": 1e-6}, hyper_lr=rates, boxes=boxes)
    for t in range(1, 21):
        set_lr(optimizer, t)
        optimizer.zero_grad()
        loss(params, t).backward()
        optimizer.step()
        reference.step(lambda xs, t=t: loss(xs, t), [LRS[g] * scale(t) for g in GROUP], [DECAYS[g] for g in GROUP])
    assert error([p.detach() for p in params], reference.x) < 1e-10
    assert optimizer.coefficients == pytest.approx({k: reference.q[k] for k in start}, rel=1e-9)
    assert all(abs(optimizer.coefficients[k] - v) > 1e-4 for k, v in start.items())


def test_it_learns_its_weights_unless_told_otherwise_and_saves_like_any_other() -> None:
    params = parameters()
    optimizer = interpolate(Adam, Lion, SGD)(params, adam=0.5)
    assert optimizer.learned == ("adam", "lion", "sgd")
    assert optimizer.coefficients["adam"] == 0.5 and optimizer.coefficients["lion_beta2"] == 0.98
    interpolate(Adam, Lion, SGD)(parameters()).load_state_dict(optimizer.state_dict())
    with pytest.raises(ValueError, match="this state learned"):
        interpolate(Adam, Lion, Yogi)(parameters()).load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize("rules", [(), (Adam,), (Adam, Adam), (Adam, Lion, Adam)])
def test_fewer_than_two_different_rules_are_refused(rules) -> None:
    with pytest.raises(ValueError, match="two or more different rules"):
        interpolate(*rules)
