"""The one way from text to shards: a stream of records -> token ids, on all cores -> shards and a manifest.

Memory holds a few batches of text whatever the size of the set. Whenever a shard is full, all are synced to the disk,
and progress.json says how far they go: after an interruption the preparation goes on from there. The manifest comes
last, so a folder that has one is whole.
"""

import argparse
import errno
import fcntl
import json
import os
import re
import shutil
import sys
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, NoReturn
from cli import Parser, program, reason

import numpy as np
from tqdm import tqdm

from data import manifest as manifests
from data.manifest import DTYPE, DataError
from data.tokenizer import CharTokenizer, Tokenizer

SHARD_TOKENS = 100_000_000
BATCH_CHARS = 1 << 18  # of text in one task of the pool: large enough that handing it over costs nothing
FEW_TOKENS = 10_000  # below this, the loss of a validation split is known to a few hundredths at best
ANOTHER = ": choose a folder that you can write to with --out"
REMEDIES = {
    errno.ENOSPC: ": free some and repeat the command, which goes on from there",
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST), ANOTHER),
}


class Record(NamedTuple):
    """A document, or a piece of a long one."""

    split: str
    text: str
    ends: bool = True  # a document: end-of-text follows, where the tokenizer has one


@dataclass
class Source:
    """What a data set is made from."""

    name: str
    tokenizer: Tokenizer
    records: Callable[[int], Iterator[Record]]  # the stream of records from the n-th on, the same in every run
    origin: dict[str, Any]  # of the text; an interrupted preparation is continued only from an equal one
    expected: dict[str, int] = field(default_factory=dict)  # tokens by split or in "all", asserted at the end
    required: tuple[str, ...] = ()  # splits that may not come out empty
    fraction: Callable[[], float] | None = None  # of the stream that has been read, in [0, 1]; for the time left
    skipped: Callable[[], int] | None = None  # bad documents that were left out
    disk_bytes: int = 0  # that will be needed, about


def prepare(
    source: Source, folder: Path, *, shard_tokens: int = SHARD_TOKENS, threads: int | None = None, overwrite=False
) -> None:
    """Make `folder` a prepared data set, or go on where an interrupted one stopped; verify what is done already.

    Args:
        source: what to prepare.
        folder: made where it is missing.
        shard_tokens: tokens a shard; the last of a split has what is left.
        threads: that tokenize; all cores by default.
        overwrite: remove the set that is there, whatever it holds, and make this one.

    Raises:
        DataError: the folder holds another data set, or this one changed since it was prepared; the disk is (or gets)
            full; the counts are not the expected.
    """
    for name, value in (("shard_tokens", shard_tokens), ("threads", threads)):
        if value is not None and value < 1:
            raise DataError(f"--{name}={value}; allowed are 1 and above")
    manifest = folder / "manifest.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        asked_again = manifest.is_file()  # otherwise another process of this run has just made it
        with _alone_in(folder):
            if asked_again and overwrite:
                print(f"{folder}: removing the set that was prepared there", file=sys.stderr)
                _remove_shards(folder)
                manifest.unlink()
            if not manifest.is_file():
                _make(source, folder, shard_tokens, threads or os.cpu_count() or 1)
                return
            found = manifests.read_manifest(folder)
            if differences := _differences(source, found):
                remedy = "--overwrite makes it again, --out chooses another folder"
                raise DataError(f"{folder} holds other data ({differences}): {remedy}")
            if asked_again:
                manifests.verify(folder, found)
                print(f"{source.name}: prepared already, every shard has its checksum -> {folder}", file=sys.stderr)
    except OSError as e:
        raise DataError(f"{e.filename or folder}: {reason(e)}{REMEDIES.get(e.errno or 0, '')}") from e


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Wait until no other process prepares this folder. The system frees the lock of a process that was killed."""
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _remove_shards(folder: Path) -> None:
    for path in folder.iterdir():
        if re.fullmatch(r"\w+_\d{5,}\.bin|progress\.json", path.name):
            path.unlink()


def _differences(source: Source, found: dict[str, Any]) -> str:
    """What a manifest says of its source and this one does not: "val_fraction 0.01, not 0.1; ..."; "" if nothing."""
    origin = found.get("source")
    theirs = {"tokenizer": found.get("tokenizer"), **(origin if isinstance(origin, dict) else {})}
    ours = {"tokenizer": source.tokenizer.name, **json.loads(json.dumps(source.origin))}
    pairs = {key: (theirs.get(key), ours.get(key)) for key in {**theirs, **ours}}
    short = {key: f"{key} {a!r}, not {b!r}" for key, (a, b) in pairs.items() if a != b}
    return "; ".join(said if len(said) < 80 else f"other {key}" for key, said in short.items())


def _make(source: Source, folder: Path, shard_tokens: int, threads: int) -> None:
    stream = 2  # version of the records that the same settings give: one stream is not continued with another
    recipe = {"name": source.name, "tokenizer": source.tokenizer.name, "shard_tokens": shard_tokens, "stream": stream}
    shards = _Shards(folder, recipe | source.origin, shard_tokens)
    needed = source.disk_bytes - shards.tokens() * DTYPE.itemsize
    if (free := shutil.disk_usage(folder).free) < needed:
        raise DataError(
            f"{folder}: the shards need about {needed / 1e6:,.0f} MB and {free / 1e6:,.0f} MB are free:"
            " free some, or choose another disk with --out"
        )
    _write_shards(source, shards, threads)
    for split, tokens in source.expected.items():
        if (count := shards.tokens(None if split == "all" else split)) != tokens:
            raise DataError(
                f"{folder}: {split} came out with {count:,} tokens, expected {tokens:,}:"
                " the text is not the pinned one; delete the folder and its downloads, and repeat"
            )
    for split in source.required:
        if not shards.tokens(split):
            raise DataError(f"{folder}: no document fell into {split}: give more, or choose another --val_fraction")
    _write_manifest(source, shards)
    for split in source.required:
        if (tokens := shards.tokens(split)) < FEW_TOKENS:
            few = f"{split} has {tokens:,} tokens; below {FEW_TOKENS:,} a loss is noisy, and block_size must be smaller"
            print(f"warning: {few}: give more text, or another --val_fraction with --overwrite", file=sys.stderr)


class _Shards:
    """The shards of a set while they are written.

    `state`, which progress.json holds as it was when all were last on disk, is
    {"recipe": ..., "records": read from the stream, "splits": {split: {"documents": ..., "tokens": ...}}}.
    """

    def __init__(self, folder: Path, recipe: dict[str, Any], size: int):
        self.folder, self.size = folder, size  # size: tokens of a full shard
        self._written: set[Path] = set()  # since the last save
        self.state: dict[str, Any] = {"recipe": json.loads(json.dumps(recipe)), "records": 0, "splits": {}}
        if (progress := folder / "progress.json").exists():
            try:
                self._go_on(manifests.read_json(progress))
            except (OSError, ValueError, LookupError, TypeError, AttributeError) as e:
                what = f"cannot go on with what was prepared there ({reason(e)})"
                print(f"{folder}: {what}; starting afresh", file=sys.stderr)
                _remove_shards(folder)

    def _go_on(self, found: dict[str, Any]) -> None:
        """Take an interrupted preparation up: cut its shards to what progress.json says of them."""
        if found["recipe"] != self.state["recipe"]:
            raise ValueError("it was of other data or settings")
        for split, its in found["splits"].items():
            for path, tokens in self.files(split, its["tokens"]):
                if path.stat().st_size < tokens * DTYPE.itemsize:
                    raise ValueError(f"{path.name} is too short")
                os.truncate(path, tokens * DTYPE.itemsize)
        self.state = found

    def files(self, split: str, tokens: int) -> list[tuple[Path, int]]:
        """(path, tokens) of each shard of a split that has `tokens`."""
        left = enumerate(range(tokens, 0, -self.size))
        return [(self.folder / f"{split}_{i:05d}.bin", min(self.size, remaining)) for i, remaining in left]

    def tokens(self, split: str | None = None) -> int:
        return sum(its["tokens"] for name, its in self.state["splits"].items() if split in (None, name))

    def write(self, split: str, ids: np.ndarray, documents: int) -> bool:
        """Append to a split; whether that filled a shard."""
        its = self.state["splits"].setdefault(split, {"documents": 0, "tokens": 0})
        its["documents"] += documents
        full = its["tokens"] // self.size
        while len(ids):
            inside = its["tokens"] % self.size  # of the open shard
            path, _ = self.files(split, its["tokens"] + 1)[-1]
            part = ids[: self.size - inside]
            with path.open("ab" if inside else "wb") as file:
                file.write(part.tobytes())
            self._written.add(path)
            its["tokens"] += len(part)
            ids = ids[len(part) :]
        return its["tokens"] // self.size > full

    def save(self) -> None:
        """Bring everything that was written to the disk, and then say so in progress.json."""
        for path in self._written:
            with path.open("ab") as file:
                os.fsync(file.fileno())
        self._written.clear()
        manifests.write_json(self.folder / "progress.json", self.state)


def _write_shards(source: Source, shards: _Shards, threads: int) -> None:
    total = sum(source.expected.values()) or None
    records = source.records(shards.state["records"])
    shards.save()  # before any shard, so that an interrupted folder always has it
    with tqdm(desc=source.name, unit="tok", unit_scale=True, total=total, initial=shards.tokens(), disable=None) as bar:
        for count, parts in _encode_in_order(_groups(records), source.tokenizer, threads):
            shards.state["records"] += count
            if any([shards.write(split, ids, documents) for split, (ids, documents) in parts.items()]):
                shards.save()
                if bar.disable:  # no terminal: a line a shard for the log
                    print(f"{source.name}: {shards.tokens():,} tokens are written", file=sys.stderr)
            if source.fraction and (read := source.fraction()) > 0:  # of the text; the tokens are a little behind
                bar.total = int(shards.tokens() / read)
            bar.update(sum(len(ids) for ids, _ in parts.values()))
    shards.save()


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


# of a group: records, and by split the ids, uint16 (tokens,), and how many documents end in them
Encoded = tuple[int, dict[str, tuple[np.ndarray, int]]]


def _encode_in_order(groups: Iterator[list[Record]], tokenizer: Tokenizer, threads: int) -> Iterator[Encoded]:
    """Encode on `threads` threads (tiktoken leaves the interpreter lock while it works), a few groups ahead."""
    pending: deque[Future[Encoded]] = deque()
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


def _encode(group: list[Record], tokenizer: Tokenizer) -> Encoded:
    end = np.array([] if tokenizer.end_of_text is None else [tokenizer.end_of_text], dtype=DTYPE)
    parts: dict[str, list[np.ndarray]] = {}
    for split, text, ends in group:
        parts.setdefault(split, []).extend([tokenizer.encode(text), *([end] if ends else [])])
    documents = {split: sum(record.ends for record in group if record.split == split) for split in parts}
    return len(group), {split: (np.concatenate(ids), documents[split]) for split, ids in parts.items()}


def _write_manifest(source: Source, shards: _Shards) -> None:
    tokenizer, splits = source.tokenizer, {}
    counts = {split: np.zeros(tokenizer.vocab_size, dtype=np.int64) for split in shards.state["splits"]}
    for split, its in shards.state["splits"].items():
        entries = []
        for path, tokens in shards.files(split, its["tokens"]):
            sha256, found = manifests.read_through(path, tokenizer.vocab_size)
            counts[split] += found
            entries.append({"file": path.name, "tokens": tokens, "sha256": sha256})
        splits[split] = {"tokens": its["tokens"], "documents": its["documents"], "shards": entries}
    about = {"format": manifests.FORMAT, "name": source.name, "dtype": DTYPE.name, "source": source.origin}
    manifest = about | {"tokenizer": tokenizer.name, "vocab_size": tokenizer.vocab_size, "splits": splits}
    if isinstance(tokenizer, CharTokenizer):
        manifest["vocabulary"] = tokenizer.vocabulary
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


class ArgumentParser(Parser):
    """The options that every preparation has."""

    def __init__(self, doc: str | None, out: Path | None):
        super().__init__(None, doc)
        default = "default: beside this file" if out else "data/NAME makes it --dataset=NAME"
        self.add_argument("--out", default=out, required=not out, help=f"folder for the shards ({default})")
        self.add_argument("--overwrite", action="store_true", help="remove the prepared set in it and make it again")
        self.add_argument("--threads", type=int, help="that tokenize (default: one for each core)")
        self.add_argument("--shard_tokens", type=int, default=SHARD_TOKENS, help="a shard (default: %(default)s)")

    def run(self, source: Callable[[argparse.Namespace], Source]) -> NoReturn:
        """Prepare what `source` makes of the command line, and exit."""

        @program("prepare.py", again="repeat the command to go on")
        def main(argv: list[str]) -> None:
            a = self.parse_args(argv)
            out = manifests.expand(a.out)
            prepare(source(a), out, shard_tokens=a.shard_tokens, threads=a.threads, overwrite=a.overwrite)

        sys.exit(main(sys.argv[1:]))


def main(doc: str | None, file: str, source: Callable[[], Source]) -> None:
    """The command line of a data set without options of its own: `python data/NAME/prepare.py [--out=FOLDER]`."""
    ArgumentParser(doc, Path(file).resolve().parent).run(lambda _: source())
