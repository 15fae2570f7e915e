"""lambada: the original LAMBADA, as tokenised by its authors (CC BY 4.0).

    python data/lambada/prepare.py [--splits=val,test] [--out=FOLDER]

Its training split (--splits=train,val,test) is 2,662 novels.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data import corpora

SMALL = True


def prepare(folder: Path) -> None:
    """Make `folder` the prepared set."""
    corpora.prepare(
        "lambada",
        folder,
        (
            "val",
            "test",
        ),
    )


if __name__ == "__main__":
    corpora.main(__doc__, "lambada", Path(__file__).resolve().parent, "val,test")
