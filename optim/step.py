"""What the engine computes in a step: functions of tensors, each compiled into one pass over memory (compiled.py).

They change nothing in place but by copy_, at their end. In rows that had no gradient yet t is 0, and 1 - beta**t too:
the NaN that comes of it is thrown away by `where`.
"""

from collections import namedtuple
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .flat import Rows
from .hyper import Hyper, update_coefficients
from .options import Options


class Scalars(NamedTuple):
    """All numbers of a step that belong to no row: vectors of K learned coefficients and F fixed ones, 0-D tensors.
    They live as long as the optimizer, whose groups show views of them.

    Where not all parameters share a value, (K,) is (owners, K), (F,) is (owners, F) and q_moves (owners,); see
    Rows.owner.
    """

    fixed: Tensor  # (F,) coefficients and constants that are not learned
    q: Tensor  # (K,) learned coefficients after the last step
    q_applied: Tensor  # (K,) those that made x
    q_momentum: Tensor  # (K,) of the coefficients' own optimizer (hyper.py)
    q_square: Tensor  # (K,) its mean of squares, where that is Adam
    q_moves: Tensor  # int64 (): moves, by which Adam's means are corrected
    hypergradient: Tensor  # (K,)
    grad_norm: Tensor  # before clipping
    clip: Tensor  # factor that clips this gradient
    clip_applied: Tensor  # factor that clipped the pending gradient
    accept: Tensor  # bool: this step counts, its gradient is finite
    q_steps: Tensor  # int64: steps that counted
    skipped: Tensor  # int64: steps in a row, up to this one, that did not count
    lr_start: Tensor  # where a learned lr started: directions are scaled by lr / lr_start

    def write(self, **values: Tensor) -> None:
        for name, value in values.items():
            getattr(self, name).copy_(value)


class Step:
    """The functions for a rule with these options. now: the optimizer's Scalars; rows: a bucket's Rows."""

    def __init__(self, rule: Any, options: Options) -> None:
        self.rule, self.options = rule, options
        self.fixed = options.fixed
        self.q_type = namedtuple("Q", options.start.keys())  # type: ignore[misc]
        # What compiled code depends on besides tensors; what enters it as a tensor is left blank.
        names = dict.fromkeys(options.start, 0.0)
        baked_in = replace(options, table={}, start=names, hyper_lr={}, hyper_momentum={}, idle={})
        self.identity = rule, rule.advance, repr(baked_in)

    def _advance(
        self, now: Scalars, rows: Rows, learned: Iterable[Tensor], s: Any, g: Tensor, t: Tensor
    ) -> tuple[Tensor, Any]:
        names = (*self.options.learned, *self.fixed)
        q: Any = self.q_type(**dict(zip(names, (*learned, *self._by_row(now.fixed, rows)), strict=True)))
        direction, s = self.rule.advance(q, s, g, t)
        if "lr" in self.options.learned:
            direction = q.lr / now.lr_start.to(t.dtype) * direction
        return direction, s

    def hypergradient(self, now: Scalars, rows: Rows) -> Tensor:
        """The hypergradients <g, d x / d q> of the coefficients that made x, (K,), followed by |g|^2; reads only.
        Where parameters have owners, the (K, R) sums over each row instead: `per_owner` adds them up."""
        t, dtype = rows.t, rows.t.dtype
        g, s = rows.g.to(dtype), self._cast(rows.state, dtype)
        columns = [torch.where(rows.active, (g * g).sum((1, 2), keepdim=True), 0)]
        if rows.pending is not None:
            p = rows.pending.to(dtype) * now.clip_applied.to(dtype)
            q = now.q_applied.to(dtype)
            q = q.expand(len(t), 1, -1) if q.dim() == 1 else q[rows.owner].unsqueeze(1)
            q = q.split(1, dim=-1)  # (R, 1, 1): so the vjp sums within rows
            vjp = torch.func.vjp(lambda *q: self._advance(now, rows, q, s, p, t)[0], *q)[1]
            made = rows.active & rows.has_pending  # elsewhere x was not made by the pending gradient
            columns = [torch.where(made, -rows.lr_applied * h, 0) for h in vjp(g)] + columns
        if now.q.dim() == 2:
            return torch.stack([column.reshape(-1) for column in columns])
        return torch.stack([column.sum(dtype=now.clip.dtype) for column in columns])

    def per_owner(self, now: Scalars, sums: Tensor, owner: Tensor) -> Tensor:
        """From (K + 1, R) sums over rows, the hypergradients of each owner, flat, followed by |g|^2."""
        sums = sums.to(now.clip.dtype)
        h = torch.zeros_like(now.q, device=sums.device).index_add_(0, owner, sums[:-1].T)
        return torch.cat([h.reshape(-1), sums[-1:].sum(1)])

    def _by_row(self, q: Tensor, rows: Rows) -> tuple[Tensor, ...]:
        """Each coefficient as a scalar, or as a column where parameters have values of their own."""
        q = q.to(rows.t.dtype)
        return q.unbind() if q.dim() == 1 else q[rows.owner].unsqueeze(1).split(1, dim=-1)

    def judge(self, now: Scalars, square: Tensor) -> None:
        """From |g|^2: whether the step counts, and the factor that clips it."""
        norm = square.sqrt()
        accept = torch.isfinite(norm)
        clip = torch.ones_like(norm)
        if self.options.max_grad_norm is not None:  # the formula of torch.nn.utils.clip_grad_norm_
            clip = torch.clamp(self.options.max_grad_norm / (norm + 1e-6), max=1.0)
        skipped = torch.where(accept, 0, now.skipped + 1)
        now.write(grad_norm=norm, clip=clip, accept=accept, q_steps=now.q_steps + accept, skipped=skipped)

    def learn(self, now: Scalars, hyper: Hyper, h: Tensor) -> None:
        """q_t from q_{t-1} and its hypergradient, by the coefficients' own optimizer."""
        h = torch.where(now.q_steps > 1, h.view_as(now.q), float("nan"))  # no coefficients made the first x
        moves = now.accept & torch.isfinite(h) & (now.q_steps > self.options.hyper_start)
        clamped = h.clamp(-self.options.hyper_clip, self.options.hyper_clip)
        before = (now.q, now.q_momentum, now.q_square)
        counts = moves.any(-1)
        if h.dim() == 2:  # an owner that comes later, or had no gradient until now, begins with its first hypergradient
            counts = counts & ((now.q_moves > 0) | (h != 0).any(-1))
        t = now.q_moves + counts
        after = update_coefficients(self.options, hyper, *before, clamped, t.clamp(min=1).unsqueeze(-1))
        q, momentum, square = (torch.where(moves, b, a) for a, b in zip(before, after, strict=True))
        now.write(q=q, q_momentum=momentum, q_square=square, q_moves=t, hypergradient=h)

    def update(self, now: Scalars, rows: Rows) -> list[Tensor]:
        """Write x, the states and the pending gradient; return the new columns t, has_pending, lr_applied."""
        t, dtype, active = rows.t, rows.t.dtype, rows.active & now.accept
        s = self._cast(rows.state, dtype)
        clipped = rows.g.to(dtype) * now.clip.to(dtype)
        q = self._by_row(now.q, rows)
        if rows.pending is None:
            direction, new = self._advance(now, rows, q, s, clipped, t + 1)
            new = self._keep(active, new, s)
        else:  # the pending gradient enters the states, with the coefficients that made x of it, and g becomes pending
            p = rows.pending.to(dtype) * now.clip_applied.to(dtype)
            _, new = self._advance(now, rows, self._by_row(now.q_applied, rows), s, p, t)
            new = self._keep(rows.has_pending & now.accept, new, s)
            direction, _ = self._advance(now, rows, q, new, clipped, t + 1)
            rows.pending.copy_(torch.where(active, rows.g, rows.pending))
        moved = (1 - rows.lr * rows.decay) * rows.x.to(dtype) - rows.lr * direction
        rows.x.copy_(torch.where(active, moved, rows.x.to(dtype)))
        for old, value in zip(rows.state, new, strict=True):
            if old is not None:
                old.copy_(value)
        return [
            torch.where(active, t + 1, t),
            torch.where(now.accept, rows.active, rows.has_pending),
            torch.where(active, rows.lr, rows.lr_applied),
        ]

    def _cast(self, state: Any, dtype: torch.dtype) -> Any:
        return self.rule.State(*(None if matrix is None else matrix.to(dtype) for matrix in state))

    def _keep(self, chosen: Tensor, new: Any, old: Any) -> Any:
        """The new state in the rows that are chosen, the old one in the others."""
        pairs = zip(new, old, strict=True)
        return self.rule.State(*(None if b is None else torch.where(chosen, a, b) for a, b in pairs))
