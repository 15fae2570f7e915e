"""The online problem on which Adam fails (Reddi et al., 2018; MADA paper, equation 33), for millions of steps.

    f_t(x) = 1010 x if t mod 101 = 1, else -10 x        on x in [-1, 1]; the best fixed x is -1

The rules are those of optim/: their `advance` and its vjp, nothing else. The loop of optim/reference.py is written
again as one compiled function over a vector of runs, each with coefficients of its own: with autograd at each of two
million steps, optim.Reference would take an hour. tests/experiments/test_convex.py compares it with the optimizer.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from optim import OPTIMIZERS

LEARNING_RATE, HYPER_MOMENTUM, HYPER_CLIP = 1e-3, 0.9, 10.0  # of the authors' released configuration
UNROLLED = 5  # steps in one call of the compiled function: fewer calls, but a longer compilation


@dataclass(frozen=True)
class Runner:
    """One run: a rule of optim/, the coefficients it starts from, the hyper rates of those that it learns."""

    rule: str
    coefficients: dict[str, float]
    hyper_lr: dict[str, float] = field(default_factory=dict)
    order: str = "coefficients_first"


class Loop(NamedTuple):
    """What a step hands to the next. R runs, K coefficients, S fields of the rule's state; all float64."""

    t: Tensor  # () steps done
    x: Tensor  # (R,)
    regret: Tensor  # (R,) sum of f_s(x_s) - f_s(-1)
    state: Tensor  # (S, R) before the pending gradient, as in optim/engine.py
    q: Tensor  # (K, R) coefficients
    q_applied: Tensor  # (K, R) those that made x
    momentum: Tensor  # (K, R) of the coefficients' SGD


def gradient(t: Tensor) -> Tensor:
    """Derivative of f_t, the same everywhere."""
    return torch.where(t % 101 == 1, 1010.0, -10.0).to(torch.float64)


def make_step(runners: Sequence[Runner], unrolled: int = UNROLLED) -> tuple[Loop, Callable[[Loop], Loop]]:
    """The state before the first step, and the function that takes `unrolled` steps, for runners of one rule."""
    rule: Any = OPTIMIZERS[runners[0].rule]
    names = list(rule.table)
    Q = namedtuple("Q", [*names, *rule.constants])  # type: ignore[misc]
    constants = [torch.tensor(value, dtype=torch.float64) for value in rule.constants.values()]

    def matrix(value: Callable[[str, Runner], float]) -> Tensor:
        """(K, R)"""
        return torch.tensor([[value(name, run) for run in runners] for name in names], dtype=torch.float64)

    start = matrix(lambda name, run: run.coefficients.get(name, rule.table[name].start))
    rate = matrix(lambda name, run: run.hyper_lr.get(name, 0.0))
    low = matrix(lambda name, run: rule.table[name].low)
    high = matrix(lambda name, run: rule.table[name].high)
    first = torch.tensor([run.order == "coefficients_first" for run in runners])

    def advance(q: Tensor, state: Tensor, g: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        direction, new = rule.advance(Q(*q.unbind(), *constants), rule.State(*state.unbind()), g, t)
        return direction, torch.stack(new)

    def step(now: Loop) -> Loop:
        t = now.t + 1
        g, pending = gradient(t).expand_as(now.x), gradient(now.t).expand_as(now.x)
        # x_{t-1} as a function of the q that made it, against the new gradient. Each element is a run with its own q,
        # so the vjp is every run's hypergradient. As in the optimizer, it knows nothing of the projection on [-1, 1].
        made: Any = torch.func.vjp(lambda q: advance(q, now.state, pending, now.t), now.q_applied, has_aux=True)
        _, vjp, state = made  # has_aux: the new state comes along
        h = -LEARNING_RATE * vjp(g)[0]
        momentum = HYPER_MOMENTUM * now.momentum + h.clamp(-HYPER_CLIP, HYPER_CLIP)
        q = torch.clamp(now.q - rate * momentum, low, high)

        begun = now.t > 0  # the first step has no x to differentiate and no pending gradient
        momentum, q = torch.where(begun, momentum, now.momentum), torch.where(begun, q, now.q)
        q = torch.where(rate > 0, q, now.q)  # the box is for what is learned
        state = torch.where(begun, state, now.state)

        q_applied = torch.where(first, q, now.q)
        direction, _ = advance(q_applied, state, g, t)
        x = torch.clamp(now.x - LEARNING_RATE * direction, -1, 1)
        return Loop(t, x, now.regret + g * (now.x + 1), state, q, q_applied, momentum)

    def steps(now: Loop) -> Loop:
        for _ in range(unrolled):
            now = step(now)
        return now

    zeros = torch.zeros(len(runners), dtype=torch.float64)
    state = torch.zeros(len(rule.State._fields), len(runners), dtype=torch.float64)
    begin = Loop(zeros[0].clone(), zeros, zeros.clone(), state, start, start.clone(), torch.zeros_like(start))
    return begin, steps


def simulate(runners: Sequence[Runner], marks: Sequence[int], compiled: bool = True) -> list[list[dict[str, float]]]:
    """For each runner (all of one rule) a row at each of `marks` (steps, multiples of UNROLLED, ascending).

    A row holds step, x, regret (the average so far) and each coefficient by name.
    """
    if any(mark % UNROLLED for mark in marks):
        raise ValueError(f"marks must be multiples of {UNROLLED}, the steps of one call: {marks}")
    now, steps = make_step(runners)
    if compiled:
        steps = torch.compile(steps, fullgraph=True)
    names = list(OPTIMIZERS[runners[0].rule].table)
    rows: list[list[dict[str, float]]] = [[] for _ in runners]
    done = 0
    for mark in marks:
        while done < mark:
            now = steps(now)
            done += UNROLLED
        for i, table in enumerate(rows):
            coefficients = dict(zip(names, now.q[:, i].tolist(), strict=True))
            table.append({"step": mark, "x": float(now.x[i]), "regret": float(now.regret[i]) / mark, **coefficients})
    return rows
