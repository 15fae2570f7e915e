"""metrics.csv and config.json, the bar and the lines, and a wandb that may fail in any way."""

import json
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from processes import forked

import train
from runtime import recorder
from runtime.out_dir import prepare_out_dir
from runtime.recorder import MetricsFile, Progress, Wandb, write_config
from runtime.records import read_metrics, rows_until
from runtime.settings import ConfigError

CONFIG = {"wandb_project": "p", "wandb_run_name": None, "max_iters": 10}


def metrics(path: Path, steps: list[int], columns: list[str], resume_step: int | None) -> list[dict[str, str]]:
    file = MetricsFile(path, columns, "" if resume_step is None else rows_until(path, resume_step))
    for step in steps:
        file.write({"step": step, "loss": step / 3, "beta1": None})
    file.close()
    return read_metrics(path)


def test_resuming_cuts_the_metrics_back_to_the_checkpoint_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    columns = ["step", "loss", "beta1"]
    metrics(path, [0, 5, 10, 15], columns, None)
    undisturbed = path.read_bytes()
    with path.open("a") as file:
        file.write("2")  # killed in mid-line: of "20,6.67,"
    assert [row["step"] for row in metrics(path, [15], columns, 10)] == ["0", "5", "10", "15"]
    assert path.read_bytes() == undisturbed
    assert undisturbed.startswith(b"step,loss,beta1\n0,0.0,\n5,1.6666666666666667,\n")
    assert [row["step"] for row in metrics(path, [1], columns, None)] == ["1"]


def test_a_coefficient_learned_from_the_resume_on_adds_a_column(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    metrics(path, [1], ["step", "loss", "beta1"], None)
    rows = metrics(path, [2], ["step", "loss", "beta1", "h_beta1"], 1)
    assert list(rows[0]) == ["step", "loss", "beta1", "h_beta1"] and rows[0]["h_beta1"] == ""
    assert [row["step"] for row in rows] == ["1", "2"]


def test_resuming_with_a_metrics_file_that_is_gone_starts_one(tmp_path: Path) -> None:
    assert [row["step"] for row in metrics(tmp_path / "metrics.csv", [7], ["step", "loss", "beta1"], 6)] == ["7"]


def test_config_json_has_config_commit_and_versions(tmp_path: Path) -> None:
    write_config(tmp_path, {"seed": 1}, processes=2)
    content = json.loads((tmp_path / "config.json").read_text())
    assert content["config"] == {"seed": 1} and content["processes"] == 2
    assert content["versions"]["torch"] == torch.__version__
    root = recorder.ROOT
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True)
    if head.returncode == 0:
        assert content["commit"].removesuffix("-dirty") == head.stdout.strip()
    else:
        assert content["commit"] is None


def test_without_a_checkout_the_environment_may_say_the_commit(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(recorder, "ROOT", tmp_path)
    monkeypatch.delenv("NANOMADA_COMMIT", raising=False)
    assert recorder.commit() is None
    monkeypatch.setenv("NANOMADA_COMMIT", "abc123")
    assert recorder.commit() == "abc123"


def test_an_earlier_run_is_moved_aside_and_never_lost(tmp_path: Path) -> None:
    out_dir = tmp_path / "deep" / "run"
    prepare_out_dir(str(out_dir), keep=None)
    for number in (1, 2):
        (out_dir / "metrics.csv").write_text(str(number))
        (out_dir / "notes.txt").write_text("mine")
        prepare_out_dir(str(out_dir), keep=5)
        assert (out_dir / "metrics.csv").exists()
        prepare_out_dir(str(out_dir), keep=None)
        assert (out_dir / f"previous-{number}" / "metrics.csv").read_text() == str(number)
        assert not (out_dir / "metrics.csv").exists() and (out_dir / "notes.txt").exists()
    shutil.rmtree(out_dir / "previous-1")
    (out_dir / "metrics.csv").write_text("3")
    prepare_out_dir(str(out_dir), keep=None)
    assert (out_dir / "previous-3" / "metrics.csv").read_text() == "3"


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"out_dir='.*/file/run' cannot be written \(Not a directory\): choose"):
        prepare_out_dir(str(tmp_path / "file" / "run"), keep=None)


def test_a_save_is_no_training(small: list[str], capsys, monkeypatch) -> None:
    monkeypatch.setattr(train.checkpoint, "save", lambda *_: time.sleep(0.5))
    assert train.main([*small, "--max_iters=3", "--checkpoint_interval=1"]) == 0
    speed = float(re.search(r"step 3/3: .*tok/s ([\d,]+)", capsys.readouterr().out)[1].replace(",", ""))  # type: ignore[index]
    assert speed > 3 * 2 * 4 * 16 / (2 * 0.5)  # what it would be if all but the saves took no time


def test_without_a_terminal_each_row_is_a_plain_line(capsys, monkeypatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    progress = Progress(0, 10)
    progress.step()
    progress.show({"step": 5}, {"loss": "1.0", "val": None, "beta1": "0.9"})
    progress.close()
    assert capsys.readouterr().out == "step 5/10: loss 1.0, beta1 0.9\n"


def test_on_a_terminal_there_is_a_bar_that_keeps_the_last_validation_loss(capsys, monkeypatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    progress = Progress(4, 10)
    progress.step()
    progress.show({"step": 5}, {"loss": "3.21", "val": "3.33", "beta1": "0.901"})
    progress.show({"step": 6}, {"loss": "3.20", "val": None, "beta1": "0.902"})
    progress.close()
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "5/10" in shown.err and "loss 3.20 val 3.33 beta1 0.902" in shown.err


class FailingWandb:
    """A wandb that raises in one of its calls, and counts them all."""

    def __init__(self, failing: str) -> None:
        self.failing, self.calls = failing, []

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name == self.failing:
            raise RuntimeError("no network, for instance")

    def init(self, **_: object) -> SimpleNamespace:
        self._call("init")
        return SimpleNamespace(log=lambda *_, **__: self._call("log"), finish=lambda: self._call("finish"))


@pytest.mark.parametrize(
    ("failing", "calls"),
    [("init", ["init"]), ("log", ["init", "log"]), ("finish", ["init", "log", "log", "finish"])],
)
def test_whatever_fails_in_wandb_is_reported_once_and_the_run_goes_on(
    failing: str, calls: list[str], tmp_path: Path, monkeypatch, capsys
) -> None:
    fake = FailingWandb(failing)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    sink = Wandb(tmp_path, CONFIG, resume=False)
    for step in (1, 2):
        sink.write({"step": step, "loss": 1.0, "val_loss": None})
    sink.close()
    assert fake.calls == calls
    assert capsys.readouterr().err == "wandb: RuntimeError: no network, for instance; the run continues without it\n"


def test_a_wandb_that_hangs_holds_up_nothing(tmp_path: Path, monkeypatch, capsys) -> None:
    forever = threading.Event()
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **_: forever.wait()))
    monkeypatch.setattr(Wandb, "PATIENCE", 0.2)
    begun = time.monotonic()
    sink = Wandb(tmp_path, CONFIG, resume=False)
    for step in range(1000):
        sink.write({"step": step})
    assert time.monotonic() - begun < 0.2
    sink.close()
    assert time.monotonic() - begun < 2
    assert capsys.readouterr().err.startswith("wandb: not finished 0.2 seconds after the end of the run, some rows")
    forever.set()


def test_a_slow_wandb_gets_every_row(tmp_path: Path, monkeypatch) -> None:
    got = []

    def log(row: dict, step: int) -> None:
        time.sleep(0.02)
        got.append(step)

    run = SimpleNamespace(log=log, finish=lambda: got.append("finish"))
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **_: run))
    sink = Wandb(tmp_path, CONFIG, resume=False)
    for step in range(20):
        sink.write({"step": step})
    sink.close()
    assert got == [*range(20), "finish"]


def test_a_missing_wandb_is_reported_once(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # what `import` takes for "not installed"
    sink = Wandb(tmp_path, CONFIG, resume=False)
    sink.write({"step": 1})
    sink.close()
    assert capsys.readouterr().err.count("the run continues without it") == 1


def test_a_resumed_run_goes_on_in_the_same_wandb_run(tmp_path: Path, monkeypatch) -> None:
    ids = []

    def init(id: str, **_: object) -> SimpleNamespace:
        ids.append(id)
        return SimpleNamespace(log=lambda *_, **__: None, finish=lambda: None)

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    for resume in (False, True, False):
        Wandb(tmp_path, CONFIG, resume).close()
    assert ids[0] == ids[1] != ids[2]


def test_files_that_no_run_wrote_stay_where_they_are(tmp_path: Path) -> None:
    theirs = ["results.csv", "notes.json", "photo.png", "model.pt"]
    for name in [*theirs, "metrics.csv", "ckpt_000003.pt", "ckpt_000003.json"]:
        (tmp_path / name).write_text(name)
    prepare_out_dir(str(tmp_path), keep=None)
    assert {path.name for path in tmp_path.iterdir()} == {*theirs, "previous-1", ".lock"}


def test_a_folder_with_files_of_others_is_no_out_dir(small: list[str], tmp_path: Path) -> None:
    content = '{"model_type": "gpt2"}'  # of weights in Hugging Face's format
    theirs = [tmp_path / name / name for name in ("config.json", "metrics.csv", "figure.png", "wandb")]
    for path in theirs:
        path.parent.mkdir()
        path.write_text(content)
    ends = forked(*({"argv": ["train.py", *small, f"--out_dir={path.parent}"]} for path in theirs))
    for path, end in zip(theirs, ends, strict=True):
        said = f"train.py: out_dir='{path.parent}' holds {path.name}, which no run wrote: choose another\n"
        assert (end["code"], end["err"]) == (2, said)
        assert [*path.parent.iterdir()] == [path] and path.read_text() == content


def test_an_out_dir_belongs_to_one_process_until_it_dies(tmp_path: Path) -> None:
    holder = """
import sys, time
from runtime.out_dir import prepare_out_dir
prepare_out_dir(sys.argv[1], None)
print("locked", flush=True)
time.sleep(60)
"""
    command = [sys.executable, "-c", holder, str(tmp_path)]
    with subprocess.Popen(command, cwd=recorder.ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "locked\n"
        (tmp_path / "metrics.csv").write_text("step\n")
        with pytest.raises(ConfigError, match=rf"belongs to a run of .*, process {process.pid}: choose another"):
            prepare_out_dir(str(tmp_path), keep=None)
        assert (tmp_path / "metrics.csv").exists()  # not moved away from the run that writes it
        process.kill()
    prepare_out_dir(str(tmp_path), keep=None)
    prepare_out_dir(str(tmp_path), keep=3)  # its own lock, as after a rollback
    assert (tmp_path / "previous-1" / "metrics.csv").exists()
