"""Reports: blocks of text, tables and figures, as Markdown and as one HTML page that needs no other file."""

import base64
import html
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.figure import RC

# Okabe and Ito's colours and two more, for runs.
COLORS = ("#000000", "#0072B2", "#009E73", "#D55E00", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#999999", "#882255")
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1b1b1b; background: #fff; max-width: 76rem; margin: 2rem auto;
       padding: 0 1rem; }
p, figure { max-width: 60rem; }
h2 { margin-top: 3rem; border-bottom: 1px solid #ddd; padding-bottom: .2rem; }
.question { font-style: italic; } .scale { color: #555; font-size: .9rem; }
.wide { overflow-x: auto; } img { min-width: 38rem; max-width: 100%; height: auto; } figure { margin: 1rem 0; }
figcaption { color: #555; font-size: .9rem; }
table { border-collapse: collapse; margin-bottom: 1rem; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .25rem .8rem .25rem 0; border-bottom: 1px solid #e5e5e5; vertical-align: top; }
th { vertical-align: bottom; } td { white-space: nowrap; } td.words { white-space: normal; min-width: 5rem; }
th:first-child, td:first-child { position: sticky; left: 0; background: #fff; white-space: normal; min-width: 11rem; }
@media (max-width: 40rem) { body { margin: 1rem auto; } h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; }
       table, tbody, tr, td { display: block; } th { display: none; }
       tr { padding: .5rem 0; border-top: 1px solid #999; }
       td, td.words, td:first-child { white-space: normal; border: 0; padding: .1rem 0; }
       td:first-child { font-weight: bold; } td:not(:first-child, :empty)::before { content: attr(data-column) ": ";
       color: #555; } }
"""


@dataclass(frozen=True)
class Heading:
    words: str


@dataclass(frozen=True)
class Text:
    words: str


@dataclass(frozen=True)
class Table:
    """`rows` of cells as text, `header` above them."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Figure:
    """`draw(figure)` fills a matplotlib figure; `caption` says what is to be seen."""

    name: str
    caption: str
    draw: Callable[[Any], None]
    size: tuple[float, float] = (8.0, 4.0)  # inches


Block = Heading | Text | Table | Figure


def whole_page(title: str, body: str) -> str:
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width, initial-scale=1"><title>{html.escape(title)}</title><style>{STYLE}</style>'
        f"</head><body>\n{body}\n</body></html>\n"
    )


def rich(words: str) -> str:
    """HTML of text in which `code` may stand."""
    return "".join(
        f"<code>{html.escape(part)}</code>" if i % 2 else html.escape(part) for i, part in enumerate(words.split("`"))
    )


def markdown_table(table: Table) -> str:
    rows = [[cell.replace("|", "\\|") for cell in row] for row in (table.header, *table.rows)]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(table.header), *lines[1:]])


def _cell(column: str, text: str) -> str:
    """On a narrow screen its column is written before it; long text may wrap."""
    words = ' class="words"' if len(text) > 18 else ""
    return f'<td{words} data-column="{html.escape(column)}">{html.escape(text)}</td>'


def render(block: Block, picture_path: Path) -> tuple[str, str]:
    """Markdown and HTML of one block; a figure is also written to `picture_path`, which the Markdown names as
    FOLDER/NAME.png, relative to the folder above."""
    if isinstance(block, Heading):
        return f"### {block.words}", f"<h3>{html.escape(block.words)}</h3>"
    if isinstance(block, Text):
        return block.words, f"<p>{rich(block.words)}</p>"
    if isinstance(block, Table):
        tagged = ["".join(f"<th>{html.escape(cell)}</th>" for cell in block.header)]
        tagged += ["".join(map(_cell, block.header, row)) for row in block.rows]
        body = "".join(f"<tr>{row}</tr>" for row in tagged)
        return markdown_table(block), f'<div class="wide"><table>{body}</table></div>'
    png = picture(block)
    picture_path.write_bytes(png)
    data, caption = base64.b64encode(png).decode(), html.escape(block.caption)
    return (
        f"![{block.caption}]({picture_path.parent.name}/{picture_path.name})\n\n{block.caption}",
        f'<figure><div class="wide"><img alt="{caption}" src="data:image/png;base64,{data}"></div>'
        f"<figcaption>{caption}</figcaption></figure>",
    )


def picture(block: Figure) -> bytes:
    """A PNG, the same bytes for the same data."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with plt.rc_context(RC):  # type: ignore[arg-type]
        figure: Any = plt.figure(figsize=block.size, layout="constrained")
        block.draw(figure)
        buffer = io.BytesIO()
        figure.savefig(buffer, dpi=80, format="png", metadata={"Software": None})
        plt.close(figure)
    return buffer.getvalue()
