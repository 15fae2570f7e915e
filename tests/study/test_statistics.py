"""The statistics, against values of Student's table, closed forms and hand-made corrections."""

import math

import numpy as np
import pytest
from scipy import stats

from study.statistics import holm, mean_and_spread, paired, pooled, signed_rank


@pytest.mark.parametrize(("freedom", "t"), [(2, 4.303), (4, 2.776), (9, 2.262), (30, 2.042)])
def test_interval_and_p_agree_with_students_table(freedom: int, t: float) -> None:
    n = freedom + 1
    values = {seed: t + math.sqrt(freedom) * (-1) ** seed * (seed < n // 2 * 2) for seed in range(n)}
    centre = sum(values.values()) / n
    error = math.sqrt(sum((v - centre) ** 2 for v in values.values()) / freedom / n)
    scaled = {seed: value - centre + t * error for seed, value in values.items()}  # whose t is exactly the table's
    result = paired(dict.fromkeys(values, 0.0), scaled)
    assert result is not None
    assert result.p == pytest.approx(0.05, abs=2e-4) and result.low == pytest.approx(0, abs=1e-3 * error)


def test_p_for_two_degrees_of_freedom_has_a_closed_form() -> None:
    first = {1: 2.0, 2: 3.0, 3: 5.0, 4: 9.0}
    second = {1: 1.9, 2: 2.8, 3: 4.7}
    result = paired(first, second)
    assert result is not None
    assert (result.n, result.difference) == (3, pytest.approx(-0.2))
    t = 0.2 / (0.1 / math.sqrt(3))
    assert result.p == pytest.approx(1 - t / math.sqrt(2 + t * t), abs=1e-9)
    assert (result.low, result.high) == pytest.approx((-0.2 - 0.2484, -0.2 + 0.2484), abs=1e-3)
    assert str(result).startswith("-0.2000 [-0.4484, +0.0484], p = 0.07")


def test_fewer_than_three_seeds_are_not_tested() -> None:
    assert str(paired({1: 2.0}, {1: 1.5})) == "-0.5000 (n = 1, no test)"
    assert str(paired({1: 2.0, 2: 3.0}, {1: 1.5, 2: 2.5})) == "-0.5000 (n = 2, no test)"
    assert paired({1: 2.0}, {2: 1.5}) is None
    assert mean_and_spread([1.5]) == "1.5000"
    assert mean_and_spread([1.0, 2.0], digits=2) == "1.50 ± 0.71"


def test_holm_multiplies_the_smallest_by_the_number_of_tests() -> None:
    corrected = holm({"a": 0.01, "b": 0.04, "c": 0.03, "untested": math.nan, "d": 0.9})
    assert math.isnan(corrected.pop("untested"))
    assert corrected == pytest.approx({"a": 0.04, "c": 0.09, "b": 0.09, "d": 0.9})  # 4 x 0.01, 3 x 0.03, max(2 x 0.04)
    assert holm({"a": 0.6, "b": 0.7}) == {"a": 1.0, "b": 1.0}


@pytest.mark.parametrize("n", [5, 6, 10, 17])
def test_signed_rank_agrees_with_scipys(n: int) -> None:
    random = np.random.default_rng(n)
    for shift in (-0.5, 0.0, 1.0):
        values = dict(enumerate(random.normal(shift, 1, n)))
        ours = signed_rank(dict.fromkeys(values, 0.0), values)
        assert ours is not None
        assert ours.p == pytest.approx(stats.wilcoxon([*values.values()], method="exact").pvalue)
        for edge, sign in ((ours.low, -1), (ours.high, 1)):  # just inside it is not rejected, just outside it is
            if math.isfinite(edge):
                moved = [[value - edge + sign * 1e-9 * side for value in values.values()] for side in (1, -1)]
                inside, outside = (stats.wilcoxon(m, method="exact").pvalue for m in moved)
                assert outside <= 0.05 < inside


def test_signed_rank_is_not_moved_by_an_outlier() -> None:
    values = dict(enumerate([0.01, 0.012, 0.009, 0.011, 0.01, 0.013, 0.008, 0.0105, 0.0095, -5.0]))
    result = signed_rank(dict.fromkeys(values, 0.0), values)
    assert result is not None and result.difference == pytest.approx(0.01, abs=0.002)
    assert signed_rank({1: 2.0}, {2: 1.0}) is None
    few = signed_rank({1: 2.0, 2: 2.0}, {1: 1.0, 2: 1.0})
    assert few is not None and few.low == -math.inf and few.p == 0.5


def test_few_seeds_take_the_spread_of_all_rows() -> None:
    losses = {"base": dict.fromkeys((1, 2, 3), 2.0), "a": {1: 2.1, 2: 2.2, 3: 2.3}, "b": {1: 2.1, 2: 2.1, 3: 2.1}}
    shared = pooled(losses, "base")
    assert shared == (pytest.approx(math.sqrt(0.02 / 4)), 4)
    result = paired(losses["base"], losses["b"], shared=shared)
    half = 2.7764 * math.sqrt(0.005) / math.sqrt(3)
    assert result is not None and (result.low, result.high) == pytest.approx((0.1 - half, 0.1 + half), abs=1e-4)
    assert str(result) == f"+0.1000 [{0.1 - half:+.4f}, {0.1 + half:+.4f}]"
    assert pooled({"base": {1: 2.0}, "a": {1: 1.0}}, "base") is None
