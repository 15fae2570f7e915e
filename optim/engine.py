"""The engine: one torch.optim.Optimizer that runs any rule and learns any of its coefficients (paper, algorithm 1).

Parameters, gradients and states live in matrices of shape (R, *ROW), each parameter in rows of its own, and whatever
differs between parameters (step, learning rate, weight decay, whether there is a gradient) is a column (R, 1, 1)
(flat.py). So a step is the same few kernels whatever the number of parameters and groups, and a value that changes
recompiles nothing. reference.py is the same algorithm in one screen.

At step t the engine holds state_{t-2}, g_{t-1} and g_t. The first two and the q then in use made x_{t-1}, so h_t can
still be computed from them. g_{t-1} is called pending, since it has not entered the stored state yet.

    hypergradient  reads only: h_t = -lr_{t-1} < g_t, d direction(q, state_{t-2}, clipped g_{t-1}) / d q >, and |g_t|^2
    judge          scalars, on the device: whether |g_t| is finite, and the factor that clips g_t
    learn          scalars: q_t from q_{t-1} and h_t
    update         advances with g_{t-1} to state_{t-1}, which it stores, and again with g_t to x_t

With weights first, learn comes after update. With nothing to learn there is no pending gradient: update alone.

No graph outlives a step, autograd never goes through the model a second time, and nothing waits for the device.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from . import options, saved
from .check import probe, refuse_inside_zero
from .compiled import CompiledPass
from .flat import COLUMNS, Bucket, Kind, has_others_memory, name_of, overlapping, own_storage, share
from .options import Options, refuse_below
from .rule import Coefficient
from .step import Scalars, Step
from .values import BY_OWNER, OF_ALL, Values, key_of

COMPILE_FROM = 100_000  # with compile=None, the number of parameters from which compiling pays for itself


class RuleOptimizer(Optimizer):
    """An optimizer defined by `table`, `State` and `advance` (see rule.py); subclass it to bring your own rule.

    Args:
        params: parameters, or param groups, each with its own `lr`, `weight_decay` and coefficients if it has them,
            and `hyper_lr` and `box` (of what they name) where scope is not "global"
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
        half: states to keep in bfloat16, half of float32, by their names in `State`, and "pending" for the pending
            gradient; what it costs in accuracy: docs/MADA.md
        scope: whose hypergradients are added up to move a coefficient, and so who shares its value: "global" (all
            parameters; the paper), "group" (those of a param group) or "tensor" (each parameter has its own)
        box: {name: (low, high)}, where a learned coefficient may go; others keep the box of the rule's table
        compile: compile the step; None: if there are at least 100,000 parameters

    Attributes:
        param_groups: hold the coefficients too, to be read without waiting for the device and written (values.py)
        coefficients, hypergradients: {name: float}; reading them waits for the device
        grad_norm: norm of the last gradient before clipping, a 0-D tensor; None without
            max_grad_norm and with nothing to learn
        skipped: steps in a row, up to the last, skipped because the norm was not finite (nothing moves in such a step);
            a 0-D tensor. Without max_grad_norm and with nothing to learn the norm is not read and a NaN reaches x

    Raises ValueError for a name or a number out of place.
    """

    # What a rule defines.
    table: ClassVar[Mapping[str, Coefficient]] = {}
    constants: ClassVar[Mapping[str, float]] = {}
    learns: ClassVar[tuple[str, ...]] = ()  # names that are learned where hyper_lr is None
    unused_at: ClassVar[Mapping[str, tuple[float, tuple[str, ...]]]] = {}  # {name: (value, fields not needed at it)}
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
        self.options, self.learned, self.fixed, self.fields = asked, asked.learned, asked.fixed, asked.fields
        self.buckets: list[Bucket] = []
        self._named(lambda: probe(type(self), asked))
        self._needs_norm = bool(self.learned) or max_grad_norm is not None
        if self._needs_norm:
            self._named(refuse_inside_zero)
        starts = {k: asked.start[k] for k in (*self.table, *self.constants)}
        defaults = {"lr": lr, "weight_decay": weight_decay} | starts
        if "beta1" in defaults:
            defaults.setdefault("momentum", defaults["beta1"])  # values.py
        super().__init__(params, defaults)

        parameters = [p for group in self.param_groups for p in group["params"]]
        self._device = parameters[0].device if parameters else torch.device("cpu")
        self._values = Values(asked, self.advance.__qualname__, lr, self._device)
        self._compiled = sum(p.numel() for p in parameters) >= COMPILE_FROM if compile is None else compile
        self.layout_version = 0  # another one when memory that a step uses has moved: a captured CUDA graph is stale
        self._prepare()
        self._refuse_disagreement()
        self._lay_out()

    @classmethod
    def check(cls, lr: float = 1e-3, **options_of_constructor: Any) -> Options:
        """What an optimizer made with these keywords would learn, from where and with how much state (options.py),
        without making it. Raises ValueError as the constructor does."""
        return cls._named(lambda: options.check(cls, lr, **options_of_constructor))

    # ------------------------------------------------------------------------------------------------ parameters

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group with `params`, and whatever differs in it (see `params` above); at any time, as in torch.optim.
        Other keys are kept and not read."""
        for k in param_group.keys() & {"lr", "weight_decay"}:
            refuse_below(f"{type(self).__name__}: param group: {k}", param_group[k], 0)
        for k in (*BY_OWNER, *OF_ALL):  # of an optimizer that had the group before
            param_group.pop(k, None)
        shared = self.defaults.keys() - param_group.keys() - {"lr", "weight_decay"}
        super().add_param_group(param_group)
        for k in shared:  # torch wrote the default there; the value may have been learned since
            del param_group[k]
        if hasattr(self, "_values"):  # not while torch's constructor adds the first groups
            try:
                self._refuse_disagreement()
                self._lay_out()
            except ValueError:
                self.param_groups.pop()
                raise

    def _refuse_disagreement(self) -> None:
        """Raise ValueError if a coefficient that all groups share is another one in new groups."""
        known = {id(group) for group, _ in self._values.shown}
        new = [group for group in self.param_groups if id(group) not in known]
        for j, k in enumerate(self.learned if self.options.scope == "global" else ()):
            now = self._values.scalars.q[j].item() if known else self.options.start[k]
            values = {float(group.get(key_of(k), now)) for group in new} | ({now} if known else set())
            if len(values) > 1:
                raise ValueError(f"{type(self).__name__}: {k} is learned and shared by all param groups, but is "
                                 f"{' and '.join(map(str, sorted(values)))} in them: scope='group' gives each its own")

    def _lay_out(self) -> None:
        """Make buckets and values for the groups as they are. What has a state or a value keeps it; what has none
        begins, as in torch.optim. Raises ValueError, before anything is changed."""
        name, params = type(self).__name__, [p for group in self.param_groups for p in group["params"]]
        for p in params:
            if not p.dtype.is_floating_point:
                raise ValueError(f"{name}: parameters of dtype {p.dtype} cannot be optimized")
        if both := overlapping(params):
            names = " and ".join(name_of(p, self.param_groups) for p in both)
            raise ValueError(f"{name}: {names} lie in the same memory: give the optimizer one of them, and tie modules "
                             "by sharing the Parameter itself")  # fmt: skip
        owners = self._named(lambda: self._values.lay_out(self.param_groups))
        kept = {p: self.state[p] for p in params if p in self.state}
        self.buckets, self.state = [], defaultdict(dict)
        self._passes.clear()
        half, learning = self.options.half, bool(self.learned)
        for kind in dict.fromkeys(map(Kind.of, params)):
            bucket = Bucket(self.param_groups, kind, self.State, self.fields, half, learning, owners)
            self.buckets.append(bucket)
            self._show_state(bucket)
        for p, before in kept.items():
            for k in self.state[p].keys() & before.keys():
                self.state[p][k].copy_(before[k])
        self._layout = self._current_layout()
        self.layout_version += 1
        self._follow_values()

    @classmethod
    def _named(cls, action: Callable[[], Any]) -> Any:
        """What `action` returns; its ValueError gets the name of the optimizer in front."""
        try:
            return action()
        except ValueError as error:
            raise ValueError(f"{cls.__name__}: {error}") from None

    def _current_layout(self) -> Any:
        """What a step relies on, by identity: groups, their parameters, the tensors in their state."""
        settings = [str((group.get("hyper_lr"), group.get("box"))) for group in self.param_groups]
        tensors = [id(tensor) for own in self.state.values() for tensor in own.values()]
        return self._members(), settings, [*map(id, self.state)], tensors

    def _members(self) -> Any:
        return [(id(group), [*map(id, group["params"])]) for group in self.param_groups]

    @torch.no_grad()
    def _follow_edits(self) -> None:
        """Take over what was edited since the last step: groups, parameters, state, coefficients."""
        displaced = [bucket for bucket in self.buckets if bucket.displaced()]
        theirs = any(has_others_memory(p) for bucket in displaced for p in bucket.params)
        if theirs or self._current_layout() != self._layout:
            return self._lay_out()
        for bucket in displaced:
            bucket.adopt()
        self.layout_version += bool(displaced)
        self._follow_values()

    def _follow_values(self) -> None:
        if self._named(self._values.follow):
            self._lay_out()

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
            if self._members() != self._layout[0] or any(bucket.displaced() for bucket in self.buckets):
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
            b.sync_param_groups()

        now = self._values.scalars
        if self._needs_norm:
            sums = self._total({b: self._sums(b) for b in buckets})
            self._run("judge", None, now, sums[-1])
            if self.options.order == "coefficients_first":
                self._learn_from(sums[:-1])
        for b in buckets:
            columns = self._run("update", b, now, b.rows)
            torch._foreach_copy_([b.rows.t, b.rows.has_pending, b.rows.lr_applied], columns)
            b.write_back()
            torch.autograd.graph.increment_version(b.params)  # backward through an older graph that saved them raises
        if self._needs_norm:
            torch.where(now.accept, now.q, now.q_applied, out=now.q_applied)
            torch.where(now.accept, now.clip, now.clip_applied, out=now.clip_applied)
            if self.options.order == "weights_first":
                self._learn_from(sums[:-1])
        return loss

    def sync_param_groups(self) -> None:
        """Copy what was written into the groups to the device, as `step` does. A CUDA graph of it can be replayed after
        this, as long as `layout_version` is what it was."""
        self._follow_edits()
        for b in self.buckets:
            b.sync_param_groups()

    def _sums(self, b: Bucket) -> Tensor:
        """The bucket's hypergradients, flat, and |g|^2."""
        now = self._values.scalars
        sums = self._run("hypergradient", b, now, b.rows)
        owner = b.rows.owner
        return sums if now.q.dim() == 1 or owner is None else self._step.per_owner(now, sums, owner)

    def _total(self, sums: dict[Bucket, Tensor]) -> Tensor:
        """The buckets' sums, added up: K + 1 numbers, the only ones that processes with shards exchange."""
        for bucket, s in sums.items():
            for group in bucket.process_groups:
                torch.distributed.all_reduce(s, group=group)
        parts = [s.to(self._device) for s in sums.values()]
        return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)

    def _learn_from(self, h: Tensor) -> None:
        if self.learned:
            self._run("learn", None, self._values.scalars, self._values.hyper, h)

    def _run(self, name: str, bucket: Bucket | None, scalars: Scalars, *args: Any) -> Any:
        """A function of step.py, compiled for the bucket."""
        key = (name, bucket)
        if key not in self._passes:
            self._passes[key] = CompiledPass(getattr(self._step, name), self._compiled, (name, self._step.identity))
        if bucket is not None and bucket.device != self._device:
            scalars = Scalars(*(s.to(bucket.device) for s in scalars))
        result = self._passes[key](scalars, *args)
        self._compiled &= self._passes[key].compiled  # a compiler that failed once is asked no more
        return result

    # ---------------------------------------------------------------------------------------------------- report

    @property
    def coefficients(self) -> dict[str, float]:
        """Value of each coefficient, learned or not; the mean of them where groups or tensors have their own."""
        self._follow_edits()
        now, means = self._values.scalars, self._values.means
        found = dict(zip((*self.learned, *self.fixed), means(now.q) + means(now.fixed), strict=True))
        return {k: found[k] for k in (*self.table, "lr") if k in found}

    @property
    def hypergradients(self) -> dict[str, float]:
        """Derivative of the last loss with respect to each learned coefficient, before the clamp; NaN before step 2."""
        return dict(zip(self.learned, self._values.means(self._values.scalars.hypergradient), strict=True))

    @property
    def coefficients_by_owner(self) -> list[dict[str, float]]:
        """Learned coefficients of each param group (scope="group"), or of each parameter in the groups' order
        (scope="tensor"); with scope="global" those of all."""
        self._follow_edits()
        q = self._values.scalars.q
        if not self.learned:
            return [{}]
        return [dict(zip(self.learned, row, strict=True)) for row in q.view(-1, len(self.learned)).tolist()]

    @property
    def grad_norm(self) -> Tensor | None:
        return self._values.scalars.grad_norm if self._needs_norm else None

    @property
    def skipped(self) -> Tensor:
        return self._values.scalars.skipped

    def __repr__(self) -> str:
        """As torch's, with the values of learned coefficients and without what only goes on with the run."""
        lines = []
        for g, group in enumerate(self.param_groups):
            lines.append(f"Parameter Group {g}")
            for k in sorted(group.keys() - {"params", *BY_OWNER, *OF_ALL}):
                v = group[k].tolist() if isinstance(group[k], Tensor) else group[k]
                several = isinstance(group[k], Tensor) and isinstance(v, list) and v  # one value for each parameter
                lines.append(f"    {k}: {f'{min(v):.4g} to {max(v):.4g}' if several else v}")
        return "\n".join([f"{type(self).__name__} (", *lines]) + "\n)"

    # ---------------------------------------------------------------------------------------------------- state

    def __getstate__(self) -> dict[str, Any]:
        """For copy.deepcopy and pickle: all but what is compiled or made by others, such as hooks and the `step` that a
        scheduler wrapped, as in torch.optim."""
        self._follow_edits()
        made_by_torch = super().__getstate__() | {"state": defaultdict(dict)}  # the buckets hold the state
        ours = ("options", "learned", "fixed", "fields", "buckets", "layout_version", "_device", "_values",
                "_needs_norm", "_compiled")  # fmt: skip
        return made_by_torch | {k: self.__dict__[k] for k in ours}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._prepare()
        for bucket in self.buckets:
            self._show_state(bucket)
        self._values.show_again()
        self._layout = self._current_layout()

    def _prepare(self) -> None:
        """What the constructor makes and a copy has to make anew."""
        self._step = Step(type(self), self.options)
        self._passes: dict[Any, CompiledPass] = {}
        self.register_state_dict_post_hook(saved.packed)

    def state_dict(self) -> dict[str, Any]:
        """As in torch.optim: `state` by parameter, and in `param_groups` all that is learned. Tensors, numbers and
        strings, so that weights_only=True loads it. In `state` a matrix is a view in the parameter's shape (a DTensor
        where that is one)."""
        self._follow_edits()
        return super().state_dict()

    @torch.no_grad()
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:  # type: ignore[override]
        """Copy a state in, whatever device and dtype it was saved from, laid out as the parameters are or whole. Hyper
        rates and boxes stay those of this optimizer. The state of a torch Adam or AdamW is taken over where the rule
        keeps nothing else. Raises ValueError, and changes nothing, for another rule's or other parameters'."""
        self._follow_edits()
        state_dict = dict(state_dict)
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            result = hook(self, state_dict)
            state_dict = state_dict if result is None else result
        states, groups = self._named(lambda: saved.understood(self, state_dict))
        for p, mine in self.state.items():
            for k, target in mine.items():
                if k in COLUMNS:  # cloned first: it may be a view of our own rows
                    target.copy_(torch.as_tensor(states[p][k]).reshape(-1)[:1].view(1, 1, 1).clone())
                else:
                    target.copy_(share(states[p][k], p))
        for group, its in zip(self.param_groups, groups, strict=True):
            group.update(deepcopy(its))
        self._follow_values()
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)
