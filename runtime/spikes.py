"""Loss spikes: when a loss counts as one, and which batches a run leaves out after it went back before one."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field

from runtime.checkpoint import Checkpoint, last_of

WINDOW = 100  # rows that a loss is compared with, once there are LEAST of them
LEAST = 20
RETURNS = 3  # to the same checkpoint; a spike that comes again after as many other batches is not their fault


class Diverged(Exception):
    """The gradients stayed infinite or NaN, and the run stopped before they reached the weights; or the loss spiked."""


class GoBack(Exception):
    """The run goes back `to` a checkpoint and on from there without the batches since."""

    def __init__(self, to: Checkpoint, skipped: list[tuple[int, int]]) -> None:
        self.to, self.skipped = to, skipped


@dataclass
class Spikes:
    """What a run remembers of its losses. It is a part of every checkpoint: what is skipped depends on what is stored.

    A spike is a training loss above the mean of the WINDOW rows before it by more than `deviations` of their standard
    deviations (OLMo 2's spike score, arXiv 2501.00656, counts those above 7, of the last 1000 steps). A loss that is
    not finite is none: its step was refused already.
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

    def answer(self, on_spike: str, step: int, found: list[Checkpoint]) -> Diverged | GoBack | None:
        """What a run raises at the step of a spike.

        Only the checkpoint of a validation is gone back to: its loss was looked at, and it is there whether or not
        signals made the run save at other steps too.
        """
        good = [checkpoint for checkpoint in found if checkpoint.val_loss is not None and checkpoint.step < step]
        returns = sum(after == good[-1].step for after, _ in self.skipped) if good else 0
        if on_spike == "stop" or (on_spike == "skip" and returns == RETURNS):
            again = f" again, after {RETURNS} times with other batches" if on_spike == "skip" else ""
            return Diverged(f"step {step}: a loss spike{again}; {last_of(good, 'before it')}: lower the learning rate")
        if on_spike == "skip" and good:
            return GoBack(good[-1], [*self.skipped, (good[-1].step, step - good[-1].step)])
        return None
