"""The statistics, against values of Student's table."""

import math

import pytest
from experiments.compare import mean_and_spread, paired, quantile, two_sided_p


@pytest.mark.parametrize(("freedom", "t"), [(1, 12.706), (2, 4.303), (4, 2.776), (30, 2.042)])
def test_students_table(freedom: int, t: float) -> None:
    assert two_sided_p(t, freedom) == pytest.approx(0.05, abs=2e-4)
    assert quantile(freedom) == pytest.approx(t, abs=2e-3)


def test_two_degrees_of_freedom_have_a_closed_form() -> None:
    for t in (0.0, 0.5, 3.0, 40.0):
        assert two_sided_p(t, 2) == pytest.approx(1 - t / math.sqrt(2 + t * t), abs=1e-6)


def test_paired_differences_forget_what_the_seeds_share() -> None:
    first = {1: 2.0, 2: 3.0, 3: 5.0, 4: 9.0}
    second = {1: 1.9, 2: 2.8, 3: 4.7}
    result = paired(first, second)
    assert result is not None
    assert (result.n, result.difference) == (3, pytest.approx(-0.2))
    t = 0.2 / (0.1 / math.sqrt(3))
    assert result.p == pytest.approx(1 - t / math.sqrt(2 + t * t), abs=1e-4)
    assert (result.low, result.high) == pytest.approx((-0.2 - 0.2484, -0.2 + 0.2484), abs=1e-3)
    assert str(result).startswith("-0.2000 [-0.4484, +0.0484], p = 0.07")


def test_one_seed_is_no_test_and_two_are_none() -> None:
    assert str(paired({1: 2.0}, {1: 1.5})) == "-0.5000 (n = 1, no test)"
    assert str(paired({1: 2.0, 2: 3.0}, {1: 1.5, 2: 2.5})) == "-0.5000 (n = 2, no test)"
    assert paired({1: 2.0}, {2: 1.5}) is None
    assert mean_and_spread([1.5]) == "1.5000"
    assert mean_and_spread([1.0, 2.0], digits=2) == "1.50 ± 0.71"
