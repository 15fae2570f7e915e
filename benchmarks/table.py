"""Results of the benchmarks as tables: on the terminal, and in docs/BENCHMARKS.md from benchmarks/results/. With it
docs/SCALE.md's table of memory, which is counted (runtime/memory.py).

    python -m benchmarks.table
"""

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from cli import program

from benchmarks.measure import RESULTS, own_options
from runtime import memory

DOCS = Path(__file__).resolve().parents[1] / "docs"
PEERS = {  # what the names in iteration_peers.jsonl stand for
    "ours_adamw": "ours, fused AdamW, bfloat16, compiled",
    "ours_mada_profile": "ours, MADA, all six learned, bfloat16, compiled",
    "ours_mada_cudnn": "the same in another process (`ours_mada_cudnn`)",
    "nanogpt": "nanoGPT at 3adf61e, fused AdamW, bfloat16, compiled",
    "authors_bf16": "MADA's authors' code at 2beded8, bfloat16 autocast, eager",
    "authors_tf32": "the same as released: float32 with TF32 matmuls, eager",
}
Result = Mapping[str, Any]


def table(caption: str, titles: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """A caption, and a table in markdown."""
    header = list(titles)
    return [f"{caption}:", "", *(f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows))]


def spread(median: float, lower: float, upper: float, *, digits: int = 2) -> str:
    """Median and quartiles; the median alone where the rounds do not differ."""
    return f"{median:.{digits}f}" + (f" ({lower:.{digits}f} to {upper:.{digits}f})" if lower < upper else "")


def machine(result: Result) -> str:
    return f"{result['device']}, torch {result['torch']}"


def step_table(result: Result) -> list[str]:
    """A column for each size, and for a GPU the step's time over that of a copy of as many bytes."""
    by_name: dict[str, dict[int, Any]] = {}
    for row in result["rows"]:
        by_name.setdefault(row["optimizer"], {})[row["parameters"]] = row
    sizes = sorted({size for rows in by_name.values() for size in rows})
    rounds = sorted(row["rounds"] for row in result["rows"])
    gpu = not result["device"].endswith("threads")  # as device_name ends for a processor
    lines = []
    for name, rows in by_name.items():
        last = rows[max(rows)]
        cells = [f"{last['state_bytes']:.0f}", f"{last['traffic_bytes']:.0f}"]
        cells += [spread(*rows[size]["adamw"]) if size in rows else "" for size in sizes]
        lines.append([name, *cells, *([f"{last['ms']:.3f}", f"{last['copies']:.2f}"] if gpu else [])])
    titles = ["optimizer", "state, bytes/parameter", "traffic, bytes/parameter"]
    titles += [f"{size:,} parameters" for size in sizes] + (["ms", "times a copy of the traffic"] if gpu else [])
    count = f"{rounds[0]} to {rounds[-1]} rounds ({machine(result)})"
    return table(f"The optimizer step, times torch's fused AdamW, median (quartiles) of {count}", titles, lines)


def iteration_table(result: Result) -> list[str]:
    lines = []
    for row in result["rows"]:
        lines.append([row["optimizer"], f"{row['ms']:.1f}", spread(*row["adamw"], digits=3), str(row["rounds"]),
                      f"{row['tokens_per_second']:,.0f}", f"{row['mfu']:.1%}" if row["mfu"] else "",
                      f"{row['peak_bytes'] / 1e6:,.0f}", f"{row['above_adamw']:.1f}"])  # fmt: skip
    return table(
        f"A whole training iteration, {' '.join(result['config'])}, {result['parameters']:,} parameters,"
        f" {result['tokens']:,} tokens ({machine(result)})",
        ["optimizer", "ms", "times AdamW, median (quartiles)", "rounds", "tokens/s", "MFU", "peak memory, MB",
         "bytes/parameter above AdamW's"],
        lines,
    )  # fmt: skip


def peers_table(rows: Iterable[Result]) -> list[str]:
    """The H100's iterations, of which iteration_peers.jsonl holds nothing but the rows."""
    found = {row["name"]: row for row in rows}
    base, lines = found["ours_adamw"]["ms_in_a_row"], []
    for name, label in PEERS.items():
        row = found[name]
        lines.append([label, f"{row['ms_in_a_row']:.1f}", f"{row['ms_in_a_row'] / base:.3f}", f"{row['tok_s']:,}",
                      f"{row['mfu']:.1%}", str(row["rounds"]), f"{row['peak_gb']:.2f}"])  # fmt: skip
    return table(
        "A whole training iteration of GPT-2 124M, 5 micro-batches of 12 x 1,024 random tokens, each contender in a"
        " process of its own, ten steps between two waits (NVIDIA H100 80GB HBM3, torch 2.11.0+cu130, commit daf2ec9)",
        ["", "ms", "times our AdamW", "tokens/s", "MFU", "rounds", "peak GB"],
        lines,
    )


def prepare_table(result: Result) -> list[str]:
    lines = []
    for row in result["rows"]:
        speeds = [run["tokens"] / run["seconds"] / 1e6 for run in row["runs"]]
        peaks = [run["peak_bytes"] / 1e6 for run in row["runs"]]
        lines.append([f"{row['bytes'] / 1e6:.0f}", row["way"],
                      spread(row["tokens_per_second"] / 1e6, min(speeds), max(speeds)),
                      spread(row["peak_bytes"] / 1e6, min(peaks), max(peaks), digits=0)])  # fmt: skip
    where = f"{result['device'].split(',')[0]}, {result['workers']} workers"
    titles = ["documents, MB", "way", "million tokens/s", "peak memory, MB"]
    return table(f"Preparation of a data set, median (range) of {len(speeds)} rounds ({where})", titles, lines)


def evaluate_table(result: Result) -> list[str]:
    lines = []
    for row in result["rows"]:
        lower, median, upper = row["ratio"]
        speed, rounds = f"{row['tokens_per_second']:,.0f}", str(len(row["seconds"]))
        lines.append([row["way"], speed, spread(median, lower, upper), rounds])
    return table(
        f"Evaluation under `strided`, {result['parameters']:,} parameters, windows of {result['block_size']} tokens,"
        f" beside transformers {result['transformers']} ({machine(result)})",
        ["way", "tokens/s", "ours is faster by, median (quartiles)", "rounds"],
        lines,
    )


def save_table(result: Result) -> list[str]:
    lines = [[row["way"], spread(*row["seconds_per_gb"], digits=3)] for row in result["rows"]]
    caption = f"A save of {result['gb']:g} GB, {result['rounds']} rounds ({machine(result)})"
    return table(caption, ["way", "s/GB, median (quartiles)"], lines)


TABLES = {"optimizer-step": step_table, "iteration": iteration_table, "prepare": prepare_table,
          "evaluate": evaluate_table, "save": save_table}  # fmt: skip


def show(path: Path) -> None:
    """Print the table of a result that has just been written."""
    result = json.loads(path.read_text(encoding="utf-8"))
    print("\n".join(TABLES[result["benchmark"]](result)), f"\n\nwritten to {path}")


def tables() -> str:
    """All tables, in the order of TABLES."""
    results = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("*.json"))]
    peers = [json.loads(line) for line in (RESULTS / "iteration_peers.jsonl").read_text().splitlines()]
    parts: list[str] = []
    for benchmark, lines in TABLES.items():
        for result in results:
            if result["benchmark"] == benchmark:
                parts += ["", *lines(result)]
        if benchmark == "iteration":
            parts += ["", *peers_table(peers)]
    return "\n".join(parts[1:])


def rewrite(path: Path, mark: str, text: str) -> None:
    """Put a text between the marks of a page."""
    whole, begin, end = path.read_text(encoding="utf-8"), f"<!-- {mark} -->", f"<!-- /{mark} -->"
    head, tail = whole[: whole.index(begin) + len(begin)], whole[whole.index(end) :]
    path.write_text(f"{head}\n{text}\n{tail}", encoding="utf-8")


@program("benchmarks.table")
def main(argv: list[str]) -> None:
    own_options(__doc__, argv, {}, more=False)
    rewrite(DOCS / "BENCHMARKS.md", "benchmarks", f"{tables()}\n")
    rewrite(DOCS / "SCALE.md", "memory", "\n".join(memory.table()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
