"""shakespeare: Tiny Shakespeare in GPT-2's byte-pair encoding, split as nanoGPT splits it. For fine-tuning.

    python data/shakespeare/prepare.py [--out=FOLDER]

301,966 training and 36,059 validation tokens.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data import preparation
from data.preparation import Source
from data.shakespeare_char.prepare import SHA256, URL, tiny_shakespeare
from data.tokenizer import GPT2Tokenizer

SMALL = True


def prepare(folder: Path) -> None:
    """Make `folder` the prepared set."""
    records = tiny_shakespeare()
    source = Source(
        "shakespeare",
        GPT2Tokenizer(),
        lambda start: iter(records[start:]),
        {"url": URL, "sha256": SHA256},
        expected={"train": 301_966, "val": 36_059},
    )
    preparation.prepare(source, folder)


if __name__ == "__main__":
    preparation.main(__doc__, prepare, Path(__file__).resolve().parent)
