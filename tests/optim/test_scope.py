"""Coefficients of a group or a tensor: as many optimizers, each with its own parameters, that learn by themselves."""

import copy
import io

import pytest
import torch
from problem import error, groups, loss, parameters

from optim import MADA, Adam

START = {"beta3": 0.5, "rho": 0.5, "c": 0.5, "gamma": 0.5}
OPTIONS = {**START, "lr": 0.02, "hyper_lr": dict.fromkeys(MADA.table, 0.05), "hyper_momentum": 0.5}
SCOPES = ("group", "tensor")


def alone(params, scope: str, **options) -> list[MADA]:
    """An optimizer for each owner."""
    layout = by_group(params)
    if scope == "tensor":
        layout = [group | {"params": [p]} for group in layout for p in group["params"]]
    return [MADA([group], **OPTIONS | options) for group in layout]


def by_group(params) -> list[dict]:
    """Of which one has another fixed coefficient."""
    first, second = groups(params)
    return [first | {"eps": 1e-3}, second]


def step(params, optimizers, t: int) -> None:
    for p in params:
        p.grad = None
    loss(params, t).backward()
    for optimizer in optimizers:
        optimizer.step()


@pytest.mark.filterwarnings("error:the optimizer runs uncompiled")
@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("order", ["coefficients_first", "weights_first"])
@pytest.mark.parametrize("scope", SCOPES)
def test_each_owner_learns_as_if_it_were_alone(scope: str, order: str, compiled: bool) -> None:
    params, others = parameters(), parameters()
    optimizer = MADA(by_group(params), **OPTIONS, scope=scope, order=order, compile=compiled)
    separate = alone(others, scope, order=order, compile=False)
    for t in range(1, 13):
        step(params, [optimizer], t)
        step(others, separate, t)
        seen = optimizer.coefficients_by_owner
        assert len(seen) == len(separate) == {"group": 2, "tensor": 5}[scope]
        for own, other in zip(seen, separate, strict=True):
            assert own == pytest.approx(other.coefficients, rel=1e-9)
    assert error([p.detach() for p in params], [p.detach() for p in others]) < 1e-10
    assert len({round(own["beta1"], 9) for own in seen}) > 1
    mean = sum(own["beta1"] for own in seen) / len(seen)
    assert optimizer.coefficients["beta1"] == pytest.approx(mean, rel=1e-12)


@pytest.mark.parametrize("scope", SCOPES)
def test_one_norm_clips_all(scope: str) -> None:
    params = parameters()
    optimizer = MADA(groups(params), **OPTIONS, scope=scope, max_grad_norm=1.0)
    step(params, [optimizer], 1)
    norm = torch.stack([p.grad.square().sum() for p in params if p.grad is not None]).sum().sqrt()
    assert optimizer.grad_norm.item() == pytest.approx(norm.item(), rel=1e-12)


@pytest.mark.parametrize("scope", SCOPES)
def test_a_saved_run_and_a_copy_continue_bitwise(scope: str) -> None:
    params = parameters()
    optimizer = MADA(groups(params), **OPTIONS, scope=scope)
    for t in range(1, 6):
        step(params, [optimizer], t)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    again = [torch.nn.Parameter(p.detach().clone()) for p in params]
    loaded = MADA(groups(again), **OPTIONS, scope=scope)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    copied_params, copied = copy.deepcopy((params, optimizer))
    for t in range(6, 10):
        for ps, run in ((params, optimizer), (again, loaded), (copied_params, copied)):
            step(ps, [run], t)
    for ps, run in ((again, loaded), (copied_params, copied)):
        assert error([p.detach() for p in ps], [p.detach() for p in params]) == 0
        assert run.coefficients_by_owner == optimizer.coefficients_by_owner
    with pytest.raises(ValueError, match=f"this state has scope '{scope}', this optimizer 'global'"):
        MADA(groups(parameters()), **OPTIONS).load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize("scope", SCOPES)
def test_an_owner_that_comes_later_begins_at_the_start_and_the_others_keep_theirs(scope: str) -> None:
    params = parameters()
    layout = groups(params)
    optimizer = MADA(layout[:1], **OPTIONS, scope=scope)
    for t in range(1, 6):
        step(params, [optimizer], t)
    before = optimizer.coefficients_by_owner
    optimizer.add_param_group(layout[1])
    after = optimizer.coefficients_by_owner
    assert after[: len(before)] == before and before[0]["beta1"] != 0.9
    assert [own["beta1"] for own in after[len(before) :]] == [0.9] * {"group": 1, "tensor": 2}[scope]
    step(params, [optimizer], 6)
    kept = optimizer.coefficients_by_owner[len(before) :]
    optimizer.param_groups.pop(0)
    assert optimizer.coefficients_by_owner == kept


def test_a_scope_that_does_not_exist_is_named() -> None:
    with pytest.raises(ValueError, match="scope = 'layer' must be one of global, group, tensor"):
        Adam(parameters(), scope="layer")
