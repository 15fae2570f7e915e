"""Memory that a process of a run needs, known before anything is allocated. `python -m runtime.memory` writes the table
of docs/SCALE.md.

Counted, not measured: float32 weights, gradients and states in the layout of optim/flat.py, the buffers of DDP and
FSDP2, and the activations that eager PyTorch keeps for the backward pass (torch.compile keeps less). Not counted: the
CUDA context and NCCL (1 to 2 GB), and fragmentation.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any
from cli import Mistake, program

import torch

from model import GPT, GPTConfig
from optim import OPTIMIZERS as RULES
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
    """Peak of a process (bytes), by use."""

    weights: int
    gradients: int
    states: int  # of the optimizer, its pending gradient included
    passing: int  # gathered blocks (FSDP), copies in bfloat16 (autocast)
    activations: int

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))

    def __str__(self) -> str:
        parts = ", ".join(f"{field.name} {getattr(self, field.name) / 1e9:.2f}" for field in fields(self))
        return f"{self.total / 1e9:.2f} GB ({parts})"


@functools.cache
def shapes(config: GPTConfig) -> tuple[list[torch.Size], list[torch.Size]]:
    """Shapes of the parameters of a block, and of all others (the tied one once). Raises MemoryError."""
    try:
        with torch.device("meta"):
            model = GPT(replace(config, n_layer=1))  # fast whatever n_layer is
    except RuntimeError as error:  # a size beyond 2**63 bytes
        raise MemoryError(str(error)) from None
    block = {id(p) for p in model.blocks.parameters()}
    return [p.shape for p in model.blocks.parameters()], [p.shape for p in model.parameters() if id(p) not in block]


def needed(config: GPTConfig, batch_size: int, state: int, processes: int = 1, parallel: str = "ddp",
           dtype: torch.dtype = torch.float32, activation_checkpointing: bool = False) -> Memory:  # fmt: skip
    """Memory of one process for micro-batches of (batch_size, block_size) tokens.

    Args:
        state: bytes of optimizer state per parameter (`RuleOptimizer.check(...).state_bytes()`).
        dtype: of matmuls.
    """
    C, P, L = config.n_embd, config.padded_vocab_size, config.n_layer
    of_block, of_root = shapes(config)
    block, root = (sum(shape.numel() for shape in some) for some in (of_block, of_root))
    sharded = parallel == "fsdp" and processes > 1
    parts = processes if sharded else 1

    def padded(shape: torch.Size) -> int:  # elements in the layout of optim/flat.py; FSDP splits the first dimension
        return math.ceil(math.ceil(shape[0] / parts) * shape[1:].numel() / WIDTH) * WIDTH

    here = L * sum(map(padded, of_block)) + sum(map(padded, of_root))
    matrices = [sum(shape.numel() for shape in some if len(shape) == 2) for some in (of_block, of_root)]
    a = torch.empty((), dtype=dtype).element_size()
    copies = a * (L * matrices[0] + matrices[1]) if a < 4 else 0
    # FSDP: the block at work and the next, each once more in transit; a gradient in transit. The root (embeddings,
    # head) is whole from its forward to its backward pass.
    gathered = 4 * a * block + (a + 4) * block + 4 * root + (a * P * C if a < 4 else 0)

    tokens = batch_size * config.block_size
    # Saved for the backward pass by a block: residual stream twice in float32; norms, q, k, v, attention's result and
    # its copy with the heads side by side, and the two of the MLP's hidden layer; masks of dropout.
    saved = tokens * ((8 + a * (1 + 3 + 2 + 1 + 4 + 4)) * C + (2 * C if config.dropout else 0))
    kept = L * 4 * C * tokens if activation_checkpointing else L * saved
    # The loss: log-probabilities, their gradient and that of the logits, in float32; then the embedding's gradient as
    # the head's weight, until that of the look-up is added.
    head = max(12 * P * tokens, 4 * P * tokens + 4 * P * C) + (4 + a) * C * tokens
    inside = 4 * P * C + (saved if activation_checkpointing else 0) + 16 * C * tokens + 16 * C * C
    return Memory(
        weights=4 * here * (2 if sharded else 1),
        gradients=4 * here * (2 if processes > 1 and not sharded else 1),  # DDP has buckets of its own
        states=state * here,
        passing=gathered if sharded else copies,
        activations=max(kept + max(head, inside), 8 * P * C),
    )


def capacity(device: torch.device) -> int:
    """Bytes of the device for this process; a machine's memory is divided by the processes on it."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):  # of a container
        if Path(limit).exists() and (text := Path(limit).read_text().strip()).isdigit():
            size = min(size, int(text))
    return size // int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def problem(need: Memory, device: torch.device, compiled: bool) -> str | None:
    """Why a run with this need cannot fit; None if it may (compiled code keeps fewer activations)."""
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
        "| model | micro-batch | activation checkpointing | layout | GPUs | " + " | ".join(OPTIMIZERS) + " |",
        "|---" * 5 + "|---:" * len(OPTIMIZERS) + "|",
    ]
    states = [RULES[name].check(**options).state_bytes() for name, options in OPTIMIZERS.items()]
    layouts = (("ddp", 1), ("ddp", 8), ("ddp", 64), ("fsdp", 8), ("fsdp", 64))
    for name, again, (parallel, processes) in itertools.product(MODELS, (False, True), layouts):
        config, batch = MODELS[name]
        needs = [needed(config, batch, state, processes, parallel, torch.bfloat16, again) for state in states]
        row = [name, batch, "yes" if again else "no", parallel if processes > 1 else "one process", processes]
        lines.append("| " + " | ".join(map(str, [*row, *(f"{need.total / 1e9:.1f}" for need in needs)])) + " |")
    return lines


@program("runtime.memory")
def main(argv: list[str]) -> None:
    if argv:
        raise Mistake(f"unknown {argv[0]}: it takes nothing")
    text = SCALE.read_text(encoding="utf-8")
    head, tail = text[: text.index(BEGIN) + len(BEGIN)], text[text.index(END) :]
    SCALE.write_text("\n".join([head, *table(), tail]), encoding="utf-8")
    print("\n".join(table()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
