"""wikitext2: WikiText-2 raw, 2.4 million GPT-2 tokens for training (CC BY-SA 3.0).

    python data/wikitext2/prepare.py [--splits=train,val,test] [--out=FOLDER]
"""

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data import corpora

SMALL = True
source = partial(corpora.source, "wikitext2")

if __name__ == "__main__":
    corpora.main(__doc__, __file__)
