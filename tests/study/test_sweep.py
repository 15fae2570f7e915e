"""sweep.py with a program in the place of train.py whose losses are a formula, and once with train.py itself."""

import itertools
import json
import os
import random
import re
import signal
import time
from pathlib import Path

import pytest
from processes import begun, forked

import sweep
from runtime.optimizers import adapt
from runtime.settings import Setting

REPOSITORY = Path(sweep.__file__).parent
# Loss 2 + log2(lr / 0.004)^2 / 20 + seed / 100, lower for mada; resumes after its last row; exit codes as train.py's.
FAKE = """
import json, math, pathlib, sys, time
given = dict(a.removeprefix("--").split("=", 1) for a in sys.argv[1:] if a.startswith("--"))
out = pathlib.Path(given["out_dir"])
out.mkdir(parents=True, exist_ok=True)
optimizer, seed = given.get("optimizer", "adam"), int(given.get("seed", 1))
rate = float(given.get("learning_rate", 0.004))
steps = int(given.get("max_iters", 40))
config = {"dataset": "words", "block_size": 8, "eval_iters": 0, "max_iters": steps, "seed": seed, "eval_interval": 20,
          "learning_rate": rate, "min_lr": float(given.get("min_lr", 0.0004)), "warmup_iters": 1,
          "weight_decay": float(given.get("weight_decay", 0.1)), **json.loads(ADAPTED)[optimizer]}
if seed == 13:
    sys.exit("unlucky")
(out / "config.json").write_text(json.dumps({"config": config}))
path = out / "metrics.csv"
lines = path.read_text().splitlines() if path.exists() else ["step,tokens,seconds,train_loss,val_loss,lr,grad_norm"]
loss = 2 + math.log2(rate / 0.004) ** 2 / 20 + seed / 100 - (0.1 + 0.003 * seed % 0.01) * (optimizer == "mada")
for step in range(len(lines) - 1, steps + 1):
    if rate > 1 and step == 5:
        sys.exit(3)
    time.sleep(PAUSE)
    lines.append(f"{step},{step},{step / 100},{loss if step else ''},{loss if step % 20 == 0 else ''},{rate},1")
    path.write_text("\\n".join(lines) + "\\n")
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder to work in: a config file, and that program as train.py."""
    adapted = {}
    for name in ("adam", "mada", "lion"):
        settings = adapt([Setting("", "optimizer", name)]).settings
        adapted[name] = {s.key: s.value for s in settings}
    program = f"ADAPTED = {json.dumps(adapted)!r}\nPAUSE = 0.0\n" + FAKE
    (tmp_path / "train.py").write_text(program)
    config = "max_iters = 40\nlearning_rate = 0.004\nmin_lr = 0.0004\nwarmup_iters = 1\neval_interval = 20\n"
    (tmp_path / "a.py").write_text(config + "optimizer = 'adam'\n")
    monkeypatch.setattr(sweep, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows_of(out: Path) -> int:
    """Of metrics.csv, of all runs."""
    return sum(1 for path in out.glob("[am]*/metrics.csv") for _ in path.open())


def table(out: str) -> list[str]:
    """The lines of the comparison, without seconds."""
    lines = out[out.index("group  ") :].splitlines()
    return [re.sub(r"  \d+\.\d  ", "  ", line) for line in lines[2:] if line and not line.startswith("written")]


def test_lists_ranges_and_dicts_are_told_apart() -> None:
    given = ["--seed=1..3", "--learning_rate=1e-3,x2", "--hyper_lr={'rho': 1, 'c': 2},{}", "--compile",
             "--coefficients.betas=(0.9, 0.999),(0.8, 0.95)", "--box.rho=[0, 1]"]
    assert sweep.lists_of(given) == {
        "seed": ["1", "2", "3"], "learning_rate": ["1e-3", "x2"], "hyper_lr": ["{'rho': 1, 'c': 2}", "{}"],
        "compile": ["True"], "coefficients.betas": ["(0.9, 0.999)", "(0.8, 0.95)"], "box.rho": ["[0, 1]"],
    }  # fmt: skip
    for wrong in ("-seed=1", "seed", "--seed=3..1"):
        with pytest.raises(ValueError, match=re.escape(wrong)):
            sweep.lists_of([wrong])


def test_points_drawn_are_log_uniform_and_the_same_each_time() -> None:
    points = sweep.draw({"learning_rate": ["1e-4..1e-2"], "optimizer": ["adam", "mada"]}, 400)
    assert points == sweep.draw({"learning_rate": ["1e-4..1e-2"], "optimizer": ["adam", "mada"]}, 400)
    rates = [float(point["learning_rate"]) for point in points]
    assert 1e-4 <= min(rates) < 1.5e-4 and 7e-3 < max(rates) <= 1e-2
    assert 150 < sum(rate < 1e-3 for rate in rates) < 250
    assert {point["optimizer"] for point in points} == {"adam", "mada"}


def test_points_drawn_of_lists_are_different() -> None:
    lists = {"learning_rate": ["1e-3", "2e-3"], "optimizer": ["adam", "mada"]}
    points = sweep.draw(lists, 4)
    assert len({tuple(point.values()) for point in points}) == 4
    with pytest.raises(ValueError, match="--trials=5: these lists have only 4 points"):
        sweep.draw(lists, 5)


def grid(**axes: list[str]) -> list[dict[str, str]]:
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


@pytest.mark.parametrize("best, points, expected", [
    ({"a": "2"}, grid(a=["1", "2", "4"]), []),
    ({"a": "4"}, grid(a=["1", "2", "4"]), [{"a": "8"}]),
    ({"a": "1.", "b": "3"}, grid(a=["1.", "2."], b=["3", "9"]), [{"a": "0.5", "b": "3"}, {"a": "1.", "b": "1"}]),
    ({"beta2": "0.99"}, grid(beta2=["0.9", "0.99"]), [{"beta2": "0.999"}]),
    ({"a": "0"}, grid(a=["0", "0.1"]), []),  # a natural end
    ({"a": "0.1"}, grid(a=["0", "0.1"]), [{"a": "0.2"}]),
    ({"a": "12"}, grid(a=["8", "12"]), [{"a": "18"}]),
    ({"a": "8"}, grid(a=["8", "12"]), [{"a": "5"}]),  # whole numbers stay whole
    ({"a": "2", "b": "1e0"}, [*grid(a=["2", "4"], b=["1e0", "3"]), {"a": "1", "b": "3"}],
     [{"a": "1", "b": "1e0"}, {"a": "2", "b": "0.333333"}]),  # a = 1 was tried at another b alone
])  # fmt: skip
def test_what_is_tried_beyond_a_grid(best: dict, points: list[dict], expected: list[dict]) -> None:
    found = sweep.beyond(best, points, [*best])
    assert sorted(map(str, found)) == sorted(map(str, expected))


def test_a_sweep_runs_the_product_names_what_differs_and_compares(folder: Path, capsys) -> None:
    assert sweep.main(["a.py", "--optimizer=adam,lion,mada", "--learning_rate=x0.5,x1", "--seed=1..3", "--jobs=2"]) == 0
    out = capsys.readouterr().out
    assert "18 runs in out/sweep, 0 ended before, 18 to go, 2 at a time" in out and re.search(r"about \d+ min", out)
    names = {path.name for path in Path("out/sweep").iterdir() if path.is_dir()}
    assert len(names) == 18 and {"lion,learning_rate=0.0005,seed=1", "adam,learning_rate=0.002,seed=3"} <= names
    config = json.loads(Path("out/sweep/lion,learning_rate=0.0005,seed=1/config.json").read_text())["config"]
    assert config["min_lr"] == pytest.approx(0.00005)  # keeps its ratio
    assert len(table(out)) == 6 and "baseline: adam, learning_rate 0.004" in out
    assert Path("out/sweep/compare.html").is_file()


def test_finished_runs_are_kept_and_failed_ones_are_said_and_tried_again(folder: Path, capsys) -> None:
    arguments = ["a.py", "--seed=1,2,13"]
    assert sweep.main(arguments) == 1
    out = capsys.readouterr().out
    assert re.search(r"\d/3 seed=13: .*\nended with 1; .*log.txt ends with\nunlucky", out)
    assert "2 runs in 1 groups" in out
    (folder / "train.py").write_text((folder / "train.py").read_text().replace("seed == 13", "False"))
    before = Path("out/sweep/seed=1/metrics.csv").stat().st_mtime_ns
    assert sweep.main(arguments) == 0
    out = capsys.readouterr().out
    assert "2 ended before, 1 to go" in out and "3 runs in 1 groups" in out
    assert Path("out/sweep/seed=1/metrics.csv").stat().st_mtime_ns == before


def test_a_diverged_run_is_said_and_not_repeated(folder: Path, capsys) -> None:
    arguments = ["a.py", "--learning_rate=0.004,2", "--seed=1"]
    assert sweep.main(arguments) == 0
    assert "learning_rate=2: diverged" in capsys.readouterr().out
    assert sweep.main(arguments) == 0
    out = capsys.readouterr().out
    assert "2 ended before, 0 to go" in out and "Left out: out/sweep/learning_rate=2: at step 4 of 40" in out


def test_another_runs_folder_is_refused(folder: Path, capsys) -> None:
    assert sweep.main(["a.py", "--seed=1,2"]) == 0
    assert sweep.main(["a.py", "--seed=1,2", "--weight_decay=0.3"]) == 2
    assert "holds a run with weight_decay=0.1, not 0.3: choose another --out" in capsys.readouterr().err


def test_a_plan_runs_nothing_but_a_probe(folder: Path, capsys) -> None:
    assert sweep.main(["a.py", "--seed=1..4", "--plan"]) == 0
    assert "4 to go" in capsys.readouterr().out
    assert [path.name for path in Path("out/sweep").iterdir()] == [".lock"]  # the probe's folder is gone


def test_a_file_of_runs(folder: Path, capsys) -> None:
    lines = ("# two", "--optimizer=adam", "--optimizer=mada --learning_rate=0.002")
    Path("runs.txt").write_text("\n".join(lines) + "\n")
    assert sweep.main(["a.py", "--runs=runs.txt", "--seed=1,2"]) == 0
    assert "4 runs in 2 groups" in capsys.readouterr().out
    assert Path("out/sweep/mada,learning_rate=0.002,seed=2/metrics.csv").is_file()
    assert Path("out/sweep/adam,seed=1/metrics.csv").is_file()
    for wrong in (["--tune"], ["--learning_rate=1e-3,2e-3"]):
        assert sweep.main(["a.py", "--runs=runs.txt", *wrong]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said == ["sweep.py: --tune widens lists of numbers: leave out --runs and --trials",
                    "sweep.py: --runs=runs.txt: learning_rate is a list: write a line for each run"]  # fmt: skip


def test_a_probe_that_was_interrupted_is_forgotten(folder: Path) -> None:
    probe = Path("out/sweep/.probe")
    probe.mkdir(parents=True)
    (probe / "metrics.csv").write_text("step,of,another,run\n9,1,1,1\n")
    assert sweep.main(["a.py", "--seed=1,2", "--plan"]) == 0 and not probe.exists()


def test_tune_widens_until_the_optimum_is_inside_and_runs_fresh_seeds(folder: Path, capsys) -> None:
    rates = "--learning_rate=0.0005,0.001"  # the optimum is at 0.004
    assert sweep.main(["a.py", "--optimizer=adam,mada", rates, "--seed=1,2", "--tune", "--fresh=3", "--jobs=2"]) == 0
    out = capsys.readouterr().out
    assert out.count("the lowest loss lies at an edge") == 3  # 0.002, 0.004, 0.008
    assert "optimum: adam, learning_rate 0.004; 3 fresh seeds" in out.replace("optimizer ", "")
    assert [line.split()[:2] for line in table(out)] == [["adam", "3"], ["mada", "3"]] and "6 runs in 2 groups" in out
    grid = json.loads(Path("out/sweep/grid/compare.json").read_text())
    assert len(grid["groups"]) == 10 and {seed for group in grid["groups"] for seed in group["seeds"]} == {1, 2}
    fresh = json.loads(Path("out/sweep/compare.json").read_text())
    assert {tuple(group["seeds"]) for group in fresh["groups"]} == {(3, 4, 5)}


def test_a_sweep_killed_three_times_at_random_ends_with_the_same_table(folder: Path) -> None:
    """Killed outright, or asked to leave: runs that a killed sweep leaves behind are waited for."""
    slow = (folder / "train.py").read_text().replace("PAUSE = 0.0", "PAUSE = 0.02")
    (folder / "train.py").write_text(slow)
    job = {"patch": "import pathlib, sweep; sweep.ROOT = pathlib.Path('.')", "cwd": str(folder)}
    command = ["sweep.py", "a.py", "--optimizer=adam,mada", "--seed=1..3", "--jobs=2"]
    (whole,) = forked({"argv": [*command, "--out=out/whole"], **job})
    generator = random.Random(7)
    out = Path("out/killed")
    for kill in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
        more = rows_of(out) + generator.randint(5, 60)
        log = folder / "said.txt"
        log.write_text("")
        with begun({"argv": [*command, f"--out={out}"], "out": str(log), **job}) as process:
            until = time.monotonic() + 120  # it listens to signals, and the runs are under way
            while not re.search("waiting|to go", log.read_text()) or rows_of(out) < more:
                assert time.monotonic() < until
                time.sleep(0.01)
            os.kill(process.pids[0], kill)
            assert process.end()["code"] == (-kill if kill == signal.SIGKILL else 130)
    (rest,) = forked({"argv": [*command, f"--out={out}"], **job})
    assert (whole["code"], rest["code"]) == (0, 0)
    assert len(table(whole["out"])) == 2
    assert table(rest["out"]) == table(whole["out"])


@pytest.mark.usefixtures("forked_runs")
def test_train_itself_is_swept(corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    model = ["--n_layer=1", "--n_head=1", "--n_embd=8", "--block_size=8", "--batch_size=2", "--max_iters=12"]
    pace = ["--gradient_accumulation_steps=1", "--eval_interval=6", "--eval_iters=4", "--log_interval=1"]
    common = [f"--dataset={corpus}", *model, *pace, "--warmup_iters=2", "--device=cpu", "--compile=False"]
    optimizers = "--optimizer=adam,mada,torch.optim:AdamW"
    assert sweep.main([*common, optimizers, "--learning_rate=0.01", "--seed=1"]) == 0
    out = capsys.readouterr().out
    assert "3 runs in 3 groups, " in out and "torch.optim:AdamW" in out and "Hyper rates, mada" in out
    assert sweep.main([*common, optimizers, "--learning_rate=0.01", "--seed=1"]) == 0
    assert "3 ended before, 0 to go" in capsys.readouterr().out
    kept = ["--optimizer=mada", "--hyper_lr={}", "--coefficients_from=out/sweep/mada", "--out=out/kept"]
    assert sweep.main([*common, *kept]) == 0  # its config.json holds what it found there
    capsys.readouterr()
    assert sweep.main([*common, *kept]) == 0 and "1 ended before, 0 to go" in capsys.readouterr().out
