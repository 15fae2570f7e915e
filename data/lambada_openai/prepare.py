"""lambada_openai: the LAMBADA test passages in OpenAI's cleaned version, on which GPT-2 was evaluated.

    python data/lambada_openai/prepare.py [--out=FOLDER]
"""

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data import corpora

SMALL = True
source = partial(corpora.source, "lambada_openai")

if __name__ == "__main__":
    corpora.main(__doc__, __file__)
