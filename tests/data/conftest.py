"""A prepared folder made by hand, the mirror of public data where there is one, and GPT-2's encoding or a tiny one."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import tiktoken
from tiny_set import prepare_in_small_batches, tiny_source

import data.tokenizer
from data.download import mirrored as find_in_mirror


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A prepared folder of several shards."""
    folder = tmp_path / "tiny"
    prepare_in_small_batches(tiny_source(), folder)
    return folder


@pytest.fixture
def mirrored() -> Callable[[str], Path]:
    """The path of a file of DATA_MIRROR; the test is skipped where it is absent (CI has it)."""

    mirror = os.environ.get("DATA_MIRROR")  # now: other fixtures change it

    def find(name: str) -> Path:
        path = Path(mirror or "", name)
        if not mirror or not path.exists():
            pytest.skip(f"needs {name} in the folder DATA_MIRROR")
        return path.resolve()

    return find


@pytest.fixture
def gpt2(monkeypatch: pytest.MonkeyPatch) -> tiktoken.Encoding:
    """GPT-2's encoding where its files are cached, else one with GPT-2's word borders and few merges."""
    if os.environ.get("TIKTOKEN_CACHE_DIR") or find_in_mirror("tiktoken_cache"):
        return data.tokenizer.gpt2_encoding()
    tokens = [bytes([i]) for i in range(256)] + [b"\n\n", b"  ", b"   ", b" a", b"ab", b" ab", b"'s", b"\n "]
    encoding = tiktoken.Encoding(
        "tiny",
        pat_str=r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        mergeable_ranks={token: i for i, token in enumerate(tokens)},
        special_tokens={"<|endoftext|>": 50256},
    )
    monkeypatch.setattr(data.tokenizer, "gpt2_encoding", lambda: encoding)
    return encoding
