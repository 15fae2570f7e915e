"""lambada: the original LAMBADA, as tokenised by its authors (CC BY 4.0).

    python data/lambada/prepare.py [--splits=val,test] [--out=FOLDER]

Its training split (--splits=train,val,test) is 2,662 novels.
"""

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data import corpora

SMALL = True
source = partial(corpora.source, "lambada")

if __name__ == "__main__":
    corpora.main(__doc__, __file__)
