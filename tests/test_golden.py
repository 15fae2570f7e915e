"""Golden curves: 50 steps of each optimizer give the losses that are committed here, so that nothing changes unseen.

    GOLDEN=remake ./run test -k golden        # writes tests/golden.json anew, after a change that is meant
"""

import json
import os
from pathlib import Path

import pytest
import torch
from outcomes import rows

import train
from optim import OPTIMIZERS

GOLDEN = Path(__file__).with_name("golden.json")
# Relative. Torch 2.13 with the kernels of other processors (ATEN_CPU_CAPABILITY=default, DNNL_MAX_CPU_ISA=SSE41), with
# two threads: 3e-6 at most. Another torch has other kernels too; should it draw other random numbers, remake the file.
SAME_TORCH, OTHER_TORCH = 3e-5, 1e-3


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_losses_are_the_golden_ones(small: list[str], tmp_path: Path, optimizer: str) -> None:
    run = [*small, f"--optimizer={optimizer}", "--max_iters=50", "--log_interval=1", "--eval_interval=50"]
    assert train.main(run + ["--hyper_lr=None"] * (optimizer != "mada")) == 0
    losses = [float(row["train_loss"]) for row in rows(tmp_path / "run")[1:]]
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if os.environ.get("GOLDEN") == "remake":
        golden |= {"torch": torch.__version__.partition("+")[0], optimizer: [float(f"{loss:.7g}") for loss in losses]}
        lines = ",\n".join(f'"{name}": {json.dumps(value)}' for name, value in sorted(golden.items()))
        GOLDEN.write_text("{\n" + lines + "\n}\n")
        return
    assert optimizer in golden, f"{optimizer} has no golden curve yet: GOLDEN=remake ./run test -k golden"
    tolerance = SAME_TORCH if torch.__version__.startswith(golden["torch"]) else OTHER_TORCH
    assert losses == pytest.approx(golden[optimizer], rel=tolerance)
