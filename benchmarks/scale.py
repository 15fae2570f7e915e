"""Training iterations of models of any size: speed, MFU, seconds to the first step, and peak memory beside what
runtime/memory.py counted.

    python -m benchmarks.scale                      # every case on one GPU
    python -m benchmarks.scale --processes=8 --parallel=fsdp --only=1.5B-mada
    python -m benchmarks.scale --only=124M-mada --seconds=60 --out=FILE [--key=value of train.py ...]
    python -m benchmarks.scale --tiny --device=cpu  # the same on any machine, in a minute: does it work at all?

Each case trains in processes of its own, from random weights, GPT-2's sizes on random tokens; the first five iterations
do not count, the first of all is timed from the start of the process. On a GPU as many iterations as take half a second
lie between two waits. `adamw` is torch.optim.AdamW(fused=True) after torch.nn.utils.clip_grad_norm_. Peak: what the
GPU's allocator held; on a CPU, resident memory above what is left when the tensors are gone.
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
from cli import program

import torch

from benchmarks import training
from benchmarks.measure import chosen, own_options, status, write
from runtime import parallel

XL = ["config/finetune_gpt2xl_mada.py", "--weights=None", "--n_layer=48", "--n_head=25", "--n_embd=1600", "--bias=True"]
TEXT = ["config/shakespeare_char.py", "--dataset=pystdlib"]  # characters; this text is on every machine
CASES: dict[str, tuple[str, list[str]]] = {  # a contender of benchmarks/training.py, command line of train.py
    "0.8M-mada": ("mada", ["config/quickstart.py"]),
    "11M-mada": ("mada", TEXT),
    "11M-mada-launched": ("mada", [*TEXT, "--cuda_graph=False"]),
    "11M-mada-deterministic": ("mada", [*TEXT, "--deterministic"]),
    "124M-adamw": ("adamw", ["config/gpt2_adam.py", "--dataset=random"]),
    "124M-adam": ("adam", ["config/gpt2_adam.py", "--dataset=random"]),
    "124M-mada": ("mada", ["config/gpt2_mada.py", "--dataset=random"]),
    "1.5B-mada": ("mada", [*XL, "--dataset=random"]),
}
TINY = ["--n_layer=2", "--n_head=4", "--n_embd=64", "--block_size=64", "--batch_size=4",
        "--gradient_accumulation_steps=2"]  # fmt: skip


def measure(case: str, argv: list[str], seconds: float, begun: float) -> dict[str, Any]:
    """One case in this process, which began at `begun`, or in those of torchrun; memory is the first one's."""
    name, settings = CASES[case]
    cfg = training.config([*settings, *argv], "benchmarks.scale")
    world = training.join(cfg)
    gpu = world.device.type == "cuda"
    wait = torch.cuda.synchronize if gpu else lambda: None
    trainer = training.trainer(name, cfg, world)
    first, last = 0.0, 0.0
    for _ in range(5):
        start = time.time()
        trainer.iterate()
        wait()
        first, last = first or time.time() - begun, time.time() - start
    calls = max(1, min(100, int(0.5 / last))) if gpu else 1
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    times: list[float] = []
    while len(times) < 3 or world.any(sum(times) * calls < seconds):
        start = time.perf_counter()
        for _ in range(calls):
            trainer.iterate()
        wait()
        times.append((time.perf_counter() - start) / calls)
    peak = torch.cuda.max_memory_allocated() if gpu else status("VmHWM")
    second = statistics.median(times)
    row = {"parameters": trainer.parameters, "tokens": trainer.tokens, "seconds": second,
           "iterations": len(times) * calls, "first_step_seconds": first,
           **trainer.speed(second), "counted_bytes": trainer.need.total, "counted": str(trainer.need),
           "dtype": str(world.dtype)}  # fmt: skip
    if not gpu:
        del trainer
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        peak -= status("VmRSS")
    return row | {"peak_bytes": peak}


@program("benchmarks.scale")
def main(argv: list[str]) -> int:
    """Exit code 0 if every case was measured."""
    defaults = {"seconds": 30.0, "processes": 1, "out": "", "only": ",".join(CASES), "alone": "", "begun": 0.0}
    own, rest = own_options(__doc__, argv, defaults)
    names = chosen(own["alone"] or own["only"], CASES)
    tiny = "--tiny" in rest
    if tiny:
        rest.remove("--tiny")
        rest, own["seconds"] = [*TINY, *rest], 1.0
    if own["alone"]:
        row = measure(own["alone"], rest, own["seconds"], own["begun"] or time.time())
        if os.environ.get("RANK", "0") == "0":
            print(json.dumps(row), flush=True)
        parallel.leave()
        parallel.end(0)
    rows, failed = [], []
    titles = f"{'steps/s':>8} {'tokens/s':>10} {'MFU':>6} {'peak GB':>8} {'counted':>8} {'first step, s':>14}"
    print(f"{'case':22} {'parameters':>14} {titles}")
    device = parallel.resolve(training.config(rest, "benchmarks.scale").device)
    for name in names:
        torchrun = ["torch.distributed.run", "--standalone", f"--nproc_per_node={own['processes']}", "-m"]
        command = [sys.executable, "-m", *(torchrun if own["processes"] != 1 else []), "benchmarks.scale",
                   f"--alone={name}", f"--seconds={own['seconds']}", f"--begun={time.time()}", *rest]  # fmt: skip
        environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
        process = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
        if process.returncode:  # its message is above
            failed.append(name)
            continue
        row = {"case": name, **json.loads(process.stdout.splitlines()[-1])}
        rows.append(row)
        mfu = f"{row['mfu']:.1%}" if row["mfu"] else "-"
        print(f"{name:22} {row['parameters']:14,} {1 / row['seconds']:8.1f} {row['tokens_per_second']:10,.0f} {mfu:>6} "
              f"{row['peak_bytes'] / 1e9:8.2f} {row['counted_bytes'] / 1e9:8.2f} {row['first_step_seconds']:14.1f}",
              flush=True)  # fmt: skip
        written = write(own["out"], "scale", device, rows, config=rest, processes=own["processes"])
    if rows:
        print("written to", written)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
