"""Robustness as regret

From a poor start, how much worse than tuned constants does each optimizer end?

How far above the best tuned constants an optimizer ends, over starts and learning rates, on the validation loss: in the
place of figure 8's share of an area, whose two constants decide its order.
"""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

from optim import build_optimizer
from study.page import COLORS, Block, Figure, Table, Text

from . import small
from .experiment import Computation, Record

SCALES = ("laptop",)
IN_ALL = False

BETA1S, BETA2S = (0.1, 0.5, 0.8, 0.9, 0.97), (0.6, 0.9, 0.97, 0.99)
RATES = (2e-3, 4e-3, 8e-3, 16e-3)  # Adam's, tuned, is the third
LEARN = {"hyper_lr": 2.5e-3, "hyper_momentum": {name: 0.5 for name in ("beta1", "beta2")}}  # config/shakespeare_char.py
OPTIMIZERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "adam": ("Adam", "adam", {}),
    "hyperadam": ("HyperAdam", "hyperadam", LEARN),
    "mada": ("MADA", "mada", LEARN | {"hyper_momentum": dict.fromkeys(("beta1", "beta2", "beta3", "rho", "c"), 0.5)}),
    "sign": ("MADA, sign steps in log space", "mada",
             {"hyper_lr": 1e-2, "hyper_optimizer": "sign", "hyper_space": "log", "box": {"beta2": (0.501, 0.9999)}}),
}  # fmt: skip
SETUP: dict[str, Any] = {"model": small.MODEL, "block_size": 32, "batch_size": 24, "steps": 300, "warmup": 30,
                         "weight_decay": 0.1, "seed": 1}  # fmt: skip


def runs(scale: str) -> Sequence[Computation]:
    return [Computation(f"regret/{name}-{lr:g}", scale, compute,
                        SETUP | {"optimizer": rule, "options": options, "learning_rate": lr,
                                 "beta1": BETA1S, "beta2": BETA2S}, minutes=6.0)
            for lr in RATES for name, (_, rule, options) in OPTIMIZERS.items()]  # fmt: skip


def compute(settings: Mapping[str, Any]) -> Record:
    """The final validation loss of each start, beta1 outermost; None where it is not finite."""
    losses = []
    for beta1, beta2 in product(settings["beta1"], settings["beta2"]):
        options = settings["options"] | {"lr": settings["learning_rate"], "beta1": beta1, "beta2": beta2, "eps": 1e-8,
                                         "max_grad_norm": 1.0}  # fmt: skip
        model = small.new_model(settings, settings["seed"])
        optimizer = build_optimizer(settings["optimizer"], model.param_groups(settings["weight_decay"]), **options)
        rates = small.schedule(settings, settings["learning_rate"])
        small.train(model, optimizer, small.characters(), settings["batch_size"], rates, settings["seed"])
        loss = small.loss(model)
        losses.append(loss if np.isfinite(loss) else None)
    return {"losses": losses}


def show(scale: str, records: dict[str, Record]) -> Sequence[Block]:
    losses = {name: {lr: [np.inf if loss is None else loss for loss in record["losses"]] for lr in RATES
                     if (record := records.get(f"regret/{name}-{lr:g}"))} for name in OPTIMIZERS}  # fmt: skip
    constants = [loss for of_a_rate in losses["adam"].values() for loss in of_a_rate]
    if not constants:
        return [Text("Without Adam's runs there is nothing to compare with.")]
    best = min(constants)
    if not np.isfinite(best):
        return [Text("All of Adam's runs diverged.")]
    regret: dict[str, dict[float, list[float]]] = {}
    rows = []
    for name, (label, _, _) in OPTIMIZERS.items():
        for lr, found in losses[name].items():
            rows.append([label, f"{lr:g}", *quantiles(above := [loss - best for loss in found])])
            regret.setdefault(name, {})[lr] = above
        if len(losses[name]) == len(RATES):
            for text, rates in (("all", RATES), (f"all but {RATES[-1]:g}", RATES[:-1])):
                rows.append([label, text, *quantiles([value for lr in rates for value in regret[name][lr]])])

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for (name, by_rate), color in zip(regret.items(), COLORS, strict=False):
            if len(by_rate) < len(RATES):
                continue
            found = [value for of_a_rate in by_rate.values() for value in of_a_rate]
            values = np.sort([value for value in found if np.isfinite(value)])
            axes.step(values, np.arange(1, len(values) + 1) / len(found), color=color, label=OPTIMIZERS[name][0])
        axes.set(xscale="log", xlabel="regret: validation loss above the best tuned constants", ylabel="share of runs")
        axes.legend(frameon=False)

    words = (
        f"A model of width {small.MODEL['n_embd']}, {SETUP['batch_size'] * SETUP['block_size']} tokens a step, "
        f"{SETUP['steps']} steps, one seed. {len(BETA1S) * len(BETA2S)} starts (beta1, beta2) at each of {len(RATES)} "
        f"learning rates. Regret: above {best:.4f}, the best of Adam's {len(constants)} runs with constant betas, on "
        f"the same seed. At {RATES[-1]:g} few runs leave the plateau of single characters."
    )
    caption = "Share of the runs whose regret is at most this; further to the upper left is better."
    header = ["optimizer", "learning rate", "median regret", "90% quantile", "largest"]
    return [Text(words), Table(header, rows), Figure("regret", caption, draw, (7, 3.6))]


def quantiles(found: Sequence[float]) -> list[str]:
    """Median, 90% quantile and largest; of the values themselves, so that one that diverged is no number between."""
    ordered = sorted(found)
    at = [ordered[round(q * (len(ordered) - 1))] for q in (0.5, 0.9, 1.0)]
    return ["diverged" if np.isinf(value) else f"{value:+.4f}" for value in at]
