"""Means over seeds, paired differences with a test, and Holm's correction."""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from scipy import special

Losses = Mapping[int, float]  # by seed
K = TypeVar("K", bound=Hashable)


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


def p_text(p: float) -> str:
    return f"p = {p:.2g}" if p >= 1e-4 else "p < 0.0001"


@dataclass(frozen=True)
class Paired:
    """Differences between two runs of the same seed (same weights at the start, same batches): the second minus the
    first; `p` is two-sided, from Student's t over the n differences. Below n = 3 there is no test: interval and p are
    NaN, for two differences that agree by chance would make any p. With a spread pooled over several rows (`Pooled`)
    the interval is shown without p, from n = 1 on."""

    n: int
    difference: float
    low: float  # 95% confidence interval
    high: float
    p: float
    digits: int = 4  # shown after the point
    pooled: bool = False

    def __str__(self) -> str:
        difference, low, high = (f"{value:+.{self.digits}f}" for value in (self.difference, self.low, self.high))
        if self.pooled:
            return f"{difference} [{low}, {high}]"
        if self.n < 3 or math.isinf(self.low):
            return f"{difference} (n = {self.n}, no test)"
        return f"{difference} [{low}, {high}], {p_text(self.p)}"


class Pooled(NamedTuple):
    """The standard deviation of paired differences, pooled over rows, and its degrees of freedom."""

    spread: float
    freedom: int


FEW = 5  # seeds: a row of fewer takes the pooled spread


def pooled(losses: Mapping[str, Losses], baseline: str) -> Pooled | None:
    """Over all rows' differences from the baseline; None where no row has two."""
    squares, freedom = 0.0, 0
    for name, its in losses.items():
        both = differences(losses.get(baseline, {}), its)
        if name != baseline and len(both) > 1:
            squares += spread(both) ** 2 * (len(both) - 1)
            freedom += len(both) - 1
    return Pooled(math.sqrt(squares / freedom), freedom) if freedom else None


def differences(first: Losses, second: Losses) -> list[float]:
    return [second[seed] - first[seed] for seed in sorted(first.keys() & second.keys())]


def paired(first: Losses, second: Losses, digits: int = 4, shared: Pooled | None = None) -> Paired | None:
    """From {seed: value} of both, over the seeds that both have; None if there is none. `shared` is the spread of a row
    of fewer than FEW."""
    found = differences(first, second)
    if not found:
        return None
    n, centre = len(found), mean(found)
    if shared and n < FEW:
        half = float(special.stdtrit(shared.freedom, 0.975)) * shared.spread / math.sqrt(n)
        return Paired(n, centre, centre - half, centre + half, math.nan, digits, pooled=True)
    if n < 3:
        return Paired(n, centre, math.nan, math.nan, math.nan, digits)
    error = spread(found) / math.sqrt(n)
    half = float(special.stdtrit(n - 1, 0.975)) * error
    p = 2 * float(special.stdtr(n - 1, -abs(centre) / error)) if error else float(centre == 0)
    return Paired(n, centre, centre - half, centre + half, p, digits)


def signed_rank(first: Losses, second: Losses, digits: int = 4) -> Paired | None:
    """As `paired`, for differences with outliers, such as a run that stays on a plateau: the median of the averages of
    all pairs of differences (Hodges and Lehmann, 1963), the exact interval that belongs to Wilcoxon's signed-rank test,
    and its exact two-sided p; zeros count half to each side, and half a count makes p larger, not smaller."""
    found = differences(first, second)
    if not found:
        return None
    n = len(found)
    walsh = sorted((a + b) / 2 for i, a in enumerate(found) for b in found[i:])
    m = len(walsh)
    centre = (walsh[m // 2] + walsh[(m - 1) // 2]) / 2
    ways = [1] + [0] * m  # in how many of the 2^n choices of signs the positive ranks have this sum
    for rank in range(1, n + 1):
        ways = [count + (ways[i - rank] if i >= rank else 0) for i, count in enumerate(ways)]
    below = [sum(ways[: i + 1]) / 2**n for i in range(m + 1)]
    positive = sum((value > 0) + 0.5 * (value == 0) for value in walsh)
    p = min(1.0, 2 * below[math.ceil(min(positive, m - positive))])
    outside = sum(2 * q <= 0.05 for q in below)  # averages that the interval leaves out at each end
    low, high = (walsh[outside - 1], walsh[m - outside]) if outside else (-math.inf, math.inf)
    return Paired(n, centre, low, high, p, digits)


def holm(p: Mapping[K, float]) -> dict[K, float]:
    """p-values corrected for their number (Holm, 1979): below 0.05 in all means at most 5% for any false one.

    The smallest of k is multiplied by k, the next by k - 1 and so on, none below the one before. NaN (no test) stays
    NaN and is not counted.
    """
    tested = sorted(((value, name) for name, value in p.items() if not math.isnan(value)), key=lambda pair: pair[0])
    corrected, least = dict.fromkeys(p, math.nan), 0.0
    for i, (value, name) in enumerate(tested):
        least = max(least, min(1.0, value * (len(tested) - i)))
        corrected[name] = least
    return corrected


def loss_cells(losses: Mapping[str, Losses], name: str, baseline: str, digits: int = 4) -> list[str]:
    """Two cells of a table: mean ± spread of `name`, and its paired difference from the baseline ("" for itself), of
    few seeds by the spread pooled over all rows."""
    base = losses.get(baseline, {})
    difference = paired(base, losses[name], digits, pooled(losses, baseline)) if name != baseline else None
    return [mean_and_spread([*losses[name].values()], digits), str(difference or "")]
