"""Loss spikes: what is one, and runs that log it, stop, or go back and leave the batches out."""

import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from outcomes import ends_equal, rows
from processes import in_processes

import train
from runtime import checkpoint
from runtime.spikes import LEAST, WINDOW, Spikes


def test_a_spike_is_far_above_the_rows_before_it() -> None:
    noise = torch.randn(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    spikes = Spikes()
    for i, z in enumerate(noise.tolist()):  # a loss that falls, as noisy as losses are
        assert spikes.add(3 + 7 * 0.98**i + 0.1 * z, 7.0) is None
    assert len(spikes.recent) == WINDOW
    assert Spikes(spikes.recent).add(3.4, 7.0) is None
    assert Spikes(spikes.recent).add(4.0, 0.0) is None
    assert Spikes(spikes.recent).add(float("nan"), 7.0) is None
    words = spikes.add(4.0, 7.0)
    assert words and re.fullmatch(r"training loss 4.0000, the 100 rows before it 3.0\d+ \+- 0.\d+", words)
    early = Spikes()
    assert [early.add(loss, 7.0) for loss in [*[3.0, 3.1] * (LEAST // 2 - 1), 99.0]] == [None] * (LEAST - 1)


POISON = 43


@pytest.fixture
def poisoned(monkeypatch) -> Callable[..., list[int]]:
    """Makes batches spoil loss and gradient, and the process get a SIGTERM in others; returns the batches drawn."""

    def prepare(poison: Callable[[int], bool], term: tuple[int, ...] = ()) -> list[int]:
        drawn: list[int] = []

        def accumulate(net: torch.nn.Module, tokens, batch: int, *rest, real=REAL) -> torch.Tensor:
            drawn.append(batch)
            loss = real(net, tokens, batch, *rest)
            if batch in term:
                os.kill(os.getpid(), signal.SIGTERM)
            if not poison(batch):
                return loss
            for p in net.parameters():
                p.grad.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(batch)))
            return 5 * loss

        monkeypatch.setattr(train, "accumulate", accumulate)
        return drawn

    return prepare


REAL = train.accumulate


@pytest.fixture
def run(small: list[str]) -> list[str]:
    return [*small, "--max_iters=60", "--log_interval=1", "--eval_interval=10"]


def test_a_spike_is_logged_or_stops_the_run(run: list[str], poisoned, tmp_path: Path, capsys) -> None:
    poisoned(lambda batch: batch == POISON)
    assert train.main(run) == 0
    shown = capsys.readouterr().out
    assert len(re.findall(r"^step \d+: a loss spike: ", shown, re.M)) == 1 and f"step {POISON}: a loss spike" in shown
    assert train.main([*run, "--on_spike=stop"]) == 3
    assert re.fullmatch(
        rf"train.py: step {POISON}: a loss spike; the last checkpoint before it is \S+ckpt_000040.pt: .*\n",
        capsys.readouterr().err,
    )
    assert rows(tmp_path / "run")[-1]["step"] == str(POISON)  # with the row that shows it


def test_a_run_goes_back_before_a_spike_and_skips_the_batches_however_it_is_interrupted(
    run: list[str], poisoned, tmp_path: Path, capsys
) -> None:
    run = [*run, "--on_spike=skip"]
    drawn = poisoned(lambda batch: batch == POISON)
    assert train.main(run) == 0
    assert drawn == list(range(1, 64))  # steps 1 to 43, then 41 to 60 with the batches 44 to 63
    assert "resuming after step 40, without the 3 batches after step 40" in capsys.readouterr().out
    got = rows(tmp_path / "run")
    assert [int(row["step"]) for row in got] == list(range(61))
    assert max(float(row["train_loss"]) for row in got[1:]) < 5
    assert json.loads((tmp_path / "run" / "config.json").read_text())["skipped"] == [[40, 3]]

    # Signals before the spike, in its very step and after it: checkpoints at other steps, the same end.
    other = [*run, f"--out_dir={tmp_path / 'other'}", "--init_from=auto"]
    for batch in (41, POISON, 46):
        poisoned(lambda batch: batch == POISON, term=(batch,))
        assert train.main(other) == 130
    assert [found.step for found in checkpoint.find(tmp_path / "other")] == [40, 43]
    poisoned(lambda batch: batch == POISON)
    assert train.main(other) == 0
    ends_equal(tmp_path / "run", tmp_path / "other")


SPOIL = f"""
import train
def accumulate(net, tokens, batch, *rest, real=train.accumulate):
    return real(net, tokens, batch, *rest) * (5 if batch == {POISON} else 1)
train.accumulate = accumulate
"""


def test_two_processes_go_back_together(run: list[str], tmp_path: Path) -> None:
    in_processes(tmp_path, (2, [*run, "--on_spike=skip"], SPOIL))
    assert [int(row["step"]) for row in rows(tmp_path / "run")] == list(range(61))
    assert json.loads((tmp_path / "run" / "config.json").read_text())["skipped"] == [[40, 3]]


def test_spikes_that_other_batches_do_not_cure_stop_the_run(run: list[str], poisoned, capsys) -> None:
    drawn = poisoned(lambda batch: batch >= POISON)
    assert train.main([*run, "--on_spike=skip"]) == 3
    assert len(drawn) == POISON + 3
    assert re.fullmatch(
        r"train.py: step 41: a loss spike again, after skipping batches 3 times; the last .*ckpt_000040.pt: .*\n",
        capsys.readouterr().err,
    )


def test_without_a_checkpoint_to_go_back_to_a_spike_is_only_logged(run: list[str], poisoned, capsys) -> None:
    poisoned(lambda batch: batch == POISON)
    assert train.main([*run, "--on_spike=skip", "--eval_interval=100"]) == 0
    assert f"step {POISON}: a loss spike" in capsys.readouterr().out
