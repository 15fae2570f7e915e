"""Documents in files of the usual kinds: .txt, .jsonl, .jsonl.gz, .jsonl.zst, .parquet, and folders of them.

Everything streams: memory holds a piece of one file, whatever its size.
"""

import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple, Protocol

from data.manifest import DataError

if TYPE_CHECKING:
    import pyarrow.parquet

SUFFIXES = (".txt", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
PIECE_CHARS = 1 << 18  # of a .txt file, at most, in one piece

# Where a text may be cut so that GPT-2's ids of the parts are its ids of the whole: before ONE space or newline between
# two other characters. (Of a run of white space, GPT-2 keeps the last one for the next word.)
BORDER = re.compile(r"(?<=\S)(?=[ \n]\S)")


class Piece(NamedTuple):
    """A document, or a part of a long one.

    Attributes:
        document: its number in the stream.
        text: its text.
        ends: whether the document ends here.
        position: where in its file it begins, in [0, 1).
    """

    document: int
    text: str
    ends: bool
    position: float


class File(Protocol):
    """A file on this machine, perhaps only after a download."""

    @property
    def name(self) -> str:
        """Its name, without folders."""

    def local(self) -> Path:
        """Its path on this machine."""


class LocalFile(NamedTuple):
    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    def local(self) -> Path:
        return self.path


def find_files(inputs: Sequence[Path]) -> list[LocalFile]:
    """The files among `inputs` and in its folders (sorted, also deeper ones).

    Raises:
        DataError: a path that does not exist, a file of another kind, or a folder without such files.
    """
    found: list[LocalFile] = []
    for path in inputs:
        inside = sorted(p for p in path.rglob("*") if p.name.endswith(SUFFIXES)) if path.is_dir() else [path]
        if not path.exists():
            raise DataError(f"--input {path} does not exist")
        if not inside or not inside[0].name.endswith(SUFFIXES):
            raise DataError(f"--input {path} is not, or does not contain, a file of these kinds: {', '.join(SUFFIXES)}")
        found += map(LocalFile, inside)
    return found


class Documents:
    """The documents of some files, one file after the other.

    Args:
        files: what to read, in this order. A .txt file is one document; else a line or a row is one.
        key: the field (.jsonl) or column (.parquet) that holds the text.
        skip_bad: leave out broken lines and rows without text, counted in `skipped`, instead of stopping at the first.
        piece_chars: a .txt file longer than this comes in pieces.
    """

    def __init__(
        self, files: Sequence[File], key: str = "text", skip_bad: bool = False, piece_chars: int = PIECE_CHARS
    ):
        self.files = files
        self.key = key
        self.skip_bad = skip_bad
        self.skipped = 0
        self._piece_chars = piece_chars
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
            path = file.local()
            if not self.skip_bad and count < start and (rows := _parquet_rows(path)) and count + rows <= start:
                count, document = count + rows, document + rows  # a parquet file's footer tells: no need to read it
                continue
            before = count
            position = 0.0
            for text, ends, read_to in self._texts(path):
                self._read = i + read_to
                if count >= start:
                    yield Piece(document, text, ends, position)
                count, document, position = count + 1, document + ends, read_to
            if count == before:
                raise DataError(f"{path} holds no document: take it out of the input")

    def _texts(self, path: Path) -> Iterator[tuple[str, bool, float]]:
        """(text, whether the document ends with it, how much of the file has been read)."""
        read = {".txt": self._texts_of_txt, ".parquet": self._texts_of_parquet}.get(path.suffix, self._texts_of_jsonl)
        try:
            yield from read(path)
        except UnicodeDecodeError as e:
            raise DataError(f"{path} is not UTF-8 ({e}): convert it, for example with iconv") from None
        except (EOFError, zlib.error, OSError) as e:
            if isinstance(e, OSError) and e.errno is not None:  # the system's, not a decompressor's
                raise
            raise DataError(f"{path} is damaged ({e}): get it again") from None

    def _texts_of_txt(self, path: Path) -> Iterator[tuple[str, bool, float]]:
        size = path.stat().st_size
        read, text = 0, ""
        with path.open(encoding="utf-8") as f:
            while chunk := f.read(self._piece_chars):
                text += chunk
                borders = [border.start() for border in BORDER.finditer(text, max(len(text) - 4096, 1))]
                if borders or len(text) > 16 * self._piece_chars:  # without any border: somewhere
                    cut = borders[-1] if borders else len(text)
                    read += len(text[:cut].encode())
                    yield text[:cut], False, read / size
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
                except ValueError as e:  # broken JSON, or not UTF-8
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

    try:
        return pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as e:
        raise DataError(f"{path} is damaged ({e}): get it again") from None


def _parquet_rows(path: Path) -> int:
    return _open_parquet(path).metadata.num_rows if path.suffix == ".parquet" else 0
