"""What an optimizer is asked for, checked against its rule: `MADA.check(lr=1e-3, beta1=0.8)`, no parameter needed."""

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from .rule import Coefficient

ORDERS = ("coefficients_first", "weights_first")
SCOPES = ("global", "group", "tensor")
HYPER_OPTIMIZERS = ("sgd", "sign", "adam")
HYPER_SPACES = ("linear", "log")
KEYWORDS = (
    "lr", "weight_decay", "hyper_lr", "hyper_momentum", "hyper_optimizer", "hyper_space", "hyper_start", "hyper_clip",
    "order", "max_grad_norm", "half", "box", "scope", "compile",
)  # fmt: skip
FROM_ELSEWHERE = {  # keywords of other libraries' optimizers, and what takes their place here
    "betas": "write beta1=..., beta2=...",
    "momentum": "the decay of the first moment is beta1",
    "amsgrad": "use AMSGrad",
    "nesterov": "use Adan",
    "maximize": "minimize the negative loss",
    "clipnorm": "write max_grad_norm=...",
    "foreach": "leave it out, the step is fused",
    "fused": "leave it out, the step is fused",
    "capturable": "leave it out, the step never waits for the device",
    "differentiable": "hyper_lr={...} differentiates the step",
}


@dataclass(frozen=True)
class Options:
    """Checked options of a rule. K coefficients are learned.

    table      the rule's coefficients, with "lr" where that is learned, in the boxes that hold here
    start      value of each coefficient and constant before the first step
    learned    names of the K learned coefficients
    hyper_lr   their rates; hyper_momentum  their momenta
    fields     fields of the rule's State that are kept; the others are idle
    idle       {coefficient: value at which it has to stay, since the fields that it needs are not kept}
    half       names of the states, and "pending", kept in bfloat16
    scope      who shares the value of a learned coefficient: all parameters, those of a group, or nobody
    """

    table: Mapping[str, Coefficient]
    start: Mapping[str, float]
    learned: tuple[str, ...]
    hyper_lr: Mapping[str, float]
    hyper_momentum: Mapping[str, float]
    hyper_start: int
    hyper_clip: float
    order: str
    max_grad_norm: float | None
    fields: tuple[str, ...]
    half: frozenset[str]
    idle: Mapping[str, float]
    scope: str = "global"
    hyper_optimizer: str = "sgd"
    hyper_space: str = "linear"

    @property
    def fixed(self) -> tuple[str, ...]:
        """Names of the coefficients and constants that are not learned."""
        return tuple(k for k in self.start if k not in self.learned)

    def state_bytes(self, dtype: torch.dtype = torch.float32) -> int:
        """Bytes of state per parameter of this dtype: the kept fields, and the pending gradient where one is learned
        from. Rows are filled up to multiples of 1024 elements (flat.py)."""
        compute = compute_dtype(dtype)
        kept = [torch.bfloat16 if field in self.half else compute for field in self.fields]
        kept += [torch.bfloat16 if "pending" in self.half else dtype] * bool(self.learned)
        return sum(d.itemsize for d in kept)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """In which the states of parameters of this dtype are kept and computed."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def check(rule: Any, lr: Any = 1e-3, *, weight_decay: float = 0.0, hyper_lr: float | Mapping[str, float] | None = None,
          hyper_momentum: float | Mapping[str, float] = 0.0, hyper_optimizer: str = "sgd",
          hyper_space: str = "linear", hyper_start: int = 0, hyper_clip: float = 10.0,
          order: str = "coefficients_first", max_grad_norm: float | None = None, half: Iterable[str] = (),
          box: Mapping[str, tuple[float, float]] | None = None, scope: str = "global", compile: bool | None = None,
          **values: Any) -> Options:  # fmt: skip
    """The options of `rule`, a subclass of RuleOptimizer, by its constructor's keywords. Raises ValueError."""
    coefficients = [*rule.table, "lr"]
    refuse_unknown("", values, [*rule.table, *rule.constants])
    if hyper_lr is None:
        hyper_lr = {k: rule.table[k].hyper_lr for k in rule.learns}
    if not isinstance(hyper_lr, Mapping):
        hyper_lr = dict.fromkeys(rule.learns or rule.table, number("hyper_lr", hyper_lr))
    if not isinstance(hyper_momentum, Mapping):
        hyper_momentum = dict.fromkeys(hyper_lr, hyper_momentum)
    refuse_unknown("hyper_lr: ", hyper_lr, coefficients)
    refuse_unknown("hyper_momentum: ", hyper_momentum, coefficients)
    refuse_unknown("box: ", box or {}, coefficients)
    half = frozenset(half)
    for field in half - {*rule.State._fields, "pending"}:
        raise ValueError(f"half: no state {field!r}, it has {', '.join(rule.State._fields)}")
    for k, choice, choices in (("order", order, ORDERS), ("scope", scope, SCOPES),
                               ("hyper_optimizer", hyper_optimizer, HYPER_OPTIMIZERS),
                               ("hyper_space", hyper_space, HYPER_SPACES)):  # fmt: skip
        if choice not in choices:
            raise ValueError(f"{k} = {choice!r} must be one of {', '.join(choices)}")

    refuse_below("lr", lr, 0)
    refuse_below("weight_decay", weight_decay, 0)
    refuse_below("hyper_start", hyper_start, 0)
    for k, value in hyper_lr.items():
        refuse_below(f"hyper_lr[{k!r}]", value, 0)
    for k, value in hyper_momentum.items():
        if not 0 <= number(f"hyper_momentum[{k!r}]", value) < 1:
            raise ValueError(f"hyper_momentum[{k!r}] = {value} must lie in [0, 1)")
    for k, above in {"hyper_clip": hyper_clip, "max_grad_norm": max_grad_norm}.items():
        if not (above is None and k == "max_grad_norm") and not number(k, above) > 0:
            raise ValueError(f"{k} = {above} must be above 0")

    table = dict(rule.table)
    if "lr" in hyper_lr:
        table["lr"] = Coefficient(number("lr", lr), 0.0, math.inf, "learning rate")
    for k, bounds in (box or {}).items():
        if k in table:
            table[k] = boxed(k, table[k], bounds)
    learned = tuple(k for k in table if hyper_lr.get(k, 0) > 0)
    if "lr" in learned and lr == 0:
        raise ValueError("lr = 0 cannot be learned: start above 0")
    start = {k: number(k, values.get(k, c.start)) for k, c in table.items()}
    for k in learned if hyper_space == "log" else ():
        if table[k].kind == "scale" and (table[k].low < 0 or start[k] <= 0):
            raise ValueError(f"hyper_space = 'log': {k} = {start[k]} in [{table[k].low:g}, {table[k].high:g}] must be "
                             "above 0 and stay there")  # fmt: skip
    for k, c in table.items():
        c.check(k, start[k], learned=k in learned)
    for k, default in rule.constants.items():
        start[k] = number(k, values.get(k, default))
        refuse_below(k, start[k], min(0.0, default))
    idle = {k: at for k, (at, _) in rule.unused_at.items() if start[k] == at and k not in learned}
    unkept = {f for k in idle for f in rule.unused_at[k][1]}
    return Options(
        table=table, start=start, learned=learned, hyper_lr=dict(hyper_lr), hyper_momentum=dict(hyper_momentum),
        hyper_start=hyper_start, hyper_clip=hyper_clip, order=order, max_grad_norm=max_grad_norm,
        fields=tuple(f for f in rule.State._fields if f not in unkept), half=half, idle=idle, scope=scope,
        hyper_optimizer=hyper_optimizer, hyper_space=hyper_space,
    )  # fmt: skip


def of_group(asked: Options, group: Mapping[str, Any]) -> tuple[Mapping[str, float], Mapping[str, Coefficient]]:
    """Hyper rates, and coefficients in their boxes, as they are in a param group. A tensor in it is taken as it is:
    looking at its value would wait for the device. Raises ValueError."""
    own = {k: {} if group.get(k) is None else group[k] for k in ("hyper_lr", "box")}
    if not isinstance(own["hyper_lr"], Mapping):
        own["hyper_lr"] = dict.fromkeys(asked.learned, number("hyper_lr", own["hyper_lr"]))
    for key, values in own.items():
        if values and asked.scope == "global":
            raise ValueError(f"{key} is the same for all groups, which share what is learned: set scope='group'")
        refuse_unknown(f"{key}: ", values, list(asked.learned))
    for k in ("betas", "amsgrad", "nesterov", "maximize"):
        if group.get(k):
            raise ValueError(f"{k} = {group[k]} is not read: {FROM_ELSEWHERE[k]}")
    for k, rate in own["hyper_lr"].items():
        refuse_below(f"hyper_lr[{k!r}]", rate, 0)
    table = {k: boxed(k, c, own["box"][k]) if k in own["box"] else c for k, c in asked.table.items()}
    for k, start in asked.start.items():
        given = group.get("lr_learned" if k == "lr" else k, start)
        if isinstance(given, torch.Tensor):
            continue
        value = number(k, given)
        if k in table:
            table[k].check(k, value, learned=k in asked.learned)
        else:
            refuse_below(k, value, min(0.0, asked.start[k]))
        if value != asked.idle.get(k, value):
            raise ValueError(f"{k} = {value} needs a state that is not kept, since {k} is fixed at {asked.idle[k]:g}: "
                             f"learn it, or give the optimizer itself another {k}")  # fmt: skip
    return {**asked.hyper_lr, **own["hyper_lr"]}, table


def boxed(name: str, coefficient: Coefficient, bounds: Any) -> Coefficient:
    """The coefficient with another box, a pair (low, high)."""
    if not isinstance(bounds, tuple | list) or len(bounds) != 2:
        raise ValueError(f"box[{name!r}] = {bounds!r} must be a pair (low, high)")
    low, high = (number(f"box[{name!r}]", bound) for bound in bounds)
    if not low < high or high >= coefficient.below:
        limit = f" < {coefficient.below:g}" if coefficient.below < math.inf else ""
        raise ValueError(f"box[{name!r}] = {bounds} must be low < high{limit}")
    return replace(coefficient, low=low, high=high)


def number(name: str, value: Any) -> float:
    """The value as a float. Raises ValueError for a text, a tuple, ..."""
    try:
        if not isinstance(value, str):
            return float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # the last: a tensor of several numbers
        pass
    raise ValueError(f"{name} = {value!r} must be a number")


def refuse_below(name: str, value: Any, low: float) -> None:
    if not number(name, value) >= low:
        raise ValueError(f"{name} = {value} must be at least {low:g}")


def refuse_unknown(where: str, given: Iterable[str], known: list[str]) -> None:
    """Raise ValueError for a name that is not known, with the nearest one or what takes its place here."""
    for name in given:
        if name not in known:
            nearest = difflib.get_close_matches(name, [*known, *(KEYWORDS if not where else ())], 1)
            hint = FROM_ELSEWHERE.get(name) or (f"did you mean {nearest[0]}?" if nearest else "")
            raise ValueError(f"{where}no coefficient {name!r}, it has {', '.join(known)}{hint and ': ' + hint}")
