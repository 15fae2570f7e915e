"""Documents in files: plain text of any name, .jsonl, .jsonl.gz, .jsonl.zst, .parquet, and folders of them.

Everything streams: memory holds a piece of one file, whatever its size.
"""

import codecs
import gzip
import io
import json
import os
import re
import stat
import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

from data.manifest import DataError, expand, reading

if TYPE_CHECKING:
    import pyarrow.parquet

RECORDS = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")  # files of many documents; any other is one, if it is text
PIECE_CHARS = 1 << 18  # of a text file, at most, in one piece
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # how such a file begins

# Where a text may be cut so that GPT-2's ids of the parts are its ids of the whole: before ONE space or newline between
# two other characters. (Of a run of white space, GPT-2 keeps the last one for the next word.)
BORDER = re.compile(r"(?<=\S)(?=[ \n]\S)")


class Piece(NamedTuple):
    """A document, or a part of a long one.

    Attributes:
        document: its number in the stream.
        text: its text.
        ends: whether the document ends here.
        position: how many characters of its document precede it.
    """

    document: int
    text: str
    ends: bool
    position: int


def find_files(inputs: Sequence[str | Path]) -> list[Path]:
    """The files among `inputs` and in its folders (sorted, also deeper ones).

    Of a folder, hidden files and prepared sets are passed over, and what is not text is left out with a line on stderr.

    Raises:
        DataError: a file that does not exist, cannot be read or is not text; a folder without files to read.
    """
    found: list[Path] = []
    for path in map(expand, inputs):
        with reading(f"--input {path}"):
            inside = _inside(path) if path.is_dir() else [path]
            problems = {file: problem for file in inside if (problem := _unusable(file))}
        if inside == [path] and problems:
            raise DataError(f"--input {path} {problems[path]}: take it out of the input")
        said = [f"{file.relative_to(path)} {problem}" for file, problem in problems.items()]
        left_out = "; ".join(said[:3]) + (f"; and {len(said) - 3} more" if len(said) > 3 else "")
        if len(said) == len(inside):
            kinds = f"text and no file of these kinds: {', '.join(RECORDS)}"
            raise DataError(f"--input {path} contains no {kinds}" + (f" ({left_out})" if left_out else ""))
        if said:
            print(f"{path}: left out {len(said)} files: {left_out}", file=sys.stderr)
        found += [file for file in inside if file not in problems]
    return found


def _inside(folder: Path) -> list[Path]:
    """The files of a folder and of those in it, sorted; OSError where one of them cannot be listed."""

    def fail(error: OSError) -> None:
        raise error

    found: list[Path] = []
    for root, folders, names in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        if not ({"manifest.json", "progress.json"} & {*names} and any(name.endswith(".bin") for name in names)):
            links = [name for name in folders if Path(root, name).is_symlink()]  # os.walk does not follow them
            found += [Path(root, name) for name in names + links if not name.startswith(".")]
    return sorted(found)


def _unusable(path: Path) -> str | None:
    """Why a file is not read, decided by its first bytes; None where it is."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return f"is a link to {path.readlink()}, which does not exist" if path.is_symlink() else "does not exist"
    if not stat.S_ISREG(status.st_mode):
        return "is not a regular file"
    if path.name.endswith(RECORDS):
        return None
    with path.open("rb") as f:
        start = f.read(8192)
    if b"\0" in start and not start.startswith(UTF16):
        return "is not text"
    return None if start else "holds no document"


def open_text(raw: IO[bytes]) -> IO[str]:
    """A text file as UTF-8 or, where it begins with the mark of that, UTF-16. Line ends of any system become \\n."""
    utf16 = raw.read(2) in UTF16
    raw.seek(0)
    return io.TextIOWrapper(raw, "utf-16" if utf16 else "utf-8-sig")  # type: ignore[type-var]


def border_after(path: Path, fraction: float) -> int:
    """How many characters of a text precede the first border after `fraction` of them.

    It counts characters with every line end as one, so it depends on nothing but the text. Without a border in the
    next 64K characters, the text is cut there and then.
    """
    with _naming(path), path.open("rb") as raw, open_text(raw) as f:
        before = max(int(fraction * sum(map(len, iter(lambda: f.read(PIECE_CHARS), "")))), 1)
        f.seek(0)
        for read in range(0, before - 1, PIECE_CHARS):
            f.read(min(PIECE_CHARS, before - 1 - read))
        border = BORDER.search(f.read(1 << 16), 1)
    return before + (border.start() - 1 if border else 0)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Raise what ends the reading of a file as a DataError with its name."""
    try:
        yield
    except Exception as e:
        import pyarrow

        if isinstance(e, OSError) and e.errno is not None:  # from the system, not from a decompressor
            raise DataError(f"{path} cannot be read: {e.strerror}") from None
        if isinstance(e, UnicodeError) and path.suffix != ".parquet":
            raise DataError(f"{path} is not UTF-8 ({e}): convert it, for example with iconv") from None
        if isinstance(e, EOFError | zlib.error | OSError | UnicodeError | pyarrow.ArrowException):
            raise DataError(f"{path} is damaged ({e}): get it again") from None
        raise


class Documents:
    """The documents of some files, one file after the other.

    Args:
        files: what to read, in this order. A text file is one document; else a line or a row is one.
        key: the field (.jsonl) or column (.parquet) that holds the text.
        skip_bad: leave out broken lines and rows without text, counted in `skipped`, instead of stopping at the first.
        piece_chars: a text file longer than this comes in pieces.
    """

    def __init__(
        self, files: Sequence[PathLike[str]], key: str = "text", skip_bad: bool = False, piece_chars: int = PIECE_CHARS
    ):
        self.files, self.key, self.skip_bad, self._piece_chars = files, key, skip_bad, piece_chars
        self.skipped = 0
        self._read = 0.0  # files, the part of the current one included

    def fraction(self) -> float:
        """How much has been read, in [0, 1], taking the files for equally long."""
        return self._read / len(self.files)

    def pieces(self, start: int = 0) -> Iterator[Piece]:
        """The pieces from the `start`-th on.

        Raises:
            DataError: a file that is missing, empty, damaged, or not UTF-8, with the place in it.
        """
        count = document = self.skipped = 0
        for i, file in enumerate(self.files):
            path = Path(file)
            if path.suffix == ".parquet" and not self.skip_bad and count < start:
                with _naming(path):
                    rows = _open_parquet(path).metadata.num_rows
                if count + rows <= start:  # known from the file's footer: no need to read it
                    count, document = count + rows, document + rows
                    continue
            before, position = count, 0
            for text, ends, read_to in self._texts(path):
                self._read = i + read_to
                if count >= start:
                    yield Piece(document, text, ends, position)
                count, document, position = count + 1, document + ends, 0 if ends else position + len(text)
            if count == before:
                raise DataError(f"{path} holds no document: take it out of the input")

    def _texts(self, path: Path) -> Iterator[tuple[str, bool, float]]:
        """(text, whether the document ends with it, how much of the file has been read)."""
        with _naming(path):
            if path.suffix == ".parquet":
                yield from self._texts_of_parquet(path)
            elif path.name.endswith(RECORDS):
                yield from self._texts_of_jsonl(path)
            else:
                yield from self._texts_of_text(path)

    def _texts_of_text(self, path: Path) -> Iterator[tuple[str, bool, float]]:
        size, text = path.stat().st_size, ""
        with path.open("rb") as raw, open_text(raw) as f:
            while chunk := f.read(self._piece_chars):
                text += chunk
                borders = [border.start() for border in BORDER.finditer(text, max(len(text) - 4096, 1))]
                if borders or len(text) > 16 * self._piece_chars:  # no border: cut anywhere
                    cut = borders[-1] if borders else len(text) - 1
                    yield text[:cut], False, raw.tell() / size
                    text = text[cut:]
        if text:
            yield text, True, 1.0

    def _texts_of_jsonl(self, path: Path) -> Iterator[tuple[str, bool, float]]:
        size = path.stat().st_size
        with path.open("rb") as raw, _decompress(raw, path) as lines:
            for number, line in enumerate(lines, 1):
                where = f"{path}, line {number}"
                try:
                    if not line.strip():
                        continue
                    text = json.loads(line)[self.key]
                except (ValueError, RecursionError) as e:  # broken JSON, not UTF-8, or nested too deeply
                    self._bad(where, f"not valid JSON ({e})")
                except (KeyError, TypeError):
                    self._bad(where, f"no field {self.key!r} (--key names another)")
                else:
                    if isinstance(text, str):
                        yield text, True, raw.tell() / size
                    else:
                        self._bad(where, f"field {self.key!r} is not a string")

    def _texts_of_parquet(self, path: Path) -> Iterator[tuple[str, bool, float]]:
        file = _open_parquet(path)
        if self.key not in file.schema_arrow.names:
            columns = ", ".join(file.schema_arrow.names)
            raise DataError(f"{path} has no column {self.key!r}: name one of these with --key: {columns}")
        row = 0
        for batch in file.iter_batches(batch_size=256, columns=[self.key]):
            for text in batch.column(0).to_pylist():
                row += 1
                if isinstance(text, str):
                    yield text, True, row / file.metadata.num_rows
                else:
                    self._bad(f"{path}, row {row}", f"column {self.key!r} is not a string")

    def _bad(self, where: str, what: str) -> None:
        if not self.skip_bad:
            raise DataError(f"{where}: {what}: mend it, or leave out such documents with --skip_bad")
        self.skipped += 1


def _decompress(raw: IO[bytes], path: Path) -> IO[bytes]:
    if path.suffix == ".gz":
        return gzip.open(raw)  # type: ignore[return-value]
    if path.suffix == ".zst":
        import pyarrow  # unlike some, its reader notices a stream that ends too early

        return io.BufferedReader(pyarrow.CompressedInputStream(raw, "zstd"), 1 << 20)
    return raw


def _open_parquet(path: Path) -> "pyarrow.parquet.ParquetFile":
    import pyarrow.parquet

    return pyarrow.parquet.ParquetFile(path, page_checksum_verification=True)
