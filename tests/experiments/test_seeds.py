"""Ten seeds: what stands beside sign steps."""

from experiments import seeds
from study.page import Table

CONFIG = {"dataset": "words", "block_size": 4, "batch_size": 2, "gradient_accumulation_steps": 1, "max_iters": 9}


def test_sign_steps_are_told_from_their_controls() -> None:
    losses = {"adam": 2.0, "avgrad": 1.9, "sign/sign": 1.8, "sign/adam_08_999": 1.7}
    records = {f"{name}-{seed}": {"config": CONFIG, "parameters": 7, "device": "cpu",
                                  "final": {"val_loss": loss + seed / 10, "train_loss": loss, "beta2": 0.99}}
               for name, loss in losses.items() for seed in range(1, 6)}  # fmt: skip
    *_, table = seeds.show("laptop", records)
    assert isinstance(table, Table)
    assert [(row[0][:4], row[1], row[2].partition(" ")[0], row[3]) for row in table.rows] == [
        ("MADA", "Adam", "-0.2000", "0.9900 ± 0.0000"),
        ("MADA", "Adam, betas (0.8, 0.999)", "+0.1000", "0.9900 ± 0.0000"),
        ("Adam", "Adam", "-0.3000", "0.9900 ± 0.0000"),
    ]  # fmt: skip
    without = seeds.show("laptop", {name: record for name, record in records.items() if "/" not in name})
    assert len(without) == 3


def test_sign_steps_travel_as_far_as_the_tuned_ones() -> None:
    steps = {run.name: run.settings for run in seeds.runs("laptop")}["sign/sign-1"]
    assert 2000 * float(steps["hyper_lr"]) == 300 * 1e-2
