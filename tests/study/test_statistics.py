"""The statistics, against values of Student's table, closed forms and hand-made corrections."""

import math

import pytest

from study.statistics import holm, mean_and_spread, paired


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
