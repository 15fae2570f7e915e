"""Loss spikes: when a loss counts as one, and which batches a run skips after it went back to before one."""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from runtime.checkpoint import Checkpoint, find, last_of
from runtime.watchdog import GO_ON

WINDOW = 100  # rows that a loss is compared with, once there are LEAST of them
LEAST = 20
RETURNS = 3  # to the same checkpoint; a spike that comes again after so many other batches is not their fault
DIVERGED, STOPPED = 3, 130  # exit codes


@dataclass(frozen=True)
class Stop:
    """A run ends before its last step."""

    exit_code: int
    why: str

    def say(self, program: str, rank: int) -> int:
        """Print why, once for all processes; return the exit code."""
        if rank == 0:
            print(f"{program}: {self.why}", file=sys.stderr)
        return self.exit_code


def stopped(step: int) -> Stop:
    """A signal asked the run to leave, and it saved this step."""
    return Stop(STOPPED, f"stopped after step {step}; {GO_ON}")


@dataclass(frozen=True)
class Rollback:
    """The run goes back to a checkpoint and on from there without the batches since."""

    to: Checkpoint
    skipped: list[tuple[int, int]]  # as in Spikes


@dataclass
class Spikes:
    """What a run remembers of its losses. It is a part of every checkpoint: what is skipped depends on what is stored.

    A spike is a training loss above the mean of the WINDOW rows before it by more than `deviations` of their standard
    deviations (OLMo 2's spike score, arXiv 2501.00656, counts those above 7, of the last 1000 steps). A loss that is
    not finite is none: its step was skipped already.
    """

    recent: list[float] = field(default_factory=list)  # training losses of the last rows, WINDOW at most
    skipped: list[tuple[int, int]] = field(default_factory=list)  # (after this step, so many batches), in order

    def batch(self, step: int) -> int:
        """The number of the batch of a step: the step's own, moved on by those that were skipped."""
        return step + sum(count for _, count in self.skipped)

    def add(self, loss: float, deviations: float) -> str | None:
        """Take a row's training loss; return the words for it if it is a spike."""
        words = None
        if not math.isfinite(loss):
            return None
        if deviations and len(self.recent) >= LEAST:
            mean, std = statistics.fmean(self.recent), statistics.pstdev(self.recent)
            if loss > mean + deviations * std:
                words = f"training loss {loss:.4f}, the {len(self.recent)} rows before it {mean:.4f} +- {std:.4f}"
        self.recent = [*self.recent, loss][-WINDOW:]
        return words

    def judge(self, step: int, loss: float, skipped_steps: int, cfg: Any, say: Callable[[str], None]
              ) -> Stop | Rollback | None:  # fmt: skip
        """Why a run must not go on after a step, if so: too many steps without a finite gradient, or a loss spike.

        Args:
            loss: the training loss of the step; step 0 has none.
            skipped_steps: steps in a row that changed nothing, their gradient not being finite.
            cfg: has out_dir, max_skipped, spike_deviations, on_spike.
            say: takes a line for the user.
        """
        if skipped_steps >= cfg.max_skipped:
            newest = last_of(find(cfg.out_dir), "there")
            return Stop(DIVERGED, f"step {step}: no finite gradient for {skipped_steps} steps; weights and "
                                  f"coefficients are as before them, {newest}: lower the learning rate")  # fmt: skip
        if step and (words := self.add(loss, cfg.spike_deviations)):
            say(f"step {step}: a loss spike: {words}")
            return self.answer(cfg.on_spike, step, find(cfg.out_dir))
        return None

    def answer(self, on_spike: str, step: int, found: list[Checkpoint]) -> Stop | Rollback | None:
        """What a run does after a spike at this step, given its checkpoints; None: it goes on.

        It goes back to the checkpoint of a validation only: its loss was looked at, and it is there whether or not
        signals made the run save at other steps too.
        """
        good = [checkpoint for checkpoint in found if checkpoint.val_loss is not None and checkpoint.step < step]
        returns = sum(after == good[-1].step for after, _ in self.skipped) if good else 0
        if on_spike == "stop" or (on_spike == "skip" and returns == RETURNS):
            again = f" again, after {RETURNS} times with other batches" if on_spike == "skip" else ""
            return Stop(DIVERGED, f"step {step}: a loss spike{again}; {last_of(good, 'before it')}: lower the learning "
                                  "rate")  # fmt: skip
        if on_spike == "skip" and good:
            return Rollback(good[-1], [*self.skipped, (good[-1].step, step - good[-1].step)])
        return None
