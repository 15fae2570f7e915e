"""Runs that survive: processes that are really killed, disks that are really full, files that are really damaged."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from outcomes import ends_equal, same, without_seconds
from processes import ENV, ROOT, TORCHRUN, begun, forked, in_processes

import train
from optim import OPTIMIZERS
from runtime import checkpoint

# Two kinds of SIGKILL: from outside after a random time to a random process, and at a random one of the moments that
# make up a save (each write, sync, rename and deletion, before or after it), which the process sends to itself.
KILLER = """
import json, os, pathlib, random, signal, time
import ranks
folder, size, kills, argv = pathlib.Path(argv[0]), int(argv[1]), int(argv[2]), argv[3:]
rng = random.Random(7)
DEADLY = '''
import os, pathlib, signal
from runtime import checkpoint
left = [{moment}]

def deadly(owner, name):
    real = getattr(owner, name)
    def wrapped(*args, **kwargs):
        for act in (None, real):
            if act:
                result = act(*args, **kwargs)
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return result
    setattr(owner, name, wrapped)

for owner, name in {where}:
    deadly(owner, name)
'''
log = []
while True:
    in_save = rng.random() < 0.75
    delay, in_write, victim = rng.uniform(0.0, 0.6), rng.random() < 0.4, rng.randrange(size)
    moment = rng.randint(1, 750) if in_write else rng.randint(1, 60)  # within the first three saves or so
    where = "[(checkpoint._Hashed, 'write')]" if in_write else (
        "[(os, 'fsync'), (os, 'replace'), (pathlib.Path, 'unlink')] if rank == 0 else []")
    patch = DEADLY.format(moment=moment, where=where) if len(log) < kills and in_save else ""
    pids = ranks.launch({"ranks": size, "argv": argv, "patch": patch}, folder)
    if len(log) < kills and not in_save:
        time.sleep(delay)
        os.kill(pids[victim], signal.SIGKILL)
    codes = ranks.finish(pids)
    if codes == size * [0]:
        break
    assert -signal.SIGKILL in codes, codes
    log.append("save" if in_save else "anywhere")
print("KILLS", json.dumps(log))
"""


@pytest.mark.parametrize(
    ("processes", "kills"),
    [(1, 6), (2, 3), pytest.param(1, 50, marks=pytest.mark.long), pytest.param(2, 50, marks=pytest.mark.long)],
)
def test_a_run_killed_at_random_moments_ends_as_the_undisturbed_one(
    small: list[str], tmp_path: Path, processes: int, kills: int
) -> None:
    run = [*small, f"--max_iters={3 * kills}", "--checkpoint_interval=1", "--eval_iters=3"]
    in_processes(tmp_path, (processes, run))
    killed = tmp_path / "killed"
    numbers = [str(processes), str(kills)]
    argv = ["-c", KILLER, str(tmp_path), *numbers, *run, f"--out_dir={killed}", "--init_from=auto"]
    (done,) = forked({"argv": argv, "seconds": 300})
    assert done["code"] == 0, done
    log = re.search(r"KILLS (.*)", done["out"])[1]  # type: ignore[index]
    assert log.count("save") + log.count("anywhere") == kills and log.count("save") > kills / 2
    assert "skipping" not in done["err"]  # no kill ever left a checkpoint that looks complete and is not
    ends_equal(tmp_path / "run", killed)
    names = [path.name for path in killed.iterdir()]
    left = [name for name in names if name.startswith((".ckpt", "ckpt"))]
    assert len(left) == 2 * len(checkpoint.find(killed)), left  # nothing half-written is left behind


@pytest.mark.parametrize("damage", ["truncated", "one bit flipped"])
def test_a_damaged_newest_checkpoint_is_passed_over_unless_it_was_named(
    small: list[str], tmp_path: Path, capsys, damage: str
) -> None:
    run = tmp_path / "run"
    assert train.main([*small, "--checkpoint_interval=3"]) == 0
    undisturbed = (without_seconds(run), checkpoint.load(checkpoint.newest(run)))
    newest = checkpoint.newest(run).path
    data = bytearray(newest.read_bytes())
    if damage == "truncated":
        del data[-100:]
    else:
        data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    assert train.main([*small, "--checkpoint_interval=3", f"--init_from={newest}"]) == 2
    assert re.fullmatch(r"train.py: \S+ckpt_000012.pt is (damaged|truncated).*\n", capsys.readouterr().err)
    assert train.main([*small, "--checkpoint_interval=3", "--init_from=auto"]) == 0
    shown = capsys.readouterr()
    assert re.fullmatch(r"train.py: skipping a damaged checkpoint: \S+ckpt_000012.pt is .*\n", shown.err)
    assert "resuming after step 9" in shown.out
    again = checkpoint.load(checkpoint.newest(run))
    assert undisturbed[0] == without_seconds(run) and same(undisturbed[1]["model"], again["model"])
    assert same(undisturbed[1]["optimizer"], again["optimizer"])
    assert (run / "previous-1" / newest.name).read_bytes() == bytes(data)  # moved, not lost


def test_auto_with_nothing_whole_starts_from_scratch(small: list[str], tmp_path: Path, capsys) -> None:
    assert train.main([*small, "--max_iters=3"]) == 0
    os.truncate(checkpoint.newest(tmp_path / "run").path, 1000)
    assert train.main([*small, "--max_iters=3", "--init_from=auto"]) == 0
    shown = capsys.readouterr()
    assert "ckpt_000003.pt is truncated" in shown.err and "resuming" not in shown.out
    assert checkpoint.newest(tmp_path / "run").step == 3


def test_a_checkpoint_that_is_named_starts_another_run(small: list[str], tmp_path: Path) -> None:
    assert train.main([*small, "--keep_checkpoints=9"]) == 0
    other = [*small, f"--out_dir={tmp_path / 'other'}", f"--init_from={tmp_path / 'run' / 'ckpt_000006.pt'}"]
    assert train.main(other) == 0
    assert without_seconds(tmp_path / "other") == [row for row in without_seconds(tmp_path / "run")
                                                   if int(row["step"]) > 6]


def test_a_file_that_cannot_be_deleted_fails_no_save(tmp_path: Path, monkeypatch) -> None:
    def refuse(path: Path, **_: object) -> None:
        raise PermissionError(1, "Operation not permitted", str(path))

    monkeypatch.setattr(Path, "unlink", refuse)
    (tmp_path / ".ckpt_000000.pt.1.tmp").touch()
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, step, None, {"x": torch.zeros(3)}, keep=1)
    assert [found.step for found in checkpoint.find(tmp_path)] == [1, 2, 3]


@pytest.mark.parametrize("damage", ["foreign", "truncated", "missing", "beyond the vocabulary"])
def test_data_that_is_not_what_was_prepared_is_refused(
    small: list[str], corpus: str, tmp_path: Path, capsys, damage: str
) -> None:
    data = shutil.copytree(corpus, tmp_path / "data")
    shard = data / "train_00000.bin"
    ids = np.fromfile(shard, np.uint16)
    if damage == "missing":
        shard.unlink()
    else:
        {"foreign": ids[::-1], "truncated": ids[:-1], "beyond the vocabulary": ids + 60_000}[damage].tofile(shard)
    run = [*small, f"--dataset={data}", "--max_iters=2"]
    if damage == "foreign":  # of the right size: nothing but a look at every byte finds it
        assert train.main(run) == 0
        run.append("--verify_data")
    capsys.readouterr()
    assert train.main(run) == 2
    said = {"foreign": "was changed since it was prepared (its sha256 differs)", "truncated": "has 79,998 bytes",
            "missing": "is missing although", "beyond the vocabulary": "but the vocabulary has"}  # fmt: skip
    line = capsys.readouterr().err
    assert re.fullmatch(rf"train.py: {re.escape(str(shard))} .*\n", line) and said[damage] in line


def wait_for(condition, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def children(pid: int) -> list[int]:
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def has_rows(out_dir: Path, rows: int = 4) -> bool:
    """Whether metrics.csv has so many rows, of which the first is step 0."""
    path = out_dir / "metrics.csv"
    return path.exists() and path.read_text().count("\n") > rows


@pytest.mark.parametrize(
    ("number", "processes"), [(signal.SIGTERM, 2), (signal.SIGUSR1, 2), (signal.SIGINT, 1)], ids=str
)
def test_a_signal_ends_a_run_with_a_checkpoint_of_its_step(
    small: list[str], tmp_path: Path, number: signal.Signals, processes: int
) -> None:
    """SIGTERM reaches torchrun, which passes it on; SIGUSR1 reaches one of the two processes; Ctrl-C one alone."""
    run = [*small, "--max_iters=100000", "--lr_decay_iters=50", "--eval_interval=100000", "--log_interval=1"]
    command = [*TORCHRUN, str(ROOT / "train.py"), *run] if processes == 2 else ["train.py", *run]
    if number == signal.SIGTERM:
        command[0] = "torchrun of new processes"
    with begun({"argv": command, "env": {"PYTHONPATH": ENV["PYTHONPATH"]}}) as process:
        (pid,) = process.pids
        wait_for(lambda: has_rows(tmp_path / "run"))
        os.kill(children(pid)[-1] if number == signal.SIGUSR1 else pid, number)
        end = process.end()
    shown = end["out"] + end["err"]
    step = int(re.search(r"train.py: stopped after step (\d+); --init_from=auto resumes", shown)[1])  # type: ignore[index]
    assert [found.step for found in checkpoint.find(tmp_path / "run")] == [step]
    assert "Signal 9" not in shown
    if processes == 1:
        assert end["code"] == 130 and "Traceback" not in shown
    elif number == signal.SIGUSR1:
        assert "exitcode  : 130" in shown  # torchrun's report of its processes
    whole = [*small, f"--max_iters={step + 3}", "--lr_decay_iters=50", "--eval_interval=100000", "--log_interval=1"]
    assert train.main([*whole, "--init_from=auto"]) == 0
    assert train.main([*whole, f"--out_dir={tmp_path / 'undisturbed'}"]) == 0
    if processes == 1:
        ends_equal(tmp_path / "run", tmp_path / "undisturbed")
    else:
        assert [row["step"] for row in without_seconds(tmp_path / "run")] == list(map(str, range(step + 4)))


def test_a_validation_cut_short_is_left_to_the_resumed_run(small: list[str], tmp_path: Path, monkeypatch) -> None:
    assert train.main(small) == 0
    move, calls = train.World.move, []

    def interrupted(self: train.World, x: torch.Tensor) -> torch.Tensor:
        calls.append(None)
        if len(calls) == 6 + 6 * 4 + 2:  # x and y: 3 batches at step 0, 2 in each of 6 steps, 1 of the next validation
            os.kill(os.getpid(), signal.SIGTERM)
        return move(self, x)

    cut = [*small, f"--out_dir={tmp_path / 'cut'}", "--init_from=auto"]
    monkeypatch.setattr(train.World, "move", interrupted)
    assert train.main(cut) == 130
    monkeypatch.setattr(train.World, "move", move)
    (saved,) = checkpoint.find(tmp_path / "cut")
    assert (saved.step, saved.val_loss) == (6, None) and without_seconds(tmp_path / "cut")[-1]["step"] == "3"
    assert train.main(cut) == 0
    ends_equal(tmp_path / "run", tmp_path / "cut")


# Says where it is, and stays there: in the preparation of its data, in the compiler, in a validation in mid-run.
PHASES = """
import os, sys, time, torch._inductor, train
from pathlib import Path
from data import preparation
from data.tokenizer import CharTokenizer
folder, phase, argv = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
def dwelling(real):
    def dwell(*args, **kwargs):
        print("in", phase, os.environ["RANK"], flush=True)
        time.sleep(0.05 if phase == "validation" else 60)
        return real(*args, **kwargs)
    return dwell
if phase == "preparation":
    slow = preparation.Source("slow", CharTokenizer("ab"), dwelling(iter), {"text": "none"})
    def open_dataset(*_, **__):  # one prepares, the other waits for it
        print("in", phase, os.environ["RANK"], flush=True)
        preparation.prepare(slow, folder / "data")
    train.open_dataset = open_dataset
elif phase == "compilation":
    torch._inductor.compile = dwelling(torch._inductor.compile)
else:
    evaluations = []
    def evaluate(*args, real=train.evaluate):
        evaluations.append(None)
        if len(evaluations) == 2:
            train.World.move = dwelling(train.World.move)
        return real(*args)
    train.evaluate = evaluate
train.parallel.end(train.main(argv))
"""


@pytest.mark.parametrize("phase", ["preparation", "validation", pytest.param("compilation", marks=pytest.mark.long)])
def test_ctrl_c_to_torchrun_ends_every_process_wherever_it_is(small: list[str], tmp_path: Path, phase: str) -> None:
    """Under a terminal Ctrl-C reaches torchrun alone, whose workers have sessions of their own."""
    (tmp_path / "rank.py").write_text(PHASES)
    command = [*TORCHRUN, tmp_path / "rank.py", tmp_path, phase, *small, "--eval_iters=0"]
    if phase == "compilation":
        command += ["--compile=None", "--n_embd=96"]  # from 100,000 parameters on the optimizer is compiled
    said = tmp_path / "said.txt"
    said.touch()
    with begun({"argv": [*map(str, command)], "out": str(said)}) as process:
        wait_for(lambda: {f"in {phase} 0", f"in {phase} 1"} <= {*said.read_text().splitlines()})
        (pid,) = process.pids
        workers = children(pid)
        began = time.monotonic()
        os.kill(pid, signal.SIGINT)
        seen = process.end()["err"] + said.read_text()
        assert time.monotonic() - began < 20, seen
    assert "Signal 9" not in seen and not any(Path(f"/proc/{pid}").exists() for pid in workers)
    found = [(found.step, found.val_loss) for found in checkpoint.find(tmp_path / "run")]
    if phase == "validation":
        assert "train.py: stopped after step 6; --init_from=auto resumes" in seen and found == [(6, None)]
    else:
        assert "train.py: stopped before its first step, with nothing new to save" in seen and not found


@pytest.mark.long
def test_a_signal_ends_a_real_compilation(small: list[str], tmp_path: Path) -> None:
    env = ENV | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, ROOT / "train.py", *small, "--compile=None", "--n_embd=96"]
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        wait_for(lambda: [*(tmp_path / "cache").rglob("*.main.cpp")] and has_rows(tmp_path / "run", 1), 300)
        wait_for(lambda: len([*(tmp_path / "cache").rglob("*.main.cpp")]) >= 3, 300)  # the optimizer's, one by one
        process.send_signal(signal.SIGTERM)
        assert "stopped before its first step" in process.communicate(timeout=60)[1]
    assert process.returncode == 130 and not checkpoint.find(tmp_path / "run")
    wait_for(lambda: not any(stat.read_text().split()[5] == str(process.pid) for stat in stats()), 10)  # no compiler


def stats() -> list[Path]:
    """One /proc/*/stat for each process, whose sixth word is its session."""
    return [path for path in Path("/proc").glob("[0-9]*/stat") if path.exists()]


def test_before_the_first_step_a_signal_ends_the_run_at_once(small: list[str], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(train, "open_dataset", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
    assert train.main(small) == 130
    assert not (tmp_path / "run").exists()


STUCK = """
import pathlib, time, train
def stuck(*_):
    train.signals.between_steps_only()
    pathlib.Path("stuck").touch()
    time.sleep(99)
train.accumulate = stuck
"""


def test_a_second_ctrl_c_ends_at_once(small: list[str], tmp_path: Path) -> None:
    with begun({"argv": ["train.py", *small], "patch": STUCK, "cwd": str(tmp_path)}) as process:
        wait_for((tmp_path / "stuck").exists)
        (pid,) = process.pids
        os.kill(pid, signal.SIGINT)
        time.sleep(0.5)
        assert Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"  # the first one waits for the end of the step
        os.kill(pid, signal.SIGINT)
        assert process.end()["code"] == -signal.SIGINT


NAN_ON_ONE_RANK = """
import json, pathlib, train
kept, before = [], {}
def keep(*args, build=train.optimizers.build, **kwargs):
    kept.append(build(*args, **kwargs))
    return kept[-1]
def spoil(net, tokens, step, cfg, world, real=train.accumulate):
    if step == 6:  # what step 5 left behind
        after = state()
        there = pathlib.Path(cfg.out_dir, f"{rank}.json")
        there.write_text(json.dumps([before["x"] == after, int(kept[-1].skipped), after]))
    before["x"] = state()
    if step == 5 and rank == 1:
        handles = [p.register_hook(lambda g: g * float("nan")) for p in net.parameters()]
    loss = real(net, tokens, step, cfg, world)
    if step == 5 and rank == 1:
        [handle.remove() for handle in handles]
    return loss
def state():
    sums = [p.double().sum().item() for group in kept[-1].param_groups for p in group["params"]]
    return [sums, kept[-1].coefficients]
train.optimizers.build, train.accumulate = keep, spoil
"""


def test_a_nan_on_one_process_skips_the_step_on_every_one(small: list[str], tmp_path: Path) -> None:
    in_processes(tmp_path, (2, small, NAN_ON_ONE_RANK))
    ranks = [json.loads((tmp_path / "run" / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert ranks[0] == ranks[1]
    untouched, skipped, _ = ranks[0]
    assert untouched and skipped == 1


@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=pytest.mark.long)], ids=["eager", "compiled"])
def test_runs_on_two_processes_resume_bitwise(small: list[str], tmp_path: Path, compile: bool) -> None:
    runs = []
    for name in OPTIMIZERS:
        run = [*small, f"--optimizer={name}", "--lr_decay_iters=12", f"--compile={compile}"]
        run += ["--hyper_lr=None"] * (name != "mada")
        there = f"--out_dir={tmp_path / name}-resumed"
        runs.append((2, [*run, f"--out_dir={tmp_path / name}"]))
        runs += [(2, [*run, there, f"--max_iters={steps}", "--init_from=auto"]) for steps in (6, 12)]
    in_processes(tmp_path, *runs)
    for name in OPTIMIZERS:
        ends_equal(tmp_path / name, tmp_path / f"{name}-resumed")


def test_another_number_of_processes_continues_the_same_curve(small: list[str], tmp_path: Path) -> None:
    run = [*small, "--gradient_accumulation_steps=4", "--lr_decay_iters=12", "--log_interval=1"]
    there = f"--out_dir={tmp_path / 'other'}"
    parts = ((4, 5), (2, 8), (1, 12))  # so many processes until this step
    resumed = [(size, [*run, there, f"--max_iters={end}", "--init_from=auto"]) for size, end in parts]
    in_processes(tmp_path, (1, run), *resumed)
    for one, other in zip(without_seconds(tmp_path / "run"), without_seconds(tmp_path / "other"), strict=True):
        for name in one:
            if one[name]:  # the ends of the parts are validated too
                assert float(other[name]) == pytest.approx(float(one[name]), rel=2e-5, abs=2e-6), (one["step"], name)


TROUBLE = """
import os, pathlib, signal, sys, time, train
folder, hang, die = pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
def accumulate(net, tokens, step, cfg, world, real=train.accumulate):
    if world.rank == 1:
        for trouble, when in (("hang", hang), ("die", die)):
            if step == when and not (folder / trouble).exists():
                (folder / trouble).touch()
                time.sleep(600) if trouble == "hang" else os.kill(os.getpid(), signal.SIGKILL)
    return real(net, tokens, step, cfg, world)
train.accumulate = accumulate
train.parallel.end(train.main(sys.argv[4:]))
"""


def test_torchrun_brings_back_a_run_of_which_a_process_hangs_and_one_dies(small: list[str], tmp_path: Path) -> None:
    (tmp_path / "rank.py").write_text(TROUBLE)
    run = [*small, "--checkpoint_interval=2"]
    command = [*TORCHRUN, "--max-restarts=2", tmp_path / "rank.py", tmp_path, "5", "8", *run, "--init_from=auto",
               "--dist_timeout=12", f"--out_dir={tmp_path / 'troubled'}"]  # fmt: skip
    (done,) = forked({"argv": [*map(str, command)]})
    assert done["code"] == 0, done
    assert (tmp_path / "hang").exists() and (tmp_path / "die").exists()
    assert re.search(  # of either process, or both
        r"train.py: \d+ seconds without a step\. rank \d: in step 5, \S+ \((?:accumulate|backward)\); "
        r"rank \d: in step 5, \S+ \((?:accumulate|backward)\)\. --init_from=auto resumes", done["err"],
    )  # fmt: skip
    assert "rank.py:9 (accumulate)" in done["err"] and "Traceback" not in done["err"]
    assert "train.py: rank 0 lost another process in step 8 (" in done["err"]
    assert [line for line in done["out"].splitlines() if "resuming" in line] == [
        "resuming after step 4", "resuming after step 6"]  # fmt: skip
    in_processes(tmp_path, (2, run))
    ends_equal(tmp_path / "run", tmp_path / "troubled")
