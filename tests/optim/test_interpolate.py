"""The hull of chosen rules: the weighted mean of their directions, weights and coefficients learned."""

import pytest
from problem import error, groups, parameters, train_beside
from reference import RULES, oracle

from optim import SGD, Adam, Lion, Reference, Yogi, interpolate


def hull(q, s, g, t):
    """Adam and Yogi, by their formulas."""
    total, states = 0.0, {}
    for name in ("adam", "yogi"):
        own = lambda values, prefix=f"{name}_": {  # noqa: E731
            k.removeprefix(prefix): v for k, v in values.items() if k.startswith(prefix)
        }
        direction, state = RULES[name](own(q), own(s), g, t)
        states |= {f"{name}_{k}": v for k, v in state.items()}
        total = total + q[name] * direction
    return total / (q["adam"] + q["yogi"]), states


def test_weights_and_coefficients_are_learned_as_by_the_reference() -> None:
    start = {"adam": 0.8, "yogi": 0.3, "adam_beta1": 0.9, "adam_beta2": 0.95, "yogi_beta1": 0.8, "yogi_beta2": 0.9}
    rule, options = interpolate(Adam, Yogi), {"hyper_lr": dict.fromkeys(start, 0.1), **start}
    params = parameters()
    optimizer, reference = rule(groups(params), **options), Reference(oracle(rule, hull), params, **options)
    assert len(list(train_beside(optimizer, params, reference, 20))) == 20
    assert error([p.detach() for p in params], [x.detach() for x in reference.x]) < 1e-10
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


def test_rules_whose_names_cannot_be_told_apart_are_refused() -> None:
    class Adam_Mini(Adam):
        pass

    with pytest.raises(ValueError, match="one is the beginning of another"):
        interpolate(Adam, Adam_Mini)


@pytest.mark.parametrize("rules", [(), (Adam,), (Adam, Adam), (Adam, Lion, Adam)])
def test_fewer_than_two_different_rules_are_refused(rules) -> None:
    with pytest.raises(ValueError, match="two or more different rules"):
        interpolate(*rules)
