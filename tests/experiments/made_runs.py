"""Runs as train.py leaves them, made up."""

import json

from experiments import experiment
from experiments.experiment import Training
from runtime.optimizers import adapt
from runtime.settings import read_files

NAMES = ("beta1", "beta2", "beta3", "rho", "c", "gamma")


def leave(run: Training, until: int | None = None, gain: float = 0.0, **config: object) -> None:
    """What train.py leaves behind: a loss that falls to 1 - gain, coefficients that fall, the last checkpoint."""
    run.out_dir.mkdir(parents=True, exist_ok=True)
    files = read_files([experiment.ROOT / path for path in run.configs], {**run.all_settings(), **config}, adapt)
    full = {"max_iters": 200, "dataset": "words", "gradient_accumulation_steps": 1, "block_size": 8, "out_dir": "x",
            "optimizer": "mada", **files}  # fmt: skip
    if run.coefficients_from:
        source = run.coefficients_from.record()
        assert source is not None
        full["coefficients"] |= {name: source["final"][name] for name in NAMES}
    steps = full["max_iters"]
    about = {"config": full, "commit": "abc", "parameters": 10, "device": "cpu"}
    (run.out_dir / "config.json").write_text(json.dumps(about))
    lines = ["step,tokens,seconds,train_loss,val_loss,lr,grad_norm," + ",".join((*NAMES, "h_beta1"))]
    last = steps if until is None else until
    (run.out_dir / f"ckpt_{last:06d}.pt").write_text("x")
    described = {"step": last, "val_loss": None, "size": 1, "sha256": "abc"}
    (run.out_dir / f"ckpt_{last:06d}.json").write_text(json.dumps(described))
    for step in range(last + 1):
        loss = 1 - gain + (steps - step) / steps
        lines.append(
            f"{step},{step * 16},{step / 10},{loss if step else ''},"
            f"{loss + 1 if step % 50 == 0 or step == steps else ''},0.1,1,"
            + ",".join(f"{0.9 - step / 1000}" for _ in NAMES) + ",0.5"
        )  # fmt: skip
    (run.out_dir / "metrics.csv").write_text("\n".join(lines) + "\n")
