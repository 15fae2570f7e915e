"""Tables 3, 6 and 7: perplexity on three texts, under the paper's protocol (see evaluate.py for others)."""

from __future__ import annotations

from collections.abc import Sequence

from . import language
from .compare import mean_and_spread
from .frame import PAPER, Block, Evaluation, Experiment, Record, Table, Text, Training

KEYS = ("adam", "adan", "hyperadam", "lion", "avgrad", "mada", "mada_fs", "mada_poor", "adam_poor", "mada_rho0",
        "mada_rho0_fs", "medium_adam", "medium_mada")  # fmt: skip
TEXTS = ("openwebtext", "wikitext2", "lambada")


def runs(scale: str) -> Sequence[Training | Evaluation]:
    """Only the paper's models read GPT-2's tokens: the small ones know the characters of Shakespeare."""
    if scale != "paper":
        return ()
    models = language.runs(scale, KEYS)
    return [*models, *(Evaluation(model, TEXTS) for model in models)]


def show(scale: str, records: dict[str, Record]) -> Sequence[Block]:
    found: dict[str, list[dict[str, float]]] = {}
    for name, record in records.items():
        if name.endswith("-perplexity"):
            rows = {row["dataset"]: row["perplexity"] for row in record["rows"]}
            found.setdefault(name.removesuffix("-perplexity").rpartition("-")[0], []).append(rows)
    lines = []
    for key in KEYS:
        if key in found:
            paper = PAPER["table3"].get(key, [None] * len(TEXTS))
            cells = [language.ROWS[key].label, str(len(found[key]))]
            for text, value in zip(TEXTS, paper, strict=True):
                cells += [mean_and_spread([rows[text] for rows in found[key]]), "" if value is None else f"{value:.4f}"]
            lines.append(cells)
    header = ["optimizer", "n", *(cell for text in TEXTS for cell in (f"perplexity, {text}", "paper"))]
    note = "The protocol is the paper's: every row of a text followed by end-of-text, windows side by side."
    return [Text(note), Table(header, lines)] if lines else [Text("Trained, not evaluated yet.")]


EXPERIMENT = Experiment(
    "table3",
    "Tables 3, 6 and 7: perplexities",
    "Does what MADA gains on its own text carry over to others?",
    runs,
    show,
)
