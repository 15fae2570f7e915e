"""One table: optimizers times properties."""

import copy
import io
import math

import pytest
import torch
from problem import BIAS, EMBEDDING, NEVER, error, groups, loss, parameters, set_lr, train

from optim import OPTIMIZERS, Adam, RuleOptimizer
from optim.values import key_of

RULES = {name: rule for name, rule in OPTIMIZERS.items() if name != "hyperadam"}
INSIDE = {"mada": {"beta3": 0.5, "rho": 0.5, "c": 0.5, "gamma": 0.5}}
TABLE: dict[str, dict] = (
    {name: {} for name in OPTIMIZERS}
    | {f"{name} fixed": {"hyper_lr": {}, **INSIDE.get(name, {})} for name in ("mada",)}
    | {f"{name} learning": {"hyper_lr": dict.fromkeys((*rule.table, "lr"), 0.05), **INSIDE.get(name, {})}
       for name, rule in RULES.items()}
)  # fmt: skip
TABLE |= {f"{name}, weights first": {**TABLE[name], "order": "weights_first"} for name in ("adam learning",
                                                                                         "mada learning")}  # fmt: skip
LEARNING = [name for name in TABLE if "learning" in name]
optimizers = pytest.mark.parametrize("name", TABLE)
learners = pytest.mark.parametrize("name", LEARNING)


def make(name: str, params, **changes) -> RuleOptimizer:
    return OPTIMIZERS[name.split()[0].strip(",")](params, **({"lr": 0.02} | TABLE[name] | changes))


def values(optimizer: RuleOptimizer, params) -> list[torch.Tensor]:
    """All that a step may change, copied: weights, states, coefficients and their momentum."""
    state = optimizer.state_dict()
    tensors = [p.detach() for p in params] + [v for s in state["state"].values() for v in s.values()]
    learned = (*map(key_of, optimizer.learned), *(("q_applied", "q_momentum") if optimizer.learned else ()))
    tensors += [group[k] for group in state["param_groups"] for k in learned]
    return [v.clone() for v in tensors]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def through_a_file(state: dict) -> dict:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@optimizers
def test_it_finds_a_minimum(name: str) -> None:
    random = torch.Generator().manual_seed(0)
    p = torch.nn.Parameter(torch.randn(3, 50, generator=random))
    target = torch.randn(3, 50, generator=random)
    optimizer = make(name, [p], lr=0.01 if name.startswith("sgd") else 0.05)
    optimizer = make(name, [p], lr=optimizer.defaults["lr"], hyper_lr=dict.fromkeys(optimizer.learned, 1e-4))
    first = ((p - target) ** 2).sum().item()
    for _ in range(150):
        optimizer.zero_grad()
        ((p - target) ** 2).sum().backward()
        optimizer.step()
    assert ((p - target) ** 2).sum().item() < 0.02 * first


@optimizers
def test_two_runs_are_bitwise_equal(name: str) -> None:
    results = []
    for _ in range(2):
        params = parameters(torch.float32)
        optimizer = make(name, groups(params), max_grad_norm=1.0)
        train(optimizer, params, 20)
        results.append(values(optimizer, params))
    assert same(*results)


@optimizers
def test_a_parameter_without_gradient_is_untouched(name: str) -> None:
    params, start = parameters(), parameters()
    optimizer = make(name, groups(params))
    optimizer.step()  # none has one
    assert same([p.detach() for p in params], [p.detach() for p in start])
    train(optimizer, params, 5)
    assert torch.equal(params[NEVER], start[NEVER]) and not torch.equal(params[BIAS], start[BIAS])
    assert not any(v.any() for v in optimizer.state[params[NEVER]].values())


SHAPES = {
    "empty": lambda: torch.empty(0, 3),
    "0-d": lambda: torch.tensor(0.5),
    "1-d": lambda: torch.arange(7.0),
    "transposed": lambda: torch.arange(12.0).view(3, 4).t(),
    "4-d, more than one row": lambda: torch.arange(2400.0).view(2, 3, 20, 20) / 2400,
    "channels last": lambda: (torch.arange(120.0).view(2, 3, 4, 5) / 120).to(memory_format=torch.channels_last),
    "with gaps": lambda: torch.arange(30.0).view(5, 6)[:, ::2],
}


@optimizers
def test_shape_and_strides_do_not_matter(name: str) -> None:
    runs = []
    for flat in (False, True):
        params = [torch.nn.Parameter(shape().double()) for shape in SHAPES.values()]
        if flat:
            params = [torch.nn.Parameter(p.detach().reshape(-1).clone()) for p in params]
        strides = [p.stride() for p in params]
        optimizer = make(name, params)
        for t in range(1, 9):
            optimizer.zero_grad()
            scales = [torch.cos(torch.arange(float(p.numel())).double() * t) for p in params]
            sum(((p.reshape(-1) - 1) ** 2 * s).sum() for p, s in zip(params, scales, strict=True)).backward()
            optimizer.step()
        gaps = list(SHAPES).index("with gaps")
        assert [p.stride() for p in params][:gaps] == strides[:gaps]  # the model's layout stays as it was
        runs.append([p.detach().reshape(-1) for p in params if p.numel()] + list(optimizer.coefficients.values()))
        assert all(v.shape == p.shape for p in params if p.numel() for k, v in optimizer.state[p].items()
                   if k in optimizer.fields)  # fmt: skip
    assert error(*runs) < 1e-11


@optimizers
def test_an_empty_parameter_alone(name: str) -> None:
    p = torch.nn.Parameter(torch.empty(0))
    optimizer = make(name, [p], max_grad_norm=1.0)
    for _ in range(3):
        p.grad = torch.empty(0)
        optimizer.step()
    optimizer.load_state_dict(through_a_file(optimizer.state_dict()))
    assert all(map(math.isfinite, optimizer.coefficients.values()))


@optimizers
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_states_are_of_32_bits_at_least_and_weights_are_rounded_once(name: str, dtype: torch.dtype) -> None:
    """A step on 16-bit weights is the step on the same weights in 32 bits, rounded."""
    params, twins = parameters(dtype), parameters(dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for twin in twins:
        twin.data = twin.data.to(wide)
    optimizer, other = (make(name, groups(ps), max_grad_norm=2.0) for ps in (params, twins))
    for t in range(1, 8):
        optimizer.zero_grad()
        loss(params, t).backward()
        for p, twin in zip(params, twins, strict=True):
            twin.data.copy_(p.detach())
            twin.grad = None if p.grad is None else p.grad.to(wide)
        optimizer.step()
        other.step()
        assert same([p.detach() for p in params], [p.detach().to(dtype) for p in twins])
        assert optimizer.coefficients == other.coefficients
    assert params[0].dtype == dtype
    assert {optimizer.state[p][k].dtype for p in params for k in optimizer.fields} == {wide}


@optimizers
def test_a_saved_run_continues_bitwise(name: str) -> None:
    params = parameters(torch.float32)
    optimizer = make(name, groups(params), max_grad_norm=1.0, hyper_momentum=0.5)
    train(optimizer, params, 7)
    saved = through_a_file(optimizer.state_dict())
    weights = [p.detach().clone() for p in params]
    again = parameters(torch.float32)
    continued = make(name, groups(again), max_grad_norm=1.0, hyper_momentum=0.5)
    train(continued, again, 2)  # whatever it did before is gone
    for p, w in zip(again, weights, strict=True):
        p.data.copy_(w)
    continued.load_state_dict(saved)
    assert same(values(continued, again), values(optimizer, params))
    assert continued.coefficients == optimizer.coefficients
    for t in range(8, 14):
        for run, ps in ((optimizer, params), (continued, again)):
            set_lr(run, t)
            run.zero_grad()
            loss(ps, t).backward()
            run.step()
        assert same(values(continued, again), values(optimizer, params))


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("compiled", [False, True])
def test_a_learned_rate_continues_at_its_height_whatever_the_new_optimizer_began_with(compiled: bool) -> None:
    params, others = parameters(), parameters()
    options = {"hyper_lr": {"lr": 1e-4}, "compile": compiled}
    optimizer, other = Adam(params, lr=0.02, **options), Adam(others, lr=torch.tensor(0.5), **options)
    for t in range(1, 9):
        if t == 5:
            for p, q in zip(params, others, strict=True):
                q.data.copy_(p.detach())
            other.load_state_dict(through_a_file(optimizer.state_dict()))
        for run, ps in ((optimizer, params), (other, others)):
            run.zero_grad()
            loss(ps, t).backward()
            run.step()
    assert same(values(optimizer, params), values(other, others))
    assert optimizer.coefficients["lr"] == other.coefficients["lr"] != 0.02


@pytest.mark.parametrize("source, target", [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32),
                                            (torch.float32, torch.float64)])  # fmt: skip
@optimizers
def test_a_state_moves_into_another_dtype(name: str, source: torch.dtype, target: torch.dtype) -> None:
    params, others = parameters(source), parameters(target)
    optimizer, other = make(name, groups(params)), make(name, groups(others))
    train(optimizer, params, 7)
    other.load_state_dict(through_a_file(optimizer.state_dict()))
    for p, q in zip(params, others, strict=True):
        q.data.copy_(p.detach())
        for k, v in optimizer.state[p].items():
            assert torch.equal(other.state[q][k], v.to(other.state[q][k].dtype))
    assert other.coefficients == optimizer.coefficients
    for run, ps in ((optimizer, params), (other, others)):
        run.zero_grad()
        loss(ps, 8).backward()
        run.step()
    tolerance = 0.05 if torch.bfloat16 in (source, target) else 1e-5
    assert error([p.detach().double() for p in others], [p.detach().double() for p in params]) < tolerance


@learners
def test_coefficients_never_leave_their_box(name: str) -> None:
    params = parameters()
    optimizer = make(name, groups(params), hyper_lr=dict.fromkeys(make(name, params).table, 1e3))
    boxes = {k: (c.low, c.high) for k, c in optimizer.table.items()}
    seen = set()
    for t in range(1, 30):
        optimizer.zero_grad()
        loss(params, t).backward()
        optimizer.step()
        now = optimizer.coefficients
        assert all(low <= now[k] <= high for k, (low, high) in boxes.items())
        seen |= {(k, now[k]) for k in boxes if now[k] in boxes[k]}
    if not name.startswith("lion"):  # whose hypergradients are zero
        assert seen >= {(k, bound) for k in boxes for bound in boxes[k]}


@learners
def test_frozen_coefficients_never_move(name: str) -> None:
    for free in make(name, parameters()).table:
        params = parameters()
        optimizer = make(name, groups(params), hyper_lr={free: 0.05} | {"lr": 0.0})
        start = optimizer.coefficients
        train(optimizer, params, 60 if name.startswith("madamax") else 12)  # the maximum differs from v once v falls
        moved = {k for k, v in optimizer.coefficients.items() if v != start[k]}
        assert moved == (set() if name.startswith("lion") else {free})
        assert list(optimizer.hypergradients) == [free]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("when", [(1,), (5, 6)])
@optimizers
def test_a_step_with_a_bad_gradient_is_refused(name: str, when: tuple[int, ...], bad: float) -> None:
    """Nothing moves in it, and what follows is what would follow without it."""
    params, others = parameters(torch.float32), parameters(torch.float32)
    options = {"max_grad_norm": 1.0, "hyper_momentum": 0.5, "hyper_start": 3}
    optimizer, undisturbed = make(name, groups(params), **options), make(name, groups(others), **options)
    refused = 0
    for t in range(1, 12):
        optimizer.zero_grad()
        loss(params, t).backward()
        if t in when:
            refused += 1
            params[EMBEDDING].grad[2, 1] = bad
            before = values(optimizer, params)
            optimizer.step()
            assert same(values(optimizer, params), before)
            assert optimizer.skipped.item() == refused and not math.isfinite(optimizer.grad_norm)
            continue
        undisturbed.zero_grad()
        loss(others, t).backward()
        refused = 0
        optimizer.step()
        undisturbed.step()
        assert same(values(optimizer, params), values(undisturbed, others)) and optimizer.skipped.item() == 0


@pytest.mark.parametrize("name", [name for name in TABLE if not make(name, parameters()).learned])
def test_a_bad_gradient_is_visible_where_the_norm_is_not_read(name: str) -> None:
    params = parameters()
    optimizer = make(name, groups(params))
    loss(params, 1).backward()
    params[BIAS].grad[0] = math.nan
    optimizer.step()
    assert optimizer.grad_norm is None and optimizer.skipped.item() == 0
    assert params[BIAS][0].isnan() and params[BIAS][1:].isfinite().all() and params[EMBEDDING].isfinite().all()


@optimizers
def test_clipping_is_torch_s(name: str) -> None:
    """And with it the norm that is reported. With hypergradients zero: those are of the gradient before clipping."""
    params, others = parameters(), parameters()
    optimizer = make(name, groups(params), max_grad_norm=1.0, hyper_start=10**9)
    other = make(name, groups(others), hyper_start=10**9)
    for t in range(1, 9):
        for ps, run in ((params, optimizer), (others, other)):
            run.zero_grad()
            loss(ps, t).backward()
        norm = torch.nn.utils.clip_grad_norm_([p for p in others if p.grad is not None], 1.0)
        optimizer.step()
        other.step()
        assert optimizer.grad_norm.item() == pytest.approx(norm.item(), rel=1e-12)
    assert error([p.detach() for p in params], [p.detach() for p in others]) < 1e-12


@optimizers
def test_gradients_and_the_caller_s_tensors_are_left_alone(name: str) -> None:
    params = parameters()
    optimizer = make(name, groups(params), max_grad_norm=0.1)
    for t in range(1, 4):
        optimizer.zero_grad()
        loss(params, t).backward()
        kept = [copy.copy(p.grad) for p in params if p.grad is not None]
        copies = [g.clone() for g in kept]
        optimizer.step()
        assert same(kept, copies)


@pytest.mark.parametrize("name", LEARNING)
def test_halved_states_are_of_16_bits_and_stay_close(name: str) -> None:
    runs = []
    fields = (*make(name, parameters()).fields, "pending")
    rates = dict.fromkeys(OPTIMIZERS[name.split()[0]].table, 1e-3)
    for half in ((), fields):
        params = parameters(torch.float32)
        optimizer = make(name, groups(params), half=half, hyper_lr=rates)
        train(optimizer, params, 12)
        kept = {optimizer.state[params[BIAS]][k].dtype for k in fields}
        assert kept == {torch.bfloat16 if half else torch.float32}
        runs.append((optimizer, [p.detach() for p in params]))
    assert error(runs[1][1], runs[0][1]) < 0.1
    saved = through_a_file(runs[1][0].state_dict())
    again = make(name, groups(parameters(torch.float32)), half=fields, hyper_lr=rates)
    again.load_state_dict(saved)
    assert again.coefficients == runs[1][0].coefficients


def test_a_state_to_halve_must_exist() -> None:
    with pytest.raises(ValueError, match="half: no state 'n', it has m, v"):
        make("adam", parameters(), half=["n"])
