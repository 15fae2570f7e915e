"""openwebtext: OpenWebText in GPT-2's byte-pair encoding, 9 billion tokens. Takes 45 GB of disk.

    python data/openwebtext/prepare.py [--out=FOLDER] [--threads=N]

8,013,769 documents and as many end-of-texts. Every 2,000th document, drawn as nanoGPT draws them, is for validation
(4,007 of them). The documents stay in the order of the source: training draws its windows at random anyway.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import cli  # noqa: F401 (before numpy, because of Ctrl-C)

import numpy as np

from data import preparation
from data.documents import Documents
from data.download import HubFile, hub_files
from data.manifest import DTYPE, DataError
from data.preparation import Record, Source
from data.tokenizer import GPT2Tokenizer

SMALL = False
REPOSITORY = "Skylion007/openwebtext"
REVISION = "963532436460638ab26b7633e23776e6c7e37d59"  # a conversion to parquet by the author of the set
DOCUMENTS = 8_013_769
TOKENS = 9_040_017_095


def val_documents(documents: int, fraction: float = 0.0005, seed: int = 2357) -> set[int]:
    """The test indices of `datasets.Dataset.train_test_split(test_size=fraction, seed=seed)`, as nanoGPT calls it."""
    return set(np.random.default_rng(seed).permutation(documents)[: int(np.ceil(fraction * documents))].tolist())


def source() -> Source:
    """What to prepare. Raises DataError where the files are not to be had."""
    files = hub_files(REPOSITORY, REVISION)
    documents = Documents(files)
    val = val_documents(DOCUMENTS)

    def records(start: int) -> Iterator[Record]:
        read = start
        for piece in documents.pieces(start):
            read += 1
            yield Record("val" if piece.document in val else "train", piece.text)
        if read != DOCUMENTS:
            raise DataError(f"{REPOSITORY} at {REVISION} has {read:,} documents, expected {DOCUMENTS:,}: get it again")

    return Source(
        "openwebtext",
        GPT2Tokenizer(),
        records,
        {"repository": REPOSITORY, "revision": REVISION, "split_seed": 2357, "val_fraction": 0.0005},
        expected={"all": TOKENS},
        disk_bytes=TOKENS * DTYPE.itemsize + sum(file.size for file in files if isinstance(file, HubFile)),
    )


if __name__ == "__main__":
    preparation.main(__doc__, __file__, source)
