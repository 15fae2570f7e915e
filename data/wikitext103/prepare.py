"""wikitext103: WikiText-103 raw, 120 million GPT-2 tokens for training (CC BY-SA 3.0). A download of 300 MB.

    python data/wikitext103/prepare.py [--splits=train,val,test] [--out=FOLDER]
"""

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data import corpora

SMALL = False
source = partial(corpora.source, "wikitext103")

if __name__ == "__main__":
    corpora.main(__doc__, __file__)
