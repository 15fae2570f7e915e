"""The fast loop of figure 9 is the optimizer's own step, many times."""

import pytest
import torch

from experiments.convex import HYPER_MOMENTUM, LEARNING_RATE, UNROLLED, Runner, gradient, simulate
from optim import build_optimizer

STEPS = 400
FIXED = {"beta1": 0.9, "beta2": 0.99}
LEARNED = {"beta3": 0.1, "rho": 0.1, "c": 0.1}


def by_the_optimizer(run: Runner) -> list[dict[str, float]]:
    x = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    learning = {"hyper_lr": run.hyper_lr, "hyper_momentum": HYPER_MOMENTUM} if run.hyper_lr else {}
    optimizer = build_optimizer(
        run.rule, [x], lr=LEARNING_RATE, order=run.order, compile=False, **run.coefficients, **learning
    )
    rows, regret = [], 0.0
    for t in range(1, STEPS + 1):
        x.grad = gradient(torch.tensor(t)).reshape(1)
        regret += float(x.grad * (x.detach() + 1))
        optimizer.step()
        x.data.clamp_(-1, 1)
        rows.append({"step": t, "x": x.item(), "regret": regret / t, **optimizer.coefficients})
    return rows


@pytest.mark.parametrize(
    "runners",
    [
        [Runner("adam", FIXED)],
        [Runner("amsgrad", FIXED)],
        [Runner("avgrad", FIXED)],
        [
            Runner("mada", FIXED, LEARNED),
            Runner("mada", FIXED, LEARNED, "weights_first"),
            Runner("mada", FIXED, {"rho": 0.1}),
            Runner("mada", FIXED | {"beta3": 0.5, "rho": 0.3, "gamma": 0.9}, LEARNED | {"beta1": 1e-3, "gamma": 1e-2}),
        ],
    ],
    ids=["adam", "amsgrad", "avgrad", "mada"],
)
def test_the_loop_is_the_optimizer(runners: list[Runner]) -> None:
    """Several runs side by side: none may see another's gradient."""
    for run, rows in zip(runners, simulate(runners, range(UNROLLED, STEPS + 1, UNROLLED), compiled=False), strict=True):
        expected = by_the_optimizer(run)[UNROLLED - 1 :: UNROLLED]
        for row, other in zip(rows, expected, strict=True):
            assert row == pytest.approx(other, rel=1e-9, abs=1e-12)
        assert rows[-1]["x"] != 0
        assert all(rows[-1][name] != rows[0][name] for name in run.hyper_lr)


def test_the_marks_are_whole_calls() -> None:
    with pytest.raises(ValueError, match="multiples of"):
        simulate([Runner("adam", FIXED)], [UNROLLED + 1])
