"""A whole training iteration, with train.py's own functions: what MADA costs in time and memory beside fused AdamW.

    python -m benchmarks.iteration config/quickstart.py [--key=value ...] [--seconds=60] [--only=adamw,mada] [--out=F]

The same model, batch and accumulation for each optimizer, iterations taken in turn in one process, on a GPU five in a
row; a ratio is the median over the rounds. `adamw` is torch.optim.AdamW(fused=True) after
torch.nn.utils.clip_grad_norm_, `adam` our rule, `mada` learns all six coefficients. Memory is the peak of five
iterations in a process that trains with that optimizer alone (on a GPU what its allocator held, elsewhere resident
memory). Without its data set the model reads random tokens, as fast.
"""

import gc
import json
import statistics
import subprocess
import sys
from cli import Mistake, program

import torch

from benchmarks import training
from benchmarks.measure import chosen, interleaved, own_options, ratio, status, write
from benchmarks.table import show


def peak_memory(name: str, argv: list[str]) -> int:
    """Bytes at the peak of five iterations in a process of their own."""
    command = [sys.executable, "-m", "benchmarks.iteration", f"--alone={name}", *argv]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise Mistake(f"{name} alone failed: its message is above")
    return json.loads(done.stdout.splitlines()[-1])


@program("benchmarks.iteration")
def main(argv: list[str]) -> None:
    options = {"seconds": 60.0, "out": "", "alone": "", "only": ",".join(training.CONTENDERS)}
    own, rest = own_options(__doc__, argv, options)
    names = chosen(own["alone"] or own["only"], training.CONTENDERS)
    if not own["alone"] and "adamw" not in names:
        raise Mistake(f"--only={own['only']} lacks adamw, which the others are compared with")
    cfg = training.config(rest, "benchmarks.iteration")
    world = training.join(cfg)
    device = world.device.type
    if own["alone"]:
        alone = training.trainer(own["alone"], cfg, world)
        for _ in range(5):
            alone.iterate()
        print(torch.cuda.max_memory_allocated() if device == "cuda" else status("VmHWM"))
        return

    made = {name: training.trainer(name, cfg, world) for name in names}
    calls = 5 if device == "cuda" else 1
    times = interleaved({name: made[name].iterate for name in names}, device, own["seconds"], calls)
    seconds = {name: statistics.median(times[name]) for name in names}
    speeds = {name: made[name].speed(seconds[name]) for name in names}
    parameters, tokens = made["adamw"].parameters, made["adamw"].tokens
    del made
    gc.collect()  # the children need the memory
    if device == "cuda":
        torch.cuda.empty_cache()
    memory = {name: peak_memory(name, rest) for name in names}

    rows = []
    for name in names:
        above = (memory[name] - memory["adamw"]) / parameters
        rows.append({"optimizer": name, "ms": seconds[name] * 1e3, "adamw": ratio(times, name, "adamw"),
                     "rounds": len(times[name]), **speeds[name], "peak_bytes": memory[name],
                     "above_adamw": above})  # fmt: skip
    about = {"config": rest, "parameters": parameters, "tokens": tokens}
    show(write(own["out"], "iteration", device, rows, **about))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
