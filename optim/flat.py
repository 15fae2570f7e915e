"""Parameters of one kind, laid out as the rows of flat matrices.

A parameter that FSDP2 shards is a DTensor, of which each process holds a part. The matrices hold those parts.
"""

import itertools
from collections.abc import Sequence, Set
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .options import compute_dtype

WIDTH = 1024  # elements of a row: enough for a sum over them to be cheap, few enough to waste little memory
ROW = (64, 16)  # its shape
COLUMNS = {"step": "t", "has_pending": "has_pending", "lr_applied": "lr_applied"}  # name in state[p]: field of Rows


class Kind(NamedTuple):
    """What the parameters of a bucket have in common."""

    device: torch.device
    dtype: torch.dtype
    process_groups: tuple[Any, ...]  # over which the sums over shards add up; empty: no shards
    copied: bool  # into x and back at each step; otherwise the parameters are made views of x

    @staticmethod
    def of(p: Any) -> "Kind":
        layout = enumerate(getattr(p, "placements", ()))
        groups = tuple(p.device_mesh.get_group(i) for i, placed in layout if placed.is_shard())
        return Kind(p.device, p.dtype, groups, bool(groups) or has_others_memory(p))


def has_others_memory(p: Any) -> bool:
    """Whether a parameter has to stay where it is: FSDP's, a part of a tensor, in memory shared by processes, or in
    memory that NumPy has too (where torch may not resize it: also what torch.load read, which only costs a copy)."""
    if hasattr(p, "to_local"):
        return True
    storage = p.untyped_storage()
    if p.device.type == "cpu" and (p.is_shared() or not (storage.resizable() or hasattr(storage, "of_a_bucket"))):
        return True  # on a GPU every tensor may be shared
    return p.device.type != "meta" and storage.nbytes() > p.nbytes


def own_storage(view: Tensor) -> Tensor:
    """The same memory, as a tensor with a storage object of its own. Whatever tells tied tensors by their storage
    (safetensors, accelerate) or saves whole storages (torch.save) sees one parameter, not the matrix around it."""
    if view.device.type == "meta":
        return view
    alone = torch.from_dlpack(view)
    alone.untyped_storage().of_a_bucket = True  # type: ignore[attr-defined]
    return alone


def places(params: Sequence[Tensor]) -> tuple[Any, ...]:
    return [p.data_ptr() for p in params], [p.stride() for p in params], [p.shape for p in params]


def overlapping(params: Sequence[Tensor]) -> tuple[Tensor, Tensor] | None:
    """Two parameters of which one begins before the other ends in memory, if there are any."""
    found = []
    for p in params:
        here = part(p.detach())
        if here.numel() and here.device.type != "meta":
            last = sum((n - 1) * stride for n, stride in zip(here.shape, here.stride(), strict=True))
            found.append((str(here.device), here.data_ptr(), here.data_ptr() + last * here.itemsize, p))
    found.sort(key=lambda entry: entry[:3])
    for (device, _, last, p), (other, begin, _, q) in itertools.pairwise(found):
        if device == other and begin <= last:
            return p, q
    return None


def name_of(p: Tensor, groups: Sequence[dict[str, Any]]) -> str:
    """What a message calls a parameter: its name where the group has names."""
    for g, group in enumerate(groups):
        for i, q in enumerate(group["params"]):
            if q is p:
                return group.get("param_names", {i: f"parameter {i} of group {g}, shape {tuple(p.shape)}"})[i]
    return f"a parameter of shape {tuple(p.shape)}"


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
    owner: Tensor | None  # (R,) row of its coefficients' values in Scalars; None where all parameters share one value


class Bucket:
    """The rows of all parameters of a kind. The parameters become views of x, or are copied there and back.

    Fields of the state, and "pending", that are in `half` are kept in bfloat16.
    """

    @torch.no_grad()
    def __init__(self, groups: Sequence[dict[str, Any]], kind: Kind, state: Any, fields: Sequence[str],
                 half: Set[str], learning: bool, owners: Sequence[int] | None = None) -> None:  # fmt: skip
        """`owners`: of each parameter in the groups, which row of the coefficients' values is its own."""
        device, dtype = self.device, self.dtype = kind.device, kind.dtype
        self.process_groups, self.copied = kind.process_groups, kind.copied
        self.params: list[Tensor] = []
        self.spans: list[tuple[int, int]] = []  # rows of each parameter
        self.group_spans: list[tuple[dict[str, Any], int, int]] = []  # rows of each group
        end, owner, given = 0, [], iter(owners or ())
        for group in groups:
            start = end
            for p in group["params"]:
                its_owner = next(given, 0)
                if Kind.of(p) == kind:
                    # A process without a part of a sharded parameter has a row too: it takes part in sums and saves.
                    height = max(-(-part(p).numel() // WIDTH), bool(self.process_groups))
                    owner += [its_owner] * height
                    self.params.append(p)
                    self.spans.append((end, end := end + height))
            self.group_spans.append((group, start, end))

        def matrix(dtype: torch.dtype) -> Tensor:
            return torch.zeros(end, *ROW, dtype=dtype, device=device)

        def column(dtype: torch.dtype) -> Tensor:
            return torch.zeros(end, 1, 1, dtype=dtype, device=device)

        compute = compute_dtype(dtype)
        pending = matrix(torch.bfloat16 if "pending" in half else dtype) if learning else None
        states = {field: matrix(torch.bfloat16 if field in half else compute) for field in fields}
        self.rows = Rows(
            x=matrix(dtype), g=matrix(dtype), pending=pending, state=state(*map(states.get, state._fields)),
            t=column(compute), lr=column(compute), decay=column(compute), lr_applied=column(compute),
            active=column(torch.bool), has_pending=column(torch.bool),
            owner=None if owners is None else torch.tensor(owner, dtype=torch.int64, device=device),
        )  # fmt: skip
        self.strides = [torch.empty_like(part(p), device="meta").stride() for p in self.params]  # dense
        self._group_values: list[Any] = [None] * len(self.group_spans)
        self._view_rows()
        self._move()

    x = property(lambda self: self.rows.x)
    g = property(lambda self: self.rows.g)
    pending = property(lambda self: self.rows.pending)

    @property
    def states(self) -> dict[str, Tensor]:
        """The matrices that are kept, by their names in State."""
        return {field: matrix for field, matrix in self.rows.state._asdict().items() if matrix is not None}

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles. The parameters are there, so x is not; nor are gradients, as in copies of a model."""
        rows = self.rows._replace(x=torch.empty_like(self.x, device="meta"), g=torch.empty_like(self.g, device="meta"))
        dropped = dict.fromkeys(("x_views", "g_views", "gradients", "places"))
        return self.__dict__ | dropped | {"rows": rows}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        x, g = (torch.zeros_like(matrix, device=self.device) for matrix in (self.x, self.g))
        self.rows = self.rows._replace(x=x, g=g)
        with torch.no_grad():
            self._view_rows()
            self._move()

    def _view_rows(self) -> None:
        """Of x and g, what belongs to each parameter."""
        self._has_grad: list[bool] = []
        self.x_views = [own_storage(self.view(self.x, i)) for i in range(len(self.params))]
        self.g_views = [self.view(self.g, i) for i in range(len(self.params))]
        self.gradients = [whole(view, p) for view, p in zip(self.g_views, self.params, strict=True)]
        self.places = places(self.x_views)  # not read later: a storage can move to shared memory

    def view(self, matrix: Tensor, i: int) -> Tensor:
        """What belongs to parameter i in a matrix, in its shape and, where it was dense, its strides."""
        return matrix[self.spans[i][0] :].as_strided(part(self.params[i]).shape, self.strides[i])

    def displaced(self) -> bool:
        """Whether a parameter that was made a view of x is elsewhere: its `.data` was replaced, or it is shared now."""
        return not self.copied and places(self.params) != self.places

    def adopt(self) -> None:
        """Make them views again, of new memory: others may hold the old one, such as a moving average that changed
        places with the weights."""
        for p, view in zip(self.params, self.x_views, strict=True):
            was, now = ((v.device, v.dtype, v.shape) for v in (view, p))
            if was != now:
                raise RuntimeError(
                    f"{self.name_of(p)} is on {now[0]}, {now[1]}, {tuple(now[2])} but was on {was[0]}, {was[1]}, "
                    f"{tuple(was[2])} when its optimizer was made: change the model first, then make the optimizer"
                )
        if both := overlapping(self.params):
            raise RuntimeError(f"{' and '.join(map(self.name_of, both))} were tied after their optimizer was made: "
                               "tie the model first, then make the optimizer")  # fmt: skip
        self.rows = self.rows._replace(x=torch.zeros_like(self.x))
        self._view_rows()
        self._move()

    def _move(self) -> None:
        if self.params:
            torch._foreach_copy_(self.x_views, [part(p.detach()) for p in self.params])
        for p, view in zip(self.params, self.x_views, strict=True):
            if not self.copied:
                p.data = view

    def write_back(self) -> None:
        """Copy x to the parameters that are not views of it."""
        if self.copied and self.params:
            torch._foreach_copy_([part(p) for p in self.params], self.x_views)

    def name_of(self, p: Tensor) -> str:
        return name_of(p, [group for group, _, _ in self.group_spans])

    def gather(self) -> None:
        """Copy parameters and gradients that are not views of x and g there, and note which have a gradient."""
        if self.copied:
            self._move()
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
