"""Tokens, batches and the checks of a prepared folder."""

import copy
import functools
import json
import math
import operator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_set import TEXTS, VOCABULARY

from data import DataError, open_dataset, train_batch, val_starts


def test_shards_join_to_the_text(tiny: Path) -> None:
    ds = open_dataset(str(tiny), verify=True)
    assert len(ds.manifest["splits"]["train"]["shards"]) >= 3, "the test needs shard borders"
    for split, tokens in (("train", ds.train), ("val", ds.val)):
        text = "".join(text for its_split, text in TEXTS if its_split == split)
        assert ds.tokenizer.decode(tokens.windows(np.array([0]), len(tokens))[0].tolist()) == text
    assert (ds.name, ds.tokenizer.name, ds.vocab_size) == ("tiny", "char", len(VOCABULARY))
    assert ds.tokenizer.decode(ds.tokenizer.encode("abc d").tolist()) == "abc d"


def test_shards_are_opened_once(tiny: Path) -> None:
    ds = open_dataset(str(tiny))
    assert ds.train is ds.train and ds.val is ds.val  # a step of a run asks for them


def test_windows_cross_shard_borders(tiny: Path) -> None:
    tokens = open_dataset(str(tiny)).train
    whole = tokens.windows(np.array([0]), len(tokens))[0]
    starts = np.arange(len(tokens) - 17 + 1)
    windows = tokens.windows(starts, 17)
    assert windows.dtype == np.int64
    np.testing.assert_array_equal(windows, np.lib.stride_tricks.sliding_window_view(whole, 17))
    for start in (-1, len(tokens) - 16):
        with pytest.raises(IndexError):
            tokens.windows(np.array([start]), 17)


def test_a_batch_depends_on_seed_step_and_row_alone(tiny: Path) -> None:
    tokens = open_dataset(str(tiny)).train
    x, y = train_batch(tokens, seed=3, step=7, rows=range(12), block_size=32)
    assert x.shape == y.shape == (12, 32) and x.dtype == y.dtype == torch.int64
    assert torch.equal(x[:, 1:], y[:, :-1])
    for processes in (2, 3, 4):  # each takes its part of the global batch
        n = 12 // processes
        parts = [train_batch(tokens, 3, 7, range(i * n, i * n + n), 32) for i in range(processes)]
        assert torch.equal(torch.cat([x for x, _ in parts]), x)
        assert torch.equal(torch.cat([y for _, y in parts]), y)
    for seed, step in ((3, 8), (4, 7), (7, 3)):
        assert not torch.equal(train_batch(tokens, seed, step, range(12), 32)[0], x)


def test_batches_are_those_of_every_earlier_version(tiny: Path) -> None:
    """Runs are compared across versions of this repository, of numpy and of torch: these starts may never change."""
    words = np.random.Philox(key=np.array([1, 2], dtype=np.uint64)).random_raw(4)
    assert words.tolist() == [5705853004827290377, 6584680345644299050, 680768428710196683, 17743966978540583234]
    tokens = open_dataset(str(tiny)).train
    x, _ = train_batch(tokens, seed=1, step=2, rows=range(4), block_size=8)
    expected = tokens.windows((words % np.uint64(len(tokens) - 8)).astype(np.int64), 8)
    np.testing.assert_array_equal(x.numpy(), expected)


def test_every_token_can_be_drawn(tiny: Path) -> None:
    tokens = open_dataset(str(tiny)).val
    block = len(tokens) - 3  # three windows: starts 0, 1, 2
    x, y = train_batch(tokens, 1, 1, range(64), block)
    whole = tokens.windows(np.array([0]), len(tokens))[0]
    seen = {int(np.flatnonzero([np.array_equal(row, whole[i : i + block]) for i in range(3)])[0]) for row in x.numpy()}
    assert seen == {0, 1, 2}
    assert any(torch.equal(row[-1], torch.tensor(whole[-1])) for row in y)


def test_validation_windows_are_fixed_and_do_not_overlap(tiny: Path) -> None:
    tokens = open_dataset(str(tiny)).train
    starts = val_starts(tokens, 16)
    np.testing.assert_array_equal(starts, np.arange(0, len(tokens) - 16, 16))
    assert tokens.windows(starts, 17).shape == (len(starts), 17)
    few = val_starts(tokens, 16, max_windows=5)
    assert len(few) == 5 and set(few) <= set(starts) and few[0] == 0 and few[-1] > 0.7 * starts[-1]
    np.testing.assert_array_equal(val_starts(tokens, 16, max_windows=10**9), starts)
    with pytest.raises(ValueError, match="max_windows is 0"):
        val_starts(tokens, 16, max_windows=0)


def test_block_size_longer_than_the_data(tiny: Path) -> None:
    tokens = open_dataset(str(tiny)).val
    assert len(val_starts(tokens, len(tokens) - 1)) == 1
    for wanted in (lambda n: val_starts(tokens, n), lambda n: train_batch(tokens, 1, 1, range(2), n)):
        with pytest.raises(DataError, match=rf"block_size {len(tokens)} .*tiny/val has {len(tokens)}"):
            wanted(len(tokens))


def corrupt(folder: Path, **entries: object) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def test_missing_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"no data set 'shakespear'.*shakespeare_char"):
        open_dataset("shakespear")
    (tmp_path / "loop").symlink_to("loop")
    for path, message in (
        (tmp_path / "nowhere", r"no data set '.*nowhere': neither a prepared folder"),
        (tmp_path / "loop", r"no data set '.*loop'"),
        ("x" * 300, "cannot be read: File name too long"),
        ("~nobody-has-this-name/set", "~nobody-has-this-name/set\' is no path: Could not determine home"),
    ):
        with pytest.raises(DataError, match=message):
            open_dataset(str(path))
    import data.dataset

    (tmp_path / "pystdlib").mkdir()
    (tmp_path / "pystdlib" / "prepare.py").touch()
    monkeypatch.setattr(data.dataset, "FOLDER", tmp_path)
    with pytest.raises(DataError, match=r"not prepared: run `python data/pystdlib/prepare.py`"):
        open_dataset("pystdlib")
    assert open_dataset("pystdlib", prepare=True).folder == tmp_path / "pystdlib"


def test_damaged_shards(tiny: Path) -> None:
    shard = tiny / "train_00001.bin"
    good = shard.read_bytes()
    for bad, message in ((good[:-2], "bytes; its manifest says"), (good[:-1], "not even a whole number of uint16")):
        shard.write_bytes(bad)
        with pytest.raises(DataError, match=rf"train_00001.bin has .*{message}.*prepare it again"):
            open_dataset(str(tiny))
    shard.write_bytes(good[:100] + bytes([good[100] ^ 1]) + good[101:])
    open_dataset(str(tiny))  # the cheap check reads no content
    with pytest.raises(DataError, match=r"train_00001.bin was changed"):
        open_dataset(str(tiny), verify=True)
    shard.unlink()
    with pytest.raises(DataError, match=r"train_00001.bin is missing"):
        open_dataset(str(tiny))


def test_ids_beyond_the_vocabulary(tiny: Path) -> None:
    shard = tiny / "train_00001.bin"
    ids = np.fromfile(shard, "<u2")
    ids[5] = 999
    ids.tofile(shard)
    with pytest.raises(DataError, match=r"train_00001.bin holds id 999, but the vocabulary has"):
        open_dataset(str(tiny), verify=True)
    tokens = open_dataset(str(tiny)).train
    with pytest.raises(DataError, match=r"train_00001.bin holds id 999"):  # before it reaches an embedding
        tokens.windows(np.arange(0, len(tokens) - 9, 9), 9)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"tokenizer": "gpt2"}, r"vocab_size \d+ is not that of its tokenizer 'gpt2'"),
        ({"tokenizer": "sentencepiece"}, "unknown tokenizer 'sentencepiece'"),
        ({"vocab_size": 7}, "vocab_size 7 is not that of its tokenizer 'char'"),
        ({"format": 2}, "not a manifest of format 1"),
        ({"dtype": "uint32"}, "dtype 'uint32'"),
        ({"splits": {"train": {"tokens": 3, "shards": []}}}, "do not add up to 3"),
        ({"splits": {"train": {}}}, "lacks or garbles the entry 'tokens'"),
        ({"splits": 3}, "lacks or garbles"),
    ],
)
def test_foreign_manifests(tiny: Path, entries: dict[str, object], message: str) -> None:
    corrupt(tiny, **entries)
    with pytest.raises(DataError, match=f"manifest.json.*{message}"):
        open_dataset(str(tiny))


def test_broken_manifest_and_missing_split(tiny: Path) -> None:
    manifest = json.loads((tiny / "manifest.json").read_text())
    corrupt(tiny, splits={"val": manifest["splits"]["val"]})
    with pytest.raises(DataError, match=r"has no split 'train'; it has: val"):
        open_dataset(str(tiny)).train  # noqa: B018
    (tiny / "manifest.json").write_text('{"format": 1,')
    with pytest.raises(DataError, match=r"manifest.json is not valid JSON"):
        open_dataset(str(tiny))


def test_a_manifest_cannot_point_outside_its_folder(tiny: Path) -> None:
    manifest = json.loads((tiny / "manifest.json").read_text())
    shard = manifest["splits"]["train"]["shards"][0]
    (tiny.parent / shard["file"]).write_bytes((tiny / shard["file"]).read_bytes())
    shard["file"] = "../" + shard["file"]
    corrupt(tiny, splits=manifest["splits"])
    with pytest.raises(DataError, match=r"\.\./train_00000.bin"):
        open_dataset(str(tiny))


def test_characters_outside_the_vocabulary(tiny: Path) -> None:
    for char in "é\n\U0001f600":
        with pytest.raises(DataError, match=r"the character .* is not in the vocabulary"):
            open_dataset(str(tiny)).tokenizer.encode("ab" + char)


def entries(tree: Any) -> list[list[Any]]:
    """The path of every entry of a manifest."""
    if not isinstance(tree, dict | list):
        return []
    keys = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
    return [[key, *rest] for key in keys for rest in [[], *entries(tree[key])]]


def test_a_manifest_with_any_entry_garbled_gives_the_tokens_or_one_line(tiny: Path) -> None:
    path = tiny / "manifest.json"
    good = json.loads(path.read_text())
    whole, refused = open_dataset(str(tiny)), 0
    tokens = {split: getattr(whole, split).windows(np.array([0]), 300).tolist() for split in ("train", "val")}
    for place in entries(good):
        for value in (None, 0, -1, 1 << 70, math.nan, "", "x", [], ["x"], {}, {"x": 1}):
            bad = copy.deepcopy(good)
            parent = functools.reduce(operator.getitem, place[:-1], bad)
            parent[place[-1]] = value
            path.write_text(json.dumps(bad))
            try:
                dataset = open_dataset(str(tiny), verify=True)
                found = {split: getattr(dataset, split).windows(np.array([0]), 300).tolist() for split in tokens}
                assert found == tokens, (place, value)
            except DataError as error:
                assert str(tiny) in str(error) and "\n" not in str(error), (place, value)
                refused += 1
    assert refused > 300
