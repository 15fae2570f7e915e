"""What memory.py counts, against what processes take."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import train
from model import GPT, GPTConfig
from optim import build_optimizer
from runtime import memory

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("name", memory.OPTIMIZERS)
@pytest.mark.parametrize(("vocab_size", "n_embd"), [(50, 24), (101, 65)])
def test_counted_states_are_those_of_the_optimizer(name: str, vocab_size: int, n_embd: int) -> None:
    config = GPTConfig(block_size=16, vocab_size=vocab_size, n_layer=2, n_head=1, n_embd=n_embd)
    model = GPT(config)
    optimizer = build_optimizer(name, model.parameters(), **memory.OPTIMIZERS[name])
    (bucket,) = optimizer.buckets
    kept = [*bucket.states.values()] + ([] if bucket.pending is None else [bucket.pending])
    counted = memory.needed(config, 1, optimizer.options.state_bytes())
    assert counted.states == sum(matrix.nbytes for matrix in kept) > 0
    assert counted.weights == bucket.x.nbytes and counted.gradients == bucket.g.nbytes
    assert counted.passing == 0
    over_two = memory.needed(config, 1, optimizer.options.state_bytes(), processes=2, parallel="fsdp")
    assert counted.states / 2 <= over_two.states < counted.states
    assert memory.needed(config, 1, 8, processes=2).gradients == 2 * counted.gradients


def test_a_model_by_hand() -> None:
    """GPT-2 XL with MADA, 1,557,686,400 parameters with padding, on one GPU: 36 bytes each, and 2 for autocast."""
    config, batch_size = memory.MODELS["1.5B"]
    need = memory.needed(config, batch_size, 28, dtype=torch.bfloat16, activation_checkpointing=True)
    assert (need.weights + need.gradients + need.states) / 1_557_686_400 == pytest.approx(36, rel=2e-4)
    assert need.passing / 1_557_686_400 == pytest.approx(2, rel=2e-3)
    eight = memory.needed(config, batch_size, 28, 8, "fsdp", torch.bfloat16, True)
    assert (eight.weights + eight.gradients + eight.states) / 1_557_686_400 == pytest.approx(40 / 8, rel=2e-3)


def test_a_run_that_cannot_fit_is_refused_before_it_takes_memory(small: list[str], tmp_path: Path, capsys) -> None:
    huge = [*small, "--n_embd=200000"]  # a trillion parameters
    assert train.main(huge) == 2
    error = capsys.readouterr().err
    assert "each process needs about " in error and " GB of cpu: lower batch_size=4" in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_running_out_of_memory_is_reported_in_one_line(small: list[str], monkeypatch, capsys) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.24 GiB. GPU 0 has a total capacity of")

    monkeypatch.setattr(train, "accumulate", full)
    assert train.main(small) == 2
    said = "train.py: rank 0 is out of memory (CUDA out of memory. Tried to allocate 1.24 GiB): lower batch_size=4, "
    assert capsys.readouterr().err.startswith(said)


def test_gradients_lie_in_the_optimizers_buffer_from_the_first_step_on(small: list[str], monkeypatch) -> None:
    built, seen = [], []

    def build(*args, real=train.optimizers.build, **kwargs):
        built.append(real(*args, **kwargs))
        return built[-1]

    def accumulate(net, *rest, real=train.accumulate):
        loss = real(net, *rest)
        gradients = [built[-1].buckets[0].g, *(p.grad for p in net.parameters())]
        seen.append(len({gradient.untyped_storage().data_ptr() for gradient in gradients}) == 1)
        return loss

    monkeypatch.setattr(train.optimizers, "build", build)
    monkeypatch.setattr(train, "accumulate", accumulate)
    assert train.main([*small, "--max_iters=2"]) == 0
    assert train.main([*small, "--max_iters=3", "--init_from=resume"]) == 0
    assert seen == [True] * 3


@pytest.mark.long
@pytest.mark.parametrize(
    ("processes", "settings"),
    [
        (1, ["adam"]),
        (1, ["mada"]),
        (1, ["adam", "--activation_checkpointing", "--batch_size=8"]),
        (1, ["mada", "--dtype=bfloat16", "--batch_size=8"]),
        (2, ["adam"]),
        (2, ["mada", "--parallel=fsdp"]),
        (2, ["adam", "--parallel=fsdp", "--dtype=bfloat16", "--activation_checkpointing", "--batch_size=8"]),
    ],
)
def test_the_peak_of_a_process_is_within_a_tenth(processes: int, settings: list[str]) -> None:
    optimizer, *more = settings
    torchrun = ["torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m"] if processes > 1 else []
    run = subprocess.run(
        [sys.executable, "-m", *torchrun, "benchmarks.scale", f"--alone=124M-{optimizer}", "--seconds=0",
         "--device=cpu", "--n_layer=4", "--n_head=4", "--n_embd=256", "--block_size=128", "--batch_size=2",
         "--gradient_accumulation_steps=2", *more],
        cwd=ROOT, capture_output=True, text=True, timeout=3600,  # bfloat16 is slow on many processors
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    row = json.loads(run.stdout.splitlines()[-1])
    assert row["peak_bytes"] == pytest.approx(row["counted_bytes"], rel=0.1), row
