"""Appendix D: time and memory

What does an iteration with MADA cost, and how does that change with the batch?
"""

from collections.abc import Mapping, Sequence
from typing import Any

from study.page import Block, Table, Text

from .experiment import PAPER, Computation, Record, written_by

SCALES = ("laptop", "gpu")

LABELS = {"adamw": "AdamW, torch's fused", "adam": "Adam", "mada": "MADA", "mada_without_lion": "MADA without Lion"}
GPT2 = ("config/gpt2_mada.py", "--device=cuda")
# scale: (minutes a run, {sequences a step in the paper, over eight GPUs: arguments of benchmarks.iteration})
SIZES: dict[str, tuple[float, dict[str, tuple[str, ...]]]] = {
    "laptop": (2.0, {
        "480": ("config/shakespeare_char.py", "config/laptop.py"),
        "3840": ("config/shakespeare_char.py", "config/laptop.py", "--gradient_accumulation_steps=8"),
    }),
    "gpu": (4.0, {
        "480": (*GPT2, "--gradient_accumulation_steps=5"),
        "3840": (*GPT2, "--gradient_accumulation_steps=40"),
    }),
}  # fmt: skip


def runs(scale: str) -> Sequence[Computation]:
    minutes, sizes = SIZES[scale]
    return [
        Computation(f"cost/{batch}", scale, measure, {"arguments": list(arguments)},
                    minutes=minutes, alone=True)
        for batch, arguments in sizes.items()
    ]  # fmt: skip


def measure(settings: Mapping[str, Any]) -> Record:
    """What benchmarks.iteration finds, each optimizer beside the others in one process."""
    command = ["-m", "benchmarks.iteration", *settings["arguments"], f"--only={','.join(LABELS)}", "--seconds=40"]
    return written_by(*command, to="--out")


def show(scale: str, records: dict[str, Record]) -> Sequence[Block]:
    rows = []
    for name, record in records.items():
        batch = name.removeprefix("cost/")
        paper = PAPER["appendix_d"][batch]
        base = record["rows"][0]
        for row in record["rows"]:
            median, lower, upper = row["adamw"]
            theirs = paper.get(row["optimizer"])
            ratios = ["", ""]
            if theirs and row["optimizer"] != "adam":
                ratios = [f"{theirs[i] / paper['adam'][i]:.2f}" for i in (0, 1)]
            rows.append([
                f"{record['tokens']:,}", LABELS[row["optimizer"]], f"{row['ms']:.1f}",
                f"{median:.2f} ({lower:.2f} to {upper:.2f})", ratios[0],
                f"{row['peak_bytes'] / 1e9:.2f}", f"{row['peak_bytes'] / base['peak_bytes']:.2f}", ratios[1],
            ])  # fmt: skip
    first = next(iter(records.values()))
    header = ["tokens a step", "optimizer", "ms an iteration", "times AdamW's", "paper, times Adam's", "peak GB",
              "times AdamW's ", "paper, times Adam's "]  # fmt: skip
    return [
        Text(
            f"{first['parameters']:,} parameters on {first['device']}; medians (quartiles) over rounds in which all "
            "take turns in one process, each memory from a process of its own. The paper: GPT-2 124M on one H100, 480 "
            "and 3,840 sequences of 1,024 tokens a step over eight of them. The more tokens a step, the less the "
            "optimizer weighs."
        ),
        Table(header, rows),
    ]
