"""Files of documents: what is read, where it may be cut, and what is refused."""

import errno
import gzip
import json
import os
import random
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import tiktoken

from data import DataError
from data.documents import Documents, border_after, find_files

TEXTS = [f"document {i}\nwith a line, é and \U0001f600" for i in range(700)]


def write(path: Path, texts: list[str]) -> Path:
    lines = "".join(json.dumps({"id": 1, "text": text}) + "\n" for text in texts).encode()
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(lines))
    elif path.suffix == ".zst":
        with pyarrow.output_stream(path, compression="zstd") as f:
            f.write(lines)
    elif path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path, row_group_size=300)
    else:
        path.write_bytes(lines)
    return path


def read(*paths: Path, start: int = 0, **options: object) -> list[tuple[int, str]]:
    return [(p.document, p.text) for p in Documents(find_files(paths), **options).pieces(start)]  # type: ignore[arg-type]


def whole(*paths: Path) -> list[str]:
    """The documents, each put together from its pieces."""
    pieces = read(*paths)
    return ["".join(text for n, text in pieces if n == document) for document in range(pieces[-1][0] + 1)]


@pytest.mark.parametrize("kind", [".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet"])
def test_every_kind_gives_its_documents_from_any_start(kind: str, tmp_path: Path) -> None:
    first, second = write(tmp_path / f"a{kind}", TEXTS[:400]), write(tmp_path / f"b{kind}", TEXTS[400:])
    expected = list(enumerate(TEXTS))
    assert read(tmp_path) == read(first, second) == expected
    for start in (1, 399, 400, 401, 700):
        assert read(tmp_path, start=start) == expected[start:]
    documents = Documents(find_files([tmp_path]))
    fractions = [documents.fraction() for _ in documents.pieces()]
    assert fractions == sorted(fractions) and 0 < fractions[0] < 0.6 and fractions[-1] == 1


@pytest.mark.parametrize("kind", [".jsonl.gz", ".jsonl.zst", ".parquet"])
def test_damaged_files(kind: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"a{kind}", [str(random.Random(i).random()) for i in range(9000)])
    good = path.read_bytes()
    path.write_bytes(good[: len(good) // 2])
    with pytest.raises(DataError, match=rf"a{kind} is damaged .*get it again"):
        read(path)
    path.write_bytes(b"something else")
    with pytest.raises(DataError, match=rf"a{kind} is damaged"):
        read(path)


def test_bad_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    for bad, message in (
        (b'{"text": "cut', "not valid JSON"),
        (b'{"text": "\xff"}', "not valid JSON"),
        (b'{"body": "x"}', "no field 'text'"),
        (b'["x"]', "no field 'text'"),
        (b'{"text": null}', "field 'text' is not a string"),
    ):
        path.write_bytes(b'{"text": "one"}\n\n' + bad + b'\n{"text": "two"}')
        with pytest.raises(DataError, match=rf"a.jsonl, line 3: {message}.*--skip_bad"):
            read(path)
        documents = Documents(find_files([path]), skip_bad=True)
        assert [piece.text for piece in documents.pieces()] == ["one", "two"]
        assert documents.skipped == 1
        assert [piece.text for piece in documents.pieces(1)] == ["two"]
        assert documents.skipped == 1, "resumed: counted again from the start"
    assert read(path, key="text", skip_bad=True) == [(0, "one"), (1, "two")]


def test_bad_rows_and_columns(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["one", None, "two"], "n": [1, 2, 3]}), path)
    with pytest.raises(DataError, match=r"a.parquet, row 2: column 'text' is not a string"):
        read(path)
    assert read(path, skip_bad=True) == [(0, "one"), (1, "two")]
    assert read(path, skip_bad=True, start=1) == [(1, "two")]
    with pytest.raises(DataError, match=r"no column 'body': .*text, n"):
        read(path, key="body")


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.parquet"])
def test_empty_files(name: str, tmp_path: Path) -> None:
    write(tmp_path / name, [])
    with pytest.raises(DataError, match=rf"{name} holds no document: take it out"):
        read(tmp_path / name)


def test_inputs_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "picture.png").touch()
    with pytest.raises(DataError, match=r"nowhere.txt does not exist"):
        find_files([tmp_path / "nowhere.txt"])
    with pytest.raises(DataError, match=rf"{tmp_path} contains no text .*\.jsonl\.zst.*picture.png holds no document"):
        find_files([tmp_path])
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
    with pytest.raises(DataError, match=rf"{tmp_path}/picture.png is not text: take it out of the input"):
        find_files([tmp_path / "picture.png"])
    (tmp_path / "picture.png").unlink()
    (tmp_path / "latin1.txt").write_bytes("Löwe".encode("latin1"))
    with pytest.raises(DataError, match=r"latin1.txt is not UTF-8 .*iconv"):
        read(tmp_path)


def test_pieces_of_a_text_have_the_ids_of_the_whole(gpt2: tiktoken.Encoding, tmp_path: Path) -> None:
    """The cut of a long text never changes its tokens, whatever white space and punctuation it has."""
    rng = random.Random(0)
    words, spaces = ["a", "ab", "word", "'s", "'", ".", "12", "é", " a"], [" ", "  ", "\n", "\n\n", "\t"]
    parts = [*words, *spaces, "\u00a0", "\x1c", "\u3000"]
    path = tmp_path / "a.txt"
    for _ in range(100):
        text = "".join(rng.choices(parts, k=400))
        path.write_text(text, newline="")
        pieces = list(Documents([path], piece_chars=30).pieces())
        assert len(pieces) > 5
        assert "".join(piece.text for piece in pieces) == text
        assert [piece.ends for piece in pieces] == [False] * (len(pieces) - 1) + [True]
        assert [i for piece in pieces for i in gpt2.encode_ordinary(piece.text)] == gpt2.encode_ordinary(text)
        lengths = [len(piece.text) for piece in pieces]
        assert [piece.position for piece in pieces] == [sum(lengths[:i]) for i in range(len(pieces))]


def test_a_text_without_a_border_is_cut_somewhere(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("x" * 1000)
    pieces = list(Documents([path], piece_chars=10).pieces())
    assert "".join(piece.text for piece in pieces) == "x" * 1000 and max(len(piece.text) for piece in pieces) <= 170


def test_any_text_is_taken_and_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By content, not by name; what a folder holds besides is named and left out."""
    texts = {"a.md": "# A title\n", "code.py": "x = 1\n", "no suffix": "plain\n", "sub/utf16.txt": "Löwe\n"}
    (tmp_path / "sub").mkdir()
    for name, text in texts.items():
        (tmp_path / name).write_bytes(text.encode("utf-16" if "utf16" in name else "utf-8-sig"))
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config").write_text("hidden")
    (tmp_path / "picture").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
    (tmp_path / "empty.py").touch()
    (tmp_path / "broken link").symlink_to("nowhere")
    assert whole(tmp_path) == list(texts.values())
    said = capsys.readouterr().err
    assert said.startswith(f"{tmp_path}: left out 3 files: ") and said.count("\n") == 1
    for left_out in ("picture is not text", "empty.py holds no document", "broken link is a link to nowhere, which"):
        assert left_out in said
    (tmp_path / "prepared").mkdir()
    for name in ("manifest.json", "train_00000.bin"):
        (tmp_path / "prepared" / name).write_text("a prepared set is not read")
    assert whole(tmp_path) == list(texts.values())


def test_paths_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "broken").symlink_to("nowhere")
    os.mkfifo(tmp_path / "fifo")
    for name, message in (
        ("loop", "loop cannot be read: Too many levels of symbolic links"),
        ("broken", "broken is a link to nowhere, which does not exist"),
        ("fifo", "fifo is not a regular file"),
        ("x" * 300, "cannot be read: File name too long"),
        ("~nobody-has-this-name/a", "~nobody-has-this-name/a\' is no path: Could not determine home"),
    ):
        with pytest.raises(DataError, match=message) as error:
            find_files([name if name.startswith("~") else tmp_path / name])
        assert "\n" not in str(error.value)
    (tmp_path / "a.txt").write_text("at home")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert whole(Path("~/a.txt")) == ["at home"]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.parquet"])
def test_permission_denied(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused where it is looked at, and where it is read."""
    path = write(tmp_path / name, TEXTS[:3])

    def denied(self: Path, *args: object, **kwargs: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    for where in ("stat", "open"):
        files = find_files([path])
        with monkeypatch.context() as patch:
            patch.setattr(Path, where, denied)
            patch.setattr("pyarrow.parquet.ParquetFile", denied)
            with pytest.raises(DataError, match=rf"{name} cannot be read: Permission denied"):
                find_files([path])
                list(Documents(files).pieces())


def test_json_that_is_nested_too_deeply(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\n' + "[" * 100_000 + '\n{"text": "two"}')
    with pytest.raises(DataError, match=r"a.jsonl, line 2: not valid JSON .*--skip_bad"):
        read(path)
    assert read(path, skip_bad=True) == [(0, "one"), (1, "two")]


@pytest.mark.parametrize("compression", ["snappy", "zstd", "none"])
def test_damaged_parquet_pages_never_pass(compression: str, tmp_path: Path) -> None:
    """Bits flipped anywhere in a file with checksums: its documents, or one line that names the file."""
    path, rng = tmp_path / "a.parquet", random.Random(0)
    table = pyarrow.table({"text": [f"{i} {rng.random()}" for i in range(300)]})
    pyarrow.parquet.write_table(table, path, compression=compression, write_page_checksum=True)
    good, expected, refused = path.read_bytes(), read(path), 0
    for _ in range(40):
        bad = bytearray(good)
        bad[rng.randrange(len(bad) // 2)] ^= 1 << rng.randrange(8)  # the second half is the footer, without a checksum
        path.write_bytes(bad)
        try:
            assert read(path) == expected
        except DataError as error:
            assert str(error).startswith(f"{path} is damaged (") and str(error).endswith("): get it again")
            refused += 1
    assert refused > 20


SENTENCES = "Töne, Wörter und Sätze: \U0001f600.\nA line\n\n  and another one.\n" * 400


@pytest.mark.parametrize("fraction", [0.001, 0.3, 0.999])
def test_where_validation_begins_depends_on_the_text_alone(
    fraction: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not on line ends, on the width of an encoding, on how much is read at a time, or on the pieces."""
    path, cuts = tmp_path / "a.txt", set()
    for end in ("\n", "\r\n", "\r"):
        for encoding in ("utf-8", "utf-8-sig", "utf-16"):
            path.write_bytes(SENTENCES.replace("\n", end).encode(encoding))
            for size in (97, 1 << 18):
                monkeypatch.setattr("data.documents.PIECE_CHARS", size)
                cuts.add(border_after(path, fraction))
                pieces = Documents([path], piece_chars=size).pieces()
                assert "".join(piece.text for piece in pieces) == SENTENCES
    (cut,) = cuts
    assert cut >= int(fraction * len(SENTENCES)) and cut - fraction * len(SENTENCES) < 20
    assert not SENTENCES[cut - 1].isspace() and SENTENCES[cut] in " \n" and not SENTENCES[cut + 1].isspace()


def test_where_validation_begins_in_a_text_without_a_border(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x" * 1000)
    assert border_after(tmp_path / "a.txt", 0.9) == 900
