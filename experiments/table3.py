"""Tables 3, 6 and 7: perplexities

Does what MADA gains on its own text carry over to others?

Under the paper's protocol (see evaluate.py for others).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from study.page import Block, Table, Text
from study.statistics import mean_and_spread

from . import language
from .experiment import PAPER, Computation, Record, Run, written_by

SCALES = ("laptop", "paper")

OTHERS = ("wikitext2", "lambada")
KEYS = ("adam", "adan", "hyperadam", "lion", "avgrad", "mada", "mada_fs", "mada_poor", "adam_poor", "mada_rho0",
        "mada_rho0_fs", "medium_adam", "medium_mada")  # fmt: skip
OWN = {"laptop": "openwebtext1k", "paper": "openwebtext"}  # the text that they are trained on
MINUTES = {"laptop": 1.5, "paper": 5.0}  # an evaluation


def runs(scale: str) -> Sequence[Run]:
    """The models and their evaluations; a laptop's are not those of table 2, which know characters only."""
    models = language.runs(scale, KEYS) if scale == "paper" else language.small_runs(scale)
    texts = [OWN[scale], *OTHERS]
    return [*models, *(Computation(f"{model.name}-perplexity", scale, perplexities,
                                   {"of": model.identity, "out_dir": model.folder,
                                    "datasets": texts, "protocol": "paper"},
                                   minutes=MINUTES[scale], after=model) for model in models)]  # fmt: skip


def perplexities(settings: Mapping[str, Any]) -> Record:
    """The rows of evaluate.py for the newest checkpoint of a run."""
    found = written_by("evaluate.py", f"--out_dir={settings['out_dir']}", "--which=newest",
                       f"--protocol={settings['protocol']}", f"--dataset={','.join(settings['datasets'])}",
                       to="--json")  # fmt: skip
    rows = {row["dataset"]: row for row in found["rows"]}
    keep = ("dataset", "split", "perplexity", "tokens", "windows", "window", "dtype")
    return {"rows": [{key: rows[name][key] for key in keep} for name in settings["datasets"]]}


def show(scale: str, records: dict[str, Record]) -> Sequence[Block]:
    texts = (OWN[scale], *OTHERS)
    found: dict[str, list[dict[str, float]]] = {}
    for name, record in records.items():
        if name.endswith("-perplexity"):
            rows = {row["dataset"]: row["perplexity"] for row in record["rows"]}
            key = name.removesuffix("-perplexity").removeprefix("words/").rpartition("-")[0]
            found.setdefault(key, []).append(rows)
    lines = []
    for key in KEYS:
        if key in found:
            paper = PAPER["table3"].get(key, [None] * len(texts))
            cells = [language.ROWS[key].label, str(len(found[key]))]
            for text, value in zip(texts, paper, strict=True):
                ours = mean_and_spread([rows[text] for rows in found[key]], digits=2)
                cells += [ours, "" if value is None else f"{value:.4f}"]
            lines.append(cells)
    header = ["optimizer", "n", *(cell for text in texts for cell in (f"perplexity, {text}", "paper"))]
    note = "The protocol is the paper's: every row of a text followed by end-of-text, windows side by side."
    if scale == "laptop":
        note += " These models are too small and too shortly trained to say more than that the machinery works."
    return [Text(note), Table(header, lines)] if lines else [Text("Trained, not evaluated yet.")]
