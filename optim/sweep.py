"""A sweep: one function over the rows of flat matrices, compiled into one kernel.

The functions that the engine compiles take matrices of shape (R, 64, 16), columns of shape (R, 1, 1) and scalars. Left
to itself the compiler puts the arithmetic of the columns and scalars (beta1**t above all) into the innermost loop and
cuts the loop over the matrices into several, with intermediate matrices written and read again. So a function is
traced, simplified, and split by the shape of each result:

    prelude    columns and scalars, from the arguments          1 - beta1**t, lr * weight_decay, ...
    body       matrices, and their sums over a row              the one pass over memory
    epilogue   columns and scalars, from the body's sums        the sum over rows, the chain rule through beta1**t

Only the body touches memory that grows with the model. A sum over a row of 1024 elements stays in registers on a CPU
and in one block on a GPU; benchmarks/optimizer_step.py shows what that buys.
"""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functionalize
from torch.fx import Graph, GraphModule, Interpreter, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.fx.passes.split_module import split_module
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

aten = torch.ops.aten
PRELUDE, BODY, EPILOGUE = range(3)

# The compiler's thresholds above which it cuts a loop. Each cut costs a pass over memory; the body is to have none.
ONE_LOOP = {
    "max_fusion_size": 1000,
    "realize_opcount_threshold": 1000,
    "realize_reads_threshold": 1000,
    "realize_acc_reads_threshold": 1000,
    "cpp.max_horizontal_fusion_size": 1000,
    "cpp.enable_floating_point_contract_flag": "fast",
}
# On a GPU: a body that sums gets eight warps for a row of 1024, not one, whose registers would not hold it. Of nothing
# else are two ways tried: to try a body that writes, the compiler would keep a second copy of all states.
SUMS = {"max_autotune_pointwise": True}
OTHERS = {"triton.autotune_pointwise": False}


class Sweep:
    """`function`, or the same compiled for the shapes, dtypes and device of its first arguments."""

    def __init__(self, function: Callable[..., Any], compiled: bool) -> None:
        self.function, self.compiled = function, compiled
        self.module: GraphModule | None = None
        self.result_structure: Any = None

    def __call__(self, *args: Any) -> Any:
        if not self.compiled:
            return self.function(*args)
        leaves, structure = tree_flatten(args)
        tensors = [leaf for leaf in leaves if leaf is not None]  # a part without a state is None
        if self.module is not None:
            return tree_unflatten(self.module(*tensors), self.result_structure)

        def flat(*tensors: Tensor) -> list[Tensor]:
            given = iter(tensors)
            arguments = tree_unflatten([leaf if leaf is None else next(given) for leaf in leaves], structure)
            results, self.result_structure = tree_flatten(self.function(*arguments))
            return results

        try:
            module = split(flat, tensors)
            results = module(*tensors)
        except Exception as error:  # whatever a compiler can fail with: it is missing, too old, without disk, ...
            reason = str(error).strip().split("\n")[0][:200]
            warnings.warn(f"the optimizer runs uncompiled, the compiler failed: {reason}", stacklevel=4)
            self.compiled = False
            return self.function(*args)
        self.module = module
        return tree_unflatten(results, self.result_structure)


class Part(torch.nn.Module):
    """One part of a sweep, compiled at its first arguments. Calls the compiler's back end: the front end would trace
    the trace again and check forty arguments at every step, a third of a millisecond."""

    def __init__(self, graph_module: GraphModule, options: dict[str, Any]) -> None:
        super().__init__()
        self.graph_module, self.options = graph_module, options
        self.kernel: Callable[..., Any] | None = None

    def forward(self, *args: Tensor) -> Any:
        if self.kernel is None:
            mode = FakeTensorMode(shape_env=ShapeEnv())  # without a ShapeEnv nothing is cached on disk
            fakes: list[Any] = [mode.from_tensor(arg, static_shapes=True) for arg in args]
            with tracing(TracingContext(mode)):
                self.kernel = torch._inductor.compile(self.graph_module, fakes, options=self.options)
        return self.kernel(*args)


def split(function: Callable[..., Any], tensors: list[Tensor]) -> GraphModule:
    """Trace `function` at these arguments, simplify the trace and cut it in three."""
    size = max(tensor.numel() for tensor in tensors)
    tensors = [tensor.detach() for tensor in tensors]  # what is passed twice would be traced as one argument
    traced = make_fx(functionalize(function), tracing_mode="fake")(*tensors)  # writes come last
    traced = make_fx(Simplified(traced, size).run, tracing_mode="fake")(*tensors)
    traced.graph.eliminate_dead_code()

    part: dict[Node, int] = {}
    for node in traced.graph.nodes:
        matrix = any(shape_of(n).numel() == size for n in (node, *node.all_input_nodes))
        after = max((part[source] for source in node.all_input_nodes), default=PRELUDE)
        part[node] = PRELUDE if node.op == "placeholder" else BODY if matrix else EPILOGUE if after else PRELUDE
    if tensors[0].device.type == "cpu":
        line_up(traced.graph, part, size)

    parts = split_module(traced, traced, part.__getitem__)
    written = any(writes(node.target) for node in traced.graph.nodes)
    for name, graph_module in [*parts.named_children()]:
        sums = name == f"submod_{BODY}" and not written
        setattr(parts, name, Part(graph_module, ONE_LOOP | (SUMS if sums else OTHERS)))  # type: ignore[arg-type]
    return parts


def shape_of(node: Node) -> torch.Size:
    value = node.meta.get("val")
    return value.shape if isinstance(value, Tensor) else torch.Size()


def writes(target: Any) -> bool:
    """Whether an operation changes one of its arguments."""
    return isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable


# --------------------------------------------------------------------------------------------- less for each element


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
    """Runs a trace with less work for each element; the result is the same but for round-off.

    sum(column * a) = column * sum(a)     the chain rule through the columns, a third of a vjp, leaves the body
    a / b           = a * (1 / b)         1 / b of a column is no work of the body
    (a + b) - a     = b                   as in mix(w, v, mix(u, v, a))
    a * b                                 once, however often it occurs
    """

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


def line_up(graph: Graph, part: dict[Node, int], size: int) -> None:
    """Give a body that writes its columns in one matrix and its scalars in one row, each as often as the widest vector
    has lanes.

    A C++ compiler cannot know that what is written is none of them, so it loads each anew in each turn of the loop,
    with four instructions, together more than all the arithmetic. Like this each is an operand in memory.
    """
    body = [node for node in graph.nodes if part[node] == BODY]
    taken = [node for node in graph.nodes if part[node] == PRELUDE and any(part[user] == BODY for user in node.users)]
    dtypes = {node: node.meta["val"].dtype for node in taken if shape_of(node).numel() < size}
    if not dtypes or not any(writes(node.target) for node in body):
        return
    rows, _, lanes = next(shape_of(node) for node in taken if shape_of(node).numel() == size)
    dtype = max(dtypes.values(), key=[*dtypes.values()].count)

    def add(where: int, operation: Any, *args: Any) -> Node:
        node = graph.call_function(operation, args)
        part[node] = where
        return node

    for node in [*graph.nodes]:
        if part[node] == PRELUDE:
            body[0].prepend(node)
    with graph.inserting_before(body[0]):
        for height in {1, rows}:
            fits = [node for node in dtypes if shape_of(node).numel() == height]
            small = [node for node in fits if dtypes[node] in (dtype, torch.bool)]
            floats = [add(PRELUDE, torch.ops.prims.convert_element_type.default, node, dtype) for node in small]
            spread = [add(PRELUDE, aten.expand.default, node, [height, 1, lanes]) for node in floats]
            matrix = add(PRELUDE, aten.cat.default, spread, 1) if spread else None
            for i, node in enumerate(small):
                operand = add(BODY, aten.slice.Tensor, matrix, 1, i, i + 1)
                if dtypes[node] == torch.bool:
                    operand = add(BODY, aten.ne.Scalar, operand, 0)
                node.replace_all_uses_with(operand, lambda user: user in body)
