"""What a trace becomes before it is compiled: the same numbers, with less work for each element."""

import pytest
import torch
from torch import Tensor
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx

from optim.compiled import split
from optim.rule import mix
from optim.simplify import Simplified

ROWS = 3


def arguments() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Two matrices, a column and a scalar."""
    random = torch.Generator().manual_seed(0)
    make = lambda *shape: torch.rand(shape, generator=random, dtype=torch.float64) + 0.5  # noqa: E731
    return make(ROWS, 64, 16), make(ROWS, 64, 16), make(ROWS, 1, 1), make()


def total(matrix: Tensor) -> Tensor:
    return matrix.sum((1, 2), keepdim=True)


PROGRAMS = {
    "products": lambda a, b, c, q: total(c * a * (q * b) * 2),
    "one product twice": lambda a, b, c, q: total(a * b) + c * total(b + a * b * q),
    "quotients": lambda a, b, c, q: total(a / c / b) + total(c / a) + total(1 / b) + total(a / 3),
    "signs": lambda a, b, c, q: total(-(c * -a)) - total(-b),
    "the same matrix": lambda a, b, c, q: total(a - q * a + c * a) + total(a + a),
    "a difference of sums": lambda a, b, c, q: total((a + c * b) - a) + total((a + q) - a) + total((a + b) - b),
    "mixes of mixes": lambda a, b, c, q: total(mix(q, a, mix(c, a, b))) + total(mix(c, mix(q, b, a), b)),
    "what factors do not pass": lambda a, b, c, q: total(torch.sqrt(c * a)) + total(torch.where(c > 1, q * a, b)),
    "a mask": lambda a, b, c, q: total(q * a * (b > 1) * c) + total((b > 1) + (a > 1)) + total((a > b) * (b > 1) * a),
    "a mask of rows": lambda a, b, c, q: total((c > 1) * a + (c > 1) * a) + total(-(a * (c > 1))) + total(a / (c > 0)),
    "integers": lambda a, b, c, q: total(a * (2 * b).int()) + total(a / (3 * b).int()) + total((a + 3) * c.int()),
    "a factor of zero": lambda a, b, c, q: total((c - c) * a) + total((a - a) * b),
    "no sum": lambda a, b, c, q: c * a - q * b,
    "no matrix": lambda a, b, c, q: c * q + c / q - c,
}


def traced(function, *arguments: Tensor):
    return make_fx(functionalize(function), tracing_mode="fake")(*arguments)


def work(module) -> list[str]:
    """The operations of a body, without views of what it reads."""
    nodes = module.submod_1.graph_module.graph.nodes
    return [node.target.overloadpacket.__name__ for node in nodes if node.op == "call_function"]


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS.keys())
def test_a_simplified_trace_gives_the_same(program) -> None:
    given = arguments()
    simplified = Simplified(traced(program, *given), given[0].numel())
    torch.testing.assert_close(simplified.run(*given), program(*given), rtol=1e-13, atol=1e-13)


def test_factors_leave_the_sums() -> None:
    a, b, c, q = arguments()
    module = split(lambda a, b, c, q: [total(c * a * (q * b) / c), total((a + q * b) - a)], [a, b, c, q])
    assert work(module) == ["mul", "sum", "sum"]  # a * b, its sum, and the sum of b


def test_writes_wait_for_the_end() -> None:
    def program(a: Tensor, b: Tensor) -> list[Tensor]:
        twice = 2 * a
        a.copy_(b)
        between = a + b
        between.mul_(2)
        return [total(twice * between)]

    a, b, *_ = arguments()
    expected = total(2 * a * 4 * b)
    module = split(program, [a, b])
    torch.testing.assert_close(module(a, b)[0], expected)
    assert torch.equal(a, b)


def test_one_tensor_for_two_arguments_is_not_one_argument() -> None:
    a, b, *_ = arguments()
    module = split(lambda a, b: [a + 1, b + 2], [a, a])
    first, second = module(a, b)
    assert torch.equal(first, a + 1) and torch.equal(second, b + 2)
