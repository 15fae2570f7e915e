"""The state lies where torch looks: hooks, checkpoints of torch.distributed, states of torch Adam."""

import copy
import functools
import importlib
import io
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import problem
import pytest
import torch
import torch.distributed as dist
from problem import error, groups, loss, parameters
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from optim import MADA, SGD, Adam, HyperAdam, RuleOptimizer, Yogi

INSIDE = {"beta3": 0.5, "rho": 0.5, "c": 0.5, "gamma": 0.5}
OPTIONS = {**INSIDE, "lr": 0.02, "hyper_lr": dict.fromkeys(MADA.table, 0.05), "hyper_momentum": 0.5}
run = functools.partial(problem.run, always=False)


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.params = torch.nn.ParameterList(parameters())


@pytest.mark.parametrize("options", [{}, {"flatten_optimizer_state_dict": True}, {"full_state_dict": True}], ids=str)
@pytest.mark.parametrize("scope", ["global", "group", "tensor"])
def test_torch_distributed_checkpoint_round_trips(scope: str, options: dict) -> None:
    net, other = Net(), Net()
    optimizer, loaded = (MADA(groups([*n.params]), **OPTIONS, scope=scope) for n in (net, other))
    run(optimizer, net.params, range(1, 6))
    other.load_state_dict(net.state_dict())
    file = io.BytesIO()
    torch.save(get_optimizer_state_dict(net, optimizer, options=StateDictOptions(**options)), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    set_optimizer_state_dict(other, loaded, saved, options=StateDictOptions(**options))
    xs, ys = run(optimizer, net.params, range(6, 9)), run(loaded, other.params, range(6, 9))
    assert all(map(torch.equal, xs, ys)) and len(xs) == 5
    assert loaded.coefficients_by_owner == optimizer.coefficients_by_owner
    assert loaded.hypergradients == optimizer.hypergradients and all(loaded.hypergradients.values())


def test_hooks_fire_as_in_torch() -> None:
    calls = []
    for make in (lambda p: HyperAdam(p, lr=0.02), lambda p: torch.optim.AdamW(p, lr=0.02)):
        optimizer, seen = make(parameters()), []
        optimizer.register_state_dict_pre_hook(lambda o, seen=seen: seen.append("before saving"))
        optimizer.register_state_dict_post_hook(lambda o, state, seen=seen: seen.append(sorted(state)))
        optimizer.register_state_dict_post_hook(lambda o, state: {**state, "more": 1})
        optimizer.register_load_state_dict_pre_hook(lambda o, state, seen=seen: seen.append(sorted(state)))
        optimizer.register_load_state_dict_pre_hook(
            lambda o, state: state | {"param_groups": [g | {"lr": 0.5} for g in state["param_groups"]]}
        )
        optimizer.register_load_state_dict_post_hook(lambda o, seen=seen: seen.append(o.param_groups[0]["lr"]))
        optimizer.load_state_dict(optimizer.state_dict())
        calls.append(seen)
    assert calls[0] == calls[1] and calls[0][-1] == 0.5 and len(calls[0]) == 4


def test_a_learning_rate_that_is_a_tensor_is_copied() -> None:
    lr = torch.tensor(0.02)
    optimizer, other = Adam(parameters(), lr=lr), Adam(parameters(), lr=lr)
    other.load_state_dict(optimizer.state_dict())
    assert other.param_groups[0]["lr"] is not optimizer.param_groups[0]["lr"]
    lr.fill_(1.0)
    assert other.param_groups[0]["lr"] == torch.tensor(0.02)


def test_a_state_from_before_the_groups_had_it_all_is_refused() -> None:
    optimizer = MADA(groups(parameters()), **OPTIONS)
    state = optimizer.state_dict()
    bare = [{k: g[k] for k in ("params", "lr", "weight_decay")} for g in state["param_groups"]]
    with pytest.raises(ValueError, match="not of one of these optimizers: groups have lr, weight_decay"):
        optimizer.load_state_dict({"state": state["state"], "param_groups": bare, "scalars": {}})


@pytest.mark.parametrize("make", [
    lambda p: Adam(p), lambda p: HyperAdam(p, hyper_lr={"beta1": 1e-12, "beta2": 1e-12}, box={"beta2": (0.5, 0.9999)}),
    lambda p: MADA(p, hyper_lr={"beta1": 1e-12, "c": 1e-12}),
], ids=["Adam", "HyperAdam", "MADA"])  # fmt: skip
@pytest.mark.parametrize("torch_s", [torch.optim.AdamW, torch.optim.Adam])
def test_a_run_of_torch_s_adam_goes_on(make, torch_s) -> None:
    params = parameters()
    theirs = torch_s(groups(params) if torch_s is torch.optim.AdamW else params, lr=0.02, betas=(0.8, 0.99), eps=1e-5)
    run(theirs, params, range(1, 6))
    others = [torch.nn.Parameter(p.detach().clone()) for p in params]
    ours = make(groups(others) if torch_s is torch.optim.AdamW else others)
    ours.load_state_dict(theirs.state_dict())
    assert ours.coefficients["beta1"] == pytest.approx(0.8) and ours.param_groups[0]["eps"] == 1e-5
    expected = run(theirs, params, range(6, 11))
    assert error(run(ours, others, range(6, 11)), expected) < 1e-9
    with pytest.raises(ValueError, match="MADA: a torch Adam has no n, va, l, g: make an optimizer that keeps m and v"):
        MADA([{"params": g["params"]} for g in theirs.param_groups]).load_state_dict(theirs.state_dict())


def test_its_own_state_may_be_loaded() -> None:
    p = torch.nn.Parameter(torch.ones(3000))  # three rows
    optimizer = MADA([p], compile=False)
    for _ in range(2):
        p.grad = torch.ones_like(p)
        optimizer.step()
    before = {k: v.clone() for k, v in optimizer.state[p].items()}
    optimizer.load_state_dict(optimizer.state_dict())
    assert all(torch.equal(optimizer.state[p][k], v) for k, v in before.items())


def test_what_only_looks_like_an_adam_is_refused() -> None:
    from own_rule import AdaMomentum  # tests/ is on no path where this file runs as a program

    theirs, params = parameters(), parameters()
    state = trained_state(torch.optim.AdamW(theirs), theirs)
    with pytest.raises(ValueError, match="a torch Adam has beta1 and beta2, which this rule lacks"):
        AdaMomentum(params).load_state_dict(state)
    for own in state["state"].values():
        del own["exp_avg_sq"]
    with pytest.raises(ValueError, match="not the state of a torch Adam that has a counterpart here: exp_avg_sq"):
        Adam(parameters()).load_state_dict(state)


def trained_state(optimizer: RuleOptimizer | torch.optim.Optimizer, params) -> dict:
    loss(params, 1).backward()
    optimizer.step()
    return optimizer.state_dict()


@pytest.mark.parametrize(
    "foreign, message",
    [
        (lambda p: torch.optim.SGD(p), "not of one of these optimizers: groups have dampening"),
        (lambda p: torch.optim.AdamW(p, amsgrad=True), "a counterpart here: max_exp_avg_sq"),
        (lambda p: torch.optim.Adam(p, weight_decay=0.1), "weight_decay=0.1 of a torch Adam is not decoupled"),
        (lambda p: Yogi(p), "another rule, Yogi"),  # whose fields are Adam's
        (lambda p: SGD(p), "another rule, SGD"),
        (lambda p: HyperAdam(p), "learned ['beta1', 'beta2']"),
        (lambda p: Adam(p[:3]), "[3] parameters do not fit groups of [5]"),
        (lambda p: Adam(groups(p)), "[3, 2] parameters do not fit groups of [5]"),
        (lambda p: Adam([p[1], p[0], *p[2:]]), "does not fit"),  # of other shapes
    ],
)
def test_a_foreign_state_is_refused_and_changes_nothing(foreign, message: str) -> None:
    theirs, params = parameters(), parameters()
    state = trained_state(foreign(theirs), theirs)
    optimizer = Adam(params)
    trained_state(optimizer, params)
    before = [v.clone() for p in params for v in optimizer.state[p].values()]
    with pytest.raises(ValueError) as caught:
        optimizer.load_state_dict(state)
    assert message in str(caught.value)
    assert all(map(torch.equal, before, [v for p in params for v in optimizer.state[p].values()]))


SPOILED = {
    "no step": lambda state: state["state"][4].pop("step"),
    "no learning rate applied": lambda state: state["state"][4].pop("lr_applied"),
    "an empty step": lambda state: state["state"][4].update(step=torch.zeros(0)),
    "no state": lambda state: state["state"].pop(4),
    "learned values of other groups": lambda state: state["param_groups"][1].update(q_applied=torch.ones(2, 6)),
    "a coefficient of another shape": lambda state: state["param_groups"][1].update(beta1=torch.ones(3)),
}


@pytest.mark.parametrize("how", SPOILED)
def test_a_spoiled_state_is_refused_before_anything_is_copied(how: str) -> None:
    params, others = parameters(), parameters()
    optimizer, theirs = MADA(groups(params), **OPTIONS), MADA(groups(others), **OPTIONS)
    run(theirs, others, range(1, 4))
    spoiled = copy.deepcopy(theirs.state_dict())
    SPOILED[how](spoiled)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match=r"MADA: .* does not fit"):
        optimizer.load_state_dict(spoiled)
    after = optimizer.state_dict()
    for i in range(5):
        assert all(torch.equal(before["state"][i][k], v) for k, v in after["state"][i].items())
    assert all(own["beta1"] == 0.9 for own in after["param_groups"])


def work(rank: int, ranks: int, folder: str, port: int) -> None:
    """Sharded by FSDP2: save after 4 steps, or, where that is saved, load and go on."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo", rank=rank, world_size=ranks, init_method=f"tcp://127.0.0.1:{port}")
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(5, 6), torch.nn.Tanh(), torch.nn.Linear(6, 1)).double()
    if ranks > 1:
        fully_shard(net, mesh=dist.device_mesh.init_device_mesh("cpu", (ranks,)))
    optimizer = MADA(net.parameters(), **OPTIONS, scope="tensor")

    def steps(those) -> None:
        for t in those:
            x = torch.randn(8, 5, generator=torch.Generator().manual_seed(t), dtype=torch.float64)
            optimizer.zero_grad()
            (net(x)[:, 0] - x.sum(1)).square().mean().backward()
            optimizer.step()

    flat = StateDictOptions(flatten_optimizer_state_dict=True)
    if not os.path.exists(f"{folder}/saved"):
        steps(range(1, 5))
        saved = {"net": net.state_dict(), "optimizer": get_optimizer_state_dict(net, optimizer, options=flat)}
        dcp.save(saved, checkpoint_id=f"{folder}/saved")
    else:
        saved = {"net": net.state_dict(), "optimizer": get_optimizer_state_dict(net, optimizer, options=flat)}
        dcp.load(saved, checkpoint_id=f"{folder}/saved")
        net.load_state_dict(saved["net"])
        set_optimizer_state_dict(net, optimizer, saved["optimizer"], options=flat)
    steps(range(5, 8))
    weights = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in net.parameters()]
    if rank == 0:
        print(json.dumps([[w.tolist() for w in weights], optimizer.coefficients_by_owner]))
    dist.destroy_process_group()


def test_a_run_sharded_by_fsdp2_goes_on_in_another_number_of_processes(tmp_path) -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, __file__, tmp_path], capture_output=True, text=True, timeout=900,
                          env=os.environ | {"PYTHONPATH": str(root)})  # fmt: skip
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == 4, done.stderr
    assert answers[0] == answers[1]
    for weights, learned in answers[2:]:
        for w, expected in zip(weights, answers[0][0], strict=True):
            assert error(torch.tensor(w), torch.tensor(expected)) < 1e-9
        for own, expected in zip(learned, answers[0][1], strict=True):
            assert own == pytest.approx(expected, rel=1e-9)
    assert answers[0][1][0]["beta1"] != 0.9


if __name__ == "__main__":  # forked from one process, because importing torch is what costs
    importlib.import_module("torch.distributed.fsdp")
    for ranks in (3, 3, 2, 1):  # of three, one has no part of the last bias; the first three save
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        forked = []
        for rank in range(ranks):
            forked.append(os.fork())
            if forked[-1] == 0:
                work(rank, ranks, sys.argv[1], port)
                sys.stdout.flush()
                os._exit(0)
        for pid in forked:
            os.waitpid(pid, 0)
