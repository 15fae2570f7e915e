"""Disks that are really full or read-only, before a run, during it, and when it resumes."""

import re
import subprocess
from pathlib import Path

import pytest
from outcomes import ends_equal, rows, without_seconds

import train
from runtime import checkpoint


def fill(disk: Path) -> Path:
    """A file that leaves no room for another byte."""
    with open(disk / "ballast", "wb", buffering=0) as ballast, pytest.raises(OSError, match="No space"):
        while True:
            ballast.write(bytes(4096))
    return disk / "ballast"


@pytest.fixture
def tiny_disk(tmp_path: Path):
    """A file system of 2 MB. Without the right to mount there is nothing to test on."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("this test mounts a tmpfs, which this user may not")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)  # with whatever is mounted in it


@pytest.mark.parametrize("trouble", ["full", "read-only"])
def test_a_save_that_fails_does_not_end_the_run(
    small: list[str], tmp_path: Path, tiny_disk: Path, capsys, monkeypatch, trouble: str
) -> None:
    run = [*small, "--checkpoint_interval=2", "--log_interval=1"]
    assert train.main(run) == 0
    out_dir, real = tiny_disk / "run", train.learning_rate
    seen = set()

    def spoil(step: int, cfg: train.Config) -> float:
        if step in seen:  # called before and after each step
            return real(step, cfg)
        seen.add(step)
        if step == 4 and trouble == "full":
            fill(tiny_disk)
        elif step == 4:
            subprocess.run(["mount", "--bind", out_dir, out_dir], check=True)  # metrics.csv stays open below it
            subprocess.run(["mount", "-o", "remount,bind,ro", out_dir], check=True)
        elif step == 9 and trouble == "full":
            (tiny_disk / "ballast").unlink()
        return real(step, cfg)

    monkeypatch.setattr(train, "learning_rate", spoil)
    capsys.readouterr()
    assert train.main([*run, f"--out_dir={out_dir}"]) == 0
    reason = {"full": "No space left on device", "read-only": "Read-only file system"}[trouble]
    shown = capsys.readouterr()
    assert f"step 4 is not saved ({reason}); the checkpoints before it are intact" in shown.out
    if trouble == "full":
        ends_equal(tmp_path / "run", out_dir)  # with the rows that were kept in memory
    else:
        assert checkpoint.load(checkpoint.newest(out_dir))["step"] == 2
        assert without_seconds(out_dir) == without_seconds(tmp_path / "run")


def test_too_little_space_is_said_before_the_start(small: list[str], tiny_disk: Path, capsys) -> None:
    run = [*small, f"--out_dir={tiny_disk / 'run'}", "--max_iters=2"]
    assert train.main(run) == 0
    before = sorted(tiny_disk.rglob("*"))
    assert train.main([*run, "--keep_checkpoints=100"]) == 2
    assert re.search(r"has [12]\.\d MB free, the checkpoints need [\d.]+ MB \(102 of", capsys.readouterr().err)
    assert sorted(tiny_disk.rglob("*")) == before  # the old run is where it was


def test_a_run_resumes_on_a_full_disk(small: list[str], tmp_path: Path, tiny_disk: Path, capsys) -> None:
    run = [*small, "--lr_decay_iters=12", "--checkpoint_interval=2", "--log_interval=1"]
    assert train.main(run) == 0
    resume = [*run, f"--out_dir={tiny_disk / 'run'}", "--init_from=auto"]
    assert train.main([*resume, "--max_iters=6"]) == 0
    (tiny_disk / "run" / "figure.png").unlink()
    ballast = fill(tiny_disk)
    capsys.readouterr()
    assert train.main(resume) == 0
    shown = capsys.readouterr()
    assert "step 12 is not saved (No space left on device)" in shown.out and "Traceback" not in shown.err
    assert "config.json: No space left on device; the run continues" in shown.err
    lost = 13 - len(rows(tiny_disk / "run"))  # a few rows fit into the file's last page
    assert not lost or f"metrics.csv lacks the last {lost} lines" in shown.err
    ballast.unlink()
    assert train.main(resume) == 0
    assert "resuming after step 6" in capsys.readouterr().out
    ends_equal(tmp_path / "run", tiny_disk / "run")
