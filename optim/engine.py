"""The engine: one torch.optim.Optimizer that runs any rule and learns any of its coefficients (paper, algorithm 1).

Parameters, gradients and states live in matrices of shape (R, *ROW), each parameter in rows of its own, and whatever
differs between parameters (step, learning rate, weight decay, has it a gradient) is a column of shape (R, 1, 1)
(flat.py). So a step is the same few kernels whatever the number of parameters and groups, and a value that changes
recompiles nothing. reference.py is the same algorithm in one screen.

At step t the engine holds the state of step t-2, the pending gradient g_{t-1} and the new g_t.

    hypergradient  reads only: d direction(q, state_{t-2}, g_{t-1}) / d q against g_t, which is h_t, and |g_t|^2
    judge          scalars, on the device: is |g_t| finite, the factor that clips g_t
    learn          scalars: q_t from q_{t-1} and h_t
    update         advances with g_{t-1} to state_{t-1}, which it stores, and again with g_t to x_t

With weights first, learn comes after update.

No graph outlives a step, autograd never goes through the model a second time, and nothing waits for the device.
"""

import weakref
from collections import defaultdict, namedtuple
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from . import options
from .compiled import CompiledPass
from .flat import Bucket, Kind, Rows, name_of, overlapping, own_storage, share, whole
from .options import Options, refuse_outside
from .rule import Coefficient

COMPILE_FROM = 100_000  # with compile=None, the number of parameters from which compiling pays for itself
COLUMNS = {"step": "t", "has_pending": "has_pending", "lr_applied": "lr_applied"}  # of Rows, in a parameter's state
HARMLESS = {"params", "param_names", "name", "initial_lr"}  # in a param group: what torch and its schedulers put there


class Scalars(NamedTuple):
    """What changes from step to step besides the rows: 0-D tensors, and one value per learned coefficient (K,)."""

    fixed: Tensor  # coefficients and constants that are not learned; never changes
    q: Tensor  # learned coefficients after the last step
    q_applied: Tensor  # those that made x
    momentum: Tensor
    h: Tensor  # hypergradients
    norm: Tensor  # of the gradient, before clipping
    clip: Tensor  # factor that clips this gradient
    clip_applied: Tensor  # factor that clipped the pending gradient
    accept: Tensor  # whether this step counts: its gradient is finite
    steps: Tensor  # that counted
    skipped: Tensor  # steps in a row that did not
    lr_start: Tensor  # what a learned lr is measured by


class Hyper(NamedTuple):
    """The coefficients' own optimizer, one value per learned coefficient (K,)."""

    rate: Tensor
    decay: Tensor
    low: Tensor
    high: Tensor


class RuleOptimizer(Optimizer):
    """An optimizer defined by `table`, `State` and `advance` (see rule.py); subclass it to bring your own rule.

    Args:
        params: parameters, or param groups, each with its own `lr` and `weight_decay` if it has them
        lr: learning rate
        <name>: start value of a coefficient in the rule's `table`, or value of one of its `constants`
        weight_decay: decoupled, x <- (1 - lr * weight_decay) x
        hyper_lr: rate of each coefficient that is learned, {"beta1": 1e-4, ...}; None: what the rule `learns`. Names
            "lr" too: the learned rate starts at `lr`, and the groups' rates are multiplied by its ratio to `lr`
        hyper_momentum: momentum of the coefficients' SGD: a number, or {name: number}
        hyper_start: the coefficients stay for this many steps (skipped ones do not count)
        hyper_clip: hypergradients are clamped to [-hyper_clip, hyper_clip]
        order: "coefficients_first" (x_t is made with q_t) or "weights_first" (with q_{t-1}, algorithm 1 as printed)
        max_grad_norm: clip the gradient to this global norm within the step; None: do not
        half: states to keep in bfloat16, by their names in `State`, and "pending" for the pending gradient; what it
            costs in accuracy: docs/MADA.md
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
    learns: ClassVar[tuple[str, ...]] = ()  # with hyper_lr=None
    parts: ClassVar[Mapping[str, tuple[float, tuple[str, ...]]]] = {}  # {name: (idle value, fields idle with it)}
    State: ClassVar[Any]
    advance: Callable[..., Any]

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        *,
        weight_decay: float = 0.0,
        hyper_lr: Mapping[str, float] | None = None,
        hyper_momentum: float | Mapping[str, float] = 0.0,
        hyper_start: int = 0,
        hyper_clip: float = 10.0,
        order: str = "coefficients_first",
        max_grad_norm: float | None = None,
        half: Iterable[str] = (),
        box: Mapping[str, tuple[float, float]] | None = None,
        compile: bool | None = None,
        **values: float,
    ) -> None:
        asked = self.check(
            lr, weight_decay=weight_decay, hyper_lr=hyper_lr, hyper_momentum=hyper_momentum, hyper_start=hyper_start,
            hyper_clip=hyper_clip, order=order, max_grad_norm=max_grad_norm, half=half, box=box, **values,
        )  # fmt: skip
        self.options, self.learned, self.fields = asked, asked.learned, asked.fields
        self._fixed_names = tuple(k for k in asked.start if k not in self.learned)
        self.buckets: list[Bucket] = []
        self._prepare()
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

        # The scalars live on the first parameter's device, in float64 where it has that: 0.9 + 1e-9 is not 0.9.
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
        )
        q, one = vector(asked.start[k] for k in self.learned), vector([1.0])[0]
        nan, zero = torch.full_like(one, float("nan")), torch.zeros_like(one, dtype=torch.int64)
        self._scalars = Scalars(
            fixed=vector(asked.start[k] for k in self._fixed_names),
            q=q, q_applied=q, momentum=torch.zeros_like(q), h=nan.expand_as(q).clone(),
            norm=nan, clip=one, clip_applied=one, accept=one.bool(), steps=zero, skipped=zero,
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
        """Add a group with `params`, and `lr` and `weight_decay` if they differ; at any time, as in torch.optim."""
        for k in sorted(set(param_group) - HARMLESS - {"lr", "weight_decay"}):
            raise ValueError(f"{type(self).__name__}: param group: no coefficient {k!r}, it has lr, weight_decay")
        for k in param_group.keys() & {"lr", "weight_decay"}:
            refuse_outside(f"{type(self).__name__}: param group: {k}", param_group[k], 0)
        super().add_param_group(param_group)
        if hasattr(self, "_scalars"):  # not while torch's constructor adds the first groups
            try:
                self._add_buckets(self.param_groups[-1:])
            except ValueError:
                self.param_groups.pop()
                raise

    def _add_buckets(self, groups: list[dict[str, Any]]) -> None:
        parameters = [p for group in self.param_groups for p in group["params"]]
        if both := overlapping(parameters):
            names = " and ".join(name_of(p, self.param_groups) for p in both)
            raise ValueError(f"{type(self).__name__}: {names} lie in the same memory: give the optimizer one of them, "
                             "and tie modules by sharing the Parameter itself")  # fmt: skip
        for kind in dict.fromkeys(Kind.of(p) for group in groups for p in group["params"]):
            if not kind.dtype.is_floating_point:
                raise ValueError(f"{type(self).__name__}: parameters of dtype {kind.dtype} cannot be optimized")
            half = self.options.half
            self.buckets.append(Bucket(groups, kind, self.State, self.fields, half, learning=bool(self.learned)))
            self._show_state(self.buckets[-1])

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
        buckets = [bucket for bucket in self.buckets if len(bucket.rows.t)]
        if not buckets:
            return loss
        for b in buckets:
            b.gather()
            b.sync_param_groups()

        if self._needs_norm:
            sums = self._total({b: self._run("_hypergradient", b, self._scalars, b.rows) for b in buckets})
            self._scalars = self._run("_judge", None, self._scalars, sums[-1])
            if self.options.order == "coefficients_first":
                self._learn_from(sums[:-1])
        for b in buckets:
            columns = self._run("_update", b, self._scalars, b.rows)
            torch._foreach_copy_([b.rows.t, b.rows.has_pending, b.rows.lr_applied], columns)
            b.write_back()
            torch.autograd.graph.increment_version(b.params)  # a graph that still needs the old ones says so
        if self._needs_norm:
            now = self._scalars
            self._scalars = now._replace(
                q_applied=torch.where(now.accept, now.q, now.q_applied),
                clip_applied=torch.where(now.accept, now.clip, now.clip_applied),
            )
            if self.options.order == "weights_first":
                self._learn_from(sums[:-1])
        return loss

    def _total(self, sums: dict[Bucket, Tensor]) -> Tensor:
        """The buckets' sums, added up: K + 1 numbers, the only ones that processes with shards exchange."""
        for bucket, s in sums.items():
            for group in bucket.process_groups:
                torch.distributed.all_reduce(s, group=group)
        parts = [s.to(self._device) for s in sums.values()]
        return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)

    def _learn_from(self, h: Tensor) -> None:
        if self.learned:
            self._scalars = self._run("_learn", None, self._scalars, self._hyper, h)

    def _run(self, name: str, bucket: Bucket | None, scalars: Scalars, *args: Any) -> Any:
        """One of the functions below, compiled for the bucket."""
        key = (name, bucket)
        if key not in self._passes:  # a bound method would be a cycle of references, which outlives the optimizer
            self._passes[key] = CompiledPass(partial(getattr(type(self), name), weakref.proxy(self)), self._compiled)
        if bucket is not None and bucket.device != self._device:
            scalars = Scalars(*(s.to(bucket.device) for s in scalars))
        return self._passes[key](scalars, *args)

    # The functions below are pure but for the copy_s of _update.

    def _advance(self, now: Scalars, learned: Iterable[Tensor], s: Any, g: Tensor, t: Tensor) -> tuple[Tensor, Any]:
        names = (*self.learned, *self._fixed_names)
        q: Any = self._q_type(**dict(zip(names, (*learned, *now.fixed.to(t.dtype).unbind()), strict=True)))
        direction, s = self.advance(q, s, g, t)
        if "lr" in self.learned:
            direction = q.lr / now.lr_start.to(t.dtype) * direction
        return direction, s

    def _hypergradient(self, now: Scalars, rows: Rows) -> Tensor:
        """(K + 1,): the hypergradients <g, d x / d q> of the coefficients that made x, and |g|^2. Reads only."""
        t, dtype = rows.t, rows.t.dtype
        g, s = rows.g.to(dtype), self._cast(rows.state, dtype)
        columns = [torch.where(rows.active, (g * g).sum((1, 2), keepdim=True), 0)]
        if rows.pending is not None:
            p = rows.pending.to(dtype) * now.clip_applied.to(dtype)
            q = now.q_applied.to(dtype).expand(len(t), 1, -1).split(1, dim=-1)  # one copy a row: summed by row first
            vjp = torch.func.vjp(lambda *q: self._advance(now, q, s, p, t)[0], *q)[1]
            made = rows.active & rows.has_pending  # elsewhere x was not made by the pending gradient
            columns = [torch.where(made, -rows.lr_applied * h, 0) for h in vjp(g)] + columns
        return torch.stack([column.sum(dtype=now.clip.dtype) for column in columns])

    def _judge(self, now: Scalars, square: Tensor) -> Scalars:
        """From |g|^2: whether the step counts, and the factor that clips it."""
        norm = square.sqrt()
        accept = torch.isfinite(norm)
        clip = torch.ones_like(norm)
        if self.options.max_grad_norm is not None:  # as torch.nn.utils.clip_grad_norm_ does
            clip = torch.clamp(self.options.max_grad_norm / (norm + 1e-6), max=1.0)
        skipped = torch.where(accept, 0, now.skipped + 1)
        return now._replace(norm=norm, clip=clip, accept=accept, steps=now.steps + accept, skipped=skipped)

    def _learn(self, now: Scalars, hyper: Hyper, h: Tensor) -> Scalars:
        """q_t from q_{t-1} and its hypergradient, by SGD with momentum and projection on the box."""
        h = torch.where(now.steps > 1, h, float("nan"))  # no coefficients made the first x
        moves = now.accept & torch.isfinite(h) & (now.steps > self.options.hyper_start)
        momentum = hyper.decay * now.momentum + h.clamp(-self.options.hyper_clip, self.options.hyper_clip)
        momentum = torch.where(moves, momentum, now.momentum)
        q = torch.where(moves, torch.clamp(now.q - hyper.rate * momentum, hyper.low, hyper.high), now.q)
        return now._replace(q=q, momentum=momentum, h=h)

    def _update(self, now: Scalars, rows: Rows) -> list[Tensor]:
        """Write x, the states and the pending gradient; return the new columns t, has_pending, lr_applied."""
        t, dtype, active = rows.t, rows.t.dtype, rows.active & now.accept
        s = self._cast(rows.state, dtype)
        clipped = rows.g.to(dtype) * now.clip.to(dtype)
        q = now.q.to(dtype).unbind()
        if rows.pending is None:
            direction, new = self._advance(now, q, s, clipped, t + 1)
            new = self._keep(active, new, s)
        else:  # the pending gradient enters the states, with the coefficients that made x of it, and g becomes pending
            p = rows.pending.to(dtype) * now.clip_applied.to(dtype)
            _, new = self._advance(now, now.q_applied.to(dtype).unbind(), s, p, t)
            new = self._keep(rows.has_pending & now.accept, new, s)
            direction, _ = self._advance(now, q, new, clipped, t + 1)
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
        return self.State(*(None if matrix is None else matrix.to(dtype) for matrix in state))

    def _keep(self, chosen: Tensor, new: Any, old: Any) -> Any:
        """The new state in the rows that are chosen, the old one in the others."""
        return self.State(*(None if b is None else torch.where(chosen, a, b) for a, b in zip(new, old, strict=True)))

    # ---------------------------------------------------------------------------------------------------- report

    @property
    def coefficients(self) -> dict[str, float]:
        """Value of each coefficient, learned or not."""
        learned = dict(zip(self.learned, self._scalars.q.tolist(), strict=True))
        fixed = dict(zip(self._fixed_names, self._scalars.fixed.tolist(), strict=True))
        return {k: learned[k] if k in learned else fixed[k] for k in (*self.table, *learned) if k in learned | fixed}

    @property
    def hypergradients(self) -> dict[str, float]:
        """Derivative of the last loss with respect to each learned coefficient, before the clamp; NaN before step 2."""
        return dict(zip(self.learned, self._scalars.h.tolist(), strict=True))

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
        ours = ("options", "learned", "fields", "buckets", "_fixed_names", "_device", "_hyper", "_scalars",
                "_needs_norm", "_compiled")  # fmt: skip
        return made_by_torch | {k: self.__dict__[k] for k in ours}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._prepare()
        for bucket in self.buckets:
            self._show_state(bucket)

    def _prepare(self) -> None:
        """What is made anew in a copy."""
        self._q_type = namedtuple("Q", self.options.start.keys())  # type: ignore[misc]
        self._passes: dict[Any, CompiledPass] = {}

    def state_dict(self) -> dict[str, Any]:
        """As in torch.optim, with the scalars beside it; tensors, numbers and strings, so that weights_only=True loads
        it. In `state` a matrix is a view in the parameter's shape (a DTensor where that is one), a column one number.
        """
        known = {"rule": self.advance.__qualname__, "learned": list(self.learned)}
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
        if "scalars" not in state_dict:
            raise ValueError(f"{name}: this state is not of one of these optimizers: {sorted(state_dict)}")
        if state_dict["scalars"]["rule"] != self.advance.__qualname__:
            raise ValueError(f"{name}: this state is of another rule, {state_dict['scalars']['rule']}")
        learned = state_dict["scalars"]["learned"]
        if learned != list(self.learned):
            raise ValueError(f"{name}: this state learned {learned}, this optimizer learns {list(self.learned)}")
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
        own = {k: v for k, v in self._scalars._asdict().items() if k != "fixed"}
        self._scalars = self._scalars._replace(**{k: scalars[k].to(v).clone() for k, v in own.items()})
