"""Placebos: does a hypergradient tell a better optimizer from noise?

Does Adam's weight fall for a corner that is worth nothing as readily as for a real one?

Adam stands at one end of a mixture and at the other an optimizer of MADA's family, or in its place a placebo that is
worth nothing. The weight w of Adam starts at 0.95 and is learned as MADA learns its coefficients. If w leaves Adam for
the placebo as readily, its drift is no evidence for the other end.

What moves w is h = -lr <g, A - O>: A and O are the directions of the two ends, g the next gradient. Two more weights,
a and o, that stay at 0 measure -lr <g, A> and -lr <g, O>. The finite criterion is what h stands for: the next batch's
loss after a step along A alone, and along O alone, from where the run is.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple
from cli import Mistake

import torch
from torch import Tensor

from data import train_batch
from model import GPT
from optim import RuleOptimizer
from optim.mada import average
from optim.rule import BETA1, BETA2, Coefficient, mix, sqrt
from study.page import Block, Table, Text
from study.statistics import Losses, mean, mean_and_spread, paired, pooled

from . import small
from .experiment import Computation, Record
from .microbatch import STILL

SCALES = ("laptop",)
IN_ALL = False

START, EVERY = 0.95, 20  # of w; steps between two finite comparisons
HYPER_LR = 0.25  # h is about 0.005: at the paper's 0.0025 w would take 100,000 steps from one end to the other


def noise(g: Tensor, t: Tensor) -> Tensor:
    """In [-1, 1), 0 where g is 0: a hash, the same when the step is differentiated, that knows nothing of g's sign."""
    x = torch.sin(g * 12.9898e6 + t * 78.233) * 43758.5453
    return (2 * (x - torch.floor(x)) - 1) * (g != 0)


class State(NamedTuple):
    m: Tensor
    v: Tensor
    more: Tensor


class Values(NamedTuple):
    """What an end of the mixture is made of: moments after this step, and `more` before it."""

    g: Tensor
    t: Tensor
    m: Tensor
    v: Tensor
    more: Tensor
    adam: Tensor


def lion(now: Values, q: Any) -> tuple[Tensor, Tensor]:
    return torch.sign(mix(0.95, now.more, now.g)), mix(0.98, now.more, now.g)


def avgrad(now: Values, q: Any) -> tuple[Tensor, Tensor]:
    va = average(now.more, now.v, now.t)
    return now.m / (1 - q.beta1**now.t) / (sqrt(va / (1 - q.beta2**now.t)) + q.eps), va


def yogi(now: Values, q: Any) -> tuple[Tensor, Tensor]:
    g2 = now.g * now.g
    v = now.more + (1 - q.beta2) * g2 * torch.sign(g2 - now.more)
    return now.m / (1 - q.beta1**now.t) / (sqrt(v / (1 - q.beta2**now.t)) + q.eps), v


def zero(now: Values, q: Any) -> tuple[Tensor, Tensor]:
    return torch.zeros_like(now.g), now.more


def signs(now: Values, q: Any) -> tuple[Tensor, Tensor]:
    return torch.sign(noise(now.g, now.t)), now.more


def shuffled_signs(now: Values, q: Any) -> tuple[Tensor, Tensor]:
    return now.adam * torch.sign(noise(now.g, now.t)), now.more


def noisy_moment(now: Values, q: Any) -> tuple[Tensor, Tensor]:
    v = now.v * torch.exp(3 * noise(now.g, now.t))
    return now.m / (1 - q.beta1**now.t) / (sqrt(v / (1 - q.beta2**now.t)) + q.eps), now.more


class End(NamedTuple):
    label: str
    direction: Callable[[Values, Any], tuple[Tensor, Tensor]]
    real: bool


ENDS = {
    "lion": End("Lion", lion, True),
    "avgrad": End("AVGrad", avgrad, True),
    "yogi": End("Yogi", yogi, True),
    "zero": End("no step", zero, False),
    "signs": End("random signs", signs, False),
    "shuffled": End("Adam's step with random signs", shuffled_signs, False),
    "moment": End("Adam's step over a random second moment", noisy_moment, False),
}


def mixture(end: End) -> type[RuleOptimizer]:
    """Adam and `end` as a rule: w A + (1 - w) O + a A + o O."""

    class Mixture(RuleOptimizer):
        table = {
            "beta1": BETA1, "beta2": BETA2, "w": Coefficient(START, 0.0, 1.0, "weight of Adam"),
            "a": Coefficient(0.0, 0.0, 1.0, "measures A"), "o": Coefficient(0.0, 0.0, 1.0, "measures O"),
        }  # fmt: skip
        constants = {"eps": 1e-8}
        State = State

        @staticmethod
        def advance(q, s, g, t):
            m, v = mix(q.beta1, s.m, g), mix(q.beta2, s.v, g * g)
            adam = m / (1 - q.beta1**t) / (sqrt(v / (1 - q.beta2**t)) + q.eps)
            other, more = end.direction(Values(g, t, m, v, s.more, adam), q)
            return (q.w + q.a) * adam + (1 - q.w + q.o) * other, State(m, v, more)

    return Mixture


# ------------------------------------------------------------------------------------------------------------- runs

TUNED = 8e-3  # Adam's learning rate in the experiment "tuned", of a wider model (128 for 80) with beta2 = 0.95
SEEDS = {24: {0.25: 3, 1.0: 10, 2.0: 3}, 96: {1.0: 3, 2.0: 3}}  # sequences a step: {times TUNED: number of seeds}
SETUP = {"model": small.MODEL, "block_size": 32, "steps": 300, "warmup": 30, "weight_decay": 0.1, "beta1": 0.9,
         "beta2": 0.99}  # fmt: skip


def runs(scale: str) -> Sequence[Computation]:
    return [Computation(f"placebo/{name}-{batch}", scale, compute,
                        SETUP | {"end": name, "batch_size": batch, "hyper_lr": HYPER_LR,
                                 "seeds": {f"{factor * TUNED:g}": n for factor, n in seeds.items()}}, minutes=6.0)
            for batch, seeds in SEEDS.items() for name in ["none", *ENDS]]  # fmt: skip


def compute(settings: Mapping[str, Any]) -> Record:
    """{learning rate: columns over the seeds 1, 2, ...}. The end "none" is Adam alone."""
    rows: dict[str, dict[str, list[float]]] = {}
    for lr, n in settings["seeds"].items():
        for seed in range(1, n + 1):
            for name, value in train(settings, float(lr), seed).items():
                if not math.isfinite(value):
                    raise Mistake(f"{settings['end']}: {name} is {value} at a learning rate of {lr}, seed {seed}")
                rows.setdefault(lr, {}).setdefault(name, []).append(value)
    return {"rows": rows}


def train(settings: Mapping[str, Any], lr: float, seed: int) -> dict[str, float]:
    """One run: where w ends, the validation loss, the mean of h and of its parts, and the finite criterion."""
    alone = settings["end"] == "none"
    rule = mixture(ENDS["zero" if alone else settings["end"]])
    fixed = {"beta1": settings["beta1"], "beta2": settings["beta2"], "w": 1.0 if alone else START}
    learned = {"w": STILL if alone else settings["hyper_lr"], "a": STILL, "o": STILL}

    def make(model: GPT) -> RuleOptimizer:
        groups = model.param_groups(settings["weight_decay"])
        return rule(groups, lr, hyper_lr=learned, max_grad_norm=1.0, compile=False, **fixed)

    model, tokens, B = small.new_model(settings, seed), small.characters(), settings["batch_size"]
    optimizer, twin = make(model), GPT(model.config)
    other = make(twin)
    hs: list[dict[str, float]] = []  # of the steps before
    finite: list[float] = []

    def look(step: int, _: Any) -> None:
        if step > 2:
            hs.append(optimizer.hypergradients)
        if step % EVERY == 0 and not alone:
            next_batch = train_batch(tokens, seed, step + 1, range(B), model.config.block_size)
            finite.append(advantage(model, optimizer, twin, other, next_batch))

    small.train(model, optimizer, tokens, B, small.schedule(settings, lr), seed, look)
    found = {"w": optimizer.coefficients["w"], "val_loss": small.loss(model)}
    found |= {f"h_{name}": mean([h[name] for h in hs]) for name in ("w", "a", "o")}
    if finite:
        found |= {"finite": mean(finite), "finite_share": mean([float(value < 0) for value in finite])}
    return found


@torch.no_grad()
def advantage(model: GPT, optimizer: RuleOptimizer, twin: GPT, other: RuleOptimizer, next_batch: Any) -> float:
    """The next batch's loss after a step along A alone, minus that after one along O alone: below 0, A is better."""
    losses = []
    for w in (1.0, 0.0):
        twin.load_state_dict(model.state_dict())
        other.load_state_dict(optimizer.state_dict())
        other.param_groups[0]["w"] = torch.tensor(w)
        for mine, its in zip(twin.parameters(), model.parameters(), strict=True):
            mine.grad = its.grad.clone() if its.grad is not None else None
        values = other._values  # w stays where it was put
        values.hyper = values.hyper._replace(rate=torch.zeros_like(values.hyper.rate))
        other.step()
        losses.append(twin(*next_batch)[1].item())
    return losses[0] - losses[1]


# ----------------------------------------------------------------------------------------------------------- report


def show(scale: str, records: dict[str, Record]) -> Sequence[Block]:
    losses: dict[tuple[int, str], dict[str, Losses]] = {}  # by sequences and learning rate
    for record in records.values():
        for lr, columns in record["rows"].items():
            of_a_rate = losses.setdefault((record["settings"]["batch_size"], lr), {})
            of_a_rate[record["settings"]["end"]] = dict(enumerate(columns["val_loss"]))
    rows = []
    for record in records.values():
        end, batch = record["settings"]["end"], record["settings"]["batch_size"]
        for lr, columns in record["rows"].items() if end != "none" else ():
            its = losses[batch, lr]
            cost = paired(its.get("none", {}), its[end], shared=pooled(its, "none"))
            rows.append([
                f"{ENDS[end].label}{'' if ENDS[end].real else ' (placebo)'}", str(batch), f"{float(lr) / TUNED:g}",
                str(record["settings"]["seeds"][lr]), mean_and_spread(columns["w"], 3), str(cost or ""),
                *(f"{1e3 * mean(columns[f'h_{part}']):+.3f}" for part in ("a", "o")),
                f"{1e3 * mean(columns['finite']):+.3f}", f"{mean(columns['finite_share']):.0%}",
            ])  # fmt: skip
    header = ["the other end", "sequences", f"learning rate / {TUNED:g}", "n", "w at the end", "loss minus Adam's",
              "-lr <g, A> x 1000", "-lr <g, O> x 1000", "finite: A minus O, x 1000", "A better in"]  # fmt: skip
    return [
        Text(
            f"w, the weight of Adam, starts at {START} and is learned at {HYPER_LR:g} a step for 300 steps (MADA's "
            "rate is 0.0025; there w would take 100,000 steps from one end to the other). A step lowers w where "
            "-lr <g, A> is above -lr <g, O>: the first is positive where the step that was made overshot (the "
            "next gradient points back), whatever stands at the other end. The columns are means over all steps; since "
            "w cannot rise beyond 1, it can fall where the mean difference is below 0. The last two compare the ends "
            f"by the next batch's loss, every {EVERY} steps."
        ),
        Table(header, rows),
    ]
