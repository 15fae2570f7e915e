"""How far a learned coefficient moved, and what that says of its hyper rate."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

SMALL, LARGE = 0.01, 0.1  # a coefficient's range is about 1: per 100 steps a hundredth is little, a tenth is much
STEADY, ERRATIC = 0.8, 0.65  # share of hypergradients of one sign


@dataclass(frozen=True)
class Movement:
    """Of one coefficient, in one run or as means over seeds.

    net        from the start to the end of the run, per 100 steps
    path       sum of the moves between rows of metrics.csv, without their signs, per 100 steps
    one_sign   share of the rows with a hypergradient whose hypergradient has the more frequent sign
    at_end     whether it stood still over the last quarter of a run, as at an end of its range
    """

    net: float
    path: float
    one_sign: float
    at_end: bool


def movement(curve: Mapping[int, float], hypergradients: Mapping[int, float]) -> Movement | None:
    """From {step: value} of both; None if the coefficient is not learned, or no hypergradient was written down."""
    h = [value for value in hypergradients.values() if value]
    steps, values = list(curve), list(curve.values())
    if not h or len(values) < 2:
        return None
    hundreds = (steps[-1] - steps[0]) / 100
    moves = [after - before for before, after in itertools.pairwise(values)]
    late = [value for step, value in curve.items() if step >= 0.75 * steps[-1]]
    positive = sum(value > 0 for value in h) / len(h)
    net, path = (values[-1] - values[0]) / hundreds, sum(map(abs, moves)) / hundreds
    return Movement(net, path, max(positive, 1 - positive), len(set(late)) == 1 and path > 0)


def describe(moved: Mapping[str, Movement]) -> str:
    """A line on several coefficients by name, with advice."""
    return "; ".join(f"{name} {one.net:+.2g} per 100 steps, h of one sign in {one.one_sign:.0%}" + hint(one)
                     for name, one in moved.items())  # fmt: skip


def hint(moved: Movement) -> str:
    """Which hyper rate to change, in brackets; an empty text where there is nothing to say."""
    if moved.at_end:
        return " (it is at an end of its range: its start or its box decides)"
    if moved.one_sign >= STEADY and moved.path < SMALL:
        return " (a steady sign, a small move: try a rate 10 times higher)"
    if moved.path > LARGE and moved.path > 5 * abs(moved.net):
        return " (back and forth: try a rate 10 times lower)"
    if moved.one_sign <= ERRATIC and moved.path < SMALL:
        return " (mostly noise: a higher rate adds noise, not learning)"
    return ""
