"""The numbers of an optimizer that belong to no parameter, and what its param groups show of them.

In a group a learned coefficient is a view of the device's values: reading it does not wait, and it is never stale. With
scope="tensor" it has a number for each parameter of the group. A fixed coefficient is a float. What is written there
takes effect at the next step. "momentum" is another name of beta1, by which OneCycleLR and CyclicLR know it.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .hyper import Hyper
from .options import Options, of_group
from .step import Scalars

# What else a group shows of Scalars: its own rows of BY_OWNER, and OF_ALL, which are the same in all groups. An owner
# is what has learned values of its own: a group (scope="group") or a parameter (scope="tensor").
BY_OWNER = ("q_applied", "q_momentum", "q_square", "q_moves", "hypergradient")
OF_ALL = ("grad_norm", "clip_applied", "q_steps", "skipped", "lr_start")
Group = dict[str, Any]


def key_of(name: str) -> str:
    """What a learned coefficient is called in a group, where "lr" is the rate of the schedule."""
    return "lr_learned" if name == "lr" else name


def spans(groups: Sequence[Group], scope: str) -> list[slice]:
    """The rows of each group's values, where not all groups share them."""
    counts = [len(group["params"]) if scope == "tensor" else 1 for group in groups]
    return [slice(end - count, end) for count, end in zip(counts, itertools.accumulate(counts), strict=True)]


def index_of(scope: str, rows: slice) -> tuple[Any, ...]:
    """Where the values of a group are in a tensor of learned values."""
    return {"global": (), "group": (rows.start,), "tensor": (rows,)}[scope]


class Values:
    """The values on the device (`scalars`), the settings of those that are learned (`hyper`), and the groups' views."""

    def __init__(self, options: Options, rule: str, lr: float, device: torch.device) -> None:
        self.options = options
        self.about = {"rule": rule, "learned": options.learned, "scope": options.scope}
        self.fixed_names = [key_of(k) for k in options.fixed]
        self.scope = options.scope if options.learned else "global"
        self.differ = False  # whether a fixed coefficient ever differed between groups: then each has its own
        self.owners: list[Any] = []  # groups or parameters, each with its own learned values; empty: all share them
        self.owners_of_group: list[slice] = []  # the rows of each group in the (owners, ...) tensors of scalars
        self.shown: list[tuple[Group, dict[str, Any]]] = []  # each group, and what was put into it
        # In float64 where the device has that: in float32 0.9 + 1e-9 is 0.9.
        self.like: Any = {"device": device, "dtype": torch.float32 if device.type == "mps" else torch.float64}
        q, one = self._tensor([options.start[k] for k in options.learned]), self._tensor(1.0)
        nan, zero = one * math.nan, one.to(torch.int64) * 0
        self.scalars = Scalars(
            fixed=self._tensor([options.start[k] for k in options.fixed]),
            q=q, q_applied=q.clone(), q_momentum=q * 0, q_square=q * 0, q_moves=zero.clone(),
            hypergradient=q * math.nan, grad_norm=nan, clip=one, clip_applied=one.clone(), accept=one.bool(),
            q_steps=zero, skipped=zero.clone(), lr_start=self._tensor(float(lr)),
        )  # fmt: skip

    def _tensor(self, values: Any) -> Tensor:
        return torch.tensor(values, **self.like)

    def lay_out(self, groups: Sequence[Group]) -> list[int] | None:
        """Make a row for each group or parameter with values of its own; what had one keeps it. Returns the
        row of each parameter, None where all share all values. Raises ValueError for a bad entry of a group."""
        asked = self.options
        tables = [self._checked(g, group) for g, group in enumerate(groups)]
        fixed_values = [[float(group.get(key_of(k), asked.start[k])) for k in asked.fixed] for group in groups]
        self.differ |= any(values != fixed_values[0] for values in fixed_values)
        by = "group" if self.scope == "global" and self.differ else self.scope
        self.owners_of_group = spans(groups, by)
        group_of = [g for g, rows in enumerate(self.owners_of_group) for _ in range(rows.start, rows.stop)]

        new = {}
        if self.differ:
            new["fixed"] = self._tensor([fixed_values[g] for g in group_of]).view(-1, len(asked.fixed))
        elif fixed_values:
            new["fixed"] = self._tensor(fixed_values[0])
        self.hyper = self._hyper([tables[g] for g in group_of])
        if self.scope != "global":
            before = {id(owner): row for row, owner in enumerate(self.owners)}
            self.owners = [*groups] if self.scope == "group" else [p for group in groups for p in group["params"]]
            q = self._tensor([asked.start[k] for k in asked.learned])
            zero, nan, none = q * 0, q * math.nan, torch.zeros_like(self.scalars.q_steps)
            for name, begin in zip(("q", *BY_OWNER), (q, q, zero, zero, none, nan), strict=True):
                old = getattr(self.scalars, name)
                rows = [old[before[id(owner)]] if id(owner) in before else begin for owner in self.owners]
                new[name] = torch.stack(rows) if rows else begin.expand(0, *begin.shape)
        self.scalars = self.scalars._replace(**new)

        shown = {id(group): entries for group, entries in self.shown}
        self._show(groups, fixed_values)
        for group, entries in self.shown:
            old = shown.get(id(group), {})  # what is in the group and is not our entry was written by the user
            group.update({k: v for k, v in entries.items() if k not in group or group[k] is old.get(k)})
        group_of_each = [g for g, group in enumerate(groups) for _ in group["params"]]
        return {"global": None, "group": group_of_each, "tensor": [*range(len(group_of_each))]}[by]

    def _checked(self, g: int, group: Group) -> Any:
        try:
            return of_group(self.options, group)
        except ValueError as error:
            raise ValueError(f"param group {g}: {error}") from None

    def _hyper(self, tables: Sequence[Any]) -> Hyper:
        asked = self.options
        each = tables if self.scope != "global" else [(asked.hyper_lr, asked.table)]
        numbers = [[[rates[k], table[k].low, table[k].high] for k in asked.learned] for rates, table in each]
        rate, low, high = self._tensor(numbers).view(len(each), len(asked.learned), 3).unbind(-1)
        if self.scope == "global":
            rate, low, high = rate[0], low[0], high[0]
        of_all = [(asked.hyper_momentum.get(k, 0.0), asked.table[k].kind == "decay",
                   asked.table[k].kind == "weight") for k in asked.learned]  # fmt: skip
        mu, decay, weight = self._tensor(of_all).view(-1, 3).unbind(-1)
        return Hyper(rate, mu, low, high, decay.bool(), weight.bool())

    def _entries(self, rows: slice, fixed_values: Sequence[float]) -> dict[str, Any]:
        now, at, learned = self.scalars, index_of(self.scope, rows), self.options.learned
        entries: dict[str, Any] = {**self.about, **dict(zip(self.fixed_names, fixed_values, strict=True))}
        entries |= {key_of(k): now.q[(*at, j)] for j, k in enumerate(learned)}
        if "beta1" in entries:
            entries.setdefault("momentum", entries["beta1"])
        if learned:
            entries |= {name: getattr(now, name)[at] for name in BY_OWNER}
        if learned or self.options.max_grad_norm is not None:
            entries |= {name: getattr(now, name) for name in OF_ALL if name != "lr_start" or "lr" in learned}
        return entries

    def _show(self, groups: Sequence[Group], fixed_values: Sequence[Sequence[float]]) -> None:
        each = zip(groups, self.owners_of_group, fixed_values, strict=True)
        self.shown = [(group, self._entries(rows, values)) for group, rows, values in each]

    def show_again(self) -> None:
        """In a copy, whose groups may hold copies of the views."""
        self._show([group for group, _ in self.shown], [[own[k] for k in self.fixed_names] for _, own in self.shown])
        for group, entries in self.shown:
            group.update(entries)

    def follow(self) -> bool:
        """Take over what was written into the groups. Returns whether they have to be laid out anew, because a fixed
        coefficient is now another one in some group. Raises ValueError for a value out of place."""
        edited = set()
        for g, (group, entries) in enumerate(self.shown):
            if not all(group.get(k) is entry for k, entry in entries.items()):
                edited |= self._take(g, group, entries)
        values = [[entries[k] for k in self.fixed_names] for _, entries in self.shown if edited]
        if self.scalars.fixed.dim() == 1 and any(own != values[0] for own in values):
            return True
        for j in (self.fixed_names.index(k) for k in edited):
            for rows, own in zip(self.owners_of_group, values, strict=True):
                self.scalars.fixed[(rows, j) if self.scalars.fixed.dim() == 2 else j].fill_(own[j])
        return False

    def _take(self, g: int, group: Group, entries: dict[str, Any]) -> set[str]:
        """What was written into a group. Returns the names of fixed coefficients in it."""
        written = {k: group[k] for k, entry in entries.items() if k in group and group[k] is not entry}
        alias = "momentum" in entries and "momentum" not in self.options.start
        if alias and "momentum" in written:
            written.setdefault("beta1", written.pop("momentum"))
        self._checked(g, group | written)
        for k, value in written.items():
            if k in self.fixed_names:
                entries[k] = float(value)
            elif not isinstance(entries[k], Tensor):  # rule, learned, scope: what a user writes there is undone
                pass
            elif isinstance(value, Tensor):
                entries[k].copy_(value)
            else:
                entries[k].fill_(value)
        if alias:
            entries["momentum"] = entries["beta1"]
        group.update(entries)
        return written.keys() & {*self.fixed_names}

    def means(self, values: Tensor) -> list[float]:
        """Of K values, or the means over owners of (owners, K)."""
        return (values if values.dim() == 1 else values.mean(0)).tolist()
