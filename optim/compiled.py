"""One pass over memory: a function of flat matrices, traced, split and compiled.

The functions that the engine compiles take matrices of shape (R, 64, 16), columns of shape (R, 1, 1) and scalars. Left
to itself the compiler puts the arithmetic of the columns and scalars (beta1**t above all) into the innermost loop and
cuts the loop over the matrices into several, with intermediate matrices written and read again. So a function is
traced, simplified (simplify.py), and split by the shape of each result:

    prelude    columns and scalars, from the arguments          1 - beta1**t, lr * weight_decay, ...
    body       matrices, and their sums over a row              the one pass over memory
    epilogue   columns and scalars, from the body's sums        the sum over rows, the chain rule through beta1**t

Only the body touches memory that grows with the model. A sum over a row of 1024 elements stays in registers on a CPU
and in one block on a GPU.

Private names of torch, all in this file. Inductor is called directly (`torch._inductor.compile` with fake tensors and a
tracing context): torch.compile would trace the trace again and check forty arguments at every step, 0.3 ms. They are
why pyproject.toml pins the version of torch.
"""

import warnings
from collections.abc import Callable, Hashable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functionalize
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.fx.passes.split_module import split_module
from torch.utils._pytree import tree_flatten, tree_unflatten

from .simplify import simplified, writes

PRELUDE, BODY, EPILOGUE = range(3)

# The compiler's thresholds above which it cuts a loop. Each cut costs a pass over memory; the body is to have none. Nor
# does it have to check at every step what our arguments are like, which does not change.
OPTIONS = {
    "size_asserts": False,
    "max_fusion_size": 1000,
    "realize_opcount_threshold": 1000,
    "realize_reads_threshold": 1000,
    "realize_acc_reads_threshold": 1000,
    "cpp.max_horizontal_fusion_size": 1000,
    "cpp.enable_floating_point_contract_flag": "fast",
}
# On a GPU, kernels that sum are autotuned: a row of 1024 needs eight warps, since the registers of one would not hold
# it. Do not autotune kernels that write: Inductor would clone the states.
AUTOTUNE = {"max_autotune_pointwise": True}
NO_AUTOTUNE = {"triton.autotune_pointwise": False}


MADE: dict[Any, tuple[GraphModule, Any]] = {}  # modules of this process, with the structures of their results


class CompiledPass:
    """`function`, or the same compiled for the shapes, dtypes and device of its first arguments (named tuples, lists
    and None are taken apart). Where the compiler fails, a warning says why and the function runs uncompiled.

    `identity` is equal for functions that do the same: what was compiled for one then serves the others, such as those
    of the next optimizer in a process that makes many."""

    def __init__(self, function: Callable[..., Any], compiled: bool, identity: Hashable) -> None:
        self.function, self.compiled, self.identity = function, compiled, identity
        self.module: GraphModule | None = None
        self.result_structure: Any = None

    def __call__(self, *args: Any) -> Any:
        if not self.compiled:
            return self.function(*args)
        tensors = tensors_of(args, [])
        if self.module is not None:
            return tree_unflatten(self.module.forward(*tensors), self.result_structure)
        leaves, structure = tree_flatten(args)
        kinds = tuple((t.shape, t.stride(), t.dtype, t.device) for t in tensors)
        key = (self.identity, str(structure), kinds)
        if key in MADE:
            self.module, self.result_structure = MADE[key]
            return self(*args)

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
        MADE[key] = (module, self.result_structure)
        return tree_unflatten(results, self.result_structure)


def tensors_of(values: Iterable[Any], found: list[Tensor]) -> list[Tensor]:
    """Append the leaves of nested tuples but None (a part without a state), in tree_flatten's order, but faster."""
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif value is not None:
            tensors_of(value, found)
    return found


class Part(torch.nn.Module):
    """Prelude, body or epilogue, compiled at its first arguments."""

    def __init__(self, graph_module: GraphModule, options: dict[str, Any]) -> None:
        super().__init__()
        self.graph_module, self.options = graph_module, options
        self.kernel: Callable[..., Any] | None = None

    def __call__(self, *args: Tensor) -> Any:  # Module's looks for hooks first, which costs as much as a small kernel
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
    traced = simplified(traced, size, tensors)

    part: dict[Node, int] = {}
    for node in traced.graph.nodes:
        matrix = any(shape_of(n).numel() == size for n in (node, *node.all_input_nodes))
        after = max((part[source] for source in node.all_input_nodes), default=PRELUDE)
        part[node] = PRELUDE if node.op == "placeholder" else BODY if matrix else EPILOGUE if after else PRELUDE

    parts = split_module(traced, traced, part.__getitem__)
    written = any(writes(node.target) for node in traced.graph.nodes)
    for name, graph_module in [*parts.named_children()]:
        sums = name == f"submod_{BODY}" and not written
        setattr(parts, name, Part(graph_module, OPTIONS | (AUTOTUNE if sums else NO_AUTOTUNE)))  # type: ignore
    return parts


def shape_of(node: Node) -> torch.Size:
    value = node.meta.get("val")
    return value.shape if isinstance(value, Tensor) else torch.Size()
