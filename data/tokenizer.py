"""Text to ids and back: characters of a fixed vocabulary, or GPT-2's byte-pair encoding."""

import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data.download import mirrored
from data.manifest import AGAIN, DTYPE, DataError, expand

if TYPE_CHECKING:
    import tiktoken


class CharTokenizer:
    """One id a character: its place in `vocabulary`."""

    name = "char"
    end_of_text: int | None = None

    def __init__(self, vocabulary: str):
        if not 1 <= len(vocabulary) <= 1 << 16:  # ids are uint16
            raise DataError(f"{len(vocabulary):,} different characters; --tokenizer=char takes 1 to 65,536")
        self.vocabulary = vocabulary
        self.vocab_size = len(vocabulary)
        self._table = np.full(max(map(ord, vocabulary)) + 1, -1, dtype=np.int32)
        self._table[[ord(c) for c in vocabulary]] = np.arange(len(vocabulary))

    def encode(self, text: str) -> np.ndarray:
        """uint16 (len(text),). Raises DataError for a character outside the vocabulary."""
        code = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
        ids = np.where(code < self._table.size, self._table[np.minimum(code, self._table.size - 1)], -1)
        if ids.size and ids.min() < 0:
            char = text[int(np.argmin(ids))]
            raise DataError(f"the character {char!r} is not in the vocabulary, {self.vocabulary!r}")
        return ids.astype(DTYPE)

    def decode(self, ids: list[int]) -> str:
        return "".join(self.vocabulary[i] for i in ids)


class GPT2Tokenizer:
    """GPT-2's byte-pair encoding, by tiktoken; 50,257 ids, the last of which ends a document."""

    name = "gpt2"
    vocab_size = 50257
    end_of_text: int | None = 50256

    def encode(self, text: str) -> np.ndarray:
        """uint16 (tokens,); special tokens are text like any other."""
        try:
            ids = gpt2_encoding().encode_to_numpy(text, disallowed_special=())
        except UnicodeEncodeError:  # half a surrogate pair, which JSON allows: U+FFFD, as in tiktoken's encode_ordinary
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            ids = gpt2_encoding().encode_to_numpy(text, disallowed_special=())
        return ids.astype(DTYPE)

    def decode(self, ids: list[int]) -> str:
        return gpt2_encoding().decode(ids)


Tokenizer = CharTokenizer | GPT2Tokenizer


def from_manifest(manifest: dict[str, Any], path: Path) -> Tokenizer:
    """The tokenizer that a manifest names.

    Raises DataError where it names another one, or sizes that disagree; KeyError for an entry that is missing or empty.
    """
    tokenizer: Tokenizer
    if manifest["tokenizer"] == "char":
        if not manifest["vocabulary"] or not isinstance(manifest["vocabulary"], str):
            raise KeyError("vocabulary")
        tokenizer = CharTokenizer(manifest["vocabulary"])
    elif manifest["tokenizer"] == "gpt2":
        tokenizer = GPT2Tokenizer()
    else:
        raise DataError(f"{path}: unknown tokenizer {manifest['tokenizer']!r}; allowed are 'char' and 'gpt2'")
    if manifest["vocab_size"] != tokenizer.vocab_size:
        raise DataError(
            f"{path}: vocab_size {manifest['vocab_size']} is not that of its tokenizer {tokenizer.name!r}"
            f" ({tokenizer.vocab_size}): {AGAIN}"
        )
    return tokenizer


@cache
def gpt2_encoding() -> "tiktoken.Encoding":
    """tiktoken's `gpt2`, from TIKTOKEN_CACHE_DIR or DATA_MIRROR/tiktoken_cache where there is one. Called where a text
    is read or written: training on ids alone needs no tokenizer.

    Raises:
        DataError: its two files are neither cached nor to be downloaded.
    """
    import tiktoken

    if given := os.environ.get("TIKTOKEN_CACHE_DIR") or mirrored("tiktoken_cache"):
        os.environ["TIKTOKEN_CACHE_DIR"] = os.path.abspath(expand(given))
    try:
        return tiktoken.get_encoding("gpt2")
    except (OSError, ValueError) as e:  # no network; a download with another checksum
        raise DataError(
            f"GPT-2's vocabulary is not in TIKTOKEN_CACHE_DIR={os.environ.get('TIKTOKEN_CACHE_DIR')} and could not be"
            f" downloaded ({type(e).__name__}): on a machine with internet run `TIKTOKEN_CACHE_DIR=tiktoken_cache"
            " python -c \"import tiktoken; tiktoken.get_encoding('gpt2')\"`, copy that folder here and set"
            " TIKTOKEN_CACHE_DIR to it"
        ) from None
