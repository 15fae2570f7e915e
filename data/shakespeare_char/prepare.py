"""shakespeare_char: Tiny Shakespeare (Karpathy, char-rnn), character by character, split as nanoGPT splits it.

    python data/shakespeare_char/prepare.py [--out=FOLDER]

1,003,854 training and 111,540 validation characters, a vocabulary of 65.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data import preparation
from data.download import fetch
from data.preparation import Record, Source
from data.tokenizer import CharTokenizer

SMALL = True
URL = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e"
    "/data/tinyshakespeare/input.txt"
)
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"


def tiny_shakespeare() -> list[Record]:
    """The text as two records, its first 90% of characters for training. Raises DataError where it is not to be had."""
    text = fetch("tinyshakespeare.txt", URL, SHA256).read_text(encoding="utf-8")
    cut = int(len(text) * 0.9)
    return [Record("train", text[:cut], ends=False), Record("val", text[cut:], ends=False)]


def prepare(folder: Path) -> None:
    """Make `folder` the prepared set."""
    records = tiny_shakespeare()
    vocabulary = "".join(sorted(set().union(*(record.text for record in records))))
    source = Source(
        "shakespeare_char",
        CharTokenizer(vocabulary),
        lambda start: iter(records[start:]),
        {"url": URL, "sha256": SHA256},
        expected={"train": 1_003_854, "val": 111_540},
    )
    preparation.prepare(source, folder)


if __name__ == "__main__":
    preparation.main(__doc__, prepare, Path(__file__).resolve().parent)
