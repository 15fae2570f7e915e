"""What it costs in accuracy to keep optimizer states in bfloat16: validation losses over seeds, beside float32 states.

    python -m benchmarks.half [config/shakespeare_char.py --key=value ...] [--seeds=3] [--out=FILE]

Trains the laptop model (0.8M, 500 steps unless told otherwise) with MADA started inside its family, where every state
matters, once for each set of states and seed; the same seed means the same weights and batches, so the differences are
paired.
"""

import statistics
import sys
from typing import Any
from cli import program

import torch

import train
from benchmarks.measure import own_options, write
from benchmarks.training import config, new_model
from data import open_dataset
from runtime import optimizers, parallel

SETS: dict[str, tuple[str, ...]] = {
    "float32": (),
    "pending, g": ("pending", "g"),
    "m, n, l": ("m", "n", "l"),
    "v": ("v",),
    "va": ("va",),
    "all": ("m", "n", "v", "va", "l", "g", "pending"),
}
LAPTOP = ["--n_layer=4", "--n_head=4", "--n_embd=128", "--block_size=64", "--batch_size=12", "--max_iters=500",
          "--dropout=0.0", "--eval_iters=400", "--device=cpu",
          "--beta3=0.5", "--rho=0.5", "--c=0.5", "--gamma=0.9"]  # fmt: skip


def final_loss(cfg: train.Config, half: tuple[str, ...], world: parallel.World) -> tuple[float, dict[str, float]]:
    """(validation loss after the last step, the coefficients then)."""
    dataset = open_dataset(cfg.dataset, prepare=True)
    model = new_model(cfg, dataset.vocab_size).to(world.device)
    optimizer = optimizers.build(cfg, model, True, half=half)
    for step in range(1, cfg.max_iters + 1):
        for group in optimizer.param_groups:
            group["lr"] = train.learning_rate(step, cfg)
        train.accumulate(model, dataset.train, step, cfg, world)
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
    loss = train.evaluate(model, dataset.val, cfg, world)
    assert loss is not None, "nothing asks this process to leave"
    return loss, optimizer.coefficients


@program("benchmarks.half")
def main(argv: list[str]) -> None:
    own, rest = own_options(__doc__, argv, {"seeds": 3, "out": ""})
    rest = rest if any(arg.endswith(".py") for arg in rest) else ["config/shakespeare_char.py", *LAPTOP, *rest]
    rows: list[dict[str, Any]] = []
    print(f"{'bfloat16':12} {'n':>2} {'val loss':>9} {'difference to float32, by seed'}")
    for name, half in SETS.items():
        losses, coefficients = [], []
        for seed in range(1, own["seeds"] + 1):
            cfg = config([*rest, f"--seed={seed}"], "benchmarks.half")
            loss, last = final_loss(cfg, half, parallel.World(0, 1, torch.device(cfg.device), torch.float32))
            losses.append(loss)
            coefficients.append(last)
        rows.append({"half": half, "val_loss": losses, "coefficients": coefficients})
        differences = [a - b for a, b in zip(losses, rows[0]["val_loss"], strict=True)]
        text = f"{name:12} {len(losses):2} {statistics.mean(losses):9.4f} {' '.join(f'{d:+.5f}' for d in differences)}"
        print(text, flush=True)
        written = write(own["out"], "half", cfg.device, rows, config=rest)
    print("written to", written)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
