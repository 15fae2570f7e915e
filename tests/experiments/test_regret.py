"""Regret: small runs in one process, and quantiles that a diverged run cannot blur."""

import math

import pytest

import train
from experiments import regret, small
from optim import Adam

SMALL = regret.SETUP | {
    "model": {"n_layer": 1, "n_head": 2, "n_embd": 16, "bias": False, "vocab_multiple": 1}, "block_size": 8,
    "batch_size": 4, "steps": 30, "warmup": 3, "learning_rate": 0.01, "beta1": (0.5, 0.9), "beta2": (0.9, 0.99),
}  # fmt: skip


@pytest.mark.parametrize("name", regret.OPTIMIZERS)
def test_each_start_is_trained(name: str) -> None:
    _, rule, options = regret.OPTIMIZERS[name]
    losses = regret.compute(SMALL | {"optimizer": rule, "options": options})["losses"]
    assert len(set(losses)) == 4 and all(2 < loss < 4.2 for loss in losses)


def test_a_small_run_has_train_pys_schedule() -> None:
    rates = []

    model = small.new_model(SMALL, 1)
    optimizer = Adam(model.param_groups(0.1), 0.01)

    def look(step, batch):
        assert len(batch[0]) == 4
        rates.append(optimizer.param_groups[0]["lr"])

    small.train(model, optimizer, small.characters(), 4, small.schedule(SMALL, 0.01), 1, look)
    config = train.Config(learning_rate=0.01, min_lr=0.001, warmup_iters=3, max_iters=30)
    assert rates == pytest.approx([train.learning_rate(step, config) for step in range(1, 31)])


def test_a_run_that_diverged_is_no_number_between() -> None:
    assert regret.quantiles([0.1, 0.2, math.inf]) == ["+0.2000", "diverged", "diverged"]
    assert regret.quantiles([0.3, 0.1, 0.2]) == ["+0.2000", "+0.3000", "+0.3000"]


def test_the_report_shows_them() -> None:
    runs = regret.runs("laptop")
    assert len(runs) == 16
    records = {run.name: {"losses": [2.1] * 19 + [None]} for run in runs if "/adam-" in run.name}
    records["regret/adam-0.008"] = {"losses": [2.0] * 20}
    records["regret/mada-0.002"] = {"losses": [1.9] * 20}
    rows = regret.show("laptop", records)[1].rows
    assert ["Adam", "0.008", "+0.0000", "+0.0000", "+0.0000"] in rows
    assert ["Adam", "all", "+0.1000", "+0.1000", "diverged"] in rows
    assert ["MADA", "0.002", "-0.1000", "-0.1000", "-0.1000"] in rows
    assert not any(row[:2] == ["MADA", "all"] for row in rows)
