"""Is a rule what the engine takes it for, and is its hypergradient the derivative of its own step?"""

import math
import sys
from collections import namedtuple
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .options import Options


def probe(rule: Any, options: Options) -> None:
    """Take two steps on a few numbers. Raises ValueError, in one line, for the mistakes of a first rule."""
    g = torch.tensor([[0.5, -2.0, 0.1], [3.0, -0.2, 1.0]], dtype=torch.float64)
    whole, alone = _start(rule, options, g), _start(rule, options, g[:1])
    for t in (1, 2):
        results = []
        for state, own in ((whole, g), (alone, g[:1])):
            q = {k: torch.full_like(own[:, :1], value) for k, value in options.start.items()}
            try:
                result = rule.advance(namedtuple("Q", q)(**q), state, own, torch.full_like(own[:, :1], t))  # type: ignore
            except RuntimeError as error:
                if "Boolean value of Tensor" in str(error):
                    raise ValueError("advance asks for the truth of a tensor, as in `if t > 1`, and its elements may "
                                     "differ: use torch.where") from None  # fmt: skip
                raise
            results.append(_checked(rule, options, result, own))
        (direction, whole), (first, alone) = results
        for name, a, b in (("direction", direction, first), *zip(rule.State._fields, whole, alone, strict=True)):
            if a is not None and not torch.allclose(a[:1], b, rtol=1e-9, equal_nan=True):
                raise ValueError(f"advance is not elementwise: {name} of an element changes with other elements (a "
                                 "norm, a mean, a sort?), which are those of all parameters")  # fmt: skip
    _refuse_infinite_slope(rule, options)


def _refuse_infinite_slope(rule: Any, options: Options) -> None:
    """Where no gradient has come yet, as in the padding of a row, all states are 0; a derivative that is NaN there
    makes the sum over all NaN, and nothing would ever be learned."""
    names, zero = [k for k in options.learned if k in rule.table], torch.zeros(1, 1, dtype=torch.float64)
    for k in names:
        values = {name: torch.full_like(zero, value) for name, value in options.start.items()}

        def direction(value: Tensor, k: str = k, values: dict[str, Tensor] = values) -> Tensor:
            q = namedtuple("Q", values)(**values | {k: value})  # type: ignore[misc]
            return rule.advance(q, _start(rule, options, zero), zero, zero + 1)[0]

        if not torch.func.vjp(direction, values[k])[1](zero)[0].isfinite():
            raise ValueError(f"the derivative of the direction by {k} is not finite where all gradients were 0, so "
                             "nothing would be learned: take sqrt from optim, not torch's")  # fmt: skip


def refuse_inside_zero() -> None:
    """Raise ValueError if ZeroRedundancyOptimizer makes this optimizer, for the parameters of one process."""
    frame = sys._getframe()
    while (frame := frame.f_back) is not None:  # type: ignore[assignment]
        if frame.f_globals.get("__name__") == "torch.distributed.optim.zero_redundancy_optimizer":
            raise ValueError("inside ZeroRedundancyOptimizer each process would learn from, and clip by, its own "
                             "parameters alone: give hyper_lr={} and no max_grad_norm, or shard by FSDP2")  # fmt: skip


def _start(rule: Any, options: Options, g: Tensor) -> Any:
    return rule.State(*(torch.zeros_like(g) if field in options.fields else None for field in rule.State._fields))


def _checked(rule: Any, options: Options, result: Any, g: Tensor) -> tuple[Tensor, Sequence[Any]]:
    fields = rule.State._fields
    form = f"(direction, State({', '.join(fields)}))"
    if isinstance(result, Tensor):
        raise ValueError(f"advance returned only a direction: return {form}")
    if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], tuple)):
        raise ValueError(f"advance returned {type(result).__name__}: return {form}")
    direction, state = result
    if len(state) != len(fields):
        raise ValueError(f"advance returned a state of {len(state)} fields: return {form}")
    kept = {field: value for field, value in zip(fields, state, strict=True) if field in options.fields}
    for name, value in {"direction": direction, **kept}.items():
        if getattr(value, "shape", None) != g.shape:
            what = f"of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise ValueError(f"advance returned {name} {what}, not a tensor shaped like g")
    return direction, state


def check_hypergradient(rule: Any, steps: int = 6, **options: Any) -> dict[str, float]:
    """Compare the hypergradients of `rule` (a RuleOptimizer, with the keywords of its constructor but for the clip)
    with central differences of its own step, on random gradients in float64. Prints a line for each learned coefficient
    and returns the largest errors, relative to the largest hypergradient, {name: error}; up to 1e-6 it is right.

        check_hypergradient(MyRule, beta=0.8, hyper_lr={"beta": 1e-3})

    Raises ValueError if nothing is learned."""
    asked: Options = rule.check(**options)
    if not asked.learned:
        raise ValueError(f"{rule.__name__} learns nothing here: name its coefficients in hyper_lr")
    random = torch.Generator().manual_seed(0)
    x = torch.nn.Parameter(torch.zeros(50, dtype=torch.float64))
    lr = float(options.get("lr", 1e-3))
    optimizer = rule([x], **options | {"compile": False, "max_grad_norm": None})
    state, pending = _start(rule, asked, x.detach()), x.detach()
    pairs: dict[str, list[tuple[float, float]]] = {k: [] for k in asked.learned}
    for t in range(steps):
        made = dict(zip(asked.learned, optimizer.param_groups[0]["q_applied"].flatten().tolist(), strict=True))
        g = torch.randn(50, generator=random, dtype=torch.float64)
        x.grad = g.clone()
        optimizer.step()
        if t:
            for k, h in optimizer.hypergradients.items():
                e = 1e-5 * max(1e-3, abs(made[k]))
                sides = [_advance(rule, asked, made | {k: made[k] + s}, state, pending, t)[0] for s in (e, -e)]
                pairs[k].append((h, -lr * float(g @ (sides[0] - sides[1])) / (2 * e)))
            state = _advance(rule, asked, made, state, pending, t)[1]
        pending = g
    errors = {}
    for k, found in pairs.items():
        size = max(abs(value) for pair in found for value in pair)
        apart = [abs(h - expected) for h, expected in found]
        errors[k] = math.inf if any(map(math.isnan, apart)) else max(apart) / size if size else 0.0
        verdict = "right" if errors[k] <= 1e-6 else "WRONG: a detach, a float() or a step function in its path?"
        verdict = verdict if size else "zero: the direction does not depend on it, or only by jumps"
        h, expected = found[-1]
        print(f"{k:12} {h: .6e} by the engine, {expected: .6e} by differences, error {errors[k]:.0e}: {verdict}")
    return errors


def _advance(rule: Any, asked: Options, learned: Mapping[str, float], state: Any, g: Tensor, t: int) -> Any:
    q = {k: torch.full_like(g[:1], v) for k, v in {**asked.start, **learned}.items()}
    direction, state = rule.advance(namedtuple("Q", q)(**q), state, g, torch.full_like(g[:1], t))  # type: ignore[misc]
    return (q["lr"] / asked.start["lr"] * direction if "lr" in asked.learned else direction), state
