"""Means over seeds, and paired differences with a test."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def spread(values: Sequence[float]) -> float:
    """Standard deviation over the seeds (n - 1); NaN for one."""
    if len(values) < 2:
        return math.nan
    return math.sqrt(sum((value - mean(values)) ** 2 for value in values) / (len(values) - 1))


def mean_and_spread(values: Sequence[float], digits: int = 4) -> str:
    """Such as "1.9225 ± 0.0041"; the mean alone for one value."""
    text = f"{mean(values):.{digits}f}"
    return text if len(values) < 2 else f"{text} ± {spread(values):.{digits}f}"


@dataclass(frozen=True)
class Paired:
    """Differences between two runs of the same seed (same weights at the start, same batches): the second minus the
    first; `p` is two-sided, from Student's t over the n differences. Below n = 3 there is no test: interval and p are
    NaN, for two differences that agree by chance would make any p."""

    n: int
    difference: float
    low: float  # 95% confidence interval
    high: float
    p: float
    digits: int = 4  # shown after the point

    def __str__(self) -> str:
        difference, low, high = (f"{value:+.{self.digits}f}" for value in (self.difference, self.low, self.high))
        p = f"p = {self.p:.2g}" if self.p >= 1e-4 else "p < 0.0001"
        return f"{difference} (n = {self.n}, no test)" if self.n < 3 else f"{difference} [{low}, {high}], {p}"


def paired(first: dict[int, float], second: dict[int, float], digits: int = 4) -> Paired | None:
    """From {seed: value} of both, over the seeds that both have; None if there is none."""
    seeds = sorted(first.keys() & second.keys())
    if not seeds:
        return None
    differences = [second[seed] - first[seed] for seed in seeds]
    n, centre = len(differences), mean(differences)
    if n < 3:
        return Paired(n, centre, math.nan, math.nan, math.nan, digits)
    error = spread(differences) / math.sqrt(n)
    half = quantile(n - 1) * error
    p = two_sided_p(abs(centre) / error, n - 1) if error else float(centre == 0)
    return Paired(n, centre, centre - half, centre + half, p, digits)


def two_sided_p(t: float, freedom: int) -> float:
    """P(|T| > t) for Student's t. With t = sqrt(freedom) tan(a) the density becomes cos(a)^(freedom - 1)."""
    angles = np.linspace(0, math.pi / 2, 20_001)
    density = np.cos(angles) ** (freedom - 1)
    total = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return float(1 - np.interp(math.atan(t / math.sqrt(freedom)), angles, total) / total[-1])


def quantile(freedom: int, p: float = 0.05) -> float:
    """The t with two_sided_p(t) = p, by bisection."""
    low, high = 0.0, 1000.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if two_sided_p(middle, freedom) > p else (low, middle)
    return low
