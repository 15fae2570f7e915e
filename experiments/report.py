"""report.md and report.html, generated from the records: nothing in them is typed."""

import html
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from data.manifest import make_folder
from study.page import Table, Text, render, rich, whole_page

from . import verdicts
from .experiment import HERE, PAPER, SCALES, Experiment, Record, records, without_diverged

TITLE = "Reproducing MADA: tables and figures from records"
ABOUT = {
    "laptop": "a small model on a processor, minutes a run",
    "gpu": "one GPU, minutes a run",
    "paper": "the paper's own size",
}


def state(experiment: Experiment) -> list[str]:
    """Its row of the overview: runs recorded, of how many, at each scale."""
    runs = [experiment.runs_at(scale) for scale in SCALES]
    return [experiment.title, experiment.name, *(f"{len(records(r))} of {len(r)}" if r else "" for r in runs)]


def commits(found: Iterable[Record]) -> str:
    """Which versions of this repository made the records."""
    marks = [str(record["commit"] or "unknown").partition("-")[::2] for record in found]  # (commit, "dirty" or nothing)
    names = sorted({commit[:7] + ("-dirty" if dirty else "") for commit, dirty in marks})
    note = " (dirty: with changes that were not committed)" if any(dirty for _, dirty in marks) else ""
    return f"made at {'commit' if len(names) == 1 else 'commits'} {', '.join(names)}{note}"


OPENING = (
    "Every table and figure of the paper for which there are records, and what is missing. Written by "
    "`python -m experiments report`; do not edit. The paper's numbers are those of its own size and stand beside "
    f"ours for orientation: {PAPER['source']}.",
    "± is the standard deviation over seeds, square brackets a 95% confidence interval of the paired difference (same "
    "seed: same initial weights, same batches): of its mean by Student's t or, where signed ranks are named, of its "
    "Hodges-Lehmann median. Where a row has fewer than five seeds, the spread "
    "of its differences is pooled over the rows of its table and no p is given; elsewhere p is a two-sided paired "
    "t-test, not corrected for their number unless a table says so.",
)


def write_report(experiments: Sequence[Experiment], folder: Path = HERE) -> list[Path]:
    """Write folder/report.md (pictures in folder/figures) and folder/report.html (pictures inside); return them."""
    figures = folder / "figures"
    make_folder(figures)
    for old in figures.glob("*.png") if folder == HERE else ():  # elsewhere it may be anyone's
        old.unlink()
    header = ["experiment", "name", *(f"recorded, {scale}" for scale in SCALES)]
    overview, linked = render(Table(header, [state(experiment) for experiment in experiments]), figures)
    for e in experiments:
        title = html.escape(e.title)
        linked = linked.replace(f">{title}</td>", f'><a href="#{e.name}">{title}</a></td>')
    parts = [(f"# {TITLE}", f"<h1>{TITLE}</h1>"), *((words, f"<p>{rich(words)}</p>") for words in OPENING),
             ("## Verdicts", "<h2>Verdicts</h2>"), *(render(block, figures) for block in verdicts.show()),
             ("## What is recorded", "<h2>What is recorded</h2>"), (overview, f"{linked}\n")]  # fmt: skip
    for experiment in experiments:
        parts += section(experiment, figures)
    markdown, tagged = zip(*parts, strict=True)
    targets = {
        folder / "report.md": "\n\n".join(markdown) + "\n",
        folder / "report.html": whole_page("Reproducing MADA", "\n".join(tagged)),
    }
    for target, text in targets.items():
        target.write_text(text, encoding="utf-8")
    return [*targets]


def section(experiment: Experiment, figures: Path) -> Iterator[tuple[str, str]]:
    """(Markdown, HTML) of each paragraph, table and figure of an experiment, scale after scale."""
    title, question = html.escape(experiment.title), html.escape(experiment.question)
    yield f"## {experiment.title}", f'<h2 id="{experiment.name}">{title}</h2>'
    yield f"*{experiment.question}*", f'<p class="question">{question}</p>'
    absent = []
    for scale in SCALES:
        runs = experiment.runs_at(scale)
        found = records(runs)
        if without := len(runs) - len(found):
            absent.append(f"{scale} {without} runs")
        if not found:
            continue
        about = "the paper's own, which a laptop is enough for" if experiment.exact else f"{scale}, {ABOUT[scale]}"
        label = f"Scale: {about}. {len(found)} of {len(runs)} runs recorded, {commits(found.values())}."
        yield f"**{label}**", f'<p class="scale">{html.escape(label)}</p>'
        whole, lost = (found, "") if experiment.with_diverged else without_diverged(found)
        blocks = [Text(lost)] if lost else []
        for block in [*blocks, *(experiment.show(scale, whole) if whole else ())]:
            yield render(block, figures / f"{getattr(block, 'name', '')}-{scale}.png")
    if absent:
        words = f"Not run: {'; '.join(absent)}. `python -m experiments run {experiment.name} --scale=...` makes them."
        yield words, f'<p class="scale">{rich(words)}</p>'
