"""From a run's folder to a record, from records to the report, from a command to what is missing."""

import json
import math
import os
import re
import signal
import time
from dataclasses import replace
from pathlib import Path
from cli import Mistake

import pytest
from made_runs import leave
from processes import begun

import data
import experiments
import train
from experiments import EXPERIMENTS, ablations, experiment, figure8, table3, table4, training_loss
from experiments.__main__ import main, make
from experiments.experiment import ROOT, Computation, Training, write
from runtime.settings import read_files
from study.page import Table, Text
from study.runner import Runner

RUN = Training("try-1", "laptop", ("config/a.py",), {"seed": 1})


def evaluation_of(run: Training, dataset: str = "words") -> Computation:
    settings = {"of": run.identity, "out_dir": str(run.out_dir), "datasets": [dataset], "protocol": "paper"}
    return Computation(f"{run.name}-perplexity", run.scale, table3.perplexities, settings, after=run)




def test_a_record_says_what_the_run_left(elsewhere: Path) -> None:
    leave(RUN)
    record = RUN.made_record()
    assert record is not None
    assert record["final"]["val_loss"] == 2.0
    assert record["final"]["train_loss"] == pytest.approx(1 + 9.5 / 200)  # the last 20 steps: 19 to 0 steps to go
    assert record["final"]["rho"] == pytest.approx(0.7)
    steps = record["curves"]["step"]
    assert len(steps) == 101
    assert steps[:3] == [0, 2, 4]
    assert record["curves"]["train_loss"][1] == pytest.approx(2 - 1.5 / 200)  # the mean over steps 1 and 2
    assert [loss for loss in record["curves"]["val_loss"] if loss] == pytest.approx([3, 2.75, 2.5, 2.25, 2])


def test_an_unfinished_run_has_no_record(elsewhere: Path) -> None:
    leave(RUN, until=199)
    assert RUN.made_record() is None
    assert not RUN.finished()


def test_a_folder_with_another_run_is_not_taken_for_this_one(elsewhere: Path) -> None:
    leave(RUN, seed=2)
    with pytest.raises(Mistake, match="seed=2, not 1"):
        RUN.made_record()


def test_a_finished_run_is_recorded_and_not_run_again(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leave(RUN)
    monkeypatch.setattr(Runner, "call", lambda *_: pytest.fail("it ran again"))
    RUN.execute(Runner(experiment.ROOT))
    assert RUN.record() is not None
    changed = Training(RUN.name, RUN.scale, RUN.configs, {"seed": 1, "beta1": 0.5})
    assert changed.record() is None  # the record of other settings is no record


def test_an_interrupted_run_goes_on(elsewhere: Path) -> None:
    assert RUN.command()[1:] == [
        "train.py", "config/a.py", "--seed=1", "--out_dir=out/laptop/try-1", "--init_from=auto"
    ]  # fmt: skip


def test_a_run_without_its_last_checkpoint_is_not_finished(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk or a kill between the last row and the save: an older checkpoint must not be measured for it."""
    leave(RUN)
    assert RUN.finished()
    for kind in ("pt", "json"):
        (RUN.out_dir / f"ckpt_000200.{kind}").rename(RUN.out_dir / f"ckpt_000150.{kind}")
    (RUN.out_dir / "ckpt_000150.json").write_text('{"step": 150, "val_loss": 1.0, "size": 1, "sha256": "abc"}')
    assert not RUN.finished() and not evaluation_of(RUN).ready()
    with pytest.raises(Mistake, match="no checkpoint of its last step, 200"):
        training_loss.training_loss(RUN.out_dir)
    monkeypatch.setattr(Runner, "call", lambda *_: 0)  # the disk is still full
    with pytest.raises(Mistake, match="does not hold the last step and its checkpoint"):
        RUN.execute(Runner(experiment.ROOT))
    monkeypatch.setattr(Runner, "call", lambda *_: leave(RUN) or 0)
    RUN.execute(Runner(experiment.ROOT))
    assert RUN.record() is not None


def test_a_record_is_that_of_what_the_config_files_say_now(elsewhere: Path) -> None:
    leave(RUN, device="cuda", compile=None, wandb_log=True)
    RUN.execute(Runner(experiment.ROOT))
    assert RUN.record() is not None  # where it was made, and who looked on, is not the run
    (elsewhere / "config/a.py").write_text("batch_size = 3\n")
    assert RUN.record() is None and not RUN.finished()
    with pytest.raises(Mistake, match=r"batch_size=2, not 3: move it away"):
        RUN.execute(Runner(experiment.ROOT))
    (elsewhere / "config/a.py").write_text("batch_size = 2\nrho = 0.5\n")
    assert RUN.record() is None


def test_coefficients_of_a_file_that_the_optimizer_lacks_are_no_difference(elsewhere: Path) -> None:
    (elsewhere / "config/a.py").write_text("optimizer = 'lion'\nbeta1 = 0.9\nrho = 0.5\nhyper_lr = {'c': 1, 'lr': 1}\n")
    lion = {"optimizer": "lion", "seed": 1, "coefficients": {"beta1": 0.9, "beta2": 0.98}, "hyper_lr": {"lr": 1},
            "hyper_momentum": 0.0}  # fmt: skip
    assert RUN.differences(lion) == RUN.differences(lion | {"hyper_momentum": {}}) == []
    assert RUN.differences(lion | {"coefficients": {"beta1": 0.8, "beta2": 0.98}}) == ["beta1=0.8, not 0.9"]
    wrong = RUN.differences(lion | {"hyper_lr": {"beta1": 1, "lr": 1}})
    assert wrong == ["hyper_lr={'beta1': 1, 'lr': 1}, not {'lr': 1}"]


def test_again_sets_the_old_run_aside(elsewhere: Path) -> None:
    for _ in range(2):  # the second replaces what the first set aside
        leave(RUN)
        RUN.execute(Runner(elsewhere))
        assert RUN.record() is not None
        RUN.set_aside()
        assert RUN.record() is None and not RUN.out_dir.exists()
        assert (RUN.out_dir.with_name("try-1.previous") / "metrics.csv").is_file()
        assert RUN.path.with_name("try-1.json.previous").is_file()


def test_a_folder_that_is_in_the_way_fails_its_run_alone(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stale, torn, good = (replace(RUN, name=name) for name in ("stale-1", "torn-1", "good-1"))
    evaluations = [evaluation_of(stale), evaluation_of(torn)]
    for run in (stale, torn, good):
        leave(run)
    leave(stale, seed=2)
    (torn.out_dir / "config.json").write_text('{"config": {"seed": 1}}')
    monkeypatch.setattr("experiments.__main__.ROOT", elsewhere)
    made = replace(EXPERIMENTS["table3"], runs=lambda scale: [stale, torn, good, *evaluations])
    assert make(Runner(experiment.ROOT), [made], "laptop", "*", 1) == 1
    out = capsys.readouterr().out
    assert "stale-1 holds a run with seed=2, not 1: move it away" in out
    assert re.search(r"torn-1: .*torn-1 cannot be read: move it away", out)
    assert "good-1: recorded in records/laptop/good-1.json" in out
    assert "stale-1-perplexity: not made" in out


@pytest.mark.usefixtures("forked_runs")
def test_a_run_that_diverged_is_recorded_as_that(elsewhere: Path, corpus: str) -> None:
    (elsewhere / "train.py").symlink_to(ROOT / "train.py")
    settings = {"dataset": corpus, "n_layer": 1, "n_head": 1, "n_embd": 8, "block_size": 8, "max_iters": 50,
                "gradient_accumulation_steps": 1, "log_interval": 1, "max_skipped": 3, "warmup_iters": 0,
                "learning_rate": 1e30, "compile": False}  # fmt: skip
    run = Training("lost-1", "laptop", ("config/a.py",), settings, on_train=True)
    run.execute(Runner(experiment.ROOT))
    record = run.record()
    assert record is not None and record["final"]["diverged"] and 3 < record["final"]["step"] < 50
    fixed = Training("fs-1", "laptop", ("config/a.py",), {"seed": 1}, coefficients_from=run)
    assert not fixed.ready() and not evaluation_of(run).ready()
    whole, words = experiment.without_diverged({"lost-1": record, "try-2": {"final": {"val_loss": 1.0}}})
    assert list(whole) == ["try-2"]
    assert words == f"Diverged, and left out of everything below: lost-1 (step {record['final']['step']:g})."


def test_a_loss_that_is_no_number_is_never_recorded_as_one(elsewhere: Path) -> None:
    leave(RUN)
    path = RUN.out_dir / "metrics.csv"
    lines = path.read_text().splitlines()
    refused = lines[195].split(",")
    refused[3] = "nan"  # the training loss of one step
    lines[195] = ",".join(refused)
    path.write_text("\n".join(lines) + "\n")
    record = RUN.made_record()
    assert record is not None and record["final"]["train_loss"] == pytest.approx(1 + 9.5 / 200, abs=1e-3)
    last = lines[-1].split(",")
    last[4] = "inf"  # the last validation
    path.write_text("\n".join([*lines[:-1], ",".join(last)]) + "\n")
    record = RUN.made_record()
    assert record is not None and record["final"] == {"diverged": True, "step": 200}
    assert not evaluation_of(RUN).ready()
    with pytest.raises(ValueError, match="JSON"):
        write(RUN.path, {"final": {"val_loss": math.nan}})
    computation = Computation("vision", "laptop", lambda settings: {"final": {"loss": math.nan}, "curve": []})
    computation.compute()
    record = computation.record()
    assert record is not None and record["final"] == {"diverged": True} and "curve" not in record


@pytest.mark.usefixtures("forked_runs")
def test_a_real_run_is_resumed_recorded_evaluated_and_fine_tuned(
    elsewhere: Path, corpus: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (elsewhere / "train.py").symlink_to(ROOT / "train.py")
    settings = {
        "dataset": corpus, "n_layer": 1, "n_head": 1, "n_embd": 8, "block_size": 8, "batch_size": 2, "max_iters": 8,
        "gradient_accumulation_steps": 1, "eval_interval": 4, "eval_iters": 4, "log_interval": 1, "warmup_iters": 2,
        "optimizer": "mada", "device": "cpu", "compile": False,
    }  # fmt: skip
    run = Training("tiny-1", "laptop", (), settings, on_train=True)
    run.execute(Runner(experiment.ROOT))
    uninterrupted = run.record()
    run.path.unlink()  # back to where an interruption after step 5 would have left it
    (run.out_dir / "ckpt_000008.json").unlink()
    lines = (run.out_dir / "metrics.csv").read_text().splitlines()
    (run.out_dir / "metrics.csv").write_text("\n".join(lines[:7]) + "\n")
    run.execute(Runner(experiment.ROOT))
    assert "resuming after step 4" in (run.out_dir / "log.txt").read_text()
    record = run.record()
    assert record is not None and uninterrupted is not None
    assert record["curves"]["step"] == list(range(9))
    assert record["final"] == uninterrupted["final"]
    assert record["final"]["loss_on_train"] == pytest.approx(record["final"]["train_loss"], rel=0.05)

    (elsewhere / "evaluate.py").symlink_to(ROOT / "evaluate.py")
    evaluation = evaluation_of(run, corpus)
    assert evaluation.ready()
    evaluation.compute()
    evaluated = evaluation.record()
    assert evaluated is not None
    assert evaluated["rows"][0]["perplexity"] == pytest.approx(math.exp(record["final"]["val_loss"]), rel=0.05)

    monkeypatch.setattr(table4, "ROOT", elsewhere)
    monkeypatch.setattr(data, "open_dataset", lambda name, prepare, real=data.open_dataset: real(corpus))
    settings = {"base": run.name, "optimizer": "mada", "options": table4.OPTIONS["mada"], "seed": 1, "steps": 20,
                "batch_size": 2, "learning_rate": 0.01}  # fmt: skip
    tuned = table4.finetune(settings)
    assert tuned["final"]["loss_on_train"] < tuned["final"]["before"] - 0.05
    assert tuned["final"]["before"] == pytest.approx(record["final"]["loss_on_train"], abs=1e-3)
    written = {"settings": settings, **tuned}
    table = table4.show("laptop", {run.name: record, "finetune/mada-1": written, "finetune/adam-1": written})[1]
    assert isinstance(table, Table)
    assert [row[-1] for row in table.rows] == ["0.255", "0.276"] and "n = 1" in table.rows[0][3]
    large = record | {"config": record["config"] | {"weights": "gpt2-xl"}}
    text = table4.show("paper", {"finetune/mada-1": large})[0]
    assert isinstance(text, Text) and text.words.startswith("From the weights of gpt2-xl: 1,016 parameters")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_what_ends_the_command_ends_the_runs_under_way(tmp_path: Path, number: int) -> None:
    """And what they started themselves, as appendix D's do."""
    sleep = "import os, time; print(os.getpid(), flush=True); time.sleep(100)"
    start = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {sleep!r}]); {sleep}"
    program = (
        "import pathlib, signal, sys; import experiments.__main__ as command\n"
        f"signal.signal({int(number)}, signal.SIG_DFL)\n"  # the tests may run under nohup
        f"child = [sys.executable, '-c', {start!r}]\n"
        f"command.make = lambda runner, *given: runner.call(child, pathlib.Path({str(tmp_path / 'log')!r}))\n"
    )
    with begun({"argv": ["experiments", "run", "all"], "patch": program}) as process:
        until = time.monotonic() + 60
        while not ((log := tmp_path / "log").exists() and log.read_text().count("\n") == 2):
            assert time.monotonic() < until
            time.sleep(0.05)
        os.kill(process.pids[0], number)
        end = process.end()
    assert "goes on from here" in end["err"] and end["code"] == 130
    for pid in log.read_text().split():
        until = time.monotonic() + 10  # the grandchild is init's to bury
        while (status := Path(f"/proc/{pid}/status")).exists() and "State:\tZ" not in status.read_text():
            assert time.monotonic() < until, f"{pid} is still there"
            time.sleep(0.05)


def test_a_run_that_fails_says_why(elsewhere: Path) -> None:
    with pytest.raises(Mistake, match=r"No such file|can't open file"):
        RUN.execute(Runner(experiment.ROOT))


def test_what_needs_the_folder_of_a_run_waits_for_it(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record is there, as in a fresh clone, and the run is not: it is made again."""
    leave(RUN)
    RUN.execute(Runner(experiment.ROOT))
    evaluation = evaluation_of(RUN)
    monkeypatch.setattr("experiments.__main__.ROOT", elsewhere)
    made = replace(EXPERIMENTS["table3"], runs=lambda scale: [RUN, evaluation])
    for path in RUN.out_dir.iterdir():
        path.unlink()
    done = []
    monkeypatch.setattr(Training, "execute", lambda self, _: (done.append(self.name), leave(self)))
    monkeypatch.setattr(Computation, "execute", lambda self, _: done.append(self.name))
    assert make(Runner(experiment.ROOT), [made], "laptop", "*", 1) == 0
    assert done == ["try-1", "try-1-perplexity"]


def test_fixed_coefficients_come_from_the_finished_run(elsewhere: Path) -> None:
    fixed = Training("fs-1", "laptop", ("config/a.py",), {"seed": 1}, coefficients_from=RUN)
    assert not fixed.ready() and not fixed.finished()
    leave(RUN)
    RUN.execute(Runner(experiment.ROOT))
    assert fixed.ready()
    assert "--coefficients_from=records/laptop/try-1.json" in fixed.command()
    leave(fixed)
    fixed.execute(Runner(experiment.ROOT))
    assert fixed.record() is not None
    other = json.loads(RUN.path.read_text())
    other["final"]["rho"] = 0.123  # made again, the source ended elsewhere
    write(RUN.path, other)
    assert fixed.record() is None and not fixed.finished()
    with pytest.raises(Mistake, match=r"rho=0\.7, not 0\.123"):
        fixed.execute(Runner(experiment.ROOT))
    (elsewhere / "config/a.py").write_text("batch_size = 3\n")
    assert not fixed.ready()  # the record of the source is that of other settings


def test_records_keep_six_digits(tmp_path: Path) -> None:
    write(tmp_path / "r.json", {"a": 1 / 3, "b": [2.0, None], "c": {"d": 123456789}})
    assert json.loads((tmp_path / "r.json").read_text()) == {"a": 0.333333, "b": [2.0, None], "c": {"d": 123456789}}


def test_every_run_has_its_files_and_a_name_of_its_own() -> None:
    for scale in experiment.SCALES:
        runs = {}
        for each in EXPERIMENTS.values():
            for run in each.runs_at(scale):
                assert runs.setdefault(run.name, run.identity) == run.identity, run.name
                for config in getattr(run, "configs", ()):
                    assert (ROOT / config).is_file(), config


def test_every_run_is_one_that_train_accepts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all scales: nobody can try those of the others here."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.chdir(ROOT)
    runs = {run.path: run for scale in experiment.SCALES for e in EXPERIMENTS.values() for run in e.runs_at(scale)}
    seen = {}  # what differs in the seed alone, or in the betas of a fine grid, is tried once
    for run in runs.values():
        if isinstance(run, Training):
            few = run.settings | {"seed": 0} | ({"beta1": 0, "beta2": 0} if run.scale == "paper" else {})
            seen[(run.scale, run.configs, str(few), run.coefficients_from is None)] = run
    assert len(seen) > 60
    for run in seen.values():
        command = run.command()
        cfg = train.parse(train.Config, command[command.index("train.py") + 1 :], train.check, run.name)
        assert cfg.device == ("cpu" if run.scale == "laptop" else "auto"), run.name
        assert cfg.max_iters > cfg.warmup_iters


def test_the_grid_of_a_gpu_is_the_papers_but_coarser() -> None:
    here = [run for run in figure8.runs("gpu") if isinstance(run, Training)]
    there = {run.configs for run in figure8.runs("paper") if isinstance(run, Training)}
    assert {run.configs for run in here} == there and {*here[0].settings} == {"beta1", "beta2", "seed"}
    assert read_files([ROOT / "config/shakespeare_char.py"])["max_iters"] == 5000


def test_lions_rate_is_a_quarter_of_its_scales() -> None:
    for scale, (overlay, *_) in ablations.SIZES.items():
        rates = read_files([ROOT / "config" / f"{overlay}.py"])
        assert ablations.QUARTER[scale] == {name: rates[name] / 4 for name in ("learning_rate", "min_lr")}
        for run in ablations.runs(scale):
            quarter = "learning_rate" in run.settings and isinstance(run, Training)
            assert quarter == ("lion-" in run.name and "no_lion" not in run.name)


def test_the_runs_of_micro_batches_have_the_size_of_the_others() -> None:
    said = read_files([ROOT / "config/shakespeare_char.py", ROOT / "config/tiny.py"])
    tiny = ablations.TINY
    same = {"max_iters": "steps", "warmup_iters": "warmup", **{name: name for name in (
        "block_size", "batch_size", "learning_rate", "min_lr", "weight_decay")}}  # fmt: skip
    assert {name: tiny[mine] for name, mine in same.items()} == {name: said[name] for name in same}
    for part, names in (("model", ("n_layer", "n_head", "n_embd")), ("optimizer", ("beta1", "beta2", "eps", "hyper_lr",
                                                                                   "hyper_momentum"))):  # fmt: skip
        assert {name: tiny[part][name] for name in names} == {name: said[name] for name in names}


def test_what_is_timed_runs_last_and_alone(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.__main__.ROOT", elsewhere)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS")
    done = []

    def execute(self: Computation, runner: Runner) -> None:
        environment = runner.environment
        done.append((self.name, environment["OMP_NUM_THREADS"], environment["CUDA_VISIBLE_DEVICES"]))

    monkeypatch.setattr(Computation, "execute", execute)
    runs = [Computation(name, "laptop", dict, alone=name.startswith("cost")) for name in ("cost/1", "a", "cost/2")]
    made = replace(EXPERIMENTS["table3"], runs=lambda scale: runs)
    assert make(Runner(experiment.ROOT), [made], "laptop", "*", 4) == 0
    assert done == [("a", "2", ""), ("cost/1", "8", ""), ("cost/2", "8", "")]
    assert all(run.alone for run in EXPERIMENTS["appendix_d"].runs("laptop"))
    assert runs[0].identity != runs[1].identity  # a time from beside others is no record of it


def test_the_command_lists_what_is_missing(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == [*EXPERIMENTS, "all"]
    [table2] = [line for line in lines if line.startswith("table2 ")]
    assert "0/36, 2 h to go" in table2


def test_the_papers_scale_prints_commands(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "table2", "--scale=paper", "--only=mada*"]) == 0
    out = capsys.readouterr().out
    assert "torchrun --standalone --nproc_per_node=8 train.py config/gpt2_mada.py --seed=5000" in out
    assert "# mada_fs-5000: when the run that it builds on is finished" in out
    assert "gpt2_adam.py" not in out


def test_the_package_explains_itself() -> None:
    assert "python -m experiments list" in (experiments.__doc__ or "")


def test_a_pattern_that_fits_no_run_is_said(capsys) -> None:
    assert main(["run", "table2", "--only=nothing"]) == 2
    assert capsys.readouterr().err.startswith("experiments: table2: no run like 'nothing' at scale laptop")
