"""Table 2 at a large batch: what becomes of the sweeps' records."""

from typing import Any

from experiments import large_batch, regime
from study.page import Figure, Table, Text, picture


def arm(loss: float, **ends: float) -> dict[str, Any]:
    """A record of ten seeds; its coefficients end at `ends`, the others where figure 5 starts."""
    at = {name: regime.authors("mada_rho0")[name][0] for name in large_batch.COEFFICIENTS} | ends
    losses = [loss + seed / 100 for seed in range(10)]
    grid = [{"point": {"learning_rate": rate}, "val_loss": [loss + 1, loss + 1]} for rate in (0.008, 0.016, 0.032)]
    return {
        "parameters": 60192, "axes": ["learning_rate"], "grid": grid, "optimum": {"learning_rate": "0.016"},
        "inside": True, "seeds": [*range(3, 13)], "diverged": 0, "val_loss": losses, "train_loss": losses,
        "curves": {"step": [0, 300], "val_loss": [[4.0, value] for value in losses]},
        "coefficients": {name: [value + seed * 1e-6 for seed in range(10)] for name, value in at.items()},
    }  # fmt: skip


def test_the_tables_of_three_arms() -> None:
    records = {"large_batch/adam": arm(2.0), "large_batch/avgrad": arm(2.1),
               "large_batch/mada_rho0": arm(1.9, beta1=0.91, beta3=0.5)}  # fmt: skip
    about, losses, _, pairs, _, changes, figure, ends = large_batch.show("laptop", records)
    assert isinstance(about, Text) and about.words.startswith("60,192 parameters, 8,192 tokens a step, 300 steps.")
    assert isinstance(losses, Table) and [row[0][:8] for row in losses.rows] == ["MADA fro", "Adam", "AVGrad"]
    assert losses.rows[0][6].startswith("-0.1000 [") and "verdict" not in losses.header
    assert isinstance(pairs, Table) and [row[3][:7] for row in pairs.rows] == ["-0.2000"]
    assert pairs.rows[0][4:] == ["p = 0.0098", "lower"]  # five times 2 / 1024
    assert isinstance(changes, Table) and len(changes.rows) == 6
    signs = {row[0].rpartition(" ")[2]: row[4:] for row in changes.rows}
    assert signs["beta1"] == ["10 of 10", "10 of 10"]
    assert signs["beta3"] == ["0 of 10", "10 of 10"]  # the authors' stays until step 500 and then rises
    assert isinstance(ends, Text) and "beta3 0.5000" in ends.words
    assert isinstance(figure, Figure) and len(picture(figure)) > 5000


def test_the_best_constants_are_chosen_on_the_seeds_of_the_grid() -> None:
    found = {name: arm(2.0) for name in large_batch.CONSTANTS}
    assert large_batch.best_constants({name: found[name] for name in large_batch.CONSTANTS[1:]}) is None
    found["adam_999"] = arm(1.9) | {"val_loss": [3.0] * 10}
    assert large_batch.best_constants(found) == "adam_999"
    found["mada_adam"] = arm(1.8)
    differences = large_batch.differences(large_batch.losses_with_best(found))
    assert differences["mada_adam", large_batch.BEST].difference < -1.1 and differences["mada_adam", "adam"].n == 10


def test_what_an_arm_learned_is_kept_in_another() -> None:
    record = arm(1.9) | {"learned": arm(1.9, beta1=0.91)["coefficients"]}
    assert large_batch.kept("mada_rho0", record).settings["beta1"] == "0.910005"
    assert {*large_batch.KEPT.values()} <= {*large_batch.ARMS}
    known = {*large_batch.ARMS, *large_batch.KEPT, large_batch.BEST}
    assert {name for pair in large_batch.PAIRS for name in pair} <= known
