"""How much memory a process of a run needs, before it takes any. `python -m runtime.memory` writes SCALE.md's table.

Counted, not measured: float32 weights, gradients and states as optim/flat.py lays them out, what DDP and FSDP2 add, and
the activations that eager PyTorch keeps for the backward pass (torch.compile keeps less). What is left out: the CUDA
context and NCCL (1 to 2 GB), and what an allocator loses between the pieces.
"""

from __future__ import annotations

import functools
import math
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from model import GPT, GPTConfig
from optim import build_optimizer
from optim.flat import WIDTH

SCALE = Path(__file__).parents[1] / "docs" / "SCALE.md"
BEGIN, END = "<!-- memory -->", "<!-- /memory -->"
MODELS = {  # with the micro-batch of the table; C = n_embd
    "124M": (GPTConfig(n_layer=12, n_head=12, n_embd=768, vocab_multiple=64), 12),
    "355M": (GPTConfig(n_layer=24, n_head=16, n_embd=1024, vocab_multiple=64), 12),
    "1.5B": (GPTConfig(n_layer=48, n_head=25, n_embd=1600, vocab_multiple=64), 4),
}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "lion": {}, "adam": {}, "avgrad": {}, "adan": {}, "hyperadam": {},
    "mada": {"hyper_lr": dict.fromkeys(("beta1", "beta2", "beta3", "rho", "c", "gamma"), 1e-4)},
}  # fmt: skip


@dataclass(frozen=True)
class Memory:
    """Bytes that a process holds at its fullest moment, by what they are for."""

    weights: int
    gradients: int
    states: int  # of the optimizer, with the gradient that waits
    passing: int  # whole blocks (FSDP), copies in bfloat16 (autocast)
    activations: int

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))

    def __str__(self) -> str:
        parts = ", ".join(f"{field.name} {getattr(self, field.name) / 1e9:.2f}" for field in fields(self))
        return f"{self.total / 1e9:.2f} GB ({parts})"


def state_bytes(optimizer: Any) -> int:
    """Of one parameter: its states and, where coefficients are learned, its pending gradient."""
    (bucket,) = optimizer.buckets
    matrices = [*bucket.states.values()] + ([] if bucket.pending is None else [bucket.pending])
    return sum(matrix.element_size() for matrix in matrices)


@functools.cache
def shapes(config: GPTConfig) -> tuple[list[torch.Size], int]:
    """Of the parameters, the tied one once, and the number of elements of a block."""
    with torch.device("meta"):
        model = GPT(config)
    blocks: Any = model.transformer["h"]
    return [p.shape for p in model.parameters()], sum(p.numel() for p in blocks[0].parameters())


def needed(config: GPTConfig, batch_size: int, state: int, processes: int = 1, parallel: str = "ddp",
           dtype: torch.dtype = torch.float32, recompute: bool = False) -> Memory:  # fmt: skip
    """What one process needs for micro-batches of (batch_size, block_size) tokens.

    Args:
        state: bytes of one parameter, from `state_bytes`.
        dtype: of matmuls.
    """
    parameters, block = shapes(config)
    sharded = parallel == "fsdp" and processes > 1
    parts = processes if sharded else 1

    def rows(shape: torch.Size) -> int:  # as Bucket lays them out; FSDP splits the first dimension
        return math.ceil(math.ceil(shape[0] / parts) * shape[1:].numel() / WIDTH) * WIDTH

    here = sum(map(rows, parameters))
    every = sum(shape.numel() for shape in parameters)
    a = torch.empty((), dtype=dtype).element_size()
    matmuls = sum(shape.numel() for shape in parameters if len(shape) == 2)
    C, P, L = config.n_embd, config.padded_vocab_size, config.n_layer
    copies = a * matmuls if a < 4 else 0
    passing = copies
    if sharded:
        root = every - L * block
        # The one that works and the next, each once more on its way from the others; a gradient on its way back. The
        # root (embeddings, head) is whole from its forward to its backward pass.
        passing = 4 * a * block + (a + 4) * block + 4 * root + (a * P * C if a < 4 else 0)

    tokens = batch_size * config.block_size
    # Saved for the backward pass by a block: residual stream twice in float32; norms, q, k, v, attention's result and
    # its copy with the heads side by side, and the two of the MLP's hidden layer; masks of dropout.
    saved = tokens * ((8 + a * (1 + 3 + 2 + 1 + 4 + 4)) * C + (2 * C if config.dropout else 0))
    kept = L * 4 * C * tokens if recompute else L * saved
    # The loss: the log-probabilities, their gradient and the logits', in float32. Then the gradient of the embedding as
    # the head's weight, which waits for the one of the look-up.
    head = max(12 * P * tokens, 4 * P * tokens + 4 * P * C) + (4 + a) * C * tokens
    inside = 4 * P * C + (saved if recompute else 0) + 16 * C * tokens + 16 * C * C
    activations = max(kept + max(head, inside), 8 * P * C)
    return Memory(
        weights=4 * here * (2 if sharded else 1),
        gradients=4 * here * (2 if processes > 1 and not sharded else 1),  # DDP's buckets are its own
        states=state * here,
        passing=passing,
        activations=activations,
    )


def capacity(device: torch.device) -> int:
    """Bytes that the device has for this process; a machine's memory is divided by the processes on it."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):  # of a container
        if Path(limit).exists() and (text := Path(limit).read_text().strip()).isdigit():
            size = min(size, int(text))
    return size // int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def problem(need: Memory, device: torch.device, compiled: bool) -> str | None:
    """Why a run of this need cannot be, in words; None if it may fit (of the activations, compiled code keeps less)."""
    there = capacity(device)
    if need.total - (need.activations // 2 if compiled else 0) <= there:
        return None
    return f"each process needs about {need}, more than the {there / 1e9:.2f} GB of {device}"


def advice(batch_size: int) -> str:
    """What to do about it."""
    return (f"lower batch_size={batch_size}, set --activation_checkpointing, or spread the model over more processes "
            "with --parallel=fsdp")  # fmt: skip


def table() -> list[str]:
    """GB of a process, rows of markdown: models and layouts by optimizers."""
    lines = [
        "| model | micro-batch | recompute | layout | GPUs | " + " | ".join(OPTIMIZERS) + " |",
        "|---" * 5 + "|---:" * len(OPTIMIZERS) + "|",
    ]
    state = {name: state_bytes(build_optimizer(name, [torch.nn.Parameter(torch.zeros(1))], **more))
             for name, more in OPTIMIZERS.items()}  # fmt: skip
    for name, (config, batch) in MODELS.items():
        for recompute in (False, True):
            for parallel, processes in (("ddp", 1), ("ddp", 8), ("ddp", 64), ("fsdp", 8), ("fsdp", 64)):
                cells = [needed(config, batch, state[optimizer], processes, parallel, torch.bfloat16, recompute).total
                         for optimizer in OPTIMIZERS]  # fmt: skip
                row = [name, batch, "yes" if recompute else "no", parallel if processes > 1 else "one process",
                       processes, *(f"{cell / 1e9:.1f}" for cell in cells)]  # fmt: skip
                lines.append("| " + " | ".join(map(str, row)) + " |")
    return lines


def main() -> None:
    text = SCALE.read_text(encoding="utf-8")
    head, tail = text[: text.index(BEGIN) + len(BEGIN)], text[text.index(END) :]
    SCALE.write_text("\n".join([head, *table(), tail]), encoding="utf-8")
    print("\n".join(table()))


if __name__ == "__main__":
    main()
