"""report.md and report.html, generated from the records: nothing in them is typed."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from runtime.figure import RC

from .frame import HERE, PAPER, ROOT, SCALES, Block, Experiment, Figure, Record, Run, Table, Text, parted, read, records

TITLE = "Reproducing MADA: tables and figures from records"
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1b1b1b; background: #fff; max-width: 60rem; margin: 2rem auto;
       padding: 0 1rem; }
h2 { margin-top: 3rem; border-bottom: 1px solid #ddd; padding-bottom: .2rem; }
.question { font-style: italic; } .scale { color: #555; font-size: .9rem; }
.wide { overflow-x: auto; } img { min-width: 38rem; max-width: 100%; height: auto; } figure { margin: 1rem 0; }
figcaption { color: #555; font-size: .9rem; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .25rem .8rem .25rem 0; border-bottom: 1px solid #e5e5e5; vertical-align: top; }
th { vertical-align: bottom; } td { white-space: nowrap; }
th:first-child, td:first-child { position: sticky; left: 0; background: #fff; white-space: normal; min-width: 11rem; }
@media (max-width: 40rem) { body { margin: 1rem auto; } h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; }
       th:first-child, td:first-child { min-width: 7rem; } }
"""
ABOUT = {
    "laptop": "a small model on a processor, minutes a run",
    "gpu": "one GPU, minutes a run",
    "paper": "the paper's own size",
}


def missing(runs: Sequence[Run]) -> list[Run]:
    return [run for run in runs if read(run) is None]


def state(experiment: Experiment) -> list[str]:
    """Its row of the overview: runs recorded, of how many, at each scale."""
    cells = []
    for scale in SCALES:
        runs = experiment.runs(scale)
        cells.append(f"{len(runs) - len(missing(runs))} of {len(runs)}" if runs else "")
    return [experiment.title, experiment.name, *cells]


def commits(found: Iterable[Record]) -> str:
    """Which versions of this repository made the records."""
    marks = [str(record["commit"] or "unknown").partition("-")[::2] for record in found]  # (commit, "dirty" or nothing)
    names = sorted({commit[:7] + ("-dirty" if dirty else "") for commit, dirty in marks})
    note = " (dirty: with changes that were not committed)" if any(dirty for _, dirty in marks) else ""
    return f"made at {'commit' if len(names) == 1 else 'commits'} {', '.join(names)}{note}"


def write_report(experiments: Sequence[Experiment], folder: Path = HERE) -> list[Path]:
    """Write folder/report.md (pictures in folder/figures) and folder/report.html (pictures inside); return them."""
    figures = folder / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    for old in figures.glob("*.png"):
        old.unlink()
    opening = [
        "Every table and figure of the paper for which there are records, and what is missing. Written by "
        "`python -m experiments report`; do not edit. The paper's numbers are those of its own size and stand beside "
        f"ours for orientation: {PAPER['source']}.",
        "± is the standard deviation over seeds, square brackets a 95% confidence interval of the mean paired "
        "difference (same seed: same initial weights, same batches), p a two-sided paired t-test, from three seeds "
        "on, not corrected for their number: of twenty pairs that do not differ, one has a p below 0.05.",
    ]
    lines = [f"# {TITLE}", ""]
    for words in opening:
        lines += [words, ""]
    parts = [f"<h1>{TITLE}</h1>", *(f"<p>{rich(words)}</p>" for words in opening)]
    header = ["experiment", "name", *(f"recorded, {scale}" for scale in SCALES)]
    overview = Table(header, [state(experiment) for experiment in experiments])
    for text, into in zip(render(overview, "", figures), (lines, parts), strict=True):
        into += [text, ""]
    for e in experiments:
        title = html.escape(e.title)
        parts[-2] = parts[-2].replace(f"<td>{title}</td>", f'<td><a href="#{e.name}">{title}</a></td>')
    for experiment in experiments:
        lines += [f"## {experiment.title}", "", f"*{experiment.question}*", ""]
        parts += [f'<h2 id="{experiment.name}">{html.escape(experiment.title)}</h2>',
                  f'<p class="question">{html.escape(experiment.question)}</p>']  # fmt: skip
        for scale in SCALES:
            runs = experiment.runs(scale)
            found = records(runs)
            if not runs or not found:
                continue
            about = "the paper's own, which a laptop is enough for" if experiment.exact else f"{scale}, {ABOUT[scale]}"
            label = f"Scale: {about}. {len(found)} of {len(runs)} runs recorded, {commits(found.values())}."
            lines += [f"**{label}**", ""]
            parts.append(f'<p class="scale">{html.escape(label)}</p>')
            whole, lost = parted(found)
            if experiment.with_diverged:
                whole, lost = found, ""
            blocks = [Text(lost)] if lost else []
            for block in [*blocks, *(experiment.show(scale, whole) if whole else ())]:
                markdown, fragment = render(block, scale, figures)
                lines += [markdown, ""]
                parts.append(fragment)
        absent = {s: missing(experiment.runs(s)) for s in SCALES}
        words = "; ".join(f"{scale} {len(runs)} runs" for scale, runs in absent.items() if runs)
        if words:
            words = f"Not run: {words}. `python -m experiments run {experiment.name} --scale=...` makes them."
            lines += [words, ""]
            parts.append(f'<p class="scale">{rich(words)}</p>')
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width, initial-scale=1"><title>Reproducing MADA</title><style>{STYLE}</style></head>'
        "<body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )
    targets = [folder / "report.md", folder / "report.html"]
    for target, text in zip(targets, ("\n".join(lines).rstrip() + "\n", page), strict=True):
        target.write_text(text, encoding="utf-8")
    return targets


BEGIN, END = "<!-- results -->", "<!-- /results -->"  # of the table in README.md
COLUMNS = ("optimizer", "n", "validation loss", "minus Adam's", "paper's, minus Adam's")


def refresh_readme(table2: Experiment, readme: Path = ROOT / "README.md") -> None:
    """Write table 2 at the laptop's scale, its main columns, between the marks of the README."""
    found, lost = parted(records(table2.runs("laptop")))
    shown = "No run of table 2 is recorded."
    if found:
        words, full, *_ = table2.show("laptop", found)
        assert isinstance(words, Text) and isinstance(full, Table)
        columns = [list(full.header).index(name) for name in COLUMNS]
        table = Table(COLUMNS, [[row[i] for i in columns] for row in full.rows])
        about = words.words.partition(" Losses in nats")[0]
        shown = f"{about}\n\n{render(table, '', readme.parent)[0]}"
    if lost:
        shown = f"{lost}\n\n{shown}"
    text = readme.read_text(encoding="utf-8")
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    readme.write_text(f"{before}{BEGIN}\n{shown}\n{END}{after}", encoding="utf-8")


def rich(words: str) -> str:
    """HTML of text in which `code` may stand."""
    return "".join(
        f"<code>{html.escape(part)}</code>" if i % 2 else html.escape(part) for i, part in enumerate(words.split("`"))
    )


def render(block: Block, scale: str, figures: Path) -> tuple[str, str]:
    """Markdown and HTML of one block; a figure is also written to `figures`."""
    if isinstance(block, Text):
        return block.words, f"<p>{rich(block.words)}</p>"
    if isinstance(block, Table):
        cells = [[cell.replace("|", "\\|") for cell in row] for row in (block.header, *block.rows)]
        markdown = [f"| {' | '.join(row)} |" for row in cells]
        markdown.insert(1, "|" + "---|" * len(block.header))
        tagged = ["".join(f"<th>{html.escape(cell)}</th>" for cell in block.header)]
        tagged += ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in block.rows]
        body = "".join(f"<tr>{row}</tr>" for row in tagged)
        return "\n".join(markdown), f'<div class="wide"><table>{body}</table></div>'
    png = picture(block)
    path = figures / f"{block.name}-{scale}.png"
    path.write_bytes(png)
    data = base64.b64encode(png).decode()
    caption = html.escape(block.caption)
    return (
        f"![{block.caption}](figures/{path.name})\n\n{block.caption}",
        f'<figure><div class="wide"><img alt="{caption}" src="data:image/png;base64,{data}"></div>'
        f"<figcaption>{caption}</figcaption></figure>",
    )


def picture(block: Figure) -> bytes:
    """A PNG, the same bytes for the same records."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with plt.rc_context(RC):  # type: ignore[arg-type]
        figure: Any = plt.figure(figsize=block.size, layout="constrained")
        block.draw(figure)
        buffer = io.BytesIO()
        figure.savefig(buffer, dpi=120, format="png", metadata={"Software": None})
        plt.close(figure)
    return buffer.getvalue()
