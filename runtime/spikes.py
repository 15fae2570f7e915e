"""Loss spikes: how they are detected, and which batches a run skips after it returned to an earlier checkpoint."""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from cli import DIVERGED, STOPPED

from runtime.checkpoint import Checkpoint, find
from runtime.watchdog import GO_ON

WINDOW = 100  # rows that a loss is compared with
LEAST = 20  # rows before the first comparison
RETURNS = 3  # to the same checkpoint; then the batches are not the cause of its spikes


@dataclass(frozen=True)
class Stop:
    """The run ends before its last step."""

    exit_code: int
    why: str

    def say(self, program: str, rank: int) -> int:
        """Print the reason, on rank 0 only; return the exit code."""
        if rank == 0:
            print(f"{program}: {self.why}", file=sys.stderr)
        return self.exit_code


def stopped(step: int) -> Stop:
    """After a signal, when the step has been saved."""
    return Stop(STOPPED, f"stopped after step {step}; {GO_ON}")


def ended(val_losses: list[float]) -> Stop | None:
    """After the last step: what is wrong with a run that came to nothing."""
    if val_losses and not math.isfinite(val_losses[-1]):
        return Stop(DIVERGED, f"the last validation loss is {val_losses[-1]}: lower the learning rate")
    return None


@dataclass(frozen=True)
class Rollback:
    """The run returns to a checkpoint and continues from there without the batches since."""

    to: Checkpoint
    skipped: list[tuple[int, int]]  # see Spikes


@dataclass
class Spikes:
    """The recent losses and skipped batches of a run, which are part of every checkpoint.

    A spike is a training loss that exceeds the mean of the last WINDOW rows by more than `deviations` of their standard
    deviations (OLMo 2's spike score, arXiv 2501.00656, counts those above 7 over the last 1000 steps). A loss that is
    not finite is not counted: its step was skipped by the optimizer.
    """

    recent: list[float] = field(default_factory=list)  # training losses of the last rows, at most WINDOW
    skipped: list[tuple[int, int]] = field(default_factory=list)  # (step, number of batches skipped after it), in order

    def batch(self, step: int) -> int:
        """The number of the batch of a step: the step plus the number of skipped batches."""
        return step + sum(count for _, count in self.skipped)

    def add(self, loss: float, deviations: float) -> str | None:
        """Add the training loss of a row. Returns a description if it is a spike."""
        if not math.isfinite(loss):
            return None
        description = None
        if deviations and len(self.recent) >= LEAST:
            mean, std = statistics.fmean(self.recent), statistics.pstdev(self.recent)
            if loss > mean + deviations * std:
                description = f"training loss {loss:.4f}, the {len(self.recent)} rows before it {mean:.4f} +- {std:.4f}"
        self.recent = [*self.recent, loss][-WINDOW:]
        return description

    def judge(self, step: int, loss: float, skipped_steps: int, cfg: Any, say: Callable[[str], None],
              first: Callable[[Any], Any]) -> Stop | Rollback | None:  # fmt: skip
        """Whether the run stops or rolls back after a step, as too many gradients were not finite or the loss spiked.

        Args:
            loss: the training loss of the step; ignored at step 0.
            skipped_steps: consecutive steps that the optimizer skipped because the gradient was not finite.
            cfg: has out_dir, max_skipped, spike_deviations, on_spike.
            say: prints a line.
            first: gives all processes the first one's value.
        """
        if skipped_steps >= cfg.max_skipped:
            last = _last(find(cfg.out_dir))
            return Stop(DIVERGED, f"step {step}: no finite gradient for {skipped_steps} steps; they were skipped, and "
                                  f"{last}: lower the learning rate")  # fmt: skip
        description = self.add(loss, cfg.spike_deviations) if step else None
        if not description:
            return None
        say(f"step {step}: a loss spike: {description}")
        # Only checkpoints of validations: they exist whether or not signals made the run save at other steps.
        good = first([found for found in find(cfg.out_dir) if found.val_loss is not None and found.step < step])
        returns = sum(after == good[-1].step for after, _ in self.skipped) if good else 0
        if cfg.on_spike == "stop" or (cfg.on_spike == "skip" and returns == RETURNS):
            again = f" again, after skipping batches {RETURNS} times" if cfg.on_spike == "skip" else ""
            last = _last(good, " before it")
            return Stop(DIVERGED, f"step {step}: a loss spike{again}; {last}: lower the learning rate")
        if cfg.on_spike == "skip" and good:
            return Rollback(good[-1], [*self.skipped, (good[-1].step, step - good[-1].step)])
        return None


def _last(found: list[Checkpoint], which: str = "") -> str:
    return f"the last checkpoint{which} is {found[-1].path}" if found else f"there is no checkpoint{which}"
