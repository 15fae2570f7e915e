"""From text to shards: the same bytes whatever happens on the way."""

import errno
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from processes import begun
from tiny_set import prepare_in_small_batches, tiny_source

import data.preparation
from data import DataError, open_dataset
from data import manifest as manifests
from data.preparation import Record, Source, prepare
from data.tokenizer import CharTokenizer, GPT2Tokenizer

ROOT = Path(__file__).resolve().parents[2]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class Stop(Exception):
    """Stands for whatever ends a preparation."""


def test_it_goes_on_from_any_record(tiny: Path, tmp_path: Path) -> None:
    expected = contents(tiny)
    assert {"manifest.json", "train_00000.bin", "train_00002.bin", "val_00000.bin", "val_00001.bin"} <= set(expected)
    whole = tiny_source()
    resumed_later = 0
    for stop in range(0, 61, 3):
        starts = []

        def records(start: int, stop: int = stop, starts: list[int] = starts) -> Iterator[Record]:
            starts.append(start)
            for i, record in enumerate(whole.records(start), start):
                if i == stop and len(starts) == 1:
                    raise Stop
                yield record

        source = Source("tiny", whole.tokenizer, records, whole.origin)
        folder = tmp_path / str(stop)
        if stop < 60:
            with pytest.raises(Stop):
                prepare_in_small_batches(source, folder)
            assert not (folder / "manifest.json").exists()
            with pytest.raises(DataError):
                open_dataset(str(folder))
        prepare_in_small_batches(source, folder)
        assert contents(folder) == expected
        assert stop == 60 or starts[1] <= stop
        resumed_later += starts[-1] > 0
    assert resumed_later > 10, "few of them resumed anything"


@pytest.mark.parametrize("operation", ["publish", "write_json"])
def test_it_goes_on_after_a_stop_between_any_two_files(
    operation: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped right before, and right after, each renaming and each state that is written."""
    expected = contents(tiny)
    do = getattr(manifests, operation)
    for n in itertools.count():
        folder, calls = tmp_path / str(n), 0

        def stopping(*args: object, n: int = n) -> None:
            nonlocal calls
            calls += 1
            if calls == n // 2 + 1 and n % 2 == 0:
                raise Stop
            do(*args)
            if calls == n // 2 + 1:
                raise Stop

        monkeypatch.setattr(manifests, operation, stopping)
        stopped = False
        try:
            prepare_in_small_batches(tiny_source(), folder)
        except Stop:
            stopped = True
        monkeypatch.setattr(manifests, operation, do)
        prepare_in_small_batches(tiny_source(), folder)
        found = {name: content for name, content in contents(folder).items() if not name.startswith(".")}
        found.pop("progress.json", None)  # stays when the stop came right after the manifest
        assert found == expected
        if not stopped:
            break
    assert n > 2 * 6, "a stop for each shard, at least"


KILLED = """
import pathlib, sys, time
sys.path[:0] = {paths}
from tiny_set import tiny_source
source = tiny_source()
slow = lambda start: (time.sleep(0.02) or record for record in whole(start))
whole, source.records = source.records, slow
pathlib.Path({folder!r} + ".ready").touch()
import data.preparation
data.preparation.BATCH_CHARS = 50
sys.argv[1:] = ["--out=" + {folder!r}, "--shard_tokens=300", "--threads=2"]
data.preparation.ArgumentParser(None, None).run(lambda _: source)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_killed_for_real(how: signal.Signals, tiny: Path, tmp_path: Path) -> None:
    folder, ready = tmp_path / "killed", tmp_path / "killed.ready"
    script = KILLED.format(paths=[str(ROOT), str(ROOT / "tests" / "data")], folder=str(folder))
    for wait in (0.05, 0.15):
        with begun({"argv": ["-c", script]}) as process:
            until = time.monotonic() + 60
            while not ready.exists():
                assert time.monotonic() < until
                time.sleep(0.01)
            ready.unlink()
            time.sleep(wait)  # of at least 1.2 s
            os.kill(process.pids[0], how)
            end = process.end()
        assert end["code"] == (130 if how == signal.SIGINT else -how)
        assert how != signal.SIGINT or end["err"] == "prepare.py: interrupted; repeat the command to go on\n"
        assert "Traceback" not in end["err"] and not (folder / "manifest.json").exists()
    prepare_in_small_batches(tiny_source(), folder)
    assert {k: v for k, v in contents(folder).items() if not k.startswith(".")} == contents(tiny)


def prepare_tiny(folder: Path) -> None:
    prepare_in_small_batches(tiny_source(), folder)


def test_two_at_once_under_spawn(tiny: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=prepare_tiny, args=(tmp_path / "both",)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert contents(tmp_path / "both") == contents(tiny)


def test_done_is_verified_and_other_data_is_refused(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in tiny.iterdir()}
    prepare_in_small_batches(tiny_source(), tiny)
    assert {path: path.stat().st_mtime_ns for path in tiny.iterdir()} == before
    assert capsys.readouterr().err == f"tiny: prepared already, every shard has its checksum -> {tiny}\n"
    shard = tiny / "train_00001.bin"
    good = shard.read_bytes()
    shard.write_bytes(good[:100] + bytes([good[100] ^ 1]) + good[101:])
    with pytest.raises(DataError, match=r"train_00001.bin was changed .*: prepare it again with --overwrite"):
        prepare_in_small_batches(tiny_source(), tiny)
    shard.write_bytes(good)
    other, other_tokenizer = tiny_source(), tiny_source()
    other.origin, other_tokenizer.tokenizer = {"text": "another"}, GPT2Tokenizer()
    for source in (other, other_tokenizer):
        with pytest.raises(DataError, match=rf"{tiny} holds other data \(t.* not .*--overwrite makes it again, --out"):
            prepare_in_small_batches(source, tiny)


def test_an_interrupted_preparation_of_other_data_is_not_resumed(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, other = tmp_path / "again", tiny_source()
    other.origin, other.expected = {"text": "another"}, {"all": 1}
    with pytest.raises(DataError, match="all came out with 2,150 tokens, expected 1"):
        prepare_in_small_batches(other, folder)
    prepare_in_small_batches(tiny_source(), folder)
    assert "starting afresh" in capsys.readouterr().err
    assert contents(folder) == contents(tiny)


def test_too_little_disk_is_noticed_before(tmp_path: Path) -> None:
    source = tiny_source()
    source.disk_bytes = 10**18
    with pytest.raises(DataError, match=r"need about 1,000,000,000,000 MB and .* MB are free: free some"):
        prepare(source, tmp_path / "x")
    assert not list((tmp_path / "x").iterdir())


def test_a_disk_that_gets_full(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, folder, calls = data.preparation._Shards.write, tmp_path / "full", 0

    def full(self: object, *args: object) -> int:
        nonlocal calls
        calls += 1
        if calls == 30:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(data.preparation._Shards, "write", full)
    with pytest.raises(DataError, match=rf"{folder}: No space left on device: free some and repeat"):
        prepare_in_small_batches(tiny_source(), folder)
    prepare_in_small_batches(tiny_source(), folder)
    assert contents(folder) == contents(tiny)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a tmpfs is not allowed here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_real_disk_that_gets_full(small_disk: Path) -> None:
    text = "0123456789" * 10_000
    source = Source(
        "big", CharTokenizer("0123456789"), lambda i: iter([Record("train", text)] * (20 - i)), {"text": "digits"}
    )
    with pytest.raises(DataError, match="No space left on device: free some and repeat"):
        prepare(source, small_disk / "set", shard_tokens=150_000)
    assert not (small_disk / "set" / "manifest.json").exists()
    remount = ["mount", "-o", "remount,size=8m", str(small_disk)]
    subprocess.run(remount, check=True)  # the user frees some
    prepare(source, small_disk / "set", shard_tokens=150_000)
    tokens = open_dataset(str(small_disk / "set"), verify=True).train
    np.testing.assert_array_equal(tokens.windows(np.array([0]), len(tokens))[0], np.tile(np.arange(10), 200_000))


MEMORY = """
import resource, sys
sys.path.insert(0, {root!r})
from pathlib import Path
from data.preparation import Record, Source, prepare
from data.tokenizer import CharTokenizer
text, digits = "0123456789" * 10_000, CharTokenizer("0123456789")
prepare(Source("x", digits, lambda i: iter([Record("train", text)]), {{}}), Path({folder!r}, "one"))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
records = lambda i: (Record("train", text[j % 10:]) for j in range(600))
prepare(Source("x", digits, records, {{}}), Path({folder!r}, "many"), shard_tokens=10_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_is_bounded(tmp_path: Path) -> None:
    """60 million tokens, 120 MB of shards, in a few batches of memory."""
    script = MEMORY.format(root=str(ROOT), folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    more = int(done.stdout) * (1 if sys.platform == "darwin" else 1024)  # ru_maxrss: bytes there, KiB on Linux
    assert more < 80e6, f"{more / 1e6:.0f} MB"


@pytest.mark.parametrize("damage", ["[]", "{}", "{", "[" * 100_000, "\0\xff", '{"recipe": 1}', "a cut shard"])
def test_a_damaged_state_of_a_preparation_starts_it_afresh(
    damage: str, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, other = tmp_path / "again", tiny_source()
    other.expected = {"all": 1}  # fails at the end, and leaves everything but the manifest
    with pytest.raises(DataError, match="expected 1"):
        prepare_in_small_batches(other, folder)
    if damage == "a cut shard":
        (folder / "train_00001.bin").write_bytes(b"cut")
    else:
        (folder / "progress.json").write_text(damage, encoding="latin1")
    prepare_in_small_batches(tiny_source(), folder)
    assert "starting afresh" in capsys.readouterr().err
    assert contents(folder) == contents(tiny)
