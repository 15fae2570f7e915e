"""A trace with less work for each element: what reaches one kernel's loop over memory (compiled.py).

    sum(column * a) = column * sum(a)     the chain rule through the columns, a third of a vjp, leaves the body
    a / b           = a * (1 / b)         1 / b of a column is no work of the body
    (a + b) - a     = b                   as in mix(w, v, mix(u, v, a))
    a * b                                 once, however often it occurs

What it buys: `python -m benchmarks.optimizer_step --without=simplify`.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_map

aten = torch.ops.aten


def simplified(traced: GraphModule, size: int, tensors: list[Tensor]) -> GraphModule:
    """The trace of the same function at these arguments, equal but for round-off; matrices have `size` elements."""
    traced = make_fx(Simplified(traced, size).run, tracing_mode="fake")(*tensors)
    traced.graph.eliminate_dead_code()
    return traced


def writes(target: Any) -> bool:
    """Whether an operation changes one of its arguments."""
    return isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable


class Scaled(NamedTuple):
    """factor * matrix; the factor is the same along each row: a number, a scalar or a column. Without a matrix: what is
    a factor alone."""

    factor: Any
    matrix: Tensor | None = None

    @property
    def plain(self) -> bool:
        return isinstance(self.factor, int) and self.factor == 1

    def multiplied(self) -> Any:
        return self.factor if self.matrix is None else self.matrix if self.plain else self.factor * self.matrix


class Simplified(Interpreter):
    """Runs a trace, keeping factors that are the same along each row apart from the matrices that they multiply."""

    def __init__(self, module: GraphModule, size: int) -> None:
        super().__init__(module, garbage_collect_values=False)  # `known` goes by their ids
        self.size = size
        self.known: dict[tuple[Any, ...], Any] = {}  # results by operation and operands
        self.written = False

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        matrices = any(self.scaled(arg).matrix is not None for arg in args)
        assert not (self.written and matrices) or writes(target)  # a factor may have waited to be multiplied with it
        self.written |= writes(target)
        floating = all(arg.is_floating_point() for arg in args if isinstance(arg, Tensor))  # true + true is not 2
        if matrices and floating and not kwargs:
            result = self.simplified(getattr(target, "overloadpacket", None), args)
            if result is not None:
                return result
        return super().call_function(target, multiplied(args), multiplied(kwargs))

    def output(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return super().output(target, multiplied(args), kwargs)

    def scaled(self, value: Any) -> Scaled:
        matrix = isinstance(value, Tensor) and value.numel() == self.size
        return value if isinstance(value, Scaled) else Scaled(1, value) if matrix else Scaled(value)

    def once(self, operation: Any, *operands: Tensor) -> Tensor:
        key = (operation, *map(id, operands))
        if key not in self.known:
            self.known[key] = operation(*operands)
        return self.known[key]

    def product(self, a: Tensor | None, b: Tensor | None) -> Tensor | None:
        return a if b is None else b if a is None else self.once(torch.mul, a, b)

    def simplified(self, operation: Any, args: tuple[Any, ...]) -> Any:
        """The result of an operation that one of the lines above is about; None for any other."""
        one, other = (self.scaled(arg) for arg in (*args, None)[:2])
        (f, a), (g, b) = one, other
        if operation is aten.neg:
            return Scaled(-f, a)
        if operation is aten.sum:
            return f * a.sum(*args[1:])  # type: ignore[union-attr]
        if operation is aten.mul:
            return Scaled(f * g, self.product(a, b))
        if operation is aten.div:
            return Scaled(f / g, self.product(a, None if b is None else self.once(torch.reciprocal, b)))
        if operation in (aten.add, aten.sub) and a is b:
            return Scaled(f + g if operation is aten.add else f - g, a)
        if operation is aten.add and one.plain and b is not None:
            total = a + other.multiplied()
            self.known[aten.sub, id(total), id(a)] = other
            return total
        if operation is aten.sub and one.plain and other.plain:
            return self.known.get((aten.sub, id(a), id(b)))
        return None


def multiplied(values: Any) -> Any:
    """`values` with tensors for all Scaled in them."""
    is_scaled = lambda value: isinstance(value, Scaled)  # noqa: E731
    return tree_map(lambda value: value.multiplied() if is_scaled(value) else value, values, is_leaf=is_scaled)
