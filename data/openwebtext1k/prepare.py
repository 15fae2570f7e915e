"""openwebtext1k: a thousand documents of OpenWebText in GPT-2's byte-pair encoding, for small experiments.

    python data/openwebtext1k/prepare.py [--out=FOLDER]

Those of DATA_MIRROR/openwebtext10k_val.jsonl where that file is (1,203,184 tokens), otherwise the first thousand of
the set, whose first file (of 80) is downloaded. Compare losses on the same thousand only: the manifest names them.
Every 20th document is for validation.
"""

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data import preparation
from data.documents import Documents, find_files
from data.download import hub_files, mirrored
from data.openwebtext.prepare import REPOSITORY, REVISION
from data.preparation import Record, Source
from data.tokenizer import GPT2Tokenizer

SMALL = True
FILE = "openwebtext10k_val.jsonl"
DOCUMENTS = 1000


def source() -> Source:
    file = mirrored(FILE)
    documents = Documents(find_files([file]) if file else hub_files(REPOSITORY, REVISION)[:1])

    def records(start: int) -> Iterator[Record]:
        for piece in itertools.islice(documents.pieces(start), DOCUMENTS - start):
            yield Record("val" if piece.document % 20 == 19 else "train", piece.text)

    origin = {"file": FILE} if file else {"repository": REPOSITORY, "revision": REVISION, "documents": DOCUMENTS}
    return Source("openwebtext1k", GPT2Tokenizer(), records, origin)


if __name__ == "__main__":
    preparation.main(__doc__, __file__, source)
