"""Each parameter has a storage of its own, copies train by themselves, and memory that others use stays theirs."""

import copy
import io
import multiprocessing
import pickle

import numpy as np
import pytest
import safetensors.torch
import torch
from problem import BIAS, EMBEDDING, error, loss, parameters

from optim import MADA, Adam

ALL = dict.fromkeys(MADA.table, 0.05)


def net() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)).double()


def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, t: int = 1) -> None:
    optimizer.zero_grad()
    x = torch.randn(16, 4, generator=torch.Generator().manual_seed(t), dtype=torch.float64)
    (model(x)[:, 0] - x.sum(1)).square().mean().backward()
    optimizer.step()


def weights(model: torch.nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return len(one) > 0 and all(map(torch.equal, one, other))


def test_each_parameter_and_each_state_has_a_storage_of_its_own() -> None:
    model = net()
    optimizer = MADA(model.parameters(), hyper_lr=ALL)
    step(model, optimizer)
    tensors = [*model.parameters()]
    tensors += [optimizer.state[p][k] for p in model.parameters() for k in (*optimizer.fields, "pending")]
    assert len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == len(tensors) == 4 * 8
    assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in tensors)


def test_safetensors_saves_untied_weights_and_tells_tied_ones(tmp_path) -> None:
    model = net()
    step(model, MADA(model.parameters()))
    safetensors.torch.save_model(model, str(tmp_path / "model.safetensors"))
    saved = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert saved.keys() == model.state_dict().keys()
    assert equal([*saved.values()], [model.state_dict()[k] for k in saved])

    model[2].weight = torch.nn.Parameter(torch.zeros(4, 8).double())
    model.add_module("tied", torch.nn.Linear(8, 4).double())
    model.tied.weight = model[2].weight
    Adam(model.parameters())
    safetensors.torch.save_model(model, str(tmp_path / "tied.safetensors"))
    assert len(safetensors.torch.load_file(tmp_path / "tied.safetensors")) == len([*model.parameters()])


def test_saving_one_parameter_does_not_write_all() -> None:
    big, small = torch.nn.Parameter(torch.zeros(100_000)), torch.nn.Parameter(torch.zeros(3))
    Adam([big, small])
    file = io.BytesIO()
    torch.save(small, file)
    assert file.tell() < 10_000


def through_torch_save(what):
    file = io.BytesIO()
    torch.save(what, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


WAYS = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda what: pickle.loads(pickle.dumps(what)),
    "torch.save": through_torch_save,
}


@pytest.mark.parametrize("scheduled", [False, True])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_copy_trains_by_itself_and_never_the_original(way, scheduled: bool) -> None:
    model = net()
    optimizer = MADA(model.parameters(), hyper_lr=ALL, max_grad_norm=1.0)
    if scheduled:  # it wraps `step` of this very optimizer
        torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    for t in range(1, 4):
        step(model, optimizer, t)
    other, copied = way((model, optimizer))
    before = weights(model)
    assert equal(weights(other), before)
    for t in range(4, 7):
        step(other, copied, t)
    assert equal(weights(model), before) and not equal(weights(other), before)
    for t in range(4, 7):
        step(model, optimizer, t)
    assert equal(weights(model), weights(other))
    assert optimizer.coefficients == copied.coefficients and optimizer.hypergradients == copied.hypergradients
    for p, q in zip(model.parameters(), other.parameters(), strict=True):  # what is shown is what is stepped
        assert all(torch.equal(v, copied.state[q][k]) for k, v in optimizer.state[p].items())


def train_in_a_process(model: torch.nn.Module, optimizer: MADA, results) -> None:
    for t in range(4, 7):
        step(model, optimizer, t)
    results.put([p.tolist() for p in model.parameters()])


def test_a_spawned_process_goes_on() -> None:
    model = net()
    optimizer = MADA(model.parameters(), hyper_lr=ALL)
    for t in range(1, 4):
        step(model, optimizer, t)
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    sent = pickle.loads(pickle.dumps((model, optimizer)))  # torch's own way between processes shares the memory
    process = context.Process(target=train_in_a_process, args=(*sent, results))
    process.start()
    got = results.get(timeout=120)
    process.join()
    for t in range(4, 7):
        step(model, optimizer, t)
    assert got == [p.tolist() for p in model.parameters()]


def test_memory_shared_between_processes_is_trained() -> None:
    """Hogwild: share_memory() before the optimizer is made."""
    model, plain = net(), net()
    model.share_memory()
    addresses = [p.data_ptr() for p in model.parameters()]
    optimizers = MADA(model.parameters(), hyper_lr=ALL), MADA(plain.parameters(), hyper_lr=ALL)
    for t in range(1, 5):
        step(model, optimizers[0], t)
        step(plain, optimizers[1], t)
    assert [p.data_ptr() for p in model.parameters()] == addresses and all(p.is_shared() for p in model.parameters())
    assert equal(weights(model), weights(plain))


def a_queue_s_sending(model, optimizer) -> None:
    """What torch.multiprocessing does with each tensor that it sends: it moves its storage to shared memory."""
    for tensor in (*model.state_dict().values(), *(v for own in optimizer.state_dict()["state"].values()
                                                   for v in own.values())):  # fmt: skip
        tensor.share_memory_()


SHARINGS = {
    "share_memory": lambda model, optimizer: model.share_memory(),
    "a queue": a_queue_s_sending,
    "other memory of theirs": lambda model, optimizer: [
        setattr(p, "data", torch.stack([p.data, p.data])[0]) for p in model.parameters()
    ],
}


@pytest.mark.parametrize("how", SHARINGS)
@pytest.mark.parametrize("to_none", [True, False])
def test_memory_shared_after_the_optimizer_was_made_is_trained(how: str, to_none: bool) -> None:
    model, plain = net(), net()
    optimizers = MADA(model.parameters(), hyper_lr=ALL), MADA(plain.parameters(), hyper_lr=ALL)
    for t in range(1, 9):
        for own, optimizer in zip((model, plain), optimizers, strict=True):
            step(own, optimizer, t)
            optimizer.zero_grad(set_to_none=to_none)
        if t == 3:
            SHARINGS[how](model, optimizers[0])
            addresses = [p.data_ptr() for p in model.parameters()]
    assert [p.data_ptr() for p in model.parameters()] == addresses
    assert equal(weights(model), weights(plain)) and not equal(weights(model), weights(net()))
    assert optimizers[0].coefficients == optimizers[1].coefficients
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):  # what is shown is what is stepped
        states = (optimizer.state_dict()["state"] for optimizer in optimizers)
        assert all(torch.equal(mine[k], v) for mine, own in zip(*(s.values() for s in states), strict=True)
                   for k, v in own.items())  # fmt: skip
        assert all(torch.equal(optimizers[0].state[p][k], v) for k, v in optimizers[1].state[q].items())


ARRAYS = {
    "of a parameter": lambda a: (p := torch.nn.Parameter(torch.from_numpy(a.copy())), p.detach().numpy()),
    "a parameter of it": lambda a: (torch.nn.Parameter(torch.from_numpy(a)), a),
    "taken of a tensor that torch made": lambda a: (p := torch.nn.Parameter(torch.zeros(3)), p.detach().numpy()),
}


@pytest.mark.parametrize("how", ARRAYS)
def test_a_numpy_array_of_a_parameter_stays_its_own(how: str) -> None:
    p, array = ARRAYS[how](np.zeros(3, dtype=np.float32))
    q = torch.nn.Parameter(torch.zeros(3))
    for optimizer in (Adam([p], lr=0.1), Adam([q], lr=0.1)):
        for _ in range(3):
            p.grad, q.grad = torch.ones(3), torch.ones(3)
            optimizer.step()
    assert torch.equal(p, q) and (array == p.detach().numpy()).all() and array[0] < -0.2


def test_views_of_one_tensor_stay_its_views() -> None:
    flat = torch.arange(12.0, dtype=torch.float64)
    params = [torch.nn.Parameter(flat[:4].view(2, 2)), torch.nn.Parameter(flat[4:])]
    twins = [torch.nn.Parameter(p.detach().clone()) for p in params]
    optimizers = Adam(params), Adam(twins)
    for ps, optimizer in zip((params, twins), optimizers, strict=True):
        for _ in range(3):
            optimizer.zero_grad()
            sum(p.square().sum() for p in ps).backward()
            optimizer.step()
    assert torch.equal(flat, torch.cat([p.detach().reshape(-1) for p in twins]))
    assert not torch.equal(flat, torch.arange(12.0, dtype=torch.float64))


def test_parameters_that_overlap_are_refused_by_name() -> None:
    flat = torch.zeros(8)
    named = [("head", torch.nn.Parameter(flat[:5])), ("tail", torch.nn.Parameter(flat[4:]))]
    with pytest.raises(ValueError, match="Adam: head and tail lie in the same memory"):
        Adam(named)
    whole = torch.nn.Parameter(torch.zeros(8))
    with pytest.raises(ValueError, match=r"parameter 0 of group 0, shape .* and parameter 0 of group 1, shape"):
        Adam([{"params": [whole]}, {"params": [torch.nn.Parameter(whole.data[2:4])]}])


def test_weights_tied_after_the_optimizer_was_made_are_refused() -> None:
    a, b = (torch.nn.Parameter(torch.zeros(3)) for _ in range(2))
    optimizer = Adam([a, b])
    b.data = a.data
    a.grad = b.grad = torch.ones(3)
    with pytest.raises(RuntimeError, match=r"parameter 0 .* and parameter 1 .* were tied after"):
        optimizer.step()


def test_a_moving_average_that_changed_places_with_the_weights_keeps_its_values() -> None:
    params, others = parameters(), parameters()
    averages = [p.detach().clone() + 1 for p in params]
    optimizer, other = Adam(params), Adam(others)
    loss(params, 1, always=True).backward()
    loss(others, 1, always=True).backward()
    other.step()
    optimizer.step()
    for p, average in zip(params, averages, strict=True):
        p.data, average.data = average.data, p.data
    kept = [average.clone() for average in averages]
    optimizer.step()  # on the averages
    assert all(map(torch.equal, averages, kept))
    for p, average in zip(params, averages, strict=True):
        p.data, average.data = average.data, p.data
    optimizer.step()
    for _ in range(2):
        other.step()
    assert error(params[BIAS].detach(), others[BIAS].detach()) < 0.1  # the same weights, one step ahead in its state
    assert error(params[EMBEDDING].detach(), others[EMBEDDING].detach()) < 0.1


def test_another_layout_of_the_same_memory_is_followed() -> None:
    results = []
    for make in (Adam, lambda p: torch.optim.AdamW(p, betas=(0.9, 0.95), eps=1e-6, weight_decay=0)):
        p = torch.nn.Parameter(torch.arange(9.0, dtype=torch.float64).view(3, 3))
        optimizer = make([p])
        for t in range(4):
            if t == 2:
                p.data = p.data.t()
            p.grad = torch.arange(9.0, dtype=torch.float64).view(3, 3) + t
            optimizer.step()
        results.append(p.detach())
    assert error(*results) < 1e-12


def zero(rank: int, folder, results) -> None:
    """A process of two whose ZeroRedundancyOptimizer steps one's own parameters."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    model = net()
    optimizer = ZeroRedundancyOptimizer(model.parameters(), optimizer_class=Adam, lr=0.05, beta1=0.8)
    for t in range(1, 7):
        step(model, optimizer, t)
        if t == 3:
            optimizer.param_groups[0]["beta1"] = 0.5
    refusals = []
    for options in ({"hyper_lr": {"beta1": 1e-4}}, {"max_grad_norm": 1.0}):
        with pytest.raises(ValueError) as caught:
            ZeroRedundancyOptimizer(model.parameters(), optimizer_class=Adam, **options)
        refusals.append(str(caught.value))
    count = sum(len(group["params"]) for group in optimizer.optim.param_groups)
    results.put(([p.tolist() for p in model.parameters()], optimizer.optim.coefficients["beta1"], count, refusals))
    torch.distributed.destroy_process_group()


def test_zero_redundancy_optimizer_has_what_is_not_learned_and_is_refused_the_rest(tmp_path) -> None:
    """It gives each process other parameters, over which alone hypergradients would be added up."""
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=zero, args=(rank, tmp_path, results)) for rank in range(2)]
    for process in processes:
        process.start()
    got = [results.get(timeout=120) for _ in processes]
    for process in processes:
        process.join()
    plain = net()
    optimizer = torch.optim.AdamW(plain.parameters(), lr=0.05, betas=(0.8, 0.95), eps=1e-6, weight_decay=0)
    for t in range(1, 7):
        step(plain, optimizer, t)
        if t == 3:
            optimizer.param_groups[0]["betas"] = (0.5, 0.95)
    assert sum(count for _, _, count, _ in got) == 4 and all(count < 4 for _, _, count, _ in got)
    for ours, beta1, _, refusals in got:
        assert error([torch.tensor(p, dtype=torch.float64) for p in ours], weights(plain)) < 1e-12 and beta1 == 0.5
        assert len(refusals) == 2
        for said in refusals:
            assert said.startswith("Adam: inside ZeroRedundancyOptimizer each process would learn from, and clip by, ")
