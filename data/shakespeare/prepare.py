"""shakespeare: Tiny Shakespeare in GPT-2's byte-pair encoding, split as nanoGPT splits it. For fine-tuning.

    python data/shakespeare/prepare.py [--out=FOLDER]

301,966 training and 36,059 validation tokens.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data import preparation
from data.preparation import Source
from data.shakespeare_char.prepare import tiny_shakespeare
from data.tokenizer import GPT2Tokenizer

SMALL = True


def source() -> Source:
    return tiny_shakespeare("shakespeare", GPT2Tokenizer(), {"train": 301_966, "val": 36_059})


if __name__ == "__main__":
    preparation.main(__doc__, __file__, source)
