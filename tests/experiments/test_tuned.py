"""The tuned comparison: what is read from a sweep's runs."""

from itertools import product

import pytest

import sweep
from experiments import large_batch, tuned, tuning
from experiments.experiment import Computation
from study.runs import Result
from study.statistics import paired


def result(rate: float, beta2: float, seed: int, loss: float | None) -> Result:
    config = {"learning_rate": rate, "beta2": beta2, "seed": seed, "beta1": 0.9}
    rows = [{"step": 0, "seconds": 0.0, "val_loss": 4.0, "beta1": 0.9, "beta2": beta2},
            {"step": 100, "seconds": 9.0, "val_loss": loss, "beta1": 0.9, "beta2": beta2}]  # fmt: skip
    final = {} if loss is None else {"val_loss": loss, "train_loss": loss - 0.1, "seconds": 9.0}
    return Result("run", config, rows, final, "finished" if final else "diverged at step 3", {})


GRID = [result(rate, beta2, 1, None if rate == 0.04 else 2 + abs(rate - 0.02) + abs(beta2 - 0.99))
        for rate, beta2 in product((0.01, 0.02, 0.04), (0.95, 0.99, 0.999))]  # fmt: skip


def test_a_record_holds_the_grid_and_the_fresh_seeds() -> None:
    fresh = [result(0.02, 0.99, seed, 2 + seed / 100) for seed in (3, 2)] + [result(0.02, 0.99, 4, None)]
    record = tuning.record_of([*GRID, *fresh], ["learning_rate", "beta2"], {1})
    assert len(record["grid"]) == 9 and sum(None in point["val_loss"] for point in record["grid"]) == 3
    assert record["optimum"] == {"learning_rate": "0.02", "beta2": "0.99"} and record["inside"]
    assert (record["seeds"], record["val_loss"], record["diverged"]) == ([2, 3], [2.02, 2.03], 1)
    assert record["coefficients"] == {"beta1": [0.9, 0.9], "beta2": [0.99, 0.99]}
    assert tuning.steps_to(record, 3.0) == "about 50" and tuning.steps_to(record, 1.0) == "not reached"


@pytest.mark.parametrize(("rate", "beta2", "is_inside"), [(0.02, 0.99, True), (0.04, 0.99, False), (0.02, 0.95, False)])
def test_an_optimum_at_an_end_is_called_that(rate: float, beta2: float, is_inside: bool) -> None:
    others = [r for r in GRID if (r.config["learning_rate"], r.config["beta2"]) != (rate, beta2)]
    record = tuning.record_of([*others, *(result(rate, beta2, seed, 1.5) for seed in (1, 2))],
                             ["learning_rate", "beta2"], {1})  # fmt: skip
    assert record["inside"] == is_inside


def test_no_decay_is_a_natural_end() -> None:
    grid = [{"point": {"weight_decay": value}} for value in (0.0, 0.1, 1.0)]
    assert tuning.inside(grid, {"weight_decay": 0.0}, "weight_decay")
    assert not tuning.inside(grid, {"weight_decay": 1.0}, "weight_decay")


@pytest.mark.parametrize(("shift", "noise", "expected"), [
    (0.0, 0.001, "equal within 0.005"), (-0.1, 0.001, "lower"), (0.1, 0.001, "higher"), (0.0, 0.1, "undecided"),
])  # fmt: skip
def test_the_verdict_follows_from_the_interval(shift: float, noise: float, expected: str) -> None:
    first = {seed: 2.0 for seed in range(10)}
    difference = paired(first, {seed: 2 + shift + noise * (-1) ** seed for seed in range(10)})
    assert difference is not None
    assert tuning.verdict(difference, difference.p) == expected


def lists_of(run: Computation) -> dict[str, int]:
    """The settings of which an arm's sweep tries several, and how many."""
    arguments = [a for a in run.settings["arguments"] if "=" in a and not a.startswith("--fresh")]
    lists = sweep.lists_of(arguments)
    assert lists.pop("seed") == tuning.TUNED_ON.split(",")
    return {key: len(values) for key, values in lists.items() if len(values) > 1}


def test_every_arm_has_nine_points_of_two_axes_and_is_a_command() -> None:
    for name, arm in tuned.arms("laptop").items():
        sizes = lists_of(tuned.run("laptop", name, arm))
        assert sizes.pop("learning_rate") == 3 and [*sizes.values()] == [3], name


def test_every_arm_of_the_large_batch_tries_three_rates() -> None:
    for run in large_batch.runs("laptop"):
        assert lists_of(run) == {"learning_rate": 3}, run.name


def test_decays_are_widened_in_their_distance_from_one() -> None:
    grid = [{"beta2": value, "learning_rate": "1"} for value in ("0.95", "0.99", "0.999")]
    assert [point["beta2"] for point in sweep.beyond(grid[2], grid, ["beta2"])] == ["0.9999"]
    assert [point["beta2"] for point in sweep.beyond(grid[0], grid, ["beta2"])] == ["0.75"]
    assert sweep.beyond(grid[1], grid, ["beta2"]) == []
