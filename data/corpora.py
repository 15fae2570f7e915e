"""Wikitext and LAMBADA, row by row as their publishers cut them: what models are evaluated on."""

import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from data.documents import Documents
from data.download import fetch, hub_files, mirrored
from data.manifest import DataError, reading
from data.preparation import ArgumentParser, Record, Source
from data.tokenizer import GPT2Tokenizer

ROWS = {  # by set and split
    "wikitext2": {"train": 36_718, "val": 3_760, "test": 4_358},
    "wikitext103": {"train": 1_801_350, "val": 3_760, "test": 4_358},
    "lambada": {"train": 2_662, "val": 4_869, "test": 5_153},
    "lambada_openai": {"test": 5_153},
}
PREPARED = {name: list(rows) for name, rows in ROWS.items()} | {"lambada": ["val", "test"]}  # splits, by default
HUB = {  # repository, revision, folder
    "wikitext2": ("Salesforce/wikitext", "b08601e04326c79dfdd32d625aee71d232d685c3", "wikitext-2-raw-v1"),
    "wikitext103": ("Salesforce/wikitext", "b08601e04326c79dfdd32d625aee71d232d685c3", "wikitext-103-raw-v1"),
    "lambada": ("cimec/lambada", "main", ""),  # its test split is pinned by TEST_SHA256
}
LAMBADA_OPENAI = (
    "lambada_test.jsonl",
    "https://openaipublic.blob.core.windows.net/gpt-2/data/lambada_test.jsonl",
    "4aa8d02cd17c719165fc8a7887fddd641f43fcafa4b1c806ca8abc31fabdb226",
)
TEST_FILE = {"wikitext2": "wiki.test.raw", "wikitext103": "wiki.test.raw", "lambada": "lambada_test_plain_text.txt"}
TEST_SHA256 = {  # of that file
    "wikitext2": "173c87a53759e0201f33e0ccf978e510c2042d7f2cb78229d9a50d79b9e7dd08",
    "wikitext103": "173c87a53759e0201f33e0ccf978e510c2042d7f2cb78229d9a50d79b9e7dd08",
    "lambada": "4ab6062b68422bf2e83653d367c9765d42404f7ec21b8b59b6518b45606aaef2",
}


def texts(name: str, split: str) -> Iterator[str]:
    """The rows of one split, in order, from DATA_MIRROR or the Hugging Face hub.

    - wikitext2, wikitext103 (raw): lines with their newline; a blank line is "". As `datasets` gives them.
    - lambada: the original passages, tokenised by their authors, without a newline. Its training rows are novels.
    - lambada_openai: the passages as OpenAI cleaned them, with their line breaks.

    Args:
        name: a key of ROWS.
        split: "train", "val" or "test"; lambada_openai has only "test".

    Raises:
        DataError: no such set or split; no copy of it and no network; or another text than the pinned one, which is
            noticed at its end.
    """
    if name not in ROWS:
        raise DataError(f"no evaluation set {name!r}; there are: {', '.join(ROWS)}")
    if split not in ROWS[name]:
        raise DataError(f"{name} has no split {split!r}; it has: {', '.join(ROWS[name])}")
    return _checked(name, split)  # another generator, so that a wrong name is refused at the call


def _checked(name: str, split: str) -> Iterator[str]:
    count, digest = 0, hashlib.sha256()
    with reading(f"{name}, split {split},"):
        for text in _rows(name, split):
            count += 1
            digest.update((text + "\n" if name == "lambada" else text or " \n").encode())
            yield text
    pinned = TEST_SHA256.get(name) if split == "test" else None
    if count != ROWS[name][split] or pinned not in (None, digest.hexdigest()):
        raise DataError(
            f"{name}, split {split}: {count:,} rows, {ROWS[name][split]:,} expected, or not the pinned text:"
            f" look at {TEST_FILE.get(name)} and {HUB[name][0]} in DATA_MIRROR, or delete data/.cache"
        )


def _rows(name: str, split: str) -> Iterator[str]:
    if name == "lambada_openai":
        for line in fetch(*LAMBADA_OPENAI).read_text(encoding="utf-8").split("\n")[:-1]:
            yield json.loads(line)["text"]
    elif split == "test" and (file := mirrored(TEST_FILE[name])):
        with file.open(encoding="utf-8", errors="replace", newline="\n") as lines:
            for line in lines:
                yield line.removesuffix("\n") if name == "lambada" else line if line.strip() else ""
    else:
        repository, revision, folder = HUB[name]
        files = hub_files(repository, revision, folder)
        part = {"train": "train-", "val": "validation-", "test": "test-"}[split]
        for piece in Documents([file for file in files if file.name.startswith(part)]).pieces():
            yield piece.text


def source(name: str, splits: Sequence[str] | None = None) -> Source:
    """GPT-2 tokens of these splits (None: of PREPARED's): each row tokenised on its own, end-of-text after each.

    That is the stream of the paper's perplexities (its authors' code); GPT-2's own protocol reads the text unbroken.
    """
    chosen = PREPARED[name] if splits is None else splits
    for split in chosen:
        texts(name, split)  # refuse a wrong one before work begins

    def records(start: int) -> Iterator[Record]:
        rows = (Record(split, text) for split in chosen for text in texts(name, split))
        return itertools.islice(rows, start, None)

    return Source(name, GPT2Tokenizer(), records, {"corpus": name, "splits": list(chosen)})


def main(doc: str | None, file: str) -> None:
    """The command line of the set in whose folder `file` is."""
    folder = Path(file).resolve().parent
    parser = ArgumentParser(doc, folder)
    default = ",".join(PREPARED[folder.name])
    parser.add_argument("--splits", default=default, help=f"of {','.join(ROWS[folder.name])} (default: %(default)s)")
    parser.run(lambda arguments: source(folder.name, arguments.splits.split(",")))
