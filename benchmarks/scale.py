"""Large models on GPUs: speed, MFU and peak memory beside what memory.py counted. For the day that there is one.

    python -m benchmarks.scale                      # every case on one GPU
    python -m benchmarks.scale --processes=8 --parallel=fsdp --only=1.5B-mada
    python -m benchmarks.scale --only=124M-mada --seconds=60 --out=FILE [--key=value of train.py ...]
    python -m benchmarks.scale --tiny --device=cpu  # the same on any machine, in a minute: does it work at all?

Each case trains in processes of its own, on random tokens, from random weights; the first three iterations do not
count. `adamw` is torch.optim.AdamW(fused=True) after torch.nn.utils.clip_grad_norm_. Peak: what the GPU's allocator
held; on a CPU, resident memory above what is left when the tensors are gone.
"""

import ctypes
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

import train
from benchmarks.iteration import trainer
from benchmarks.measure import status, write
from model import GPTConfig
from runtime import memory, parallel
from runtime.settings import parse

XL = ["config/finetune_gpt2xl_mada.py", "--weights=None", "--n_layer=48", "--n_head=25", "--n_embd=1600", "--bias=True"]
CASES: dict[str, tuple[str, list[str]]] = {  # optimizer of benchmarks.iteration, command line of train.py
    "124M-adamw": ("adamw", ["config/gpt2_adam.py"]),
    "124M-adam": ("adam", ["config/gpt2_adam.py"]),
    "124M-mada": ("mada", ["config/gpt2_mada.py"]),
    "1.5B-mada": ("mada", XL),
}
TINY = ["--n_layer=2", "--n_head=4", "--n_embd=64", "--block_size=64", "--batch_size=4",
        "--gradient_accumulation_steps=2"]  # fmt: skip


def measure(name: str, cfg: train.Config, seconds: float) -> dict[str, Any]:
    """One case in this process, or in those that torchrun started; memory is that of the first."""
    world = parallel.join(cfg.device, cfg.dtype, 600, cfg.parallel == "fsdp")
    gpu = world.device.type == "cuda"
    iterate, parameters, flops = trainer(name, cfg, world)
    for _ in range(3):
        iterate()
    if gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # begins VmHWM anew
    times: list[float] = []
    while len(times) < 3 or world.any(sum(times) < seconds):
        start = time.perf_counter()
        iterate()
        if gpu:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated() if gpu else status("VmHWM")
    if not gpu:
        del iterate
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        peak -= status("VmRSS")
    tokens = cfg.gradient_accumulation_steps * cfg.batch_size * cfg.block_size
    second = statistics.median(times)
    peak_flops = train.peak_flops(world.device, world.dtype)
    shape = {k: getattr(cfg, k) for k in GPTConfig.__dataclass_fields__ if k != "vocab_size"}
    state = 8 if name == "adamw" else memory.state_bytes(train.tiny_optimizer(cfg))
    need = memory.needed(GPTConfig(vocab_size=50257, **shape), cfg.batch_size, state, world.size, cfg.parallel,
                         world.dtype, cfg.recompute)  # fmt: skip
    return {
        "parameters": parameters, "tokens": tokens, "seconds": second, "iterations": len(times),
        "tokens_per_second": tokens / second, "mfu": flops / second / peak_flops / world.size if peak_flops else None,
        "peak_bytes": peak, "counted_bytes": need.total, "counted": str(need), "dtype": str(world.dtype),
    }  # fmt: skip


def main(argv: list[str]) -> None:
    own = {"seconds": "30", "processes": "1", "out": "", "only": ",".join(CASES), "alone": ""}
    own |= {k: arg.split("=", 1)[1] for arg in argv for k in own if arg.startswith(f"--{k}=")}
    tiny = "--tiny" in argv
    rest = [arg for arg in argv if arg != "--tiny" and not any(arg.startswith(f"--{k}=") for k in own)]
    more = [*TINY, *rest] if tiny else rest
    if own["alone"]:
        optimizer, settings = CASES[own["alone"]]
        cfg = parse(train.Config, [*settings, "--dataset=random", *more], train.check, "scale.py")
        row = measure(optimizer, cfg, float(own["seconds"]))
        if os.environ.get("RANK", "0") == "0":
            print(json.dumps(row), flush=True)
        parallel.leave()
        parallel.end(0)
    seconds = "1" if tiny else own["seconds"]
    rows, lost = [], []
    device = parse(train.Config, rest, train.check, "scale.py").device if rest else "auto"
    print(f"{'case':12} {'parameters':>14} {'tokens/s':>10} {'MFU':>6} {'peak GB':>8} {'counted':>8}")
    for name in own["only"].split(","):
        several = ["torch.distributed.run", "--standalone", f"--nproc_per_node={own['processes']}", "-m"]
        command = [sys.executable, "-m", *several] if own["processes"] != "1" else [sys.executable, "-m"]
        command += ["benchmarks.scale", f"--alone={name}", f"--seconds={seconds}"]
        command += ["--tiny"] * tiny + rest
        environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
        process = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
        if process.returncode:  # its words are above
            lost.append(name)
            continue
        row = {"case": name, **json.loads(process.stdout.splitlines()[-1])}
        rows.append(row)
        mfu = f"{row['mfu']:.1%}" if row["mfu"] else "-"
        print(f"{name:12} {row['parameters']:14,} {row['tokens_per_second']:10,.0f} {mfu:>6} "
              f"{row['peak_bytes'] / 1e9:8.2f} {row['counted_bytes'] / 1e9:8.2f}", flush=True)  # fmt: skip
        written = write(own["out"] or None, "scale", parallel.resolve(device), rows, config=more,
                        processes=int(own["processes"]))  # fmt: skip
    if rows:
        print("written to", written)
    if lost:
        sys.exit(f"failed: {', '.join(lost)}")


if __name__ == "__main__":
    main(sys.argv[1:])
