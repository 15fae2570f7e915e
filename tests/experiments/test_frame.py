"""From a run's folder to a record, from records to the report, from a command to what is missing."""

import json
import math
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

import data
import experiments
from experiments import EXPERIMENTS, figure8, frame, language, report, table3, table4
from experiments.__main__ import main, make
from experiments.frame import ROOT, Computation, Evaluation, Training, distil, read, write

RUN = Training("try-1", "laptop", ("config/a.py",), {"seed": 1})
NAMES = ("beta1", "beta2", "beta3", "rho", "c", "gamma")


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs and records in a folder of the test."""
    monkeypatch.setattr(frame, "ROOT", tmp_path)
    monkeypatch.setattr(frame, "RECORDS", tmp_path / "records")
    return tmp_path


def leave(run: Training, steps: int = 200, until: int | None = None, gain: float = 0.0, **config: object) -> None:
    """What train.py leaves behind: a loss that falls to 1 - gain, coefficients that fall."""
    run.out_dir.mkdir(parents=True, exist_ok=True)
    steps = run.settings.get("max_iters", steps)
    full = {"max_iters": steps, "dataset": "words", "batch_size": 2, "gradient_accumulation_steps": 1,
            "block_size": 8, "dropout": 0.0, "out_dir": "x", **run.all_settings(), **config}  # fmt: skip
    about = {"config": full, "commit": "abc", "parameters": 10, "device": "cpu"}
    (run.out_dir / "config.json").write_text(json.dumps(about))
    lines = ["step,tokens,seconds,train_loss,val_loss,lr,grad_norm," + ",".join((*NAMES, "h_beta1"))]
    for step in range((until or steps) + 1):
        loss = 1 - gain + (steps - step) / steps
        lines.append(
            f"{step},{step * 16},{step / 10},{loss if step else ''},{loss + 1 if step % 50 == 0 else ''},0.1,1,"
            + ",".join(f"{0.9 - step / 1000}" for _ in NAMES) + ",0.5"
        )  # fmt: skip
    (run.out_dir / "metrics.csv").write_text("\n".join(lines) + "\n")


def test_a_record_says_what_the_run_left(elsewhere: Path) -> None:
    leave(RUN)
    record = distil(RUN)
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
    assert distil(RUN) is None
    assert not RUN.finished()


def test_a_folder_with_another_run_is_not_taken_for_this_one(elsewhere: Path) -> None:
    leave(RUN, seed=2)
    with pytest.raises(RuntimeError, match="seed=2, not 1"):
        distil(RUN)


def test_a_finished_run_is_recorded_and_not_run_again(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leave(RUN)
    monkeypatch.setattr(frame, "call", lambda *_: pytest.fail("it ran again"))
    RUN.execute({})
    assert read(RUN) is not None
    changed = Training(RUN.name, RUN.scale, RUN.configs, {"seed": 1, "beta1": 0.5})
    assert read(changed) is None  # the record of other settings is no record


def test_an_interrupted_run_goes_on(elsewhere: Path) -> None:
    assert "--init_from=resume" not in RUN.command()
    RUN.out_dir.mkdir(parents=True)
    (RUN.out_dir / "ckpt_000050.json").write_text("{}")
    assert RUN.command()[1:] == [
        "train.py", "config/a.py", "--seed=1", "--out_dir=out/laptop/try-1", "--init_from=resume"
    ]  # fmt: skip


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
    run.execute({})
    uninterrupted = read(run)
    run.path.unlink()  # back to where an interruption after step 5 would have left it
    (run.out_dir / "ckpt_000008.json").unlink()
    lines = (run.out_dir / "metrics.csv").read_text().splitlines()
    (run.out_dir / "metrics.csv").write_text("\n".join(lines[:7]) + "\n")
    run.execute({})
    assert "resuming after step 4" in (run.out_dir / "log.txt").read_text()
    record = read(run)
    assert record is not None and uninterrupted is not None
    assert record["curves"]["step"] == list(range(9))
    assert record["final"] == uninterrupted["final"]
    assert record["final"]["loss_on_train"] == pytest.approx(record["final"]["train_loss"], rel=0.05)

    (elsewhere / "evaluate.py").symlink_to(ROOT / "evaluate.py")
    evaluation = Evaluation(run, (corpus,))
    assert evaluation.ready() and not evaluation.finished()
    evaluation.execute({})
    evaluated = read(evaluation)
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
    assert isinstance(table, frame.Table)
    assert [row[-1] for row in table.rows] == ["0.255", "0.276"] and "n = 1" in table.rows[0][3]
    large = record | {"config": record["config"] | {"weights": "gpt2-xl"}}
    text = table4.show("paper", {"finetune/mada-1": large})[0]
    assert isinstance(text, frame.Text) and text.words.startswith("From the weights of gpt2-xl: 1,016 parameters")


def test_what_ends_the_command_ends_the_runs_under_way(tmp_path: Path) -> None:
    program = (
        "import pathlib, sys; import experiments.__main__ as command; from experiments import frame\n"
        "child = [sys.executable, '-c', 'import os, time; print(os.getpid(), flush=True); time.sleep(100)']\n"
        f"command.make = lambda *given: frame.call(child, pathlib.Path({str(tmp_path / 'log')!r}), {{}})\n"
        "sys.exit(command.main(['run', 'all']))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while not ((log := tmp_path / "log").exists() and log.read_text().endswith("\n")):
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    assert "goes on from here" in process.communicate(timeout=60)[1]
    assert process.returncode == 130
    with pytest.raises(ProcessLookupError):
        os.kill(int(log.read_text()), 0)


def test_a_run_that_fails_says_why(elsewhere: Path) -> None:
    with pytest.raises(RuntimeError, match=r"No such file|can't open file"):
        RUN.execute({})


def test_what_needs_the_folder_of_a_run_waits_for_it(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record is there, as in a fresh clone, and the run is not: it is made again."""
    leave(RUN)
    RUN.execute({})
    evaluation = Evaluation(RUN, ("words",))
    monkeypatch.setattr("experiments.__main__.ROOT", elsewhere)
    experiment = replace(table3.EXPERIMENT, runs=lambda scale: [RUN, evaluation])
    for path in RUN.out_dir.iterdir():
        path.unlink()
    done = []
    monkeypatch.setattr(Training, "execute", lambda self, _: (done.append(self.name), leave(self)))
    monkeypatch.setattr(Evaluation, "execute", lambda self, _: done.append(self.name))
    assert make([experiment], "laptop", "*", 1) == 0
    assert done == ["try-1", "try-1-perplexity"]


def test_fixed_coefficients_come_from_the_finished_run(elsewhere: Path) -> None:
    fixed = Training("fs-1", "laptop", ("config/a.py",), {"seed": 1}, coefficients_from=RUN.name)
    assert not fixed.ready()
    leave(RUN)
    RUN.execute({})
    assert fixed.ready()
    assert "--coefficients_from=records/laptop/try-1.json" in fixed.command()


def test_records_keep_six_digits(tmp_path: Path) -> None:
    write(tmp_path / "r.json", {"a": 1 / 3, "b": [2.0, None], "c": {"d": 123456789}})
    assert json.loads((tmp_path / "r.json").read_text()) == {"a": 0.333333, "b": [2.0, None], "c": {"d": 123456789}}


def test_every_run_has_its_files_and_a_name_of_its_own() -> None:
    for scale in frame.SCALES:
        runs = {}
        for experiment in EXPERIMENTS.values():
            for run in experiment.runs(scale):
                assert runs.setdefault(run.name, run.identity) == run.identity, run.name
                for config in getattr(run, "configs", ()):
                    assert (ROOT / config).is_file(), config


def test_the_papers_numbers_have_rows() -> None:
    assert set(language.PAPER_LOSS) <= set(language.ROWS)


def test_the_area_of_a_plane() -> None:
    import numpy as np

    plane = np.array([[0.0, 1.0], [0.0, 1.0]])
    assert figure8.area_near(plane, (0, 1), (0, 1), 0.25) == pytest.approx(0.25, abs=5e-3)


def test_table_3_stands_beside_the_papers() -> None:
    rows = [{"dataset": name, "perplexity": 10.0 + i} for i, name in enumerate(("openwebtext", *table3.OTHERS))]
    table = table3.show("paper", {"mada-5000": {}, "mada-5000-perplexity": {"rows": rows}})[1]
    assert isinstance(table, frame.Table)
    assert table.rows == [["MADA", "1", "10.0000", "17.8249", "11.0000", "61.2513", "12.0000", "74.2480"]]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of made-up runs of table 2 and figure 8, all there, and of the committed records of the others."""
    folder = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frame, "training_loss", lambda out_dir: 1.0 + len(str(out_dir)) / 1000)  # there is no checkpoint
        real = frame.RECORDS
        patch.setattr(frame, "ROOT", folder)
        patch.setattr(frame, "RECORDS", folder / "records")
        for experiment in EXPERIMENTS.values():
            for run in experiment.runs("laptop"):
                if isinstance(run, Training):
                    leave(run, gain=0.25 if run.name.startswith("mada-") else run.settings.get("beta1", 0) / 10)
                    run.execute({})
                elif isinstance(run, Computation) and (real / "laptop" / f"{run.name}.json").is_file():
                    run.path.parent.mkdir(parents=True, exist_ok=True)
                    run.path.write_text((real / "laptop" / f"{run.name}.json").read_text())
        report.write_report(list(EXPERIMENTS.values()), folder)
    return folder


def test_the_report_shows_the_records(built: Path) -> None:
    markdown = (built / "report.md").read_text()
    assert "| MADA | 3 | 1.7500 ± 0.0000 | -0.2500 [-0.2500, -0.2500], p < 0.0001 |" in markdown
    assert "| 2.8806 | -0.0150 |" in markdown
    for picture in re.findall(r"\]\((figures/.*?)\)", markdown):
        assert (built / picture).stat().st_size > 5000
    page = (built / "report.html").read_text()
    assert page.count("data:image/png;base64,") == len(re.findall(r"\]\(figures/", markdown)) >= 4
    assert 'src="figures' not in page and "://" not in page  # it stands alone
    assert len(page) < 1_000_000


def test_the_readme_has_the_tables_main_columns(elsewhere: Path) -> None:
    for run in EXPERIMENTS["table2"].runs("laptop"):
        if run.name in ("adam-1", "mada-1"):
            assert isinstance(run, Training)
            leave(run, gain=0.25 if run.name == "mada-1" else 0.0)
            run.execute({})
    readme = elsewhere / "README.md"
    readme.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    report.refresh_readme(EXPERIMENTS["table2"], readme)
    text = readme.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    assert "| MADA | 1 | 1.7500 | -0.2500 (n = 1, no test) | -0.0150 |" in text
    report.refresh_readme(EXPERIMENTS["table2"], readme)
    assert readme.read_text() == text


def test_the_same_records_make_the_same_report(built: Path) -> None:
    block = frame.Figure("f", "a line", lambda figure: figure.subplots().plot([0, 1], [0, 1]))
    assert report.picture(block) == report.picture(block)


def test_the_command_lists_what_is_missing(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == [*EXPERIMENTS, "all"]
    assert "0/36, 61 min to go" in lines[1]


def test_the_papers_scale_prints_commands(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "table2", "--scale=paper", "--only=mada*"]) == 0
    out = capsys.readouterr().out
    assert "torchrun --standalone --nproc_per_node=8 train.py config/gpt2_mada.py --seed=5000" in out
    assert "# mada_fs-5000: when the run that it builds on is finished" in out
    assert "gpt2_adam.py" not in out


def test_the_package_explains_itself() -> None:
    assert "python -m experiments list" in (experiments.__doc__ or "")
