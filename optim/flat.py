"""Parameters of one kind, laid out as the rows of flat matrices.

A parameter that FSDP2 shards is a DTensor, of which each process holds a part. What lies here are the parts.
"""

import ctypes
import itertools
import mmap
import sys
from collections.abc import Sequence, Set
from typing import Any, NamedTuple

import torch
from torch import Tensor

ROW = (64, 16)  # shape of a row: the last dimension holds the widest vector of a CPU (`line_up` in sweep.py)
PAGE = 2**21  # bytes of a large page
WIDTH = 1024  # its elements: enough for a sum over them to be cheap, few enough to waste little memory


class Kind(NamedTuple):
    """What the parameters of a bucket have in common."""

    device: torch.device
    dtype: torch.dtype
    groups: tuple[Any, ...]  # of processes, over which the sums over parts add up; empty: no parts, all is here

    @staticmethod
    def of(p: Any) -> "Kind":
        layout = enumerate(getattr(p, "placements", ()))
        return Kind(p.device, p.dtype, tuple(p.device_mesh.get_group(i) for i, placed in layout if placed.is_shard()))


def part(p: Any) -> Tensor:
    """What this process holds of a tensor: its part of a DTensor, all of any other."""
    return p.to_local() if hasattr(p, "to_local") else p


def whole(part: Tensor, p: Any) -> Tensor:
    """The inverse: the tensor laid out as p is, of which this process holds `part`. They share their memory."""
    if not hasattr(p, "to_local"):
        return part
    from torch.distributed.tensor import DTensor  # torch may have been built without it

    return DTensor.from_local(part, p.device_mesh, p.placements, shape=p.shape, stride=p.stride())


def share(tensor: Any, p: Any) -> Tensor:
    """This process's part of a tensor in p's shape, laid out as p is or present as a whole in every process."""
    if hasattr(p, "to_local") and not hasattr(tensor, "to_local"):
        from torch.distributed.tensor import distribute_tensor

        tensor = distribute_tensor(tensor, p.device_mesh, p.placements, src_data_rank=None)
    return part(tensor)


def ask_for_large_pages(memory: Tensor) -> None:
    """Let Linux back new memory of a CPU with pages of 2 MB: a sweep is in up to nine places at a time, and each would
    come to a new page of 4 KB in every row. MADA's step takes 4 to 6% less time."""
    if memory.device.type == "cpu" and sys.platform == "linux":
        start = -(-memory.data_ptr() // PAGE) * PAGE
        length = (memory.data_ptr() + memory.nbytes - start) // PAGE * PAGE
        if length > 0:
            ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), mmap.MADV_HUGEPAGE)


class Bucket:
    """Matrices of shape (R, *ROW) and columns of shape (R, 1, 1). Each parameter starts a row, at a multiple of 128
    bytes, and its last row is filled up with zeros.

    x          parameters, in their dtype; the model's parameters become views of it, or are copied if they are parts
    g          gradients, in the same dtype
    pending    gradient of the last step, not yet in the states; None where nothing is learned; bfloat16 if in `half`
    states     {field: matrix}, in float32 (float64 for float64 parameters); those in `half` in bfloat16
    t          gradients seen so far; their dtype is the states'
    lr, decay  learning rate and weight decay of the parameter's group
    lr_made    learning rate with which the current x was made
    active     the parameter has a gradient at this step
    waiting    the parameter has a pending gradient
    """

    @torch.no_grad()
    def __init__(self, groups: Sequence[dict[str, Any]], kind: Kind, state: Any, fields: Sequence[str],
                 half: Set[str], learning: bool) -> None:  # fmt: skip
        device, dtype = self.device, self.dtype = kind.device, kind.dtype
        self.groups = kind.groups
        self.compute = torch.float64 if dtype == torch.float64 else torch.float32
        self.params: list[Tensor] = []
        self.rows: list[tuple[int, int]] = []  # of each parameter
        self.spans: list[tuple[dict[str, Any], int, int]] = []  # rows of each group
        end = 0
        for group in groups:
            start = end
            for p in group["params"]:
                if Kind.of(p) == kind:
                    self.params.append(p)
                    self.rows.append((end, end := end + -(-part(p).numel() // WIDTH)))
            self.spans.append((group, start, end))

        height = max(end, 1) if self.groups else end  # a process without a part still takes part in the sums
        made = itertools.count()

        def matrix(dtype: torch.dtype) -> Tensor:
            """Each begins 384 bytes further into its page than the one before: seventeen that begin alike would take
            the same few lines of a CPU's first cache from one another."""
            skew = 384 // dtype.itemsize * next(made) % WIDTH
            memory = torch.empty(height * WIDTH + skew, dtype=dtype, device=device)
            ask_for_large_pages(memory)
            return memory.zero_()[skew:].view(height, *ROW)

        column = lambda dtype: torch.zeros(height, 1, 1, dtype=dtype, device=device)  # noqa: E731
        self.x, self.g = matrix(dtype), matrix(dtype)
        self.pending = matrix(torch.bfloat16 if "pending" in half else dtype) if learning else None
        self.states = {field: matrix(torch.bfloat16 if field in half else self.compute) for field in fields}
        self.state = state(*(self.states.get(field) for field in state._fields))
        self.t, self.lr, self.lr_made, self.decay = (column(self.compute) for _ in range(4))
        self.active, self.waiting = column(torch.bool), column(torch.bool)
        self._has_grad: list[bool] = []
        self._group_values: list[Any] = [None] * len(self.spans)

        self.x_views = [self.view(self.x, i) for i in range(len(self.params))]
        self.g_views = [self.view(self.g, i) for i in range(len(self.params))]
        self.gradients = [whole(view, p) for view, p in zip(self.g_views, self.params, strict=True)]
        self.take_in()

    def view(self, matrix: Tensor, i: int) -> Tensor:
        """What belongs to parameter i in a matrix, in its shape and, where it is dense, its strides."""
        p, (start, _) = part(self.params[i]), self.rows[i]
        dense = torch._prims_common.is_non_overlapping_and_dense_or_false(p)
        strides = p.stride() if dense else torch.empty(p.shape, device="meta").stride()
        return matrix[start:].as_strided(p.shape, strides)

    def read(self) -> tuple[Any, ...]:
        """What both sweeps read."""
        return self.state, self.g, self.pending, self.t, self.active, self.waiting

    def take_in(self) -> None:
        """Bring parameters that are not views of x there; parts always, since FSDP keeps its own memory for them."""
        sources, targets = [], []
        for p, view in zip(self.params, self.x_views, strict=True):
            here = part(p.detach())
            if here.data_ptr() != view.data_ptr():
                if here.device != view.device or here.dtype != view.dtype:
                    raise RuntimeError(
                        f"a parameter moved to {here.device}, {here.dtype} after its optimizer was made on "
                        f"{view.device}, {view.dtype}: move the model first, then make the optimizer"
                    )
                sources.append(here)
                targets.append(view)
                if not self.groups:
                    p.data = view
        if sources:
            torch._foreach_copy_(targets, sources)

    def hand_out(self) -> None:
        """Bring x to the parameters that are not views of it."""
        if self.groups:
            torch._foreach_copy_([part(p) for p in self.params], self.x_views)

    def gather(self) -> None:
        """Bring parameters and gradients that are not views of x and g there, and note which have a gradient."""
        self.take_in()
        sources, targets = [], []
        for p, gradient, view in zip(self.params, self.gradients, self.g_views, strict=True):
            if p.grad is not None and p.grad is not gradient:
                if p.grad.is_sparse:
                    raise RuntimeError("sparse gradients are not supported: use nn.Embedding(sparse=False)")
                sources.append(part(p.grad))
                targets.append(view)
        if sources:
            torch._foreach_copy_(targets, sources)

        has_grad = [p.grad is not None for p in self.params]
        if has_grad != self._has_grad:
            rows = torch.tensor([end - start for start, end in self.rows])
            flags = torch.repeat_interleave(torch.tensor(has_grad), rows).view(-1, 1, 1)
            self.active[: len(flags)].copy_(flags, non_blocking=True)
            self._has_grad = has_grad

    def follow_groups(self) -> None:
        """Write the groups' learning rates and weight decays into their columns, if they changed."""
        for i, (group, start, end) in enumerate(self.spans):
            values = (group["lr"], group["weight_decay"])
            if isinstance(values[0], Tensor) or values != self._group_values[i]:  # comparing a tensor would wait for it
                self.lr[start:end].fill_(values[0])
                self.decay[start:end].fill_(values[1])
                self._group_values[i] = values

    def attach_gradients(self) -> None:
        """Zero the gradients, in place: backward then adds into g itself and nothing need be gathered."""
        self.g.zero_()
        for p, gradient in zip(self.params, self.gradients, strict=True):
            p.grad = gradient if p.requires_grad else None  # one that is frozen rests, without weight decay too
