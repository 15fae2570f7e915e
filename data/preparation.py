"""The one way from text to shards: a stream of records -> token ids, on all cores -> shards and a manifest.

Memory holds a few batches of text whatever the size of the set. A shard has its final name only when it is complete
and on disk; after an interruption the preparation goes on at the shard that was being written (progress.json). The
manifest comes last, so a folder that has one is whole.
"""

import argparse
import errno
import json
import os
import shutil
import sys
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from tqdm import tqdm

from data import manifest as manifests
from data.manifest import DTYPE, DataError
from data.tokenizer import CharTokenizer, Tokenizer

SHARD_TOKENS = 100_000_000
BATCH_CHARS = 1 << 18  # of text in one task of the pool: large enough that handing it over costs nothing


REMEDIES = {
    errno.ENOSPC: ": free some and repeat the command, which goes on from there",
    errno.EACCES: ": choose a folder that you can write to with --out",
    errno.EROFS: ": choose a folder that you can write to with --out",
    errno.ENOTDIR: ": choose a folder with --out",
    errno.EEXIST: ": choose a folder with --out",
}


class Record(NamedTuple):
    """A document, or a piece of a long one."""

    split: str
    text: str
    ends: bool = True  # a document: end-of-text follows, where the tokenizer has one


@dataclass
class Source:
    """What a data set is made from.

    Attributes:
        name: of the data set.
        tokenizer: turns texts into ids.
        records: the stream of records from the n-th on, the same in every run.
        origin: where the text comes from, for the manifest; an interrupted preparation goes on only with an equal one.
        expected: tokens by split, or in "all", where they are known; asserted at the end.
        required: splits that may not come out empty.
        fraction: how much of the stream has been read, in [0, 1], where that is known; for the time left.
        skipped: how many bad documents were left out, if any may be.
        disk_bytes: that will be needed, about.
    """

    name: str
    tokenizer: Tokenizer
    records: Callable[[int], Iterator[Record]]
    origin: dict[str, Any]
    expected: dict[str, int] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    fraction: Callable[[], float] | None = None
    skipped: Callable[[], int] | None = None
    disk_bytes: int = 0


def prepare(source: Source, folder: Path, *, shard_tokens: int = SHARD_TOKENS, threads: int | None = None) -> None:
    """Make `folder` a prepared data set, or go on where an interrupted one stopped; verify what is done already.

    Args:
        source: what to prepare.
        folder: made where it is missing.
        shard_tokens: a shard is closed by the batch that takes it to this many tokens.
        threads: that tokenize; all cores by default.

    Raises:
        DataError: the folder holds another data set, or this one changed since it was prepared; the disk is (or gets)
            full; the counts are not the expected.
    """
    recipe = {"name": source.name, "tokenizer": source.tokenizer.name, "shard_tokens": shard_tokens, **source.origin}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        asked_again = (folder / "manifest.json").is_file()  # otherwise another process of this run has just made it
        with _alone_in(folder):
            if (folder / "manifest.json").is_file():
                found = manifests.read_manifest(folder)
                if (found.get("tokenizer"), found.get("source")) != (source.tokenizer.name, source.origin):
                    raise DataError(f"{folder} holds other data: delete it, or choose another folder with --out")
                if asked_again:
                    manifests.verify(folder, found)
                    print(f"{source.name}: prepared already, every shard has its checksum -> {folder}", file=sys.stderr)
                return
            shards = _Shards(folder, recipe)
            _check_disk(folder, source.disk_bytes - shards.tokens() * DTYPE.itemsize)
            _write_shards(source, shards, shard_tokens, threads or os.cpu_count() or 1)
            for split, tokens in source.expected.items():
                if (count := shards.tokens(None if split == "all" else split)) != tokens:
                    raise DataError(
                        f"{folder}: {split} came out with {count:,} tokens, expected {tokens:,}:"
                        " the text is not the pinned one; delete the folder and its downloads, and repeat"
                    )
            for split in source.required:
                if not shards.tokens(split):
                    raise DataError(
                        f"{folder}: no document fell into {split}: give more, or choose another --val_fraction"
                    )
            _write_manifest(source, shards)
    except OSError as e:
        raise DataError(f"{e.filename or folder}: {e.strerror or e}{REMEDIES.get(e.errno or 0, '')}") from e


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Wait until no other process prepares this folder. The system frees the lock of a process that was killed."""
    if os.name != "posix":
        yield
        return
    import fcntl

    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _check_disk(folder: Path, needed: int) -> None:
    if (free := shutil.disk_usage(folder).free) < needed:
        raise DataError(
            f"{folder}: the shards need about {needed / 1e6:,.0f} MB and {free / 1e6:,.0f} MB are free:"
            " free some, or choose another disk with --out"
        )


class _Shards:
    """The shards of a set while they are written. progress.json holds their state when one was last completed.

    `state` is {"recipe": ..., "records": read from the stream,
                "splits": {split: {"documents": ..., "closed": [tokens of each complete shard], "open": tokens}}}.
    """

    def __init__(self, folder: Path, recipe: dict[str, Any]):
        self.folder = folder
        self.state: dict[str, Any] = {"recipe": recipe, "records": 0, "splits": {}}
        self._files: dict[str, BinaryIO] = {}
        try:
            found = json.loads((folder / "progress.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):
            return
        if found.get("recipe") == json.loads(json.dumps(recipe)) and self._restore(found["splits"]):
            self.state = found
        else:
            print(f"{folder}: cannot go on with the interrupted preparation there; starting afresh", file=sys.stderr)

    def _restore(self, splits: dict[str, Any]) -> bool:
        """Take the files back to the recorded state; False where they no longer allow it."""
        for split, its in splits.items():
            for i, tokens in enumerate(its["closed"]):
                if not (path := self.path(split, i)).is_file() or path.stat().st_size != tokens * DTYPE.itemsize:
                    return False
            path, partial = self.path(split, len(its["closed"])), self.partial(split, len(its["closed"]))
            if path.is_file():  # completed, but progress.json did not live to tell
                os.replace(path, partial)
            if its["open"]:
                if not partial.is_file() or partial.stat().st_size < its["open"] * DTYPE.itemsize:
                    return False
                os.truncate(partial, its["open"] * DTYPE.itemsize)
        return True

    def path(self, split: str, i: int) -> Path:
        return self.folder / f"{split}_{i:05d}.bin"

    def partial(self, split: str, i: int) -> Path:
        return self.folder / f"{split}_{i:05d}.partial.bin"

    def tokens(self, split: str | None = None) -> int:
        splits = self.state["splits"]
        return sum(sum(its["closed"]) + its["open"] for name, its in splits.items() if split in (None, name))

    def write(self, split: str, ids: np.ndarray, documents: int) -> int:
        """Append to the split's open shard; returns the tokens in it."""
        its = self.state["splits"].setdefault(split, {"documents": 0, "closed": [], "open": 0})
        if split not in self._files:
            self._files[split] = self.partial(split, len(its["closed"])).open("ab" if its["open"] else "wb")
        self._files[split].write(ids.tobytes())
        its["documents"] += documents
        its["open"] += len(ids)
        return its["open"]

    def complete(self, splits: list[str]) -> None:
        """Close the open shards of these splits under their final names, and record the state of all."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        for split in splits:
            its = self.state["splits"][split]
            self._files.pop(split).close()
            i = len(its["closed"])
            manifests.publish(self.partial(split, i), self.path(split, i))
            its["closed"].append(its["open"])
            its["open"] = 0
        manifests.write_json(self.folder / "progress.json", self.state)

    def close(self) -> None:
        for file in self._files.values():
            file.close()


class _Batch(NamedTuple):
    records: int
    ids: dict[str, np.ndarray]  # by split: uint16 (tokens,)
    documents: dict[str, int]  # by split


def _write_shards(source: Source, shards: _Shards, shard_tokens: int, threads: int) -> None:
    total = sum(source.expected.values()) or None
    bar = tqdm(desc=source.name, unit="tok", unit_scale=True, total=total, initial=shards.tokens(), disable=None)
    groups = _groups(source.records(shards.state["records"]))
    try:
        for batch in _encode_in_order(groups, source.tokenizer, threads):
            shards.state["records"] += batch.records
            full = [
                split
                for split, ids in batch.ids.items()
                if shards.write(split, ids, batch.documents[split]) >= shard_tokens
            ]
            if full:
                shards.complete(full)
                if bar.disable:  # no terminal: a line a shard for the log
                    print(f"{source.name}: {shards.tokens():,} tokens in complete shards", file=sys.stderr)
            if source.fraction and (read := source.fraction()) > 0:  # of the text; the tokens are a little behind
                bar.total = int(shards.tokens() / read)
            bar.update(sum(map(len, batch.ids.values())))
        shards.complete([split for split, its in shards.state["splits"].items() if its["open"]])
    finally:
        bar.close()
        shards.close()


def _groups(records: Iterator[Record]) -> Iterator[list[Record]]:
    group: list[Record] = []
    chars = 0
    for record in records:
        group.append(record)
        chars += len(record.text)
        if chars >= BATCH_CHARS:
            yield group
            group, chars = [], 0
    if group:
        yield group


def _encode_in_order(groups: Iterator[list[Record]], tokenizer: Tokenizer, threads: int) -> Iterator[_Batch]:
    """Encode on `threads` threads (tiktoken leaves the interpreter lock while it works), a few groups ahead."""
    pending: deque[Future[_Batch]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="tokenize")
    try:
        for group in groups:
            pending.append(pool.submit(_encode, group, tokenizer))
            if len(pending) > 4 * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _encode(group: list[Record], tokenizer: Tokenizer) -> _Batch:
    parts: dict[str, list[np.ndarray]] = {}
    documents: dict[str, int] = {}
    end = np.array([] if tokenizer.end_of_text is None else [tokenizer.end_of_text], dtype=DTYPE)
    for split, text, ends in group:
        parts.setdefault(split, []).append(tokenizer.encode(text))
        if ends:
            parts[split].append(end)
        documents[split] = documents.get(split, 0) + ends
    return _Batch(len(group), {split: np.concatenate(ids) for split, ids in parts.items()}, documents)


def _write_manifest(source: Source, shards: _Shards) -> None:
    splits: dict[str, Any] = {}
    counts: dict[str, np.ndarray] = {}
    for split, its in shards.state["splits"].items():
        entries = []
        counts[split] = np.zeros(source.tokenizer.vocab_size, dtype=np.int64)
        for i, tokens in enumerate(its["closed"]):
            path = shards.path(split, i)
            sha256, found = manifests.read_through(path, source.tokenizer.vocab_size)
            counts[split] += found
            entries.append({"file": path.name, "tokens": tokens, "sha256": sha256})
        splits[split] = {"tokens": sum(its["closed"]), "documents": its["documents"], "shards": entries}
    manifest: dict[str, Any] = {
        "format": manifests.FORMAT,
        "name": source.name,
        "tokenizer": source.tokenizer.name,
        "vocab_size": source.tokenizer.vocab_size,
        "dtype": DTYPE.name,
        "source": source.origin,
        "splits": splits,
    }
    if isinstance(source.tokenizer, CharTokenizer):
        manifest["vocabulary"] = source.tokenizer.vocabulary
    line = ", ".join(f"{split} {its['tokens']:,} tokens" for split, its in splits.items())
    if source.skipped:
        manifest["skipped"] = source.skipped()
        line += f", {manifest['skipped']} bad documents left out"
    if "train" in counts and "val" in counts:
        entropy = manifest["val_unigram_entropy"] = unigram_entropy(counts["train"], counts["val"])
        line += f", unigram entropy of val {entropy:.3f} nats a token"
    manifests.write_json(shards.folder / "manifest.json", manifest)
    (shards.folder / "progress.json").unlink(missing_ok=True)
    print(f"{source.name}: {line} -> {shards.folder}", file=sys.stderr)


def unigram_entropy(train: np.ndarray, val: np.ndarray) -> float:
    """Mean loss, in nats a token, of predicting val by the frequencies of train: what a model must beat.

    Frequencies are add-one smoothed, so that a token which train never saw costs something finite.

    Args:
        train, val: how often each id occurs, (vocab_size,).
    """
    frequency = (train + 1) / (train.sum() + train.size)
    return float(-(val * np.log(frequency)).sum() / val.sum())


def main(doc: str | None, prepare: Callable[[Path], None], folder: Path) -> None:
    """The command line of a data set without options of its own: `python data/NAME/prepare.py [--out=FOLDER]`."""
    parser = argument_parser(doc, folder)
    run(lambda: prepare(parser.parse_args().out))


def argument_parser(doc: str | None, folder: Path) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=folder, help="where the shards go (default: beside this file)")
    return parser


def run(command: Callable[[], None]) -> None:
    """Run a command: a user's mistake ends it with one line and status 2, Ctrl-C with 130."""
    try:
        command()
    except DataError as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; repeat the command to go on", file=sys.stderr)
        sys.exit(130)
