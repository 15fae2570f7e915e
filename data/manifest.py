"""What a prepared folder holds, and the checks of its files against it.

A prepared folder is manifest.json beside headerless shards of little-endian uint16 ids, `<split>_00000.bin` onwards:

    {"format": 1, "name": "shakespeare_char", "tokenizer": "char", "vocab_size": 65, "vocabulary": "\\n !$&'...",
     "dtype": "uint16", "source": {...}, "val_unigram_entropy": 3.33,
     "splits": {"train": {"tokens": 1003854, "documents": 1,
                          "shards": [{"file": "train_00000.bin", "tokens": 1003854, "sha256": "..."}]}, "val": ...}}
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any
from cli import Mistake, reason

import numpy as np

FORMAT = 1
DTYPE = np.dtype("<u2")
AGAIN = "prepare it again with --overwrite"  # the remedy for a folder that was changed


class DataError(Mistake):
    """A data set that is missing, damaged or asked for wrongly: one line that names the file and the remedy."""


def expand(path: str | Path) -> Path:
    """The path with ~ and ~user replaced by the home folder. Raises DataError where there is no such user, and for
    characters that no path can have."""
    try:
        if b"\0" in os.fsencode(path):
            raise ValueError("it has a NUL character")
        return Path(path).expanduser()
    except (RuntimeError, ValueError) as e:
        raise DataError(f"{str(path)!r} is no path: {e}") from None


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Raise what the system says of a file (no permission, name too long, a loop of links) as a DataError."""
    try:
        yield
    except OSError as e:
        raise DataError(f"{e.filename or path} cannot be read: {reason(e)}") from None


def read_text(path: Path) -> str:
    """The UTF-8 text of a regular file: reading a named pipe would block. Raises OSError, ValueError."""
    if path.exists() and not path.is_file():
        raise OSError(0, "not a regular file", str(path))
    return path.read_bytes().decode()


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises OSError, and ValueError for what is not UTF-8, not JSON or too deep."""
    try:
        return json.loads(read_text(path))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def make_folder(folder: Path) -> None:
    """Create a folder to write to, if need be. Raises DataError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise DataError(f"{folder} cannot be written ({reason(e)}): name another folder") from None


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write, which takes the name `path` when all of it is on the disk: whenever the process or the power
    ends, a reader sees the old file or the new one."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        publish(partial, path)
    finally:
        with suppress(OSError):  # the disk may have become read-only
            partial.unlink(missing_ok=True)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write `content` in the place of a JSON file. Raises OSError."""
    with replacing(path) as file:
        file.write(json.dumps(content, indent=1).encode())


def publish(partial: Path, path: Path) -> None:
    """Give a complete, synced file or folder its name."""
    os.replace(partial, path)
    sync_folder(path.parent)  # which holds the name


def sync_folder(folder: Path) -> None:
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def read_manifest(folder: Path) -> dict[str, Any]:
    """manifest.json of a prepared folder, checked against the files beside it: existence and size, not content.

    Raises:
        DataError: no manifest, not one of ours, or a shard that is missing or has another size.
    """
    path = folder / "manifest.json"
    try:
        manifest = read_json(path)
    except FileNotFoundError:
        raise DataError(f"{folder} holds no prepared data (no manifest.json)") from None
    except OSError as e:
        raise DataError(f"{path} cannot be read: {e.strerror}") from None
    except ValueError as e:
        raise DataError(f"{path} is not valid JSON ({e}): {AGAIN}") from None
    try:
        problem = next(_problems(path, manifest), None)
    except (LookupError, TypeError, AttributeError, ValueError) as e:
        problem = f"{path} lacks or garbles the entry {e}"
    if problem:
        raise DataError(f"{problem}: {AGAIN}")
    return manifest


def _problems(path: Path, manifest: Any) -> Iterator[str]:
    """What is wrong with a manifest and with the files that it lists, beside it."""
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        yield f"{path} is not a manifest of format {FORMAT}"
    if manifest["dtype"] != "uint16":
        yield f"{path}: dtype {manifest['dtype']!r}, expected 'uint16'"
    for name, split in manifest["splits"].items():
        if split["tokens"] != sum(shard["tokens"] for shard in split["shards"]):
            yield f"{path}: the shards of {name} do not add up to {split['tokens']} tokens"
        for shard in split["shards"]:
            file, tokens = path.parent / shard["file"], shard["tokens"]
            if shard["file"] != file.name:
                yield f"{path}: the shard {shard['file']!r} lies outside the folder"
            if not file.is_file():
                yield f"{file} is missing although manifest.json lists it"
            size = file.stat().st_size
            if size != tokens * DTYPE.itemsize:
                odd = ", not even a whole number of uint16" if size % DTYPE.itemsize else ""
                yield f"{file} has {size:,} bytes{odd}; its manifest says {tokens * DTYPE.itemsize:,}"
            if not tokens or not isinstance(shard["sha256"], str):
                yield f"{path} lacks or garbles the entries of {file.name}"


def verify(folder: Path, manifest: dict[str, Any]) -> None:
    """Read every shard: its checksum must be the manifest's and every id below vocab_size.

    Raises:
        DataError: naming the first shard that fails.
    """
    for split in manifest["splits"].values():
        for shard in split["shards"]:
            path = folder / shard["file"]
            sha256, counts = read_through(path, manifest["vocab_size"])
            if counts.size > manifest["vocab_size"]:
                beyond = f"id {counts.size - 1}, but the vocabulary has {manifest['vocab_size']}"
                raise DataError(f"{path} holds {beyond}: {AGAIN}")
            if sha256 != shard["sha256"]:
                raise DataError(f"{path} was changed since it was prepared (its sha256 differs): {AGAIN}")


def read_through(shard: Path, vocab_size: int) -> tuple[str, np.ndarray]:
    """(sha256, how often each id occurs): int64 (vocab_size,), longer where an id lies beyond the vocabulary."""
    digest, counts = hashlib.sha256(), np.zeros(vocab_size, dtype=np.int64)
    with open(shard, "rb") as f:
        while chunk := f.read(1 << 24):
            digest.update(chunk)
            found = np.bincount(np.frombuffer(chunk, DTYPE), minlength=counts.size)
            counts = np.pad(counts, (0, found.size - counts.size)) + found
    return digest.hexdigest(), counts


def file_sha256(path: Path) -> str:
    with reading(path), open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
