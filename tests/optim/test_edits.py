"""What is edited between two steps (groups, parameters, state) is followed as torch.optim follows it, or refused."""

from collections import defaultdict

import pytest
import torch
from problem import adam, adamw, error, groups, loss, parameters

from optim import MADA, HyperAdam


def replace(optimizer, params) -> None:
    params[1] = optimizer.param_groups[0]["params"][1] = torch.nn.Parameter(params[1].detach() * 2)


def append(optimizer, params) -> None:
    extra = torch.nn.Parameter(torch.ones(5, dtype=torch.float64))
    params.append(extra)
    optimizer.param_groups[1]["params"].append(extra)


def reset_one(optimizer, params) -> None:
    del optimizer.state[params[0]]


def reset_all(optimizer, params) -> None:
    optimizer.state = defaultdict(dict)


def new_moment(optimizer, params) -> None:
    state = optimizer.state[params[0]]
    name = "m" if "m" in state else "exp_avg"
    state[name] = torch.zeros_like(state[name])


EDITS = {
    "parameter replaced": replace,
    "parameter appended": append,
    "parameter removed": lambda optimizer, params: optimizer.param_groups[0]["params"].pop(1),
    "all removed from a group": lambda optimizer, params: optimizer.param_groups[1]["params"].clear(),
    "group removed": lambda optimizer, params: optimizer.param_groups.pop(0),
    "groups in another order": lambda optimizer, params: optimizer.param_groups.reverse(),
    "no groups": lambda optimizer, params: optimizer.param_groups.clear(),
    "state of a parameter deleted": reset_one,
    "state cleared": lambda optimizer, params: optimizer.state.clear(),
    "state replaced": reset_all,
    "a moment replaced": new_moment,
}


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("name", EDITS)
def test_an_edit_is_followed_as_torch_does(name: str, set_to_none: bool) -> None:
    results = []
    for make in (adam, adamw):
        params = parameters()
        params[2].requires_grad_(False)  # never has a gradient, which zero_grad(set_to_none=False) would make zero
        optimizer = make(groups(params))
        for t in range(1, 9):
            if t == 5:
                before = [p.detach().clone() for p in params]  # torch.optim's, at last
                EDITS[name](optimizer, params)
            optimizer.zero_grad(set_to_none=set_to_none)
            for p in params:  # also of those that no optimizer has
                p.grad = None if p.grad is None else torch.zeros_like(p) if set_to_none else p.grad.zero_()
            (loss(params, t, always=True) + sum(p.sum() for p in params[5:])).backward()
            optimizer.step()
        results.append([p.detach() for p in params])
    assert error(*results) < 1e-12
    moved = error(results[1][: len(before)], before[: len(results[1])]) > 1e-3
    assert moved == (name != "no groups")


def test_an_edit_keeps_what_was_learned_and_the_other_parameters_momentum() -> None:
    """Laid out anew at each step, the same run."""
    runs = []
    for edited in (False, True):
        params = parameters()
        optimizer = MADA(groups(params), hyper_lr=dict.fromkeys(MADA.table, 0.05), max_grad_norm=1.0)
        for t in range(1, 9):
            if edited:
                optimizer.param_groups[0] = dict(optimizer.param_groups[0])
            optimizer.zero_grad()
            loss(params, t).backward()
            optimizer.step()
        runs.append((optimizer, [p.detach() for p in params]))
    assert all(map(torch.equal, runs[0][1], runs[1][1])) and len(runs[0][1]) == 5
    assert runs[0][0].coefficients == runs[1][0].coefficients


def test_keys_of_other_libraries_are_kept_in_a_group() -> None:
    """timm's lr_scale, nanochat's kind, a sharpness-aware wrapper's rho."""
    params = parameters()
    optimizer = HyperAdam([{"params": params, "lr_scale": 0.5, "kind": "matrix", "rho": 0.05, "adaptive": True}])
    loss(params, 1).backward()
    optimizer.step()
    group = optimizer.state_dict()["param_groups"][0]
    assert {k: group[k] for k in ("lr_scale", "kind", "rho", "adaptive")} == {
        "lr_scale": 0.5, "kind": "matrix", "rho": 0.05, "adaptive": True,
    }  # fmt: skip


def test_a_coefficient_out_of_place_in_a_group_is_refused() -> None:
    params = parameters()
    optimizer = MADA(params)
    optimizer.param_groups[0]["beta1"] = 1.5
    loss(params, 1).backward()
    for _ in range(2):
        with pytest.raises(ValueError, match=r"MADA: param group 0: beta1 = 1\.5 must lie in \[0\.01, 0\.99\]"):
            optimizer.step()
    optimizer.param_groups[0]["beta1"] = 0.5
    optimizer.step()
    assert optimizer.state[params[0]]["step"].item() == 1
