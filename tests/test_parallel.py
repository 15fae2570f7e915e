"""Devices that a run may ask for, as a machine with GPUs would see it, and who says what is wrong."""

import cli

import pytest
import torch

from runtime import parallel


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two old cards, as far as torch is asked; the devices that were set."""
    chosen: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    return chosen


@pytest.mark.parametrize(
    ("device", "processes", "message"),
    [
        ("cuda:1", 1, None),
        ("auto", 2, None),
        ("cpu", 3, None),
        ("cuda:2", 1, "device='cuda:2', but torch finds 2 here: cuda:0 to cuda:1"),
        ("auto", 3, "3 processes on this machine, but only 2 GPUs: use --nproc_per_node=2, or --device=cpu"),
        ("cpu:1", 1, "device='cpu:1' must be auto, cpu, cuda or cuda:N"),
        ("cuda:", 1, "device='cuda:' must be auto, cpu, cuda or cuda:N"),
    ],
)
def test_devices_that_are_not_there_are_refused(
    two_gpus: list[str], device: str, processes: int, message: str | None, monkeypatch
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert list(parallel.device_problems(device)) == ([] if message is None else [("device", message)])


def test_the_device_that_was_named_is_the_current_one_and_emulated_bfloat16_is_not_chosen(two_gpus: list[str]) -> None:
    world = parallel.join("cuda:1", "auto", 60)
    assert two_gpus == ["cuda:1"] and world.device == torch.device("cuda:1") and world.dtype == torch.float32
    assert parallel.join("cuda", "bfloat16", 60).dtype == torch.bfloat16 and two_gpus == ["cuda:1"]


@pytest.mark.parametrize(
    ("rank", "local_rank", "met", "said"),
    [
        (0, 0, False, "train.py: wrong\n"),
        (1, 1, False, ""),
        (8, 0, False, "train.py: rank 8: wrong\n"),  # of another machine
        (0, 0, True, "train.py: wrong\n"),
        (1, 1, True, "train.py: rank 1: wrong\n"),
    ],
)
def test_each_mistake_is_said(rank: int, local_rank: int, met: bool, said: str, monkeypatch, capsys) -> None:
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("LOCAL_RANK", str(local_rank))
    monkeypatch.setattr(cli, "alone", met)
    cli.complain("train.py", ValueError("wrong"))
    assert capsys.readouterr().err == said
