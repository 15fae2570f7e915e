"""What only a GPU can show; test_compiled.py looks for the same waits by name, on any machine."""

import contextlib
import copy
import io
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from problem import BIAS, error, groups, loss, parameters, set_lr
from test_properties import TABLE, make

DEVICE = "cuda"
pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here"),
    pytest.mark.filterwarnings("error:the optimizer runs uncompiled"),
]


@contextlib.contextmanager
def no_waiting() -> Iterator[None]:
    """Whatever waits for the GPU raises."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def beside_the_cpu(name: str, **changes: Any) -> None:
    """Both take the gradients of the CPU's weights: learning rates change, gradients come and go, one is not finite."""
    expected = parameters(torch.float32)
    params = [torch.nn.Parameter(p.detach().to(DEVICE)) for p in expected]
    ours = make(name, groups(params), max_grad_norm=1.0, **changes)
    theirs = make(name, groups(expected), max_grad_norm=1.0, **changes | {"compile": False})
    for t in range(1, 13):
        theirs.zero_grad()
        loss(expected, t).backward()
        if t == 6:
            expected[BIAS].grad[0] = math.nan
        for p, q in zip(params, expected, strict=True):
            p.grad = None if q.grad is None else q.grad.to(DEVICE)
        set_lr(ours, t)
        set_lr(theirs, t)
        theirs.step()
        with no_waiting() if t > 1 else contextlib.nullcontext():  # the first one compiles
            ours.step()
    # Some that learn amplify round-off: a last bit more or less in each operation moves their weights by up to 3e-4.
    bound = 2e-3 if "learning" in name else 1e-4
    assert error([p.detach().cpu() for p in params], [p.detach() for p in expected]) < bound
    for own, other in zip(ours.coefficients_by_owner, theirs.coefficients_by_owner, strict=True):
        assert own == pytest.approx(other, rel=bound)
    assert int(ours.skipped) == int(theirs.skipped) == 0 and math.isfinite(ours.grad_norm)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", TABLE)
def test_a_step_waits_for_nothing_and_is_the_cpus(name: str, compiled: bool) -> None:
    beside_the_cpu(name, compile=compiled)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", ["mada learning", "mada learning, weights first"])
@pytest.mark.parametrize("scope", ["group", "tensor"])
def test_each_owner_s_coefficients_are_the_cpus(scope: str, name: str, compiled: bool) -> None:
    beside_the_cpu(name, compile=compiled, scope=scope)


def test_each_parameter_has_a_storage_of_its_own() -> None:
    """Over the one buffer of all: what is saved of one is that one, and a copy trains by itself."""
    params = [torch.nn.Parameter(p.detach().to(DEVICE)) for p in parameters(torch.float32)]
    before = [p.detach().clone() for p in params]
    optimizer = make("mada learning", params)
    addresses = {p.data_ptr() for p in params}
    assert {p.untyped_storage().data_ptr() for p in params} == addresses and len(addresses) == len(params)
    for p, was in zip(params, before, strict=True):
        assert torch.equal(p, was) and p.device.type == DEVICE and p.untyped_storage().nbytes() == p.nbytes
        torch.save(p.detach(), file := io.BytesIO())
        assert len(file.getvalue()) < p.nbytes + 4096
    copies, copied = copy.deepcopy((params, optimizer))
    for q in copies:
        q.grad = torch.ones_like(q)
    copied.step()
    torch.cuda.synchronize()
    for p, q, was in zip(params, copies, before, strict=True):
        assert torch.equal(p, was) and not torch.equal(q, was)
