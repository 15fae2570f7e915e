"""Proposition 1: when the effective learning rate cannot rise

Does rho_t <= 1 / (t (1 - beta2) + 1) keep the effective learning rate of the interpolated optimizer from rising?
"""

from collections import namedtuple
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from optim import AVGrad
from study.page import Block, Table, Text

from .experiment import Computation, Record

SCALES = ("laptop",)
EXACT = True

Q = namedtuple("Q", "beta1 beta2 eps")

# rho_t as a function of t and beta2
SCHEDULES: dict[str, Callable[[int, float], float]] = {
    "rho = 1 (Adam)": lambda t, beta2: 1.0,
    "rho = 0 (AVGrad)": lambda t, beta2: 0.0,
    "1 / (t (1 - beta2) + 1), as printed": lambda t, beta2: 1 / (t * (1 - beta2) + 1),
    "beta2 / (t (1 - beta2) + 1)": lambda t, beta2: beta2 / (t * (1 - beta2) + 1),
}
# (steps, sequences) of gradients
GRADIENTS: dict[str, Callable[[int, int], Tensor]] = {
    "normal": lambda T, n: torch.randn(T, n, dtype=torch.float64),
    "heavy tails (Student, 2 degrees)": lambda T, n: torch.distributions.StudentT(2.0).sample((T, n)).double(),
    "one in fifty is not zero": lambda T, n: torch.randn(T, n, dtype=torch.float64) * (torch.rand(T, n) < 0.02),
}


def rises(gradients: Tensor, beta2: float, schedule: Callable[[int, float], float]) -> tuple[float, int, float]:
    """Fraction of steps at which alpha_t / sqrt(v_t), alpha_t ~ 1 / sqrt(t), rises; the first such step (0: none); and
    the largest relative rise. v_t = rho_t v + (1 - rho_t) va with v and va of optim/avgrad.py."""
    q = Q(torch.tensor(0.9), torch.tensor(beta2, dtype=torch.float64), torch.tensor(0.0))
    state = AVGrad.State(*(torch.zeros(gradients.shape[1], dtype=torch.float64) for _ in AVGrad.State._fields))
    before: Tensor | None = None
    count, first, largest = 0, 0, 0.0
    for t, g in enumerate(gradients, start=1):
        state = AVGrad.advance(q, state, g, torch.tensor(float(t), dtype=torch.float64))[1]
        rho = schedule(t, beta2)
        rate = 1 / (t * (rho * state.v + (1 - rho) * state.va)).sqrt()  # infinite until the first gradient
        if before is not None:
            rise = torch.where(torch.isfinite(before), rate / before - 1, -1.0)
            risen = int((rise > 1e-12).sum())  # not rounding
            first = first or (t if risen else 0)
            count, largest = count + risen, max(largest, float(rise.max()))
        before = rate
    return count / gradients[1:].numel(), first, largest if count else 0.0


def compute(settings: Mapping[str, Any]) -> Record:
    """{"rows": [{gradients, beta2, schedule, fraction, first, largest}]}"""
    rows = []
    for name, sample in GRADIENTS.items():
        for beta2 in settings["beta2"]:
            torch.manual_seed(settings["seed"])
            gradients = sample(settings["steps"], settings["sequences"])
            for label, schedule in SCHEDULES.items():
                fraction, first, largest = rises(gradients, beta2, schedule)
                rows.append({"gradients": name, "beta2": beta2, "schedule": label, "fraction": fraction,
                             "first": first, "largest": largest})  # fmt: skip
    return {"rows": rows}


def runs(scale: str) -> Sequence[Computation]:
    settings = {"beta2": [0.9, 0.95, 0.99], "steps": 2000, "sequences": 1000, "seed": 1}
    return [Computation("proposition1", scale, compute, settings, minutes=0.3)]


def show(scale: str, records: dict[str, Record]) -> Sequence[Block]:
    record = records["proposition1"]
    cells: dict[tuple[str, str], list[str]] = {}
    for row in record["rows"]:
        risen = f"{row['fraction']:.1%} from step {row['first']}, up to {row['largest']:.0e}"
        cells.setdefault((row["gradients"], f"{row['beta2']:g}"), []).append(risen if row["first"] else "never")
    settings = record["settings"]
    return [
        Text(
            f"For each line {settings['sequences']:,} sequences of {settings['steps']:,} gradients: the share of steps "
            "at which the effective learning rate rises, the first of them, and the largest relative rise. Learning "
            "rate proportional to 1 / sqrt(t) as in theorem 1; no bias correction, as in equation (5)."
        ),
        Table(["gradients", "beta2", *SCHEDULES], [[*key, *risen] for key, risen in cells.items()]),
        Text(
            "Why: if g_t = 0, then t v_t - (t - 1) v_{t-1}, with v_t the interpolated moment, is "
            "(beta2 t rho_t + beta2 (1 - rho_t) - (t - 1) rho_{t-1}) v + (rho_{t-1} - rho_t) S, where v is Adam's "
            "moment at step t - 1 and S the sum of all of them until then. Under the printed bound the bracket tends "
            "to -(1 - beta2) and the second term to 0: after enough steps the rate rises whenever a gradient is small. "
            "With beta2 in the numerator the bracket is never negative. The paper prints no proof. With a constant "
            "learning rate even AVGrad's effective rate can rise."
        ),
    ]
