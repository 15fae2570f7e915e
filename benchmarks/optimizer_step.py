"""The optimizer step alone: time against fused AdamW and against the memory traffic that it cannot avoid.

    python -m benchmarks.optimizer_step [--sizes=1e5,1e6,1e7,1.24e8] [--only=mada,adam] [--seconds=4] [--device=cpu]
        [--out=FILE] [--without=simplify]   compile the trace as it is: what optim/simplify.py buys (nothing is written)

Each optimizer takes its steps in turn with torch's fused AdamW on as many parameters (16 tensors, one group, gradients
in place), in one process; a ratio is the median over the rounds. Traffic counts each matrix of `Bucket` once for each
pass that reads it and once for the one that writes it (AdamW: x, m and v read and written, g read; its clipping reads
g, and reads and writes it). The last column is the step's time over that of a copy
(torch's copy_, bytes read plus bytes written) of as many bytes on this machine: 1 is the limit of a GPU, and a CPU goes
below, since its copy also reads the lines that it overwrites. AdamW clips with a pass of its own before its step, ours
inside it: compare with `adamw_fused_clip`. Each row is written when it is there, beside the file's other rows.
"""

import statistics
import sys
from collections.abc import Callable
from functools import partial
from typing import Any
from cli import Mistake, program

import torch

from benchmarks.measure import SIX, chosen, device_name, earlier, interleaved, numbers, own_options, ratio, write
from optim import OPTIMIZERS, build_optimizer, compiled
from runtime import parallel

OURS: dict[str, dict[str, Any]] = {name: {} for name in OPTIMIZERS} | {
    "mada": {"hyper_lr": SIX, "max_grad_norm": 1.0},
    "mada_weights_first": {"hyper_lr": SIX, "max_grad_norm": 1.0, "order": "weights_first"},
    "mada_fixed": {"hyper_lr": {}, "beta3": 0.5, "rho": 0.5, "c": 0.9, "gamma": 0.9},
    "hyperadam": {"max_grad_norm": 1.0},
    "adam_clip": {"max_grad_norm": 1.0},
}
THEIRS = {"adamw_fused": {"fused": True}, "adamw_foreach": {"foreach": True}, "adamw_fused_clip": {"fused": True}}


def traffic(optimizer: Any, clips: bool) -> tuple[float, float]:
    """(bytes read and written in a step, bytes of state), both per parameter, from what the optimizer holds."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    count = sum(p.numel() for p in params)
    if isinstance(optimizer, torch.optim.AdamW):
        size = sum(p.nbytes for p in params)
        held = sum(v.nbytes for state in optimizer.state.values() for v in state.values() if v.numel() > 1)
        return (3 * size + 2 * held + clips * 3 * size) / count, held / count
    moved = held = 0
    for b in optimizer.buckets:
        state = [*b.states.values()] + ([] if b.pending is None else [b.pending])
        size = sum(matrix.nbytes for matrix in state)
        first = (b.g.nbytes + (size if optimizer.learned else 0)) if optimizer.grad_norm is not None else 0
        update = b.x.nbytes + b.g.nbytes + size + b.x.nbytes + size
        moved, held = moved + first + update, held + size
    return moved / count, held / count


def stepper(name: str, size: int, device: str) -> tuple[Callable[[], Any], Any]:
    """A function that takes one step with the named optimizer, and the optimizer."""
    params = [torch.nn.Parameter(torch.randn(size // 16, device=device)) for _ in range(16)]
    if name in THEIRS:
        optimizer: Any = torch.optim.AdamW(params, betas=(0.9, 0.95), **THEIRS[name])
    else:
        rule = next(rule for rule in sorted(OPTIMIZERS, key=len, reverse=True) if name.startswith(rule))
        optimizer = build_optimizer(rule, params, compile=True, **OURS[name])
        optimizer.zero_grad(set_to_none=False)
    for p in params:
        gradient = torch.randn_like(p)
        p.grad = gradient if p.grad is None else p.grad.copy_(gradient)

    def step() -> None:
        if name.endswith("clip") and name in THEIRS:
            torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()

    return step, optimizer


@program("benchmarks.optimizer_step")
def main(argv: list[str]) -> None:
    known = [*THEIRS, *OURS]
    defaults = {"sizes": "1e5,1e6,1e7,1.24e8", "only": ",".join(known), "seconds": 4.0, "device": "auto", "without": "",
                "out": ""}  # fmt: skip
    own, _ = own_options(__doc__, argv, defaults, more=False)
    for _, problem in parallel.device_problems(own["device"]):
        raise Mistake(problem)
    device, seconds, out = parallel.resolve(own["device"]), own["seconds"], own["out"]
    without = own["without"] and chosen(own["without"], ["simplify"])
    names, sizes = chosen(own["only"], known), numbers("--sizes", own["sizes"], int)
    if without:
        compiled.simplified = lambda traced, size, tensors: traced

    there = [row for row in earlier(out, "optimizer-step", device) if row["optimizer"] in known]
    rows = {(row["parameters"], row["optimizer"]): row for row in there}
    print(f"{device_name(device)}, torch {torch.__version__}")
    titles = f"{'ms':>9} {'x AdamW':>8} {'state B':>8} {'traffic B':>10} {'x traffic':>10}"
    print(f"{'optimizer':20} {'parameters':>11} {titles}")
    for size in sizes:
        copy = partial(torch.empty(size, device=device).copy_, torch.randn(size, device=device))
        for name in names:
            step, optimizer = stepper(name, size, device)
            adamw, _ = stepper("adamw_fused", size, device)
            calls = 20 if device.startswith("cuda") else 1
            times = interleaved({"adamw_fused": adamw, "copy": copy, name: step}, device, seconds, calls)
            ms, against = statistics.median(times[name]) * 1e3, ratio(times, name, "adamw_fused")
            moved, held = traffic(optimizer, name.endswith("clip"))
            copies = ratio(times, name, "copy")[0] * 8 / moved
            rows[size, name] = {"optimizer": name, "parameters": size, "ms": ms, "adamw": against,
                                "rounds": len(times[name]), "state_bytes": held, "traffic_bytes": moved,
                                "copies": copies}  # fmt: skip
            text = f"{name:20} {size:11,} {ms:9.3f} {against[0]:8.2f}"
            print(f"{text} {held:8.1f} {moved:10.1f} {copies:10.2f}", flush=True)
            if without:
                continue
            in_order = sorted(rows.values(), key=lambda row: (row["parameters"], known.index(row["optimizer"])))
            written = write(out, "optimizer-step", device, in_order)
            del step, optimizer, adamw  # their memory, before the next ones take theirs
    if not without:
        print("written to", written)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
