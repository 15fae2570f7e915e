"""Sharded runs on 2 and 4 gloo processes: equal to one process, and their checkpoints good for any number of them."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from outcomes import ends_equal, rows, without_seconds
from processes import launched

import export
import sample
import train
from evaluation import perplexity
from runtime import checkpoint

TESTS = Path(__file__).parent
SIX = ("adam", "avgrad", "adan", "lion", "hyperadam", "mada")
HYPER = {"hyperadam": dict.fromkeys(("beta1", "beta2"), 0.03),
         "mada": dict.fromkeys(("beta1", "beta2", "beta3", "rho", "c", "gamma"), 0.03)}  # fmt: skip


def base(corpus: str, optimizer: str, out_dir: Path) -> list[str]:
    """20 steps of 4 micro-batches with clipping, dropout, two param groups and parameters too small for 4 processes."""
    return [
        f"--dataset={corpus}", f"--out_dir={out_dir}", "--n_layer=2", "--n_head=2", "--n_embd=6",
        "--block_size=8", "--batch_size=2", "--gradient_accumulation_steps=4", "--dropout=0.1", "--max_iters=20",
        "--eval_interval=20", "--eval_iters=4", "--log_interval=1", "--warmup_iters=4", "--learning_rate=1e-2",
        "--min_lr=1e-3", "--grad_clip=0.5", "--lr_decay_iters=20", "--device=cpu", "--compile=False",
        f"--optimizer={optimizer}", f"--hyper_lr={HYPER.get(optimizer)}", "--hyper_momentum=0.5", "--dist_timeout=240",
        "--vocab_multiple=16",
    ]  # fmt: skip


def nearly_equal(one: Path, other: Path) -> None:
    """Rows and the last checkpoint, to the round-off of float32."""
    for a, b in zip(without_seconds(one), without_seconds(other), strict=True):
        for name in a:
            assert bool(a[name]) == bool(b[name])
            if a[name]:  # hypergradients are small sums of large terms
                near = pytest.approx(float(a[name]), rel=1e-3 if name.startswith("h_") else 3e-5, abs=2e-6)
                assert float(b[name]) == near, (a["step"], name)
    ends = [checkpoint.load(checkpoint.newest(out_dir)) for out_dir in (one, other)]
    assert ends[0]["model"].keys() == ends[1]["model"].keys()
    for name, tensor in ends[0]["model"].items():
        torch.testing.assert_close(ends[1]["model"][name], tensor, rtol=1e-5, atol=5e-6)
    states = [end["optimizer"]["state"] for end in ends]
    assert states[0].keys() == states[1].keys()
    for i, state in states[0].items():
        assert state.keys() == states[1][i].keys()
        for field, tensor in state.items():
            torch.testing.assert_close(states[1][i][field], tensor, rtol=1e-4, atol=5e-6)


@pytest.mark.parametrize(
    "layouts",
    [
        pytest.param({"fsdp-4": ("lion", "mada"), "fsdp-2": ("adan", "hyperadam")}, id="one-layout-each"),
        pytest.param(dict.fromkeys(("ddp-2", "ddp-4", "fsdp-2", "fsdp-4"), SIX), id="all", marks=pytest.mark.long),
    ],
)
def test_sharded_is_not_sharded_is_one_process(corpus: str, tmp_path: Path, layouts: dict[str, tuple]) -> None:
    several = {optimizer for optimizers in layouts.values() for optimizer in optimizers}
    jobs = [(1, base(corpus, optimizer, tmp_path / f"{optimizer}-one")) for optimizer in sorted(several)]
    pairs = [(optimizer, layout) for layout, optimizers in layouts.items() for optimizer in optimizers]
    for optimizer, layout in pairs:
        parallel, ranks = layout.split("-")
        argv = base(corpus, optimizer, tmp_path / f"{optimizer}-{layout}")
        jobs.append((int(ranks), [*argv, f"--parallel={parallel}"]))
    for job, answer in zip(jobs, launched(tmp_path, *jobs), strict=True):
        assert set(answer["codes"]) == {0}, (job, answer["said"])
        coefficients = [coefficients for coefficients, _ in answer["ranks"]]
        assert all(values == coefficients[0] for values in coefficients)  # bit by bit
        if "--parallel=fsdp" in job[1]:
            assert len({str(sums) for _, sums in answer["ranks"]}) == job[0]  # each has a part of its own
    for optimizer, layout in pairs:
        nearly_equal(tmp_path / f"{optimizer}-one", tmp_path / f"{optimizer}-{layout}")
    steps = rows(tmp_path / "mada-one")
    assert sum(float(row["grad_norm"] or 0) > 0.5 for row in steps) > 5  # it did clip
    assert abs(float(steps[-1]["beta1"]) - 0.9) > 5e-4  # and learn


KILL = """
import os, signal
real, calls = os.replace, [0]
def replace(*args):
    calls[0] += str(args[1]).endswith(".shards")
    if calls[0] == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    real(*args)
os.replace = replace
"""
FULL = """
import resource, signal, train
real = train.learning_rate
def spoil(step, cfg):
    if rank == 1 and step in (5, 9):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        most = resource.RLIM_INFINITY
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096 if step == 5 else most, most))
    return real(step, cfg)
train.learning_rate = spoil
"""
ALONE = """
import train
from runtime.checkpoint import CheckpointError
def choose(*args, real=train.checkpoint.choose):
    if rank == 1:
        raise CheckpointError("what this machine sees is damaged")
    return real(*args)
train.checkpoint.choose = choose
"""
LEAVE = """
import os, signal, train
real = train.evaluate
def evaluate(net, tokens, cfg, world):
    if rank == 1 and train.signals._at_boundaries:
        os.kill(os.getpid(), signal.SIGTERM)  # which the other rank does not know of
    return real(net, tokens, cfg, world)
train.evaluate = evaluate
"""


def test_checkpoints_of_parts(corpus: str, tmp_path: Path, capsys) -> None:
    """Saved on 4 processes, resumed on 2 and then 1; killed, damaged, without space; read by everyone else."""
    def argv(name: str, *changes: str) -> list[str]:
        return [*base(corpus, "mada", tmp_path / name), "--parallel=fsdp", "--checkpoint_interval=4",
                "--keep_checkpoints=9", *changes]  # fmt: skip

    whole, four, two, one, killed, again, full, left, resumed, low, alone = launched(
        tmp_path,
        (2, argv("whole")),
        (4, argv("moving", "--max_iters=7", "--activation_checkpointing")),
        (2, argv("moving", "--max_iters=14", "--init_from=resume")),
        (1, argv("moving", "--init_from=resume")),
        (2, argv("killed"), KILL),
        (2, argv("killed", "--init_from=auto")),
        (2, argv("full"), FULL),
        (2, argv("left", "--eval_interval=10"), LEAVE),
        (2, argv("left", "--eval_interval=10", "--init_from=auto")),
        (2, argv("low", "--dtype=bfloat16")),
        (2, argv("alone"), ALONE),
    )
    said = whole["said"]
    assert "UserWarning" not in said
    for answer in (whole, four, two, one, again, full, resumed, low):
        assert set(answer["codes"]) == {0}, said

    moved = {row["step"]: row["train_loss"] for row in rows(tmp_path / "moving")}
    for row in rows(tmp_path / "whole"):
        if row["train_loss"]:
            assert float(moved[row["step"]]) == pytest.approx(float(row["train_loss"]), rel=1e-5), row["step"]
    kinds = {found.step: found.path.suffix for found in checkpoint.find(tmp_path / "moving")}
    assert kinds == {4: ".shards", 7: ".shards", 8: ".shards", 12: ".shards", 14: ".shards", 16: ".pt", 20: ".pt"}
    ends = [checkpoint.load(checkpoint.newest(tmp_path / name)) for name in ("whole", "moving")]
    for name, tensor in ends[0]["model"].items():
        torch.testing.assert_close(ends[1]["model"][name], tensor, rtol=1e-5, atol=5e-6)

    assert -9 in killed["codes"]  # in the very rename that would have completed the third checkpoint
    assert "resuming after step 8" in said
    ends_equal(tmp_path / "whole", tmp_path / "killed")
    hidden = {path.name for path in (tmp_path / "killed").iterdir() if path.name.startswith(".")}
    assert hidden == {".lock"}  # nothing half-written

    assert "step 8 is not saved (File too large); the checkpoints before it are intact" in said
    assert [found.step for found in checkpoint.find(tmp_path / "full")] == [4, 12, 16, 20]
    ends_equal(tmp_path / "whole", tmp_path / "full")

    assert left["codes"] == [130, 130]
    assert checkpoint.find(tmp_path / "left")[-1].step == 20 and "resuming after step 10" in said
    assert [row["step"] for row in rows(tmp_path / "left")] == [row["step"] for row in rows(tmp_path / "whole")]

    for name, exact in without_seconds(tmp_path / "whole")[-1].items():
        if name.endswith("loss") and exact:
            rounded = float(rows(tmp_path / "low")[-1][name])
            assert rounded != float(exact) and rounded == pytest.approx(float(exact), abs=0.01)

    assert alone["codes"][1] == 2 and "train.py: rank 1: what this machine sees is damaged\n" in said

    found = checkpoint.newest(tmp_path / "whole")  # the others read the folder itself
    assert sample.main([f"--out_dir={tmp_path / 'whole'}", "--prompt=the ", "--max_new_tokens=5"]) == 0
    assert export.main([f"--out_dir={tmp_path / 'whole'}", "--one_file", f"--folder={tmp_path / 'file'}"]) == 0
    assert checkpoint.newest(tmp_path / "file").path.name == "ckpt_000020.pt"
    (tmp_path / "file" / "metrics.csv").write_bytes((tmp_path / "whole" / "metrics.csv").read_bytes())
    ends_equal(tmp_path / "whole", tmp_path / "file")
    goes_on = train.main([*argv("file", "--max_iters=21"), "--init_from=resume"])
    assert goes_on == 0 and checkpoint.newest(tmp_path / "file").step == 21
    subject = perplexity.open_subject(str(tmp_path / "whole"))
    assert subject.model.lm_head.weight is subject.model.transformer["wte"].weight
    assert torch.equal(subject.model.state_dict()["lm_head.weight"], ends[0]["model"]["lm_head.weight"])
    shard = sorted(found.path.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    capsys.readouterr()
    assert train.main([*argv("whole"), f"--init_from={found.path}"]) == 2
    assert f"ckpt_000020.shards is damaged (sha256 of {shard.name} differs" in capsys.readouterr().err
    shard.unlink()
    chosen, damaged = checkpoint.choose("auto", tmp_path / "whole")
    assert chosen and chosen["step"] == 16 and len(damaged) == 1


@pytest.mark.long
def test_a_compiled_sharded_run_is_the_uncompiled_one(corpus: str, tmp_path: Path) -> None:
    """By torchrun: the compiler does not work in forked processes."""
    for compiled in ("True", "False"):
        changes = ["--dropout=0", f"--compile={compiled}", "--dist_timeout=900"]
        argv = [*base(corpus, "mada", tmp_path / compiled), *changes]
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
        two = subprocess.run(
            [*command, TESTS.parent / "train.py", *argv, "--parallel=fsdp", "--activation_checkpointing"],
            capture_output=True, text=True, timeout=1800,
        )  # fmt: skip
        assert two.returncode == 0, two.stderr
        assert "without it" not in two.stdout and "uncompiled" not in two.stderr
    nearly_equal(tmp_path / "False", tmp_path / "True")
