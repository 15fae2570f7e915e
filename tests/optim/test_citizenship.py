"""A torch.optim.Optimizer among others: groups, schedulers, scalers, closures, gradients, copies."""

import copy
import gc
import os
import shutil
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from problem import BIAS, GROUP, adam, adamw, error, groups, loss, parameters, run

import optim
from optim import MADA, Adam

ALL = dict.fromkeys(MADA.table, 0.05)


def test_a_group_added_later_is_torch_s() -> None:
    results = []
    for make in (adam, adamw):
        params = parameters()
        optimizer = make(params[:3])
        run(optimizer, params, range(1, 6))
        optimizer.add_param_group({"params": params[3:], "lr": 0.05, "weight_decay": 0.3})
        results.append(run(optimizer, params, range(6, 20)))
        assert [group["lr"] for group in optimizer.param_groups] == [0.02, 0.05]
    assert error(*results) < 1e-12


def test_a_group_added_later_learns_as_if_it_had_been_there_without_gradients() -> None:
    runs = []
    for later in (True, False):
        params = parameters()
        layout = groups(params)
        optimizer = MADA(layout[:1] if later else layout, hyper_lr=ALL, max_grad_norm=1.0)
        for t in range(1, 16):
            if t == 6 and later:
                optimizer.add_param_group(layout[1])
            optimizer.zero_grad()
            loss(params, t).backward()
            for p, group in zip(params, GROUP, strict=True):
                if t < 6 and group == 1:
                    p.grad = None
            optimizer.step()
        runs.append((optimizer, params))
    (one, params), (other, others) = runs
    assert error([p.detach() for p in params], [p.detach() for p in others]) < 1e-12
    assert one.coefficients == pytest.approx(other.coefficients, rel=1e-12)
    other.load_state_dict(one.state_dict())  # laid out otherwise, but of the same parameters
    for p, q in zip(params, others, strict=True):
        assert all(torch.equal(one.state[p][k], other.state[q][k]) for k in (*one.fields, "pending"))


SCHEDULERS = {
    "one cycle": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, [0.05, 0.02], total_steps=25, cycle_momentum=False),
    "cosine": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=20, eta_min=1e-3),
    "lambda": lambda o: torch.optim.lr_scheduler.LambdaLR(o, [lambda t: 1 / (t + 1), lambda t: 0.9**t]),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_drive_it_as_they_drive_torch_s(name: str) -> None:
    results = []
    for make in (adam, adamw):
        params = parameters()
        optimizer = make(groups(params))
        scheduler = SCHEDULERS[name](optimizer)
        results.append(run(optimizer, params, range(1, 20), lambda t, scheduler=scheduler: scheduler.step()))
        assert optimizer.param_groups[0]["lr"] != groups(params)[0]["lr"]
    assert error(*results) < 1e-12


def test_a_learning_rate_may_be_a_tensor() -> None:
    results = []
    for tensor in (False, True):
        params = parameters()
        optimizer = MADA(params, hyper_lr=ALL)

        def each(t: int, optimizer=optimizer, tensor=tensor) -> None:
            lr = 0.02 / t
            optimizer.param_groups[0]["lr"] = torch.tensor(lr, dtype=torch.float64) if tensor else lr

        results.append(run(optimizer, params, range(1, 10), each))
    assert all(map(torch.equal, *results))


def test_grad_scaler_skips_and_scales_as_with_torch_s() -> None:
    results = []
    for make in (adam, adamw):
        params = parameters()
        optimizer = make(params)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=4)
        for t in range(1, 20):
            optimizer.zero_grad()
            scaler.scale(loss(params, t)).backward()
            if t == 7:
                params[BIAS].grad[0] = float("inf")
            scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
        results.append([p.detach() for p in params])
    assert error(*results) < 1e-12


@pytest.mark.parametrize("make", [adam, adamw])
def test_a_graph_that_needs_the_old_weights_says_so(make) -> None:
    w = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizer = make([w])
    first, second = (w * w).sum(), w.sum()
    second.backward()
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        first.backward()


def test_a_frozen_parameter_rests_in_both_ways_of_zero_grad() -> None:
    for to_none in (True, False):
        params = parameters()
        params[BIAS].requires_grad_(False)
        before = params[BIAS].clone()
        optimizer = adam(params)
        for t in range(1, 4):
            optimizer.zero_grad(set_to_none=to_none)
            loss(params, t).backward()
            optimizer.step()
        assert torch.equal(params[BIAS], before)


def test_a_deep_copy_goes_on_by_itself() -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = MADA(model.parameters(), max_grad_norm=1.0, compile=False)

    def step(model: torch.nn.Module, optimizer: MADA) -> None:
        model(torch.ones(3)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)

    step(model, optimizer)
    other, copied = copy.deepcopy((model, optimizer))
    for _ in range(3):
        step(model, optimizer)
    assert not torch.equal(model.weight, other.weight)
    for _ in range(3):
        step(other, copied)
    assert torch.equal(model.weight, other.weight) and optimizer.coefficients == copied.coefficients


def test_its_memory_goes_with_it() -> None:
    """Without a cycle of references, which would keep it until the garbage collector comes."""
    params = parameters()
    optimizer = MADA(params)
    loss(params, 1).backward()
    optimizer.step()
    alive = weakref.ref(optimizer)
    gc.disable()
    try:
        del optimizer
        assert alive() is None
    finally:
        gc.enable()


def test_a_group_that_is_refused_is_not_added() -> None:
    params = parameters()
    optimizer = adam(params)
    with pytest.raises(ValueError, match=r"torch\.int64"):
        optimizer.add_param_group({"params": [torch.arange(3)]})
    run(optimizer, params, range(1, 3))
    assert len(optimizer.param_groups) == 1


def test_a_closure_is_called_with_gradients_enabled_and_its_loss_returned() -> None:
    params, others = parameters(), parameters()
    optimizer, other = MADA(params, hyper_lr=ALL), MADA(others, hyper_lr=ALL)
    for t in range(1, 8):

        def closure(t=t) -> torch.Tensor:
            optimizer.zero_grad()
            value = loss(params, t)
            value.backward()
            return value

        with torch.no_grad():
            returned = optimizer.step(closure)
        other.zero_grad()
        value = loss(others, t)
        value.backward()
        assert other.step() is None
        assert returned.item() == value.item()
    assert all(map(torch.equal, params, others))


def test_both_ways_of_zero_grad_and_gradients_kept_by_the_caller_are_one_trajectory() -> None:
    """But for parameters that get no gradient: zeroed, it is zero; forgotten, there is none."""
    results = []
    for way in ("none", "zero", "own"):
        params = parameters()
        params[2].grad = torch.zeros_like(params[2])
        optimizer = MADA(groups(params), hyper_lr=ALL, max_grad_norm=1.0)
        for t in range(1, 12):
            if way == "own":
                for p in params:
                    p.grad = torch.zeros_like(p)
            else:
                optimizer.zero_grad(set_to_none=way == "none")
            (loss(params, t, always=True) + 0 * params[2].sum()).backward()
            optimizer.step()
        results.append([p.detach() for p in params])
        assert optimizer.coefficients["beta3"] != 0
    assert all(map(torch.equal, results[0], results[1])) and all(map(torch.equal, results[0], results[2]))


def test_parameters_replaced_under_it_are_followed() -> None:
    """As code that sets p.data replaces them."""
    params, others = parameters(), parameters()
    optimizer, other = adam(params), adam(others)
    for steps in (range(1, 4), range(4, 7)):
        run(optimizer, params, steps), run(other, others, steps)
        for p in params:
            p.data = p.data.clone()
    assert all(map(torch.equal, params, others))
    params[0].data = params[0].data.float()
    params[0].grad = None
    with pytest.raises(RuntimeError, match=r"shape \(6, 4\) is on cpu, torch\.float32"):
        optimizer.step()


def test_sparse_gradients_are_refused() -> None:
    embedding = torch.nn.Embedding(4, 3, sparse=True)
    optimizer = adam(embedding.parameters())
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse gradients are not supported"):
        optimizer.step()


def test_named_parameters_and_empty_groups_are_accepted() -> None:
    for wrap in (lambda m: m.named_parameters(), lambda m: [{"params": []}, {"params": m.parameters()}]):
        model = torch.nn.Linear(3, 2)
        optimizer = Adam(wrap(model))
        model(torch.ones(3)).sum().backward()
        before = model.weight.detach().clone()
        optimizer.step()
        assert (model.weight.detach() < before).all()
        optimizer.load_state_dict(optimizer.state_dict())


def test_the_folder_alone_trains_another_project_s_module(tmp_path: Path) -> None:
    shutil.copytree(Path(optim.__file__).parent, tmp_path / "optim", ignore=shutil.ignore_patterns("__pycache__"))
    program = """
import sys, torch, optim
assert optim.__file__.startswith(sys.argv[1]), optim.__file__
torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
optimizer = optim.MADA(net.parameters(), lr=1e-2)
x = torch.randn(64, 4)
losses = []
for _ in range(100):
    optimizer.zero_grad()
    losses.append(((net(x)[:, 0] - x.sum(1)) ** 2).mean())
    losses[-1].backward()
    optimizer.step()
assert losses[-1] < losses[0] / 4, losses[-1]
assert optimizer.coefficients["rho"] != 1
"""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    result = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
