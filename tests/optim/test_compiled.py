"""The compiled step: the same numbers, no value read by the host, nothing compiled again. Each case takes seconds."""

import math
from types import SimpleNamespace

import pytest
import torch
from problem import BIAS, error, groups, loss, parameters, run, set_lr
from test_properties import TABLE, make
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from optim import compiled

pytestmark = pytest.mark.filterwarnings("error:the optimizer runs uncompiled")
HOST = {"item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "__index__", "__array__", "equal"}


class HostReads:
    """Lists what hands a tensor's value to Python, and so would make the host wait for a GPU."""

    def __init__(self) -> None:
        self.seen = seen = []

        class Functions(TorchFunctionMode):
            def __torch_function__(self, func, types, args=(), kwargs=None):
                if getattr(func, "__name__", "") in HOST:
                    seen.append(func.__name__)
                return func(*args, **(kwargs or {}))

        class Kernels(TorchDispatchMode):
            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
                    seen.append(str(func))
                return func(*args, **(kwargs or {}))

        self.modes = (Functions(), Kernels())

    def __enter__(self) -> list[str]:
        for mode in self.modes:
            mode.__enter__()
        return self.seen

    def __exit__(self, *error) -> None:
        for mode in reversed(self.modes):
            mode.__exit__(*error)


@pytest.mark.parametrize("read", [float, bool, torch.Tensor.item, torch.Tensor.tolist, torch.Tensor.numpy])
def test_host_reads_are_seen(read) -> None:
    tensor = torch.ones(())
    with HostReads() as reads:
        torch.add(tensor, 1)
        assert not reads
        read(tensor)
    assert reads


@pytest.mark.parametrize("name", TABLE)
def test_no_value_is_read_by_the_host(name: str) -> None:
    params = parameters(torch.float32)
    optimizer = make(name, groups(params), max_grad_norm=1.0, hyper_momentum=0.5)
    for t in range(1, 8):
        set_lr(optimizer, t)
        optimizer.zero_grad()
        loss(params, t).backward()
        with HostReads() as reads:
            optimizer.step()
        assert not reads
    with HostReads() as reads:
        assert optimizer.coefficients
    assert reads


F32, F64, BF16 = torch.float32, torch.float64, torch.bfloat16
CASES = [
    ("mada learning", F32, {"max_grad_norm": 1.0, "hyper_momentum": 0.5}),
    ("adam", F32, {}),
    ("adam learning, weights first", F64, {"max_grad_norm": 1.0}),
]
MORE = [("lion", F32, {"max_grad_norm": 1.0})]
MORE += [(name, F64, {"max_grad_norm": 1.0}) for name in TABLE if name not in [case[0] for case in CASES[1:]]]
MORE += [(name, BF16, {"max_grad_norm": 1.0}) for name in ("adam", "mada learning")]
MORE += [("mada learning", dtype, {"max_grad_norm": 1.0, "half": ("m", "v", "g", "pending")}) for dtype in (F32, BF16)]
ROUND_OFF = {F32: 1e-5, F64: 1e-11, BF16: 0.02}  # relative, over 12 steps that amplify it


@pytest.fixture(scope="module", params=[*CASES, *(pytest.param(case, marks=pytest.mark.long) for case in MORE)],
                ids=lambda case: f"{case[0]}, {str(case[1])[6:]}{', half' * ('half' in case[2])}")  # fmt: skip
def runs(request: pytest.FixtureRequest):
    """The same 12 steps, compiled and not: learning rates change, gradients come and go, one step is refused."""
    name, dtype, options = request.param
    calls = []
    compiler = torch._inductor.compile

    def counted(*args, **kwargs):
        calls.append(args)
        return compiler(*args, **kwargs)

    result = SimpleNamespace(dtype=dtype, optimizers=[], params=[], compilations=[], reads=[])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch._inductor, "compile", counted)
        patch.setattr(compiled, "MADE", {})
        for compile in (True, False):
            params = parameters(dtype)
            optimizer = make(name, groups(params), compile=compile, **options)
            for t in range(1, 13):
                if t == 9:
                    optimizer.load_state_dict(optimizer.state_dict())
                set_lr(optimizer, t)
                optimizer.zero_grad()
                loss(params, t).backward()
                if t == 6 and "max_grad_norm" in options:
                    params[BIAS].grad[0] = math.nan
                if t == 1:
                    optimizer.step()
                else:
                    with HostReads() as reads:
                        optimizer.step()
                    result.reads += reads
                result.compilations.append(len(calls))
            result.optimizers.append(optimizer)
            result.params.append([p.detach() for p in params])
    return result


def test_compiled_equals_uncompiled(runs) -> None:
    round_off = ROUND_OFF[runs.dtype]
    assert error(*[[p.double() for p in params] for params in runs.params]) < round_off
    one, other = runs.optimizers
    assert one.coefficients == pytest.approx(other.coefficients, rel=round_off)
    assert one.hypergradients == pytest.approx(other.hypergradients, rel=100 * round_off, abs=round_off / 10)


def test_nothing_is_compiled_again(runs) -> None:
    first, *later = runs.compilations
    assert first > 0 and set(later) == {first}  # nor for the uncompiled run


def test_the_compiled_step_reads_no_value(runs) -> None:
    assert not runs.reads


def test_what_was_compiled_once_is_on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = torch._dynamo.utils.counters["inductor"]
    for _ in range(2):
        monkeypatch.setattr(compiled, "MADE", {})
        counts.clear()
        params = parameters(torch.float32)
        optimizer = make("adam", groups(params), compile=True)
        loss(params, 1).backward()
        optimizer.step()
    assert counts["fxgraph_cache_hit"] >= 2 and not counts["fxgraph_cache_miss"]


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("name", [name for name in TABLE if name.endswith(" learning") and name != "mada learning"])
def test_the_trace_is_the_rule(name: str) -> None:
    """What is given to the compiler, without it."""
    ends = []
    for compile in (True, False):
        params = parameters()
        optimizer = make(name, groups(params), compile=compile, max_grad_norm=1.0, hyper_momentum=0.5)
        run(optimizer, params, range(1, 8), always=False)
        ends.append(([p.detach() for p in params], optimizer))
    assert error(ends[0][0], ends[1][0]) < ROUND_OFF[F64]
    assert ends[0][1].coefficients == pytest.approx(ends[1][1].coefficients, rel=ROUND_OFF[F64])


@pytest.mark.usefixtures("traced")
def test_optimizers_alike_share_what_is_compiled() -> None:
    """Another start, rate or hyper rate: nothing is traced again. Another option that the functions contain: it is."""

    def after_three_steps(compile: bool, **options) -> tuple[list[torch.Tensor], int]:
        before = len(compiled.MADE)
        params = parameters(torch.float32)
        optimizer = make("adam learning", groups(params), compile=compile, **options)
        for t in range(1, 4):
            optimizer.zero_grad()
            loss(params, t).backward()
            optimizer.step()
        return [p.detach() for p in params], len(compiled.MADE) - before

    other = {"beta1": 0.6, "lr": 0.03, "weight_decay": 0.0, "hyper_lr": dict.fromkeys(("beta1", "beta2", "lr"), 1e-3)}
    assert after_three_steps(True)[1] == 4
    found, made = after_three_steps(True, **other)
    assert made == 0 and error(found, after_three_steps(False, **other)[0]) < ROUND_OFF[F32]
    found, made = after_three_steps(True, **other, max_grad_norm=1e-3)
    assert made > 0 and error(found, after_three_steps(False, **other, max_grad_norm=1e-3)[0]) < ROUND_OFF[F32]


def test_a_compiler_that_fails_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_, **__):
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(compiled, "MADE", {})
    monkeypatch.setattr(torch._inductor, "compile", fail)
    params = parameters(torch.float32)
    optimizer = make("mada learning", groups(params), compile=True)
    loss(params, 1).backward()
    with pytest.warns(UserWarning, match="runs uncompiled, the compiler failed: no compiler here") as said:
        optimizer.step()
        optimizer.step()
    assert len(said) == 1 and all(p.isfinite().all() for p in params)
