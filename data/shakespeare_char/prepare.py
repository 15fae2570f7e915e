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
from data.tokenizer import CharTokenizer, Tokenizer

SMALL = True
URL = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e"
    "/data/tinyshakespeare/input.txt"
)
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"


def tiny_shakespeare(name: str, tokenizer: Tokenizer | None, expected: dict[str, int]) -> Source:
    """The text cut after 90% of its characters, which become the vocabulary where `tokenizer` is None.

    Raises DataError where the text is not to be had.
    """
    text = fetch("tinyshakespeare.txt", URL, SHA256).read_text(encoding="utf-8")
    cut = int(len(text) * 0.9)
    records = [Record("train", text[:cut], ends=False), Record("val", text[cut:], ends=False)]
    tokenizer = tokenizer or CharTokenizer("".join(sorted(set(text))))
    origin = {"url": URL, "sha256": SHA256}
    return Source(name, tokenizer, lambda start: iter(records[start:]), origin, expected=expected)


def source() -> Source:
    return tiny_shakespeare("shakespeare_char", None, {"train": 1_003_854, "val": 111_540})


if __name__ == "__main__":
    preparation.main(__doc__, __file__, source)
