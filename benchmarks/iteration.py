"""A whole training iteration, with train.py's own functions: what MADA costs in time and memory beside fused AdamW.

    python -m benchmarks.iteration config/quickstart.py [--key=value ...] [--seconds=60] [--out=FILE]

The same model, batch and accumulation for each optimizer, iterations taken in turn in one process; a ratio is the
median over the rounds. `adamw` is torch.optim.AdamW(fused=True) after torch.nn.utils.clip_grad_norm_, `adam` our rule,
`mada` learns all six coefficients. Memory is the peak of a process that trains with that optimizer alone (on a GPU what
its allocator held, elsewhere resident memory). Without its data set the model reads random tokens, as fast.
"""

import gc
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import train
from benchmarks.measure import SIX, device_name, interleaved, own_options, ratio, status, write
from data import DataError, open_dataset
from model import GPT, GPTConfig
from optim import build_optimizer
from runtime import parallel
from runtime.settings import parse

CONTENDERS: dict[str, dict[str, Any]] = {
    "adamw": {},
    "adam": {},
    "mada": {"hyper_lr": SIX},
    "mada_without_lion": {"hyper_lr": {name: rate for name, rate in SIX.items() if name != "gamma"}},
    "mada_weights_first": {"hyper_lr": SIX, "order": "weights_first"},
}


class RandomTokens:
    """Stands in for a data set that is not here."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def __len__(self) -> int:
        return 10_000_000

    def windows(self, starts: np.ndarray, length: int) -> np.ndarray:
        return np.random.default_rng(int(starts[0])).integers(0, self.vocab_size, (len(starts), length))


def new_model(cfg: train.Config, vocab_size: int) -> GPT:
    """The model of a config, with the weights that its seed gives."""
    torch.manual_seed(cfg.seed)
    shape = {k: getattr(cfg, k) for k in GPTConfig.__dataclass_fields__ if k != "vocab_size"}
    return GPT(GPTConfig(vocab_size=vocab_size, **shape))


def trainer(name: str, cfg: train.Config, world: parallel.World) -> tuple[Callable[[], Any], int, float]:
    """(a function that takes one iteration, parameters of the model, FLOPs of an iteration)."""
    try:
        dataset = open_dataset(cfg.dataset, prepare=True)
        tokens, vocab_size = dataset.train, dataset.vocab_size
    except DataError:
        vocab_size = 50257
        tokens = RandomTokens(vocab_size)  # type: ignore[assignment]
    model = new_model(cfg, vocab_size).to(world.device)
    model.recompute(cfg.recompute)
    _, net = world.spread(model, bool(cfg.compile or world.device.type == "cuda"))
    groups = model.param_groups(cfg.weight_decay)
    settings: dict[str, Any] = {"lr": cfg.learning_rate, "max_grad_norm": cfg.grad_clip, "compile": cfg.compile}
    optimizer: Any
    if name == "adamw":
        optimizer = torch.optim.AdamW(groups, lr=cfg.learning_rate, betas=(0.9, 0.95), eps=1e-6, fused=True)
    else:
        optimizer = build_optimizer(name.split("_")[0], groups, **settings, **CONTENDERS[name])
        optimizer.zero_grad(set_to_none=False)
    step = 0

    def iterate() -> None:
        nonlocal step
        step += 1
        train.accumulate(net, tokens, step, cfg, world)
        if name == "adamw":
            torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=name == "adamw")  # what is best for each

    per_step = cfg.gradient_accumulation_steps * cfg.batch_size * cfg.block_size
    return iterate, model.num_parameters(), model.flops_per_token() * per_step


def peak_memory(name: str, cfg: train.Config, world: parallel.World) -> int:
    """Bytes at the peak of five iterations."""
    iterate, _, _ = trainer(name, cfg, world)
    for _ in range(5):
        iterate()
    if world.device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return status("VmHWM")


def main(argv: list[str]) -> None:
    own, rest = own_options(argv, {"seconds": "60", "out": "", "alone": "", "only": ",".join(CONTENDERS)})
    cfg = parse(train.Config, rest, train.check, "iteration.py")
    world = parallel.join(cfg.device, cfg.dtype, 60)
    if own["alone"]:
        print(json.dumps(peak_memory(own["alone"], cfg, world)))
        return

    names, device = own["only"].split(","), world.device.type
    made = {name: trainer(name, cfg, world) for name in names}
    times = interleaved({name: made[name][0] for name in names}, device, float(own["seconds"]))
    parameters, flops = made["adamw"][1:]
    tokens = cfg.gradient_accumulation_steps * cfg.batch_size * cfg.block_size
    peak_flops = train.peak_flops(world.device, world.dtype)
    del made
    gc.collect()  # the children need the memory
    if device == "cuda":
        torch.cuda.empty_cache()
    memory = {}
    for name in names:
        command = [sys.executable, "-m", "benchmarks.iteration", f"--alone={name}", *rest]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        memory[name] = json.loads(output.splitlines()[-1])

    rows = []
    print(f"{device_name(device)}, torch {torch.__version__}, {parameters:,} parameters, {tokens:,} tokens a step")
    titles = f"{'ms':>9} {'x AdamW':>8} {'quartiles':>13} {'tokens/s':>10} {'MFU':>6} {'peak GB':>8} {'+ B/param':>10}"
    print(f"{'optimizer':20} {titles}")
    for name in names:
        seconds = statistics.median(times[name])
        median, lower, upper = ratio(times, name, "adamw")
        row = {"optimizer": name, "ms": seconds * 1e3, "adamw": [median, lower, upper], "rounds": len(times[name]),
               "tokens_per_second": tokens / seconds, "mfu": flops / seconds / peak_flops if peak_flops else None,
               "peak_bytes": memory[name], "above_adamw": (memory[name] - memory["adamw"]) / parameters}  # fmt: skip
        rows.append(row)
        mfu = f"{row['mfu']:.1%}" if row["mfu"] else "-"
        print(f"{name:20} {row['ms']:9.2f} {median:8.3f} {lower:6.3f}-{upper:6.3f} {row['tokens_per_second']:10,.0f} "
              f"{mfu:>6} {memory[name] / 1e9:8.2f} {row['above_adamw']:10.1f}")  # fmt: skip
    written = write(own["out"] or None, "iteration", device, rows, config=rest, parameters=parameters, tokens=tokens)
    print("written to", written)


if __name__ == "__main__":
    main(sys.argv[1:])
