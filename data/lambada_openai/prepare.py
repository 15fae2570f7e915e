"""lambada_openai: the LAMBADA test passages in OpenAI's cleaned version, on which GPT-2 was evaluated.

python data/lambada_openai/prepare.py [--out=FOLDER]
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data import corpora

SMALL = True


def prepare(folder: Path) -> None:
    """Make `folder` the prepared set."""
    corpora.prepare("lambada_openai", folder, ("test",))


if __name__ == "__main__":
    corpora.main(__doc__, "lambada_openai", Path(__file__).resolve().parent, "test")
