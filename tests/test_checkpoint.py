"""Checkpoints are complete or absent, verified when they are read, and cannot run code."""

import hashlib
import json
import os
import pickle
from pathlib import Path

import pytest
import torch

from runtime import checkpoint
from runtime.checkpoint import CheckpointError


def save(folder: Path, step: int, val_loss: float | None = None, keep: int = 100) -> checkpoint.Checkpoint:
    config = {"name": "x", "rates": {"a": 1.0}, "end": None}
    content = {"model": {"w": torch.full((1000,), float(step))}, "config": config}
    return checkpoint.save(folder, step, val_loss, content, keep)


def steps(folder: Path) -> list[int]:
    return [found.step for found in checkpoint.find(folder)]


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    saved = save(tmp_path, 500, 1.25)
    assert saved == checkpoint.newest(tmp_path) == checkpoint.best(tmp_path)
    assert (saved.path.name, saved.step, saved.val_loss) == ("ckpt_000500.pt", 500, 1.25)
    content = checkpoint.load(saved)
    assert torch.equal(content.pop("model")["w"], torch.full((1000,), 500.0))
    assert content == {
        "format": checkpoint.FORMAT, "step": 500, "config": {"name": "x", "rates": {"a": 1.0}, "end": None}
    }
    assert sorted(os.listdir(tmp_path)) == ["ckpt_000500.json", "ckpt_000500.pt"]


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    for step, val_loss in ((100, 3.0), (200, 1.0), (300, 2.0), (400, None), (1_000_000, 4.0)):
        save(tmp_path, step, val_loss, keep=2)
    assert steps(tmp_path) == [200, 400, 1_000_000]
    assert checkpoint.newest(tmp_path).step == 1_000_000 and checkpoint.best(tmp_path).step == 200
    assert len(os.listdir(tmp_path)) == 6


def test_best_is_the_newest_where_nothing_was_measured(tmp_path: Path) -> None:
    save(tmp_path, 1), save(tmp_path, 2)
    assert checkpoint.best(tmp_path).step == 2


def test_a_save_that_fails_leaves_the_earlier_checkpoints_and_nothing_else(tmp_path: Path, monkeypatch) -> None:
    save(tmp_path, 1)
    for broken in ("fsync", "replace"):

        def fail(*_: object) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
            patch.setattr(os, broken, fail)
            save(tmp_path, 2)
        assert steps(tmp_path) == [1]
        assert sorted(os.listdir(tmp_path)) == ["ckpt_000001.json", "ckpt_000001.pt"]


def test_what_a_killed_save_left_is_ignored_and_then_removed(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (tmp_path / ".ckpt_000002.pt.123.tmp").write_bytes(b"half")
    save(tmp_path, 3).path.with_suffix(".json").unlink()  # killed between the two files
    assert steps(tmp_path) == [1]
    save(tmp_path, 4)
    assert steps(tmp_path) == [1, 4] and not list(tmp_path.glob(".ckpt*"))


def test_a_truncated_file_is_no_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 1)
    path = save(tmp_path, 2).path
    os.truncate(path, path.stat().st_size - 1)
    assert steps(tmp_path) == [1]


@pytest.mark.parametrize("position", [0, 0.5, 0.999])
def test_one_flipped_bit_is_noticed(tmp_path: Path, position: float) -> None:
    saved = save(tmp_path, 1)
    data = bytearray(saved.path.read_bytes())
    data[int(position * len(data))] ^= 1
    saved.path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"ckpt_000001.pt is damaged"):
        checkpoint.load(saved)


def planted(folder: Path, data: bytes) -> checkpoint.Checkpoint:
    """A file that a stranger put there with a json that fits it."""
    saved = save(folder, 1)
    saved.path.write_bytes(data)
    facts = json.loads(saved.path.with_suffix(".json").read_text())
    facts |= {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    del facts["check"]  # as in those of earlier versions
    saved.path.with_suffix(".json").write_text(json.dumps(facts))
    return checkpoint.newest(folder)


class Malicious:
    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self):
        return os.mkdir, (str(self.witness),)


@pytest.mark.parametrize("protocol", ["torch", "pickle"])
def test_a_malicious_pickle_is_refused_and_not_run(tmp_path: Path, protocol: str) -> None:
    witness, evil = tmp_path / "witness", tmp_path / "evil"
    content = {"format": checkpoint.FORMAT, "x": Malicious(witness)}
    if protocol == "torch":
        torch.save(content, evil)
    else:
        evil.write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(CheckpointError, match="is not a checkpoint of this project"):
        checkpoint.load(planted(tmp_path, evil.read_bytes()))
    assert not witness.exists()


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a checkpoint of this project"):
        checkpoint.load(planted(tmp_path, b"not a checkpoint at all"))
    torch.save({"model": torch.zeros(2)}, tmp_path / "nanogpt.pt")
    with pytest.raises(CheckpointError, match="its format is not 'nanomada-2'"):
        checkpoint.load(planted(tmp_path, (tmp_path / "nanogpt.pt").read_bytes()))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"step": 1}'])
def test_an_unreadable_json_is_no_checkpoint(tmp_path: Path, text: str) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2).path.with_suffix(".json").write_text(text)
    assert steps(tmp_path) == [1]


def test_no_checkpoint_at_all_is_said_so(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(CheckpointError, match=r"no complete checkpoint in .*: check out_dir"):
            checkpoint.newest(folder)


def test_a_folder_that_cannot_be_read_is_named_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for folder, why in ((tmp_path / ("x" * 300), "File name too long"), (tmp_path / "loop", "symbolic links")):
        with pytest.raises(CheckpointError, match=f"cannot be read .*{why}"):
            checkpoint.newest(folder)
    assert checkpoint.find(tmp_path / "nowhere") == []
