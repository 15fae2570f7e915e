"""What the committed records of the paper's analytic figures must show."""

import numpy as np
import pytest
import torch

from experiments import figure1, figure9, proposition1


def recorded(module) -> dict:
    record = module.runs("laptop")[0].record()
    assert record is not None, "the committed record is missing or that of other settings"
    return record


def test_figure_9_ends_as_in_the_paper() -> None:
    runs = recorded(figure9)["runs"]
    last = {name: {key: values[-1] for key, values in run.items()} for name, run in runs.items()}
    assert last["Adam"]["step"] == 2_000_000
    assert last["Adam"]["x"] > 0.9
    assert last["AMSGrad"]["x"] < -0.95 and last["AVGrad"]["x"] < -0.95
    mada = runs["MADA from Adam"]
    assert mada["rho"][0] > 0.8 and mada["rho"][-1] < 0.05
    assert mada["x"][-1] < -0.85 and mada["x"][-2] < mada["x"][-15]  # and falling
    assert last["MADA, weights first"]["x"] > 0.9 and last["MADA, rho alone"]["x"] > 0.9  # the wrong answer


@pytest.mark.parametrize("T", [10_000, 1_000])
def test_the_bound_is_least_where_rho_is_beta2(T: int) -> None:
    rho = np.linspace(0, 1, 10_001)
    for beta2 in (0.9, 0.8):
        assert rho[figure1.bound(rho, beta2, T).argmin()] == pytest.approx(beta2, abs=1e-4)


def test_the_bound_at_a_point() -> None:
    E = np.sqrt((0.95 + 0.05 * 100) / 0.1)
    expected = E * (2 / 100 + 3 * np.log(E) / 100 + 5 * np.log(0.95 / 0.9))
    assert figure1.bound(np.array([0.95]), 0.9, 100, (2, 3, 5))[0] == pytest.approx(expected)


def test_the_effective_rate_rises_for_adam_and_for_the_printed_bound_only() -> None:
    torch.manual_seed(0)
    gradients = proposition1.GRADIENTS["normal"](400, 50)
    schedules = {name: proposition1.rises(gradients, 0.9, rho) for name, rho in proposition1.SCHEDULES.items()}
    adam, avgrad, printed, corrected = schedules.values()
    assert adam[0] > 0.5 and adam[2] > 0.01
    assert avgrad == corrected == (0.0, 0, 0.0)
    assert 0 < printed[0] < adam[0]
