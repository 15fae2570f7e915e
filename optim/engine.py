"""The engine: one torch.optim.Optimizer that runs any rule and learns any of its coefficients (paper, algorithm 1).

Parameters, gradients and states live in matrices of shape (R, *ROW), each parameter in rows of its own, and whatever
differs between parameters (step, learning rate, weight decay, whether there is a gradient) is a column (R, 1, 1)
(flat.py). So a step is the same few kernels whatever the number of parameters and groups, and a value that changes
recompiles nothing. reference.py is the same algorithm in one screen.

At step t the engine holds state_{t-2}, the pending gradient g_{t-1} and the new g_t; q made x_{t-1} of the former two.

    hypergradient  reads only: h_t = -lr_{t-1} < g_t, d direction(q, state_{t-2}, clipped g_{t-1}) / d q >, and |g_t|^2
    judge          scalars, on the device: whether |g_t| is finite, and the factor that clips g_t
    learn          scalars: q_t from q_{t-1} and h_t
    update         advances with g_{t-1} to state_{t-1}, which it stores, and again with g_t to x_t

With weights first, learn comes after update. With nothing to learn there is no pending gradient: update alone.

No graph outlives a step, autograd never goes through the model a second time, and nothing waits for the device.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from . import options
from .compiled import CompiledPass
from .flat import Bucket, Kind, name_of, overlapping, own_storage, share, whole
from .hyper import Hyper
from .options import Options, refuse_outside
from .rule import Coefficient
from .step import Scalars, Step

COMPILE_FROM = 100_000  # with compile=None, the number of parameters from which compiling pays for itself
COLUMNS = {"step": "t", "has_pending": "has_pending", "lr_applied": "lr_applied"}  # name in state[p]: field of Rows


class RuleOptimizer(Optimizer):
    """An optimizer defined by `table`, `State` and `advance` (see rule.py); subclass it to bring your own rule.

    Args:
        params: parameters, or param groups, each with its own `lr` and `weight_decay` if it has them
        lr: learning rate
        <name>: start value of a coefficient in the rule's `table`, or value of one of its `constants`
        weight_decay: decoupled, x <- (1 - lr * weight_decay) x
        hyper_lr: rate of each coefficient that is learned, {"beta1": 1e-4, ...}; a number: for all that the rule
            `learns` (all that it has, if it learns none); None: what the rule `learns`, at its own rates. It may name
            "lr": the learned rate starts at `lr`, and its ratio to `lr` scales the direction, not the decay
        hyper_momentum: momentum of the coefficients' own optimizer: a number, or {name: number}
        hyper_optimizer: that optimizer: "sgd" (the paper's), "sign" or "adam"; the rates mean other things in each
        hyper_space: where it moves: "linear", or "log", -log(1 - beta) for decays and the logit for weights in [0, 1]
        hyper_start: the coefficients stay for this many steps (skipped ones do not count)
        hyper_clip: hypergradients are clamped to [-hyper_clip, hyper_clip]
        order: "coefficients_first" (x_t is made with q_t) or "weights_first" (with q_{t-1}, algorithm 1 as printed)
        max_grad_norm: clip the gradient to this global norm within the step; None: do not
        half: states to keep in bfloat16, by their names in `State`, and "pending" for the pending gradient; what it
            costs in accuracy: docs/MADA.md
        scope: whose hypergradients are added up to move a coefficient, and so who shares its value: "global" (all
            parameters; the paper), "group" (those of a param group) or "tensor" (each parameter has its own)
        box: {name: (low, high)}, where a learned coefficient may go; others keep the box of the rule's table
        compile: compile the step; None: if there are at least 100,000 parameters

    Attributes:
        coefficients, hypergradients: {name: float}; reading them waits for the device
        grad_norm: norm of the last gradient before clipping, a 0-D tensor; None where nobody needed it
        skipped: steps in a row, up to the last, skipped because the norm was not finite (nothing moves in such a step);
            a 0-D tensor. Without max_grad_norm and with nothing to learn the norm is not read and a NaN reaches x

    Raises ValueError for a name or a number out of place.
    """

    # What a rule defines.
    table: ClassVar[Mapping[str, Coefficient]] = {}
    constants: ClassVar[Mapping[str, float]] = {}
    learns: ClassVar[tuple[str, ...]] = ()  # names that are learned where hyper_lr is None
    parts: ClassVar[Mapping[str, tuple[float, tuple[str, ...]]]] = {}  # {name: (idle value, fields idle with it)}
    State: ClassVar[Any]
    advance: Callable[..., Any]

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        *,
        weight_decay: float = 0.0,
        hyper_lr: float | Mapping[str, float] | None = None,
        hyper_momentum: float | Mapping[str, float] = 0.0,
        hyper_optimizer: str = "sgd",
        hyper_space: str = "linear",
        hyper_start: int = 0,
        hyper_clip: float = 10.0,
        order: str = "coefficients_first",
        max_grad_norm: float | None = None,
        half: Iterable[str] = (),
        box: Mapping[str, tuple[float, float]] | None = None,
        scope: str = "global",
        compile: bool | None = None,
        **values: float,
    ) -> None:
        asked = self.check(
            lr, weight_decay=weight_decay, hyper_lr=hyper_lr, hyper_momentum=hyper_momentum,
            hyper_optimizer=hyper_optimizer, hyper_space=hyper_space, hyper_start=hyper_start, hyper_clip=hyper_clip,
            order=order, max_grad_norm=max_grad_norm, half=half, box=box, scope=scope, **values,
        )  # fmt: skip
        self.options, self.learned, self.fields = asked, asked.learned, asked.fields
        self.buckets: list[Bucket] = []
        self._owners: list[Any] = []  # groups or parameters, each with its own values; empty with scope="global"
        self._prepare()
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

        # The scalars live on the first parameter's device, in float64 where it has that: in float32 0.9 + 1e-9 is 0.9.
        parameters = [p for group in self.param_groups for p in group["params"]]
        self._device = parameters[0].device if parameters else torch.device("cpu")
        dtype = torch.float32 if self._device.type == "mps" else torch.float64

        def vector(values: Iterable[float]) -> Tensor:
            return torch.tensor([*values], dtype=dtype, device=self._device)

        self._hyper = Hyper(
            vector(asked.hyper_lr[k] for k in self.learned),
            vector(asked.hyper_momentum.get(k, 0.0) for k in self.learned),
            vector(asked.table[k].low for k in self.learned),
            vector(asked.table[k].high for k in self.learned),
            vector(asked.table[k].is_decay for k in self.learned).bool(),
            vector(asked.table[k].is_weight for k in self.learned).bool(),
        )
        q, one = vector(asked.start[k] for k in self.learned), vector([1.0])[0]
        nan, zero = torch.full_like(one, float("nan")), torch.zeros_like(one, dtype=torch.int64)
        self._scalars = Scalars(
            fixed=vector(asked.start[k] for k in self.options.fixed),
            q=q, q_applied=q.clone(), momentum=torch.zeros_like(q), square=torch.zeros_like(q),
            h=nan.expand_as(q).clone(), norm=nan, clip=one, clip_applied=one.clone(), accept=one.bool(),
            steps=zero, skipped=zero.clone(),
            lr_start=vector([float(lr)])[0],
        )  # fmt: skip
        self._needs_norm = bool(self.learned) or max_grad_norm is not None
        self._compiled = sum(p.numel() for p in parameters) >= COMPILE_FROM if compile is None else compile
        self._add_buckets(self.param_groups)

    @classmethod
    def check(cls, lr: float = 1e-3, **options_of_constructor: Any) -> Options:
        """What an optimizer made with these keywords would learn, from where and with how much state (options.py),
        without making it. Raises ValueError as the constructor does."""
        try:
            return options.check(cls, lr, **options_of_constructor)
        except ValueError as error:
            raise ValueError(f"{cls.__name__}: {error}") from None

    # ------------------------------------------------------------------------------------------------ parameters

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group with `params`, and `lr` and `weight_decay` if they differ; at any time, as in torch.optim. Other
        keys are kept and not read."""
        for k in param_group.keys() & {"lr", "weight_decay"}:
            refuse_outside(f"{type(self).__name__}: param group: {k}", param_group[k], 0)
        super().add_param_group(param_group)
        if hasattr(self, "_scalars"):  # not while torch's constructor adds the first groups
            try:
                self._add_buckets(self.param_groups[-1:])
            except ValueError:
                self.param_groups.pop()
                raise

    def _check_groups(self) -> None:
        name = type(self).__name__
        for g, group in enumerate(self.param_groups):
            for k in sorted(group.keys() & self._names):
                raise ValueError(f"{name}: param group {g}: {k} is the same for all groups, give it to {name} itself")
            for p in group["params"]:
                if not p.dtype.is_floating_point:
                    raise ValueError(f"{name}: parameters of dtype {p.dtype} cannot be optimized")
        if both := overlapping([p for group in self.param_groups for p in group["params"]]):
            names = " and ".join(name_of(p, self.param_groups) for p in both)
            raise ValueError(f"{name}: {names} lie in the same memory: give the optimizer one of them, and tie modules "
                             "by sharing the Parameter itself")  # fmt: skip

    def _find_owners(self, groups: list[dict[str, Any]]) -> list[int] | None:
        """Of each parameter of the groups, which row of the learned values is its own. New ones begin at the start."""
        scope = self.options.scope
        if scope == "global" or not self.learned:
            return None
        before = {id(owner): row for row, owner in enumerate(self._owners)}
        params = [(group, p) for group in self.param_groups for p in group["params"]]
        self._owners = [*self.param_groups] if scope == "group" else [p for _, p in params]
        if [*before] != [*map(id, self._owners)]:
            begin = self._scalars.q.new_tensor([self.options.start[k] for k in self.learned])
            new = {"q": begin, "q_applied": begin, "momentum": begin * 0, "square": begin * 0, "h": begin * math.nan}
            for name, value in new.items():
                old = getattr(self._scalars, name)
                rows = [old[before[id(o)]] if id(o) in before else value for o in self._owners]
                new[name] = torch.stack(rows) if rows else begin.expand(0, -1)
            self._scalars = self._scalars._replace(**new)
        row = {id(owner): i for i, owner in enumerate(self._owners)}
        return [row[id(group if scope == "group" else p)] for group in groups for p in group["params"]]

    def _add_buckets(self, groups: list[dict[str, Any]]) -> None:
        self._check_groups()
        owners = self._find_owners(groups)
        for kind in dict.fromkeys(Kind.of(p) for group in groups for p in group["params"]):
            half = self.options.half
            self.buckets.append(Bucket(groups, kind, self.State, self.fields, half, bool(self.learned), owners))
            self._show_state(self.buckets[-1])
        self._layout = self._current_layout()

    def _current_layout(self) -> Any:
        """What a step relies on, by identity: groups, their parameters, the tensors in their state."""
        state = self.state
        groups = [(id(g), self._names.isdisjoint(g), [*map(id, g["params"])]) for g in self.param_groups]
        return groups, len(state), [[*map(id, state.get(p, {}).values())] for b in self.buckets for p in b.params]

    def _follow_edits(self) -> None:
        """Where groups, parameters or state were replaced since the last step, lay them out anew. What has no state any
        longer begins again, as in torch.optim."""
        if self._current_layout() != self._layout:
            self._check_groups()
            kept = {p: self.state[p] for group in self.param_groups for p in group["params"] if p in self.state}
            self.buckets, self.state = [], defaultdict(dict)
            self._passes.clear()
            self._add_buckets(self.param_groups)
            for p, saved in kept.items():
                for k in self.state[p].keys() & saved.keys():
                    self.state[p][k].copy_(saved[k])

    def _show_state(self, bucket: Bucket) -> None:
        """Put the parameters' views of the bucket's rows into `state`."""
        matrices = bucket.states if bucket.pending is None else bucket.states | {"pending": bucket.pending}
        for i, (p, (row, end)) in enumerate(zip(bucket.params, bucket.spans, strict=True)):
            if p.numel():
                self.state[p] = {k: own_storage(bucket.view(matrix, i)) for k, matrix in matrices.items()}
            if row < end:
                self.state[p] |= {k: getattr(bucket.rows, v)[row:end] for k, v in COLUMNS.items()}

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients. With set_to_none=False they are zeroed and stay views of one flat matrix, into which
        backward then adds: the faster way (a parameter that gets no gradient counts as having a zero one)."""
        if set_to_none:
            super().zero_grad(set_to_none=True)
        else:
            with torch.no_grad():
                self._follow_edits()
            for bucket in self.buckets:
                bucket.attach_gradients()

    # ------------------------------------------------------------------------------------------------------ step

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step; returns what `closure`, if given, returned. Nothing in here waits for the device."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._follow_edits()
        buckets = [bucket for bucket in self.buckets if len(bucket.rows.t)]
        if not buckets:
            return loss
        for b in buckets:
            b.gather()
        self.sync_param_groups()

        if self._needs_norm:
            sums = self._total({b: self._sums(b) for b in buckets})
            self._scalars = self._run("judge", None, self._scalars, sums[-1])
            if self.options.order == "coefficients_first":
                self._learn_from(sums[:-1])
        for b in buckets:
            columns = self._run("update", b, self._scalars, b.rows)
            torch._foreach_copy_([b.rows.t, b.rows.has_pending, b.rows.lr_applied], columns)
            b.write_back()
            torch.autograd.graph.increment_version(b.params)  # backward through a graph that saved old ones raises
        if self._needs_norm:
            now = self._scalars
            self._scalars = now._replace(
                q_applied=torch.where(now.accept, now.q, now.q_applied),
                clip_applied=torch.where(now.accept, now.clip, now.clip_applied),
            )
            if self.options.order == "weights_first":
                self._learn_from(sums[:-1])
        return loss

    def sync_param_groups(self) -> None:
        """Copy the groups' learning rates and weight decays, where they changed, to the device."""
        for b in self.buckets:
            b.sync_param_groups()

    def step_in_place(self) -> None:
        """`step`, but its numbers stay where they are in memory: a CUDA graph of it can be replayed, each time after
        `sync_param_groups`."""
        own = self._scalars
        try:
            self.step()
            for old, new in zip(own, self._scalars, strict=True):
                old.copy_(new)
        finally:
            self._scalars = own

    def _sums(self, b: Bucket) -> Tensor:
        """The bucket's hypergradients, flat, and |g|^2."""
        sums = self._run("hypergradient", b, self._scalars, b.rows)
        return sums if b.rows.owner is None else self._step.per_owner(self._scalars, sums, b.rows.owner)

    def _total(self, sums: dict[Bucket, Tensor]) -> Tensor:
        """The buckets' sums, added up: K + 1 numbers, the only ones that processes with shards exchange."""
        for bucket, s in sums.items():
            for group in bucket.process_groups:
                torch.distributed.all_reduce(s, group=group)
        parts = [s.to(self._device) for s in sums.values()]
        return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)

    def _learn_from(self, h: Tensor) -> None:
        if self.learned:
            self._scalars = self._run("learn", None, self._scalars, self._hyper, h)

    def _run(self, name: str, bucket: Bucket | None, scalars: Scalars, *args: Any) -> Any:
        """A function of step.py, compiled for the bucket."""
        key = (name, bucket)
        if key not in self._passes:
            self._passes[key] = CompiledPass(getattr(self._step, name), self._compiled)
        if bucket is not None and bucket.device != self._device:
            scalars = Scalars(*(s.to(bucket.device) for s in scalars))
        return self._passes[key](scalars, *args)

    # ---------------------------------------------------------------------------------------------------- report

    @property
    def coefficients(self) -> dict[str, float]:
        """Value of each coefficient, learned or not; with another scope than "global" the mean over its owners."""
        learned = self._means(self._scalars.q)
        fixed = dict(zip(self.options.fixed, self._scalars.fixed.tolist(), strict=True))
        return {k: learned[k] if k in learned else fixed[k] for k in (*self.table, *learned) if k in learned | fixed}

    @property
    def hypergradients(self) -> dict[str, float]:
        """Derivative of the last loss with respect to each learned coefficient, before the clamp; NaN before step 2."""
        return self._means(self._scalars.h)

    @property
    def coefficients_by_owner(self) -> list[dict[str, float]]:
        """Learned coefficients of each param group (scope="group"), or of each parameter in the groups' order
        (scope="tensor"); with scope="global" those of all."""
        rows = self._scalars.q if self._owners else self._scalars.q[None]
        return [dict(zip(self.learned, row, strict=True)) for row in rows.tolist()]

    def _means(self, values: Tensor) -> dict[str, float]:
        return dict(zip(self.learned, (values.mean(0) if self._owners else values).tolist(), strict=True))

    @property
    def grad_norm(self) -> Tensor | None:
        return self._scalars.norm if self._needs_norm else None

    @property
    def skipped(self) -> Tensor:
        return self._scalars.skipped

    # ---------------------------------------------------------------------------------------------------- state

    def __getstate__(self) -> dict[str, Any]:
        """For copy.deepcopy and pickle: all but what is compiled or made by others, such as hooks and the `step` that a
        scheduler wrapped, as in torch.optim."""
        made_by_torch = super().__getstate__() | {"state": defaultdict(dict)}  # the buckets hold the state
        ours = ("options", "learned", "fields", "buckets", "_owners", "_device", "_hyper", "_scalars",
                "_needs_norm", "_compiled")  # fmt: skip
        return made_by_torch | {k: self.__dict__[k] for k in ours}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._prepare()
        for bucket in self.buckets:
            self._show_state(bucket)
        self._layout = self._current_layout()

    def _prepare(self) -> None:
        """What is made anew in a copy."""
        self._names = {*self.table, *self.constants}
        self._step = Step(type(self), self.options)
        self._passes: dict[Any, CompiledPass] = {}

    def state_dict(self) -> dict[str, Any]:
        """As in torch.optim, with the scalars beside it; tensors, numbers and strings, so that weights_only=True loads
        it. In `state` a matrix is a view in the parameter's shape (a DTensor where that is one), a column one number.
        """
        known = {"rule": self.advance.__qualname__, "learned": list(self.learned), "scope": self.options.scope}
        scalars = known | self._scalars._asdict()
        del scalars["fixed"]
        params = [p for group in self.param_groups for p in group["params"]]
        state = {
            i: {k: v[:1] if k in COLUMNS else whole(v, p) for k, v in self.state[p].items()}
            for i, p in enumerate(params) if p in self.state
        }  # fmt: skip
        return super().state_dict() | {"state": state, "scalars": scalars}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:  # type: ignore[override]
        """Copy a state in, whatever device and dtype it was saved from, laid out as the parameters are or whole. The
        values of fixed coefficients and the hyper rates stay those of this optimizer. Raises ValueError if the state is
        that of another rule or other parameters."""
        name = type(self).__name__
        with torch.no_grad():
            self._follow_edits()
        if "scalars" not in state_dict:
            raise ValueError(f"{name}: this state is not of one of these optimizers: {sorted(state_dict)}")
        if state_dict["scalars"]["rule"] != self.advance.__qualname__:
            raise ValueError(f"{name}: this state is of another rule, {state_dict['scalars']['rule']}")
        learned = state_dict["scalars"]["learned"]
        if learned != list(self.learned):
            raise ValueError(f"{name}: this state learned {learned}, this optimizer learns {list(self.learned)}")
        scope = state_dict["scalars"]["scope"]
        if scope != self.options.scope:
            raise ValueError(f"{name}: this state has scope {scope!r}, this optimizer {self.options.scope!r}")
        ours, theirs = ([len(g["params"]) for g in d["param_groups"]] for d in (super().state_dict(), state_dict))
        if ours != theirs:
            raise ValueError(f"{name}: param groups of {theirs} parameters do not fit groups of {ours}")
        ids = [i for group in state_dict["param_groups"] for i in group["params"]]
        params = [p for group in self.param_groups for p in group["params"]]
        saved = dict(zip(params, (state_dict["state"].get(i, {}) for i in ids), strict=True))
        for p in self.state:
            shapes = {k: tuple(p.shape) for k in self.state[p] if k not in COLUMNS}
            others = {k: tuple(v.shape) for k, v in saved[p].items() if k not in COLUMNS}
            if shapes != others:
                raise ValueError(f"{name}: a parameter's state {others} does not fit {shapes}")
        for p, mine in self.state.items():
            for k, target in mine.items():
                target.copy_(saved[p][k][:1].clone() if k in COLUMNS else share(saved[p][k], p))  # it may be our own
        for group, its in zip(self.param_groups, state_dict["param_groups"], strict=True):
            group.update({k: v for k, v in its.items() if k != "params"})
        scalars = state_dict["scalars"]
        own = {k: v for k, v in self._scalars._asdict().items() if k != "fixed" and k in scalars}  # square is newer
        self._scalars = self._scalars._replace(**{k: scalars[k].to(v).clone() for k, v in own.items()})
