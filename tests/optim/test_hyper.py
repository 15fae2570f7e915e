"""The coefficients' own optimizer, beside torch.optim on the same hypergradients in the same coordinates."""

import math

import pytest
import torch
from problem import NEVER, WEIGHT, groups, loss, parameters, set_lr, train

from optim import MADA, Adam, Coefficient, Reference

RATES = {"sgd": 3e-3, "sign": 2e-3, "adam": 3e-3}
START = {"beta1": 0.8, "beta2": 0.9, "beta3": 0.4, "rho": 0.6, "c": 0.7, "gamma": 0.5}
DECAYS = ("beta1", "beta2", "beta3")


def coordinate(name: str, q: float, space: str) -> float:
    if space == "linear":
        return q
    return -math.log(1 - q) if name in DECAYS else math.log(q) if name == "lr" else math.log(q / (1 - q))


def slope(name: str, q: float, space: str) -> float:
    """dq/du."""
    return 1.0 if space == "linear" else 1 - q if name in DECAYS else q if name == "lr" else q * (1 - q)


@pytest.mark.parametrize("space", ["linear", "log"])
@pytest.mark.parametrize("kind", RATES)
@pytest.mark.parametrize("mu", [0.0, 0.5])
def test_moves_as_torch_does(kind: str, space: str, mu: float) -> None:
    params = parameters()
    names = [*START, "lr"]
    rates = dict.fromkeys(names, RATES[kind]) | {"lr": RATES[kind] / (1 if space == "log" else 100)}
    optimizer = MADA(groups(params), lr=0.02, hyper_lr=rates, hyper_momentum=mu, hyper_optimizer=kind,
                     hyper_space=space, hyper_start=2, max_grad_norm=1.0, compile=False, **START)  # fmt: skip
    before = optimizer.coefficients
    us = {k: torch.tensor(coordinate(k, before[k], space), dtype=torch.float64, requires_grad=True) for k in names}
    of_each = [{"params": [u], "lr": rates[k]} for k, u in us.items()]
    if kind == "adam":
        oracle: torch.optim.Optimizer = torch.optim.Adam(of_each, betas=(mu, 0.999), eps=1e-12)
    else:
        oracle = torch.optim.SGD(of_each, momentum=mu)
    moved = set()
    for step in range(1, 31):
        train(optimizer, params, 1)
        if step > 2:
            for k, h in optimizer.hypergradients.items():
                g = min(10.0, max(-10.0, h)) * slope(k, before[k], space)
                us[k].grad = torch.tensor(math.copysign(1, g) if kind == "sign" and g else g, dtype=torch.float64)
            oracle.step()
        moved |= {k for k in names if abs(optimizer.coefficients[k] - before[k]) > 1e-8}
        before = optimizer.coefficients
        for k, u in us.items():
            assert coordinate(k, before[k], space) == pytest.approx(u.item(), rel=1e-9, abs=1e-9), (step, k)
    assert moved == {*names}


@pytest.mark.parametrize("kind", ["sign", "adam"])
def test_leaves_the_edge_in_log_space(kind: str) -> None:
    """MADA starts at Adam: rho = c = gamma = 1, where the logit is infinite and its slope 0."""
    params = parameters()
    optimizer = MADA(groups(params), lr=0.02, hyper_lr=0.05, hyper_optimizer=kind, hyper_space="log", compile=False)
    train(optimizer, params, 40)
    after = optimizer.coefficients
    assert all(math.isfinite(after[k]) for k in START) and any(after[k] < 0.998 for k in ("rho", "c", "gamma"))


@pytest.mark.parametrize("kind", ["sgd", "sign"])
def test_what_has_no_hypergradient_stays_at_the_edge(kind: str) -> None:
    """A parameter without gradients, with coefficients of its own."""
    params = parameters()
    optimizer = MADA(params, lr=0.02, hyper_lr=0.05, hyper_optimizer=kind, hyper_space="log", scope="tensor")
    for t in (1, 2, 3):
        optimizer.zero_grad()
        (params[WEIGHT] * t).sum().backward()
        optimizer.step()
    still, moved = (optimizer.coefficients_by_owner[i] for i in (NEVER, WEIGHT))
    assert still == {k: MADA.table[k].start for k in MADA.table} and moved != still


def test_resumes_adams_moments() -> None:
    def made(params: list[torch.nn.Parameter]) -> MADA:
        return MADA(groups(params), lr=0.02, hyper_lr=1e-3, hyper_optimizer="adam", compile=False)

    whole, params = made(first := parameters()), parameters()
    train(whole, first, 12)
    half = made(params)
    train(half, params, 6)
    state = half.state_dict()
    again = made(values := [torch.nn.Parameter(p.detach().clone()) for p in params])
    again.load_state_dict(state)
    for t in range(7, 13):
        train_from(again, values, t)
    assert again.coefficients == whole.coefficients


def train_from(optimizer: MADA, params: list[torch.nn.Parameter], t: int) -> None:
    set_lr(optimizer, t)
    optimizer.zero_grad()
    loss(params, t).backward()
    optimizer.step()


@pytest.mark.parametrize("scope", ["group", "tensor"])
@pytest.mark.parametrize("late", ["added", "without gradients"])
def test_adam_corrects_what_comes_late_from_its_own_start(scope: str, late: str) -> None:
    """Its first moves are about as long as the rate, as those of what was there; uncorrected, 20 times that."""
    params = parameters()
    layout = groups(params)
    optimizer = Adam(layout[:1] if late == "added" else layout, lr=0.02, hyper_lr={"beta1": 1e-3}, compile=False,
                     hyper_optimizer="adam", scope=scope)  # fmt: skip
    moves = []
    for t in range(1, 26):
        if t == 20 and late == "added":
            optimizer.add_param_group(layout[1])
        optimizer.zero_grad()
        loss(params, t, always=True).backward()
        for p in layout[1]["params"] if t < 20 else ():
            p.grad = None
        before = optimizer.coefficients_by_owner
        optimizer.step()
        after = optimizer.coefficients_by_owner
        moves.append([abs(b["beta1"] - a["beta1"]) for a, b in zip(before, after, strict=True)])
    early, lately = [own[0] for own in moves[:7]], [own[-1] for own in moves[19:]]
    assert 5e-4 < max(early) < 2e-3 and 5e-4 < max(lately) < 2e-3


def test_a_box_does_not_change_a_coefficients_logarithm() -> None:
    """A learning rate between 1e-5 and 1e-2 is no weight in [0, 1], and a weight that may reach 1.5 is still one."""
    boxes = (("lr", (1e-5, 1e-2), "scale"), ("rho", (0.0, 1.5), "weight"), ("beta1", (0.1, 0.5), "decay"))
    for name, box, kind in boxes:
        values = {} if name == "lr" else {name: 0.4}
        asked = MADA.check(1e-4, hyper_lr={name: 1e-3}, hyper_space="log", box={name: box}, **values)
        assert asked.table[name].kind == kind
    params = parameters()
    optimizer = Adam(groups(params), 1e-4, hyper_lr={"lr": 0.1}, hyper_optimizer="sign", hyper_space="log",
                     box={"lr": (1e-5, 1e-2)}, compile=False)  # fmt: skip
    for step in range(1, 6):
        train(optimizer, params, 1)
        assert optimizer.coefficients["lr"] == pytest.approx(1e-4, rel=0.1 * step + 0.01)
    assert optimizer.coefficients["lr"] != 1e-4


def test_a_logarithm_needs_what_is_above_zero() -> None:
    class Shifted(Adam):
        table = Adam.table | {"shift": Coefficient(0.0, -1.0, 2.0, "may be negative")}

    with pytest.raises(ValueError, match=r"hyper_space = 'log': shift = 0\.0 in"):
        Shifted.check(hyper_lr={"shift": 0.1}, hyper_space="log")


def test_one_rate_for_all() -> None:
    assert MADA.check(hyper_lr=1e-3).hyper_lr == dict.fromkeys(START, 1e-3)
    assert Adam.check(hyper_lr=1e-3).hyper_lr == dict.fromkeys(("beta1", "beta2"), 1e-3)  # it learns none by default


@pytest.mark.parametrize("other", [{"scope": "tensor"}, {"hyper_optimizer": "sign"}, {"hyper_space": "log"}])
def test_the_reference_refuses_what_it_does_not_have(other: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="the paper's algorithm alone"):
        Reference(MADA, parameters(), **other)
