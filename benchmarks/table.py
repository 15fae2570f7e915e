"""Write the table of README.md from benchmarks/results/.

python -m benchmarks.table
"""

import json
from pathlib import Path

from benchmarks.measure import RESULTS

README = Path(__file__).resolve().parents[1] / "README.md"
BEGIN, END = "<!-- benchmarks -->", "<!-- /benchmarks -->"


def step_table(result: dict) -> list[str]:
    """Rows of one optimizer-step result: a column for each size."""
    sizes = sorted({row["parameters"] for row in result["rows"]})
    rounds = sorted(row["rounds"] for row in result["rows"])
    lines = [
        f"The optimizer step, times torch's fused AdamW, median (quartiles) of {rounds[0]} to {rounds[-1]} rounds "
        f"({result['device']}, torch {result['torch']}):",
        "",
        "| optimizer | state, bytes/parameter | traffic, bytes/parameter | "
        + " | ".join(f"{size:,} parameters" for size in sizes) + " |",
        "|---" * (3 + len(sizes)) + "|",
    ]  # fmt: skip
    for name in dict.fromkeys(row["optimizer"] for row in result["rows"]):
        rows = {row["parameters"]: row for row in result["rows"] if row["optimizer"] == name}
        last = rows[max(rows)]
        cells = [f"{last[k]:.0f}" for k in ("state_bytes", "traffic_bytes")]
        for size in sizes:
            median, lower, upper = rows[size]["adamw"] if size in rows else (1.0, 1.0, 1.0)
            spread = f" ({lower:.2f} to {upper:.2f})" if lower < upper else ""
            cells.append(f"{median:.2f}{spread}" if size in rows else "")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def iteration_table(result: dict) -> list[str]:
    """Rows of one iteration result."""
    lines = [
        f"A whole training iteration, {' '.join(result['config'])}, {result['parameters']:,} parameters, "
        f"{result['tokens']:,} tokens ({result['device']}, torch {result['torch']}):",
        "",
        "| optimizer | ms | times AdamW, median (quartiles) | tokens/s | rounds | peak memory, MB |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        median, lower, upper = row["adamw"]
        lines.append(f"| {row['optimizer']} | {row['ms']:.1f} | {median:.3f} ({lower:.3f} to {upper:.3f}) | "
                     f"{row['tokens_per_second']:,.0f} | {row['rounds']} | "
                     f"{row['peak_bytes'] / 1e6:,.0f} |")  # fmt: skip
    return lines


def prepare_table(result: dict) -> list[str]:
    """Rows of one preparation result."""
    lines = [
        f"Preparation of a data set, medians ({result['device'].split(',')[0]}, {result['workers']} workers):",
        "",
        "| documents, MB | way | million tokens/s | peak memory, MB |",
        "|---|---|---|---|",
    ]
    for row in result["rows"]:
        lines.append(f"| {row['bytes'] / 1e6:.0f} | {row['way']} | {row['tokens_per_second'] / 1e6:.2f} | "
                     f"{row['peak_bytes'] / 1e6:.0f} |")  # fmt: skip
    return lines


def evaluate_table(result: dict) -> list[str]:
    """Rows of one evaluation result."""
    lines = [
        f"Evaluation under `strided`, {result['parameters']:,} parameters, windows of {result['block_size']} tokens, "
        f"beside transformers {result['transformers']} ({result['device']}, torch {result['torch']}):",
        "",
        "| way | tokens/s | ours is faster by, median (quartiles) | rounds |",
        "|---|---|---|---|",
    ]
    for row in result["rows"]:
        lower, median, upper = row["ratio"]
        lines.append(f"| {row['way']} | {row['tokens_per_second']:,.0f} | {median:.2f} ({lower:.2f} to {upper:.2f}) | "
                     f"{len(row['seconds'])} |")  # fmt: skip
    return lines


def main() -> None:
    tables = {"optimizer-step": step_table, "iteration": iteration_table, "prepare": prepare_table,
              "evaluate": evaluate_table}  # fmt: skip
    parts: list[str] = []
    results = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    for benchmark, lines in tables.items():
        for result in results:
            if result["benchmark"] == benchmark:
                parts += [*lines(result), ""]
    text = README.read_text()
    head, tail = text[: text.index(BEGIN) + len(BEGIN)], text[text.index(END) :]
    README.write_text("\n".join([head, *parts]) + "\n" * (not parts) + tail)


if __name__ == "__main__":
    main()
