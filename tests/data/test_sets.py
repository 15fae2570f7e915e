"""The data sets themselves, and where their files come from."""

import contextlib
import hashlib
import io
import json
import math
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiktoken
from processes import forked

import data.download
import data.tokenizer
from data import DataError, corpora, open_dataset, preparation, texts
from data import prepare as own_text
from data.openwebtext import prepare as openwebtext
from data.preparation import unigram_entropy
from data.pystdlib import prepare as pystdlib
from data.shakespeare import prepare as shakespeare
from data.shakespeare_char import prepare as shakespeare_char

ROOT = Path(__file__).resolve().parents[2]


def test_pystdlib(tmp_path: Path) -> None:
    for name in ("a", "b"):
        preparation.prepare(pystdlib.source(), tmp_path / name)
    ds = open_dataset(str(tmp_path / "a"), verify=True)
    assert ds.manifest == open_dataset(str(tmp_path / "b")).manifest
    assert ds.manifest["source"]["python"] == platform.python_version()
    assert 2_000_000 < len(ds.train) < 10_000_000
    assert 0.05 < len(ds.val) / len(ds.train) < 0.2
    assert 2.5 < ds.manifest["val_unigram_entropy"] < math.log(ds.vocab_size)
    text = ds.tokenizer.decode(ds.train.windows(np.array([0]), 2000)[0].tolist())
    first = next(path for path in pystdlib.modules() if not pystdlib.is_val(path.stem))
    assert text == pystdlib.clean(first.read_text(encoding="utf-8"))[:2000]


def test_pystdlib_keeps_text_readable() -> None:
    assert pystdlib.clean("\tx = 'Löwis'\f\n") == "    x = 'L?wis'\n"


def test_shakespeare_char(mirrored: Callable[[str], Path], tmp_path: Path) -> None:
    text = mirrored("tinyshakespeare.txt").read_text()
    preparation.prepare(shakespeare_char.source(), tmp_path)
    ds = open_dataset(str(tmp_path), verify=True)
    assert (len(ds.train), len(ds.val), ds.vocab_size) == (1_003_854, 111_540, 65)
    both = [ds.tokenizer.decode(split.windows(np.array([0]), len(split))[0].tolist()) for split in (ds.train, ds.val)]
    assert "".join(both) == text


def test_shakespeare(mirrored: Callable[[str], Path], tmp_path: Path) -> None:
    mirrored("tiktoken_cache")
    text = mirrored("tinyshakespeare.txt").read_text()
    preparation.prepare(shakespeare.source(), tmp_path)
    ds = open_dataset(str(tmp_path), verify=True)
    assert (len(ds.train), len(ds.val), ds.vocab_size, ds.tokenizer.name) == (301_966, 36_059, 50257, "gpt2")
    assert text.endswith(ds.tokenizer.decode(ds.val.windows(np.array([0]), len(ds.val))[0].tolist()))
    assert ds.tokenizer.decode(ds.tokenizer.encode("To be, or not to be").tolist()) == "To be, or not to be"


def test_ids_of_openwebtext_documents(mirrored: Callable[[str], Path], tmp_path: Path) -> None:
    """1,000 documents as nanoGPT's script tokenises them."""
    mirrored("tiktoken_cache")
    expected = np.fromfile(mirrored("openwebtext10k_val_gpt2_uint16.bin"), "<u2")
    source = own_text.source([mirrored("openwebtext10k_val.jsonl")], "owt", val_fraction=0.2)
    split, source.required = source.records, ()
    source.records = lambda start: (record._replace(split="all") for record in split(start))
    preparation.prepare(source, tmp_path, shard_tokens=300_000)
    ids = open_dataset(str(tmp_path), verify=True).split("all")
    assert len(ids) == 1_203_184
    np.testing.assert_array_equal(ids.windows(np.array([0]), len(ids))[0], expected)


def test_openwebtext_is_split_like_nanogpt(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same documents as datasets' train_test_split, which nanoGPT calls; and what is not whole is refused."""
    import datasets

    whole = datasets.Dataset.from_dict({"text": [str(i) for i in range(3000)]})
    split = whole.train_test_split(test_size=0.0005, seed=2357, shuffle=True)
    assert openwebtext.val_documents(3000) == {int(text) for text in split["test"]["text"]}
    assert len(openwebtext.val_documents(openwebtext.DOCUMENTS)) == 4_007


@pytest.fixture
def hub_copy(offline: Path, gpt2: tiktoken.Encoding) -> Path:
    """A DATA_MIRROR with a copy of OpenWebText's repository, of 500 documents in two files."""
    for part in range(2):
        path = offline / openwebtext.REPOSITORY / "data" / f"train-{part:05d}-of-00002.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"text": [f"document {part} {i}" for i in range(250)]}), path)
    return offline


def test_openwebtext_from_a_mirror(hub_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"has 500 documents, expected 8,013,769"):
        preparation.prepare(openwebtext.source(), tmp_path / "set")
    monkeypatch.setattr(openwebtext, "DOCUMENTS", 500)
    with pytest.raises(DataError, match=r"all came out with .* tokens, expected 9,040,017,095"):
        preparation.prepare(openwebtext.source(), tmp_path / "set")
    source = openwebtext.source()
    source.expected = {}
    preparation.prepare(source, tmp_path / "set")
    ds = open_dataset(str(tmp_path / "set"), verify=True)
    splits = ds.manifest["splits"]
    assert (splits["train"]["documents"], splits["val"]["documents"]) == (499, 1)
    end = ds.tokenizer.end_of_text
    val = ds.tokenizer.decode([i for i in ds.val.windows(np.array([0]), len(ds.val))[0].tolist() if i != end])
    document = next(iter(openwebtext.val_documents(500)))
    assert val == f"document {document // 250} {document % 250}"
    count = sum((ds.split(s).windows(np.array([0]), len(ds.split(s))) == end).sum() for s in splits)
    assert count == 500, "one end-of-text a document"


def test_large_sets_are_not_prepared_in_passing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import data.dataset

    for name in ("openwebtext", "wikitext103"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "prepare.py").touch()
        monkeypatch.setattr(data.dataset, "FOLDER", tmp_path)
        with pytest.raises(DataError, match=rf"not prepared: run `python data/{name}/prepare.py`"):
            open_dataset(name, prepare=True)


def test_wikitext_rows(mirrored: Callable[[str], Path]) -> None:
    raw = mirrored("wiki.test.raw").read_text(encoding="utf-8")
    rows = list(texts("wikitext2", "test"))
    assert rows == list(texts("wikitext103", "test")) and len(rows) == 4358
    assert rows[:3] == ["", " = Robert Boulter = \n", ""], "as datasets gives them"
    assert "".join(row or " \n" for row in rows) == raw


def test_lambada_rows(mirrored: Callable[[str], Path]) -> None:
    original = mirrored("lambada_test_plain_text.txt").read_text(encoding="utf-8")
    openai = mirrored("lambada_test.jsonl").read_text(encoding="utf-8")
    assert list(texts("lambada", "test")) == original.splitlines()
    rows = list(texts("lambada_openai", "test"))
    assert rows == [json.loads(line)["text"] for line in openai.splitlines()] and len(rows) == 5153
    assert rows[0].startswith("In my palm is a clear stone") and rows[0].endswith(" signs")


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [("wikitext", "test", "no evaluation set 'wikitext'; .*wikitext2"), ("lambada_openai", "train", "it has: test")],
)
def test_rows_of_what_is_not_there(name: str, split: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        texts(name, split)


def test_rows_without_network_or_with_another_text(offline: Path) -> None:
    for name, copy in (("wikitext2", "Salesforce/wikitext"), ("lambada", "cimec/lambada")):
        with pytest.raises(
            DataError, match=rf"Network is unreachable.*`hf download {copy} .*--local-dir mirror/{copy}`"
        ):
            list(texts(name, "test"))
    with pytest.raises(DataError, match=r"Network is unreachable.*save the file as .*lambada_test.jsonl"):
        list(texts("lambada_openai", "test"))
    (offline / "wiki.test.raw").write_text(" \n = Changed = \n" * 2179)
    with pytest.raises(DataError, match=r"wikitext2, split test: 4,358 rows, .* not the pinned text: .*wiki.test.raw"):
        list(texts("wikitext2", "test"))


def test_wikitext_from_a_copy_of_its_repository(mirrored: Callable[[str], Path], offline: Path, tmp_path: Path) -> None:
    """Its rows in a parquet file, as the hub has them, are the lines of the original file."""
    rows = list(texts_with_mirror(mirrored("wiki.test.raw").parent))
    path = offline / "Salesforce/wikitext/wikitext-2-raw-v1/test-00000-of-00001.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(pa.table({"text": rows}), path)
    assert list(texts("wikitext2", "test")) == rows
    pq.write_table(pa.table({"text": [*rows[:-1], "changed"]}), path)
    with pytest.raises(DataError, match="not the pinned text"):
        list(texts("wikitext2", "test"))


def texts_with_mirror(folder: Path) -> list[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATA_MIRROR", str(folder))
        return list(texts("wikitext2", "test"))


def test_a_prepared_test_split(mirrored: Callable[[str], Path], tmp_path: Path) -> None:
    """The stream of the paper's protocol: each row on its own, end-of-text after each, also after a blank line."""
    encoding = (mirrored("tiktoken_cache"), data.tokenizer.gpt2_encoding())[1]
    rows = (mirrored("wiki.test.raw"), list(texts("wikitext2", "test")))[1]
    preparation.prepare(corpora.source("wikitext2", ["test"]), tmp_path)
    ds = open_dataset(str(tmp_path), verify=True)
    stream = [i for row in rows for i in [*encoding.encode_ordinary(row), 50256]]
    assert ds.split("test").windows(np.array([0]), len(stream))[0].tolist() == stream
    assert len(ds.split("test")) == len(stream)
    with pytest.raises(DataError, match="no split 'val'; it has: test"):
        ds.val  # noqa: B018


def test_the_hub(offline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Listed by its API, downloaded by its addresses, each file checked against the sha256 that the listing gives."""
    monkeypatch.setenv("DATA_MIRROR", "")
    good = hashlib.sha256(b"good").hexdigest()
    entries = [
        {"path": "README.md", "size": 1},
        {"path": "b/train-00001.parquet", "size": 4, "lfs": {"oid": good}},
        {"path": "b/train-00000.parquet", "size": 4, "lfs": {"oid": "0" * 64}},
        {"path": "c/train-00000.parquet", "size": 4, "lfs": {"oid": good}},
    ]
    served = {
        "https://huggingface.co/api/datasets/x/y/tree/abc?recursive=true": json.dumps(entries).encode(),
        "https://huggingface.co/datasets/x/y/resolve/abc/b/train-00000.parquet": b"evil",
        "https://huggingface.co/datasets/x/y/resolve/abc/b/train-00001.parquet": b"good",
    }
    monkeypatch.setattr("urllib.request.urlopen", lambda url, timeout: io.BytesIO(served[url]))
    changed, fine = data.download.hub_files("x/y", "abc", "b/")
    assert (changed.name, fine.name) == ("train-00000.parquet", "train-00001.parquet")
    assert Path(fine).read_bytes() == b"good"
    with pytest.raises(DataError, match=r"b/train-00000.parquet has changed|sha256"):
        Path(changed)
    with pytest.raises(DataError, match=r"no parquet file d/\*: get revision abc of x/y"):
        data.download.hub_files("x/y", "abc", "d/")


def test_no_network_for_the_tokenizer(tmp_path: Path) -> None:
    """In a process of its own, because tiktoken keeps what it loaded."""
    code = "from data.tokenizer import GPT2Tokenizer; GPT2Tokenizer().encode('x')"
    proxy = "http://127.0.0.1:9"
    environment = {"TIKTOKEN_CACHE_DIR": str(tmp_path), "https_proxy": proxy, "HTTPS_PROXY": proxy}
    unset = "import os; os.environ.pop('DATA_MIRROR', None)"
    (end,) = forked({"argv": ["-c", code], "env": environment, "patch": unset})
    last = end["err"].strip().split("\n")[-1]
    assert last.startswith("data.manifest.DataError: GPT-2's vocabulary is not in") and "copy that folder here" in last


def test_own_text(gpt2: tiktoken.Encoding, tmp_path: Path) -> None:
    lines = [json.dumps({"body": f"document {i}"}) for i in range(500)]
    (tmp_path / "a.jsonl").write_text("\n".join([*lines[:300], "{broken", *lines[300:]]))
    with pytest.raises(DataError, match=r"a.jsonl, line 301: not valid JSON"):
        preparation.prepare(own_text.source([tmp_path / "a.jsonl"], "own", key="body"), tmp_path / "own")
    source = own_text.source([tmp_path / "a.jsonl"], "own", key="body", val_fraction=0.1, skip_bad=True)
    preparation.prepare(source, tmp_path / "own2")
    ds = open_dataset(str(tmp_path / "own2"), verify=True)
    assert ds.manifest["skipped"] == 1
    val = {i for i in range(500) if own_text.is_val(i, seed=1, fraction=0.1)}
    assert 25 < len(val) < 75 and val != {i for i in range(500) if own_text.is_val(i, seed=2, fraction=0.1)}
    for name, documents in (("val", val), ("train", set(range(500)) - val)):
        ids = [i for n in sorted(documents) for i in [*gpt2.encode_ordinary(f"document {n}"), 50256]]
        split = ds.split(name)
        assert split.windows(np.array([0]), len(split))[0].tolist() == ids


def test_own_single_text_is_cut(gpt2: tiktoken.Encoding, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some words and more\n" * 3000)
    preparation.prepare(own_text.source([tmp_path / "a.txt"], "own", val_fraction=0.1), tmp_path / "own")
    ds = open_dataset(str(tmp_path / "own"))
    assert len(ds.val) / (len(ds.train) + len(ds.val)) == pytest.approx(0.1, abs=0.005)
    both = [split.windows(np.array([0]), len(split))[0].tolist() for split in (ds.train, ds.val)]
    assert both[0] + both[1] == [*gpt2.encode_ordinary((tmp_path / "a.txt").read_text()), 50256]


def test_a_text_is_split_in_the_same_place_whatever_its_line_ends(gpt2: tiktoken.Encoding, tmp_path: Path) -> None:
    text = "A line of it,\nand 'another'.\n\n  Löwe \U0001f600\n" * 900
    found = []
    for i, (end, encoding) in enumerate((("\n", "utf-8"), ("\r\n", "utf-8"), ("\r", "utf-16"))):
        (tmp_path / f"{i}.md").write_bytes(text.replace("\n", end).encode(encoding))
        preparation.prepare(own_text.source([tmp_path / f"{i}.md"], "own", val_fraction=0.25), tmp_path / f"set{i}")
        ds = open_dataset(str(tmp_path / f"set{i}"), verify=True)
        found.append([split.windows(np.array([0]), len(split))[0].tolist() for split in (ds.train, ds.val)])
    assert found[0] == found[1] == found[2]
    train, val = found[0]
    assert train + val == [*gpt2.encode_ordinary(text), 50256]
    assert len(gpt2.decode(val[:-1])) / len(text) == pytest.approx(0.25, abs=0.001)


def test_own_text_by_characters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One text, resumed in the middle of it, and several documents, which a newline ends."""
    monkeypatch.setattr(preparation, "BATCH_CHARS", 1000)
    text = "ba ab\n" * 20_000
    (tmp_path / "a.txt").write_text(text)
    source = own_text.source([tmp_path / "a.txt"], "own", val_fraction=0.1, tokenizer="char")
    whole, stop = source.records, [7]

    def records(start: int) -> Iterator[preparation.Record]:
        for i, record in enumerate(whole(start), start):
            if i == (stop.pop() if stop else None):
                raise KeyboardInterrupt
            yield record

    monkeypatch.setattr("data.documents.PIECE_CHARS", 5000)
    source.records = records
    for _ in range(2):
        with contextlib.suppress(KeyboardInterrupt):
            preparation.prepare(source, tmp_path / "one", shard_tokens=10_000)
    assert not stop
    ds = open_dataset(str(tmp_path / "one"), verify=True)
    assert (ds.tokenizer.name, ds.vocab_size, ds.manifest["vocabulary"]) == ("char", 4, "\n ab")
    both = [ds.tokenizer.decode(split.windows(np.array([0]), len(split))[0].tolist()) for split in (ds.train, ds.val)]
    assert "".join(both) == text and len(both[1]) == pytest.approx(12_000, abs=5)

    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"text": f"no. {i}"}) + "\n" for i in range(200)))
    preparation.prepare(
        own_text.source([tmp_path / "b.jsonl"], "own", val_fraction=0.5, tokenizer="char"), tmp_path / "many"
    )
    ds = open_dataset(str(tmp_path / "many"))
    val = ds.tokenizer.decode(ds.val.windows(np.array([0]), len(ds.val))[0].tolist())
    assert val == "".join(f"no. {i}\n" for i in range(200) if own_text.is_val(i, seed=1, fraction=0.5))


def test_another_fraction_is_refused_and_then_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.txt").write_text("some words and more\n" * 900)

    def command(*options: str) -> tuple[int, str]:
        argv = ["prepare.py", "--input=~/a.txt", "--out=~/own", "--tokenizer=char", "--shard_tokens=3000", *options]
        monkeypatch.setattr(sys, "argv", argv)
        try:
            own_text.main()
        except SystemExit as end:
            return int(end.code or 0), capsys.readouterr().err
        return 0, capsys.readouterr().err

    def val_tokens() -> int:
        return len(open_dataset("~/own", verify=True).val)

    code, said = command("--val_fraction=0.01")
    assert code == 0 and val_tokens() == 176
    assert "warning: val has 176 tokens; below 10,000 a loss is noisy, and block_size must be smaller: " in said
    code, said = command("--val_fraction=0.9")
    refusal = "holds other data (val_fraction 0.01, not 0.9): --overwrite makes it again, --out chooses another folder"
    assert (code, said) == (2, f"prepare.py: {tmp_path}/own {refusal}\n") and val_tokens() == 176
    (tmp_path / "own" / "notes.txt").write_text("the user's")
    code, said = command("--val_fraction=0.9", "--overwrite")
    assert code == 0 and f"{tmp_path}/own: removing the set that was prepared there" in said
    assert val_tokens() == pytest.approx(16_200, abs=5)
    shards = {shard["file"] for split in open_dataset("~/own").manifest["splits"].values() for shard in split["shards"]}
    assert {path.name for path in (tmp_path / "own").iterdir()} == shards | {"manifest.json", "notes.txt"}
    (tmp_path / "own" / "manifest.json").write_text("[" * 100_000)  # damaged: the same way out
    code, said = command("--val_fraction=0.9")
    assert code == 2 and "not valid JSON" in said and "prepare it again with --overwrite" in said
    assert command("--val_fraction=0.9", "--overwrite")[0] == 0 and val_tokens() > 16_000


def test_a_split_without_documents(gpt2: tiktoken.Encoding, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": "two"}')
    with pytest.raises(DataError, match=r"no document fell into val: .*--val_fraction"):
        preparation.prepare(own_text.source([tmp_path / "a.jsonl"], "own"), tmp_path / "own")


def test_the_command_for_own_text(tmp_path: Path) -> None:
    command = ["prepare.py", f"--out={tmp_path / 'own'}", "--input"]
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": "cut')
    for arguments, message in (
        ([tmp_path / "a.jsonl"], "a.jsonl, line 2: not valid JSON"),
        ([tmp_path / "b.jsonl"], "b.jsonl does not exist"),
        ([tmp_path / "a.jsonl", "--val_fraction=2"], "--val_fraction=2.0; allowed is"),
        ([tmp_path / "a.jsonl", f"--seed={1 << 64}"], "--seed=18446744073709551616; allowed are"),
        ([tmp_path / "a.jsonl", "--threads=-1"], "--threads=-1; allowed are 1 and above"),
        ([tmp_path / "a.jsonl", "--threads=x"], "argument --threads: invalid int value: 'x'"),
        ([tmp_path / "a.jsonl", f"--out={'x' * 300}"], "File name too long"),
    ):
        (end,) = forked({"argv": [*command, *map(str, arguments)]})
        assert end["code"] == 2 and message in end["err"]
        assert end["err"].startswith("prepare.py: ") and end["err"].count("\n") == 1


def test_unigram_entropy() -> None:
    counts = np.array([10**7, 10**7, 0, 2 * 10**7])  # 1.5 bits
    assert unigram_entropy(counts, counts) == pytest.approx(1.5 * math.log(2), abs=1e-6)
    assert unigram_entropy(counts, np.array([0, 0, 1, 0])) == pytest.approx(math.log(4e7), rel=1e-6)


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No network, an empty cache, and an empty DATA_MIRROR, whose path it is."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("Network is unreachable")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setattr(data.download, "CACHE", tmp_path / "cache")
    monkeypatch.setenv("DATA_MIRROR", str(tmp_path / "mirror"))
    (tmp_path / "mirror").mkdir()
    return tmp_path / "mirror"


HELLO = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"


def test_no_network_and_no_mirror(offline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        DataError, match=rf"Network is unreachable.*DATA_MIRROR={offline}.*save the file as .*hello.txt"
    ):
        data.download.fetch("hello.txt", "https://example.org/h", HELLO)
    monkeypatch.delenv("DATA_MIRROR")
    with pytest.raises(DataError, match="DATA_MIRROR is not set"):
        data.download.fetch("hello.txt", "https://example.org/h", HELLO)
    assert not list(data.download.CACHE.iterdir())


def test_mirror_before_cache_before_network(offline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served = offline.parent / "served"
    served.write_text("hello")
    monkeypatch.setattr("urllib.request.urlopen", lambda url, timeout: io.BytesIO(Path(url).read_bytes()))
    cached = data.download.fetch("hello.txt", str(served), HELLO)
    assert cached.parent == data.download.CACHE and cached.read_text() == "hello"
    served.unlink()
    assert data.download.fetch("hello.txt", str(served), HELLO) == cached
    (offline / "hello.txt").write_text("hello")
    assert data.download.fetch("hello.txt", str(served), HELLO) == offline / "hello.txt"


def test_a_mirror_that_cannot_be_read(offline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(offline.parent))
    monkeypatch.setenv("DATA_MIRROR", "~/mirror")
    (offline / "hello.txt").write_text("hello")
    assert data.download.fetch("hello.txt", "https://example.org/h", HELLO) == offline / "hello.txt"
    monkeypatch.setenv("DATA_MIRROR", "x" * 300)
    with pytest.raises(DataError, match=r"hello.txt cannot be read: File name too long"):
        data.download.fetch("hello.txt", "https://example.org/h", HELLO)
    monkeypatch.setenv("DATA_MIRROR", "")
    data.download.CACHE.write_text("a file where a folder is to be made")
    with pytest.raises(DataError, match=r"could not download https://example.org/h \(.*(exists|Not a directory).*\)"):
        data.download.fetch("hello.txt", "https://example.org/h", HELLO)


def test_wrong_checksum(offline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (offline / "hello.txt").write_text("hellO")
    with pytest.raises(DataError, match=r"mirror/hello.txt has sha256 .*, expected 2cf24dba5fb0a30e"):
        data.download.fetch("hello.txt", "https://example.org/h", HELLO)
    served = offline.parent / "served"
    served.write_text("changed")
    (offline / "hello.txt").unlink()
    monkeypatch.setattr("urllib.request.urlopen", lambda url, timeout: io.BytesIO(Path(url).read_bytes()))
    with pytest.raises(DataError, match="served has changed"):
        data.download.fetch("hello.txt", str(served), HELLO)
    assert not list(data.download.CACHE.iterdir())


def test_the_command(tmp_path: Path) -> None:
    """From another folder, as a script; one clear line and status 2 where it cannot."""
    command = [sys.executable, str(ROOT / "data/pystdlib/prepare.py"), f"--out={tmp_path / 'new' / 'folder'}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "unigram entropy" in done.stderr
    assert json.loads((tmp_path / "new" / "folder" / "manifest.json").read_text())["name"] == "pystdlib"
    (tmp_path / "file").touch()
    code = "import runpy, sys; sys.argv = argv; runpy.run_path(argv[0], run_name='__main__')"
    (end,) = forked({"argv": ["-c", code, command[1], f"--out={tmp_path / 'file'}"]})
    assert end["code"] == 2
    assert end["err"].startswith("prepare.py: ") and end["err"].count("\n") == 1
    assert str(tmp_path / "file") in end["err"]
