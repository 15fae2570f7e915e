"""Files of documents: what is read, where it may be cut, and what is refused."""

import gzip
import json
import random
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import tiktoken

from data import DataError
from data.documents import Documents, LocalFile, find_files

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
        read(tmp_path)


def test_inputs_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "picture.png").touch()
    with pytest.raises(DataError, match=r"nowhere.txt does not exist"):
        find_files([tmp_path / "nowhere.txt"])
    for path in (tmp_path, tmp_path / "picture.png"):
        with pytest.raises(DataError, match=rf"{path} is not, or does not contain, .*\.jsonl\.zst"):
            find_files([path])
    (tmp_path / "latin1.txt").write_bytes("Löwe".encode("latin1"))
    with pytest.raises(DataError, match=r"latin1.txt is not UTF-8 .*iconv"):
        read(tmp_path)


def test_pieces_of_a_text_have_the_ids_of_the_whole(gpt2: tiktoken.Encoding, tmp_path: Path) -> None:
    """The cut of a long text never changes its tokens, whatever white space and punctuation it has."""
    rng = random.Random(0)
    parts = [
        "a",
        "ab",
        "word",
        "'s",
        "'",
        " ",
        "  ",
        "\n",
        "\n\n",
        "\t",
        ".",
        "12",
        "é",
        "\u00a0",
        "\x1c",
        "\u3000",
        " a",
    ]
    path = tmp_path / "a.txt"
    for _ in range(100):
        text = "".join(rng.choices(parts, k=400))
        path.write_text(text, newline="")
        pieces = list(Documents([LocalFile(path)], piece_chars=30).pieces())
        assert len(pieces) > 5
        assert "".join(piece.text for piece in pieces) == text
        assert [piece.ends for piece in pieces] == [False] * (len(pieces) - 1) + [True]
        assert [i for piece in pieces for i in gpt2.encode_ordinary(piece.text)] == gpt2.encode_ordinary(text)
        positions = [
            len("".join(p.text for p in pieces[:i]).encode()) / path.stat().st_size for i in range(len(pieces))
        ]
        assert [piece.position for piece in pieces] == positions


def test_a_text_without_a_border_is_cut_somewhere(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("x" * 1000)
    pieces = list(Documents([LocalFile(path)], piece_chars=10).pieces())
    assert "".join(piece.text for piece in pieces) == "x" * 1000 and max(len(piece.text) for piece in pieces) <= 170
