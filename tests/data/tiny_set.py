"""A data set made by hand, small enough to read, in several shards."""

from pathlib import Path

import pytest

import data.preparation
from data.preparation import Record, Source
from data.tokenizer import CharTokenizer

TEXTS = [("val" if i % 5 == 4 else "train", f"document {i} " + "abcdefgh"[i % 8] * (i * 7 % 50)) for i in range(60)]
VOCABULARY = "".join(sorted(set("".join(text for _, text in TEXTS))))


def tiny_source() -> Source:
    """60 documents, a fifth of them for validation."""
    records = [Record(split, text) for split, text in TEXTS]
    return Source("tiny", CharTokenizer(VOCABULARY), lambda start: iter(records[start:]), {"text": "made by hand"})


def prepare_in_small_batches(source: Source, folder: Path) -> None:
    """As for a large set, at a ten-thousandth of the size: a batch every 50 characters, a shard every 300 tokens."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data.preparation, "BATCH_CHARS", 50)
        data.preparation.prepare(source, folder, shard_tokens=300, threads=2)
