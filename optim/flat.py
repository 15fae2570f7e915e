"""Parameters of one kind, laid out as the rows of flat matrices.

A parameter that FSDP2 shards is a DTensor, of which each process holds a part. The matrices hold those parts.
"""

from collections.abc import Sequence, Set
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .options import compute_dtype

WIDTH = 1024  # elements of a row: enough for a sum over them to be cheap, few enough to waste little memory
ROW = (64, 16)  # its shape


class Kind(NamedTuple):
    """What the parameters of a bucket have in common."""

    device: torch.device
    dtype: torch.dtype
    process_groups: tuple[Any, ...]  # over which the sums over shards add up; empty: no shards

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


class Rows(NamedTuple):
    """What a pass reads and writes: matrices of shape (R, *ROW) and columns of shape (R, 1, 1). Each parameter starts a
    row, at a multiple of 128 bytes, and its last row is filled up with zeros."""

    x: Tensor  # parameters, in their dtype
    g: Tensor  # gradients, in the same dtype
    pending: Tensor | None  # gradient of the last step, not yet in the states; None where nothing is learned
    state: Any  # named tuple of matrices in float32 (float64 for float64 parameters), or None where a field is idle
    t: Tensor  # gradients seen so far; its dtype is the one in which a step computes
    lr: Tensor  # learning rate and
    decay: Tensor  # weight decay of the parameter's group
    lr_applied: Tensor  # learning rate with which the current x was made
    active: Tensor  # bool: the parameter has a gradient at this step
    has_pending: Tensor  # bool: the parameter has a pending gradient


class Bucket:
    """The rows of all parameters of a kind. The parameters become views of x, or are copied if they are shards.

    Fields of the state, and "pending", that are in `half` are kept in bfloat16.
    """

    @torch.no_grad()
    def __init__(self, groups: Sequence[dict[str, Any]], kind: Kind, state: Any, fields: Sequence[str],
                 half: Set[str], learning: bool) -> None:  # fmt: skip
        device, dtype = self.device, self.dtype = kind.device, kind.dtype
        self.process_groups = kind.process_groups
        self.params: list[Tensor] = []
        self.spans: list[tuple[int, int]] = []  # rows of each parameter
        self.group_spans: list[tuple[dict[str, Any], int, int]] = []  # rows of each group
        end = 0
        for group in groups:
            start = end
            for p in group["params"]:
                if Kind.of(p) == kind:
                    self.params.append(p)
                    self.spans.append((end, end := end + -(-part(p).numel() // WIDTH)))
            self.group_spans.append((group, start, end))
        height = max(end, 1) if self.process_groups else end  # a process without a shard takes part in the sums

        def matrix(dtype: torch.dtype) -> Tensor:
            return torch.zeros(height, *ROW, dtype=dtype, device=device)

        def column(dtype: torch.dtype) -> Tensor:
            return torch.zeros(height, 1, 1, dtype=dtype, device=device)

        compute = compute_dtype(dtype)
        self.x, self.g = matrix(dtype), matrix(dtype)
        self.pending = matrix(torch.bfloat16 if "pending" in half else dtype) if learning else None
        self.states = {field: matrix(torch.bfloat16 if field in half else compute) for field in fields}
        self.rows = Rows(
            self.x, self.g, self.pending, state(*(self.states.get(field) for field in state._fields)),
            *(column(compute) for _ in range(4)), *(column(torch.bool) for _ in range(2)),
        )  # fmt: skip
        self._has_grad: list[bool] = []
        self._group_values: list[Any] = [None] * len(self.group_spans)

        self.x_views = [self.view(self.x, i) for i in range(len(self.params))]
        self.g_views = [self.view(self.g, i) for i in range(len(self.params))]
        self.gradients = [whole(view, p) for view, p in zip(self.g_views, self.params, strict=True)]
        self.adopt()

    def view(self, matrix: Tensor, i: int) -> Tensor:
        """What belongs to parameter i in a matrix, in its shape and, where it is dense, its strides."""
        p, (start, _) = part(self.params[i]), self.spans[i]
        dense = torch._prims_common.is_non_overlapping_and_dense_or_false(p)
        strides = p.stride() if dense else torch.empty(p.shape, device="meta").stride()
        return matrix[start:].as_strided(p.shape, strides)

    def adopt(self) -> None:
        """Copy parameters that are not views of x there; shards always, since FSDP keeps its own memory for them."""
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
                if not self.process_groups:
                    p.data = view
        if sources:
            torch._foreach_copy_(targets, sources)

    def write_back(self) -> None:
        """Copy x to the parameters that are not views of it."""
        if self.process_groups:
            torch._foreach_copy_([part(p) for p in self.params], self.x_views)

    def gather(self) -> None:
        """Copy parameters and gradients that are not views of x and g there, and note which have a gradient."""
        self.adopt()
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
            rows = torch.tensor([end - start for start, end in self.spans])
            flags = torch.repeat_interleave(torch.tensor(has_grad), rows).view(-1, 1, 1)
            self.rows.active[: len(flags)].copy_(flags, non_blocking=True)
            self._has_grad = has_grad

    def sync_param_groups(self) -> None:
        """Write the groups' learning rates and weight decays into their columns, if they changed."""
        for i, (group, start, end) in enumerate(self.group_spans):
            values = (group["lr"], group["weight_decay"])
            if isinstance(values[0], Tensor) or values != self._group_values[i]:  # comparing a tensor would wait for it
                self.rows.lr[start:end].fill_(values[0])
                self.rows.decay[start:end].fill_(values[1])
                self._group_values[i] = values

    def attach_gradients(self) -> None:
        """Make the gradients views of g, zeroed: backward then adds into g itself, which saves a copy."""
        self.g.zero_()
        for p, gradient in zip(self.params, self.gradients, strict=True):
            p.grad = gradient if p.requires_grad else None  # a frozen parameter does not decay either
