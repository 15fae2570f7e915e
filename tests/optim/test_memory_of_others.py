"""Each parameter has a storage of its own, copies train by themselves, and memory that others use stays theirs."""

import copy
import io
import multiprocessing
import pickle

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


def test_zero_redundancy_optimizer_has_what_is_not_learned_and_is_refused_the_rest() -> None:
    """It gives each process other parameters, over which alone hypergradients would be added up."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        model, plain = net(), net()
        zero, other = ZeroRedundancyOptimizer(model.parameters(), optimizer_class=Adam), Adam(plain.parameters())
        for optimizer in (zero, other):
            for group in optimizer.param_groups:
                group["lr"] = 0.05
        for t in range(1, 4):
            step(model, zero, t)
            step(plain, other, t)
        assert equal(weights(model), weights(plain)) and not equal(weights(model), weights(net()))
        for options in ({"hyper_lr": {"beta1": 1e-4}}, {"max_grad_norm": 1.0}):
            with pytest.raises(ValueError, match="Adam: inside ZeroRedundancyOptimizer each process would learn from"):
                ZeroRedundancyOptimizer(model.parameters(), optimizer_class=Adam, **options)
    finally:
        torch.distributed.destroy_process_group()
