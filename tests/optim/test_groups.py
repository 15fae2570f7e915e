"""What is learned lies in the param groups: read there without waiting, written there, another one in each."""

import copy

import pytest
import torch
from problem import adam, error, groups, loss, parameters, run

from optim import MADA, SGD, Adam, HyperAdam

ALL = {"lr": 0.02, "hyper_lr": dict.fromkeys(MADA.table, 0.05)}


def adamw(layout) -> torch.optim.AdamW:
    layout = [{"betas": (g.pop("beta1", 0.9), g.pop("beta2", 0.95)), **g} for g in layout]
    return torch.optim.AdamW(layout, lr=0.02, eps=1e-6, weight_decay=0.1)


def test_fixed_coefficients_of_groups_are_torch_s_and_one_norm_clips_all() -> None:
    """Compiled too: test_scope.py."""
    results = []
    for make in (adam, adamw):
        params = parameters()
        first, second = groups(params)
        optimizer = make([first | {"beta1": 0.8, "beta2": 0.99}, second | {"beta1": 0.5, "beta2": 0.9}])
        if make is adam:
            optimizer = Adam(optimizer.param_groups, eps=1e-6, weight_decay=0.1, max_grad_norm=1.0)
        for t in range(1, 8):
            optimizer.zero_grad()
            loss(params, t, always=True).backward()
            if make is adamw:
                torch.nn.utils.clip_grad_norm_(params, 1.0)
            optimizer.step()
        results.append([p.detach() for p in params])
    assert error(*results) < 1e-12


@pytest.mark.parametrize("scope", ["global", "group", "tensor"])
def test_what_a_group_shows_is_never_stale(scope: str) -> None:
    params = parameters()
    optimizer = MADA(groups(params), **ALL, scope=scope)
    entries = [dict(group) for group in optimizer.param_groups]  # taken before the first step
    run(optimizer, params, range(1, 6))
    seen = [value for group in optimizer.param_groups for value in group["beta1"].reshape(-1).tolist()]
    assert seen[:: 2 if scope == "global" else 1][:1] == [optimizer.coefficients_by_owner[0]["beta1"]]
    assert len(seen) == {"global": 2, "group": 2, "tensor": 5}[scope] and 0.9 not in seen[:2]
    for group, entry in zip(optimizer.param_groups, entries, strict=True):
        assert all(group[k] is entry[k] for k in (*MADA.table, "q_applied", "q_momentum", "hypergradient", "q_steps"))
        assert group["q_steps"] == 5 and group["momentum"] is group["beta1"]


@pytest.mark.parametrize("value", [0.5, torch.tensor(0.5, dtype=torch.float64)])
@pytest.mark.parametrize("scope", ["global", "group", "tensor"])
def test_a_learned_coefficient_that_is_written_takes_effect_at_the_next_step(scope: str, value) -> None:
    """As if it had been loaded so, and learns on from there."""
    runs = []
    for way in ("written", "loaded"):
        params = parameters()
        optimizer = MADA(groups(params), **ALL, scope=scope)
        run(optimizer, params, range(1, 5))
        if way == "written":
            optimizer.param_groups[1]["beta1"] = value
        else:
            state = copy.deepcopy(optimizer.state_dict())
            for group in state["param_groups"][1 if scope != "global" else 0 :]:
                group["beta1"].fill_(0.5)
            optimizer.load_state_dict(state)
        assert [own["beta1"] for own in optimizer.coefficients_by_owner][-1] == 0.5
        assert isinstance(optimizer.param_groups[1]["beta1"], torch.Tensor)
        runs.append((run(optimizer, params, range(5, 9)), optimizer.coefficients_by_owner))
    assert all(map(torch.equal, runs[0][0], runs[1][0])) and runs[0][1] == runs[1][1]
    assert runs[0][1][-1]["beta1"] != 0.5


def test_a_fixed_coefficient_that_is_written_is_torch_s() -> None:
    results = []
    for make in (adam, adamw):
        params = parameters()
        optimizer = make(groups(params))

        def each(t: int, optimizer=optimizer, ours=make is adam) -> None:
            if t == 3:  # another one in one group, then the same again
                optimizer.param_groups[1].update({"beta1": 0.5} if ours else {"betas": (0.5, 0.95)})
            if t == 6:
                optimizer.param_groups[0].update({"beta1": 0.5} if ours else {"betas": (0.5, 0.95)})

        results.append(run(optimizer, params, range(1, 10), each))
    assert error(*results) < 1e-12


CYCLES = {
    "one cycle": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.05, total_steps=12),
    "one cycle, by group": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.05, total_steps=12,
                                                                         max_momentum=[0.95, 0.8]),
    "cyclic": lambda o: torch.optim.lr_scheduler.CyclicLR(o, 0.01, 0.05, step_size_up=4),
}  # fmt: skip


@pytest.mark.parametrize("name", CYCLES)
@pytest.mark.parametrize("kind", ["Adam", "SGD"])
def test_schedulers_cycle_beta1_and_momentum_as_they_cycle_torch_s(kind: str, name: str) -> None:
    results = []
    for ours in (True, False):
        params = parameters()
        layout = groups(params)
        if kind == "Adam":
            optimizer = adam(layout) if ours else adamw(layout)
        else:
            layout = [group | {"weight_decay": 0.0} for group in layout]
            optimizer = SGD(layout, lr=0.02) if ours else torch.optim.SGD(layout, lr=0.02, momentum=0.9)
        scheduler = CYCLES[name](optimizer)
        seen = []

        def each(t: int, scheduler=scheduler, optimizer=optimizer, seen=seen) -> None:
            scheduler.step()
            group = optimizer.param_groups[0]
            seen.append(float(group.get("momentum", group.get("betas", [0])[0])))

        results.append((run(optimizer, params, range(1, 11), each), seen))
    assert error(results[0][0], results[1][0]) < 1e-12
    assert results[0][1] == results[1][1] and len(set(seen)) > 4


def test_a_scheduler_cycles_a_learned_beta1() -> None:
    params = parameters()
    optimizer = HyperAdam(groups(params), lr=0.02)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=12)
    betas = []
    run(optimizer, params, range(1, 11), lambda t: (betas.append(optimizer.coefficients["beta1"]), scheduler.step()))
    assert betas[0] == pytest.approx(0.95, abs=1e-3) and min(betas) < 0.86


def test_a_group_brings_its_own_start_rate_box_and_what_it_does_not_learn() -> None:
    params = parameters()
    first, second = groups(params)
    first |= {"beta1": 0.6, "hyper_lr": {"beta2": 0.0}}
    second |= {"box": {"beta1": (0.895, 0.905)}}
    optimizer = HyperAdam([first, second], lr=0.02, hyper_lr={"beta1": 0.05, "beta2": 0.05}, scope="group")
    seen = []
    run(optimizer, params, range(1, 12), lambda t: seen.append(copy.deepcopy(optimizer.coefficients_by_owner)))
    assert seen[0][0]["beta1"] == 0.6 != seen[-1][0]["beta1"]
    assert {own[0]["beta2"] for own in seen} == {0.95} and seen[-1][1]["beta2"] != 0.95
    assert {0.895, 0.905} & {own[1]["beta1"] for own in seen}
    assert all(0.895 <= own[1]["beta1"] <= 0.905 for own in seen)
    optimizer.param_groups[0]["hyper_lr"]["beta2"] = 0.05  # takes effect too
    run(optimizer, params, range(12, 14))
    assert optimizer.coefficients_by_owner[0]["beta2"] != 0.95
    again = HyperAdam(groups(parameters()), lr=0.02, hyper_lr={"beta1": 0.05, "beta2": 0.05}, scope="group")
    again.load_state_dict(optimizer.state_dict())
    assert "hyper_lr" not in again.param_groups[0] and again.coefficients_by_owner == optimizer.coefficients_by_owner


@pytest.mark.parametrize("rate", [0, 0.0, {"beta1": 0, "beta2": 0}])
def test_one_rate_of_a_group_is_that_of_all_its_coefficients(rate) -> None:
    params = parameters()
    first, second = groups(params)
    optimizer = HyperAdam([first | {"hyper_lr": rate}, second | {"hyper_lr": 0.05}], lr=0.02, scope="group")
    run(optimizer, params, range(1, 8))
    still, moved = optimizer.coefficients_by_owner
    assert still == {"beta1": 0.9, "beta2": 0.95} and abs(moved["beta1"] - 0.9) > 1e-4 < abs(moved["beta2"] - 0.95)


def test_a_later_group_takes_over_what_all_have_learned() -> None:
    """Whatever it starts shared coefficients at would be written into all groups."""
    params = parameters()
    optimizer = HyperAdam(params[:3], lr=0.02, hyper_lr=0.05)
    run(optimizer, params, range(1, 8))
    before = optimizer.coefficients
    assert before["beta1"] != 0.9
    with pytest.raises(ValueError, match=r"beta1 is learned and shared by all param groups, but is 0\.9 and 0\.97"):
        optimizer.add_param_group({"params": params[3:], "beta1": 0.9})
    assert len(optimizer.param_groups) == 1
    optimizer.add_param_group({**optimizer.param_groups[0], "params": params[3:4]})
    optimizer.add_param_group({"params": params[4:]})
    assert optimizer.coefficients == before
    run(optimizer, params, range(8, 10))
    assert optimizer.coefficients != before


def test_repr_shows_the_values() -> None:
    params = parameters()
    optimizer = MADA(groups(params), **ALL)
    run(optimizer, params, range(1, 4))
    assert f"    beta1: {optimizer.coefficients['beta1']}\n" in repr(optimizer)
    assert repr(optimizer).count("Parameter Group") == 2 and "q_momentum" not in repr(optimizer)
    named = MADA({str(i): p for i, p in enumerate(parameters())}.items())
    named.param_groups[0]["sizes"] = [3, 10]
    assert "    param_names: ['0', '1', '2', '3', '4']\n" in repr(named) and "    sizes: [3, 10]\n" in repr(named)
    assert "beta1: 0." in (text := repr(MADA(groups(parameters()), scope="tensor"))) and " to 0.9" in text
