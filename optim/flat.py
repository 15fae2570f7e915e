"""Parameters of one device and dtype, laid out as the rows of flat matrices."""

from collections.abc import Sequence, Set
from typing import Any

import torch
from torch import Tensor

WIDTH = 1024  # elements in a row: long enough for a sum over it to be cheap, short enough to waste little memory


class Bucket:
    """Matrices of shape (R, WIDTH) and columns of shape (R, 1). Each parameter starts a row (4096-byte boundary for
    float32) and its last row is filled up with zeros.

    x          parameters, in their dtype; the model's parameters become views of it
    g          gradients, in the same dtype
    pending    gradient of the last step, not yet in the states; None where nothing is learned; bfloat16 if in `half`
    states     {field: matrix}, in float32 (float64 for float64 parameters); those in `half` in bfloat16
    t          gradients seen so far; their dtype is the states'
    lr, decay  learning rate and weight decay of the parameter's group
    lr_made    learning rate with which the current x was made
    active     the parameter has a gradient at this step
    waiting    the parameter has a pending gradient
    """

    def __init__(self, groups: Sequence[dict[str, Any]], device: torch.device, dtype: torch.dtype,
                 state: Any, fields: Sequence[str], half: Set[str], learning: bool) -> None:  # fmt: skip
        self.device, self.dtype = device, dtype
        self.compute = torch.float64 if dtype == torch.float64 else torch.float32
        self.params: list[Tensor] = []
        self.rows: list[tuple[int, int]] = []  # of each parameter
        self.spans: list[tuple[dict[str, Any], int, int]] = []  # rows of each group
        end = 0
        for group in groups:
            start = end
            for p in group["params"]:
                if (p.device, p.dtype) == (device, dtype):
                    self.params.append(p)
                    self.rows.append((end, end := end + -(-p.numel() // WIDTH)))
            self.spans.append((group, start, end))

        matrix = lambda dtype: torch.zeros(end, WIDTH, dtype=dtype, device=device)  # noqa: E731
        column = lambda dtype: torch.zeros(end, 1, dtype=dtype, device=device)  # noqa: E731
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
        for p, view in zip(self.params, self.x_views, strict=True):
            view.copy_(p.detach())
            p.data = view

    def view(self, matrix: Tensor, i: int) -> Tensor:
        """The part of a matrix that belongs to parameter i, in its shape and, where it is dense, its strides."""
        p, (start, _) = self.params[i], self.rows[i]
        dense = torch._prims_common.is_non_overlapping_and_dense_or_false(p)
        strides = p.stride() if dense else torch.empty(p.shape, device="meta").stride()
        return matrix.as_strided(p.shape, strides, start * WIDTH)

    def read(self) -> tuple[Any, ...]:
        """What both sweeps read."""
        return self.state, self.g, self.pending, self.t, self.active, self.waiting

    def gather(self) -> None:
        """Bring gradients that are not views of g there, and note which parameters have one."""
        for p, view in zip(self.params, self.x_views, strict=True):
            if p.data_ptr() != view.data_ptr():
                if p.device != view.device or p.dtype != view.dtype:
                    raise RuntimeError(
                        f"a parameter moved to {p.device}, {p.dtype} after its optimizer was made on {view.device}, "
                        f"{view.dtype}: move the model first, then make the optimizer"
                    )
                view.copy_(p.detach())
                p.data = view
        sources, targets = [], []
        for p, view in zip(self.params, self.g_views, strict=True):
            if p.grad is not None and p.grad is not view:
                if p.grad.is_sparse:
                    raise RuntimeError("sparse gradients are not supported: use nn.Embedding(sparse=False)")
                sources.append(p.grad)
                targets.append(view)
        if sources:
            torch._foreach_copy_(targets, sources)

        has_grad = [p.grad is not None for p in self.params]
        if has_grad != self._has_grad:
            rows = torch.tensor([end - start for start, end in self.rows])
            flags = torch.repeat_interleave(torch.tensor(has_grad), rows).unsqueeze(1)
            self.active.copy_(flags, non_blocking=True)
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
        for p, view in zip(self.params, self.g_views, strict=True):
            p.grad = view
