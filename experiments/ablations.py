"""Ablations, and MADA from other corners

Which parts of MADA matter, and does where it starts?
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from runtime.figure import COEFFICIENTS
from study.page import Block, Table, Text
from study.statistics import loss_cells, mean

from .experiment import Computation, Record, Run, Training, by_seed, final_losses
from .microbatch import train

SCALES = ("laptop", "gpu")

RATE = 2.5e-3  # config/shakespeare_char.py learns every coefficient at this rate


def rates(factor: float = 1.0, without: str = "", **others: float) -> dict[str, float]:
    return {name: RATE * factor for name in COEFFICIENTS if name != without} | others


@dataclass(frozen=True)
class Variant:
    """What differs from MADA in the Shakespeare setting: started at Adam, all six coefficients learned."""

    label: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    config: str = "shakespeare_char"
    quarter: bool = False  # a quarter of the scale's learning rate, for Lion's direction, as in the paper


QUARTER = {  # of config/tiny.py's rates, of config/gpu.py's
    "laptop": {"learning_rate": 1e-3, "min_lr": 1e-4},
    "gpu": {"learning_rate": 2.5e-4, "min_lr": 2.5e-5},
}
VARIANTS = {
    "mada": Variant("MADA"),
    "adam": Variant("Adam", config="shakespeare_char_adam"),
    "hyperadam": Variant("HyperAdam: beta1 and beta2 alone", config="shakespeare_char_hyperadam"),
    "no_lion": Variant("without Lion: gamma stays 1", {"hyper_lr": rates(without="gamma")}),
    "max": Variant("AMSGrad's maximum for AVGrad's average", {"optimizer": "madamax"}),
    "fifth": Variant("hyper rates divided by 5", {"hyper_lr": rates(1 / 5)}),
    "fivefold": Variant("hyper rates times 5", {"hyper_lr": rates(5)}),
    "lr": Variant("learning rate learned too", {"hyper_lr": rates(lr=2e-6)}),
    "weights_first": Variant("weights first, as in algorithm 1", {"order": "weights_first"}),
    "from_avgrad": Variant("from AVGrad: rho starts at 0", {"rho": 0.0}),
    "from_amsgrad": Variant("from AMSGrad: maximum, rho starts at 0", {"optimizer": "madamax", "rho": 0.0}),
    "lion": Variant("Lion, a quarter of the learning rate", config="gpt2_lion", quarter=True),
    "from_lion": Variant("from Lion: gamma starts at 0, same rate", {"gamma": 0.0}, quarter=True),
}
# Each batch of 12 in 4 micro-batches, the coefficients learned from the gradient of:
MICRO = {
    "micro_all": ("4 micro-batches, hypergradients of the whole batch", "all"),
    "micro_one": ("hypergradients of one of the 4", "one"),
    "micro_one_divided": ("of one of the 4, its loss divided by 4, as the authors'", "one divided"),
}
TINY = {  # config/shakespeare_char.py with config/tiny.py, for the runs that train.py does not make
    "model": {"n_layer": 2, "n_head": 3, "n_embd": 48, "bias": False, "vocab_multiple": 64},
    "block_size": 64, "batch_size": 12, "micro_batches": 4, "steps": 500, "warmup": 50, "learning_rate": 4e-3,
    "min_lr": 4e-4, "weight_decay": 0.1,
    "optimizer": {"beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "max_grad_norm": 1.0, "hyper_lr": rates(),
                  "hyper_momentum": dict.fromkeys((name for name in COEFFICIENTS if name != "gamma"), 0.5)},
}  # fmt: skip
SIZES = {"laptop": ("tiny", (1, 2, 3), 0.5), "gpu": ("gpu", (1, 2, 3), 1.0)}  # overlay, seeds, minutes a run


def runs(scale: str) -> Sequence[Run]:
    overlay, seeds, minutes = SIZES[scale]
    found: list[Run] = []
    for seed in seeds:
        for name, variant in VARIANTS.items():
            configs = (f"config/{variant.config}.py", f"config/{overlay}.py")
            settings = {"seed": seed, **(QUARTER[scale] if variant.quarter else {}), **variant.settings}
            name = f"ablation/{name}-{seed}"
            found.append(Training(name, scale, configs, settings, minutes=minutes, curves=False, on_train=True))
    if scale == "laptop":
        found += [
            Computation(f"ablation/{name}-{seed}", scale, train,
                        TINY | {"seed": seed, "learn_from": which}, minutes=minutes)
            for seed in seeds
            for name, (_, which) in MICRO.items()
        ]  # fmt: skip
    return found


def show(scale: str, records: dict[str, Record]) -> Sequence[Block]:
    found = by_seed(records, "ablation/")
    losses = [final_losses(found, kind) for kind in ("val_loss", "loss_on_train")]
    rows = []
    labels = {name: variant.label for name, variant in VARIANTS.items()}
    for name, label in (labels | {name: words for name, (words, _) in MICRO.items()}).items():
        if name not in found:
            continue
        against = "micro_all" if name in MICRO else "mada"
        cells = [cell for kind in losses for cell in loss_cells(kind, name, against)]
        finals = [record["final"] for record in found[name].values()]
        ends = [f"{mean([final[k] for final in finals]):.3g}" if k in finals[0] else "" for k in COEFFICIENTS]
        rows.append([label, str(len(finals)), *cells, *ends])
    trained = [record for record in records.values() if "parameters" in record]  # by train.py
    size = ""
    if trained:
        config = trained[0]["config"]
        size = f"{trained[0]['parameters']:,} parameters, {config['dataset']}, {config['max_iters']:,} steps. "
    header = ["variant", "n", "validation loss", "minus MADA's", "on the training split", "minus MADA's ",
              *(f"{name} at the end" for name in COEFFICIENTS)]  # fmt: skip
    return [
        Text(
            f"{size}MADA here starts at Adam and learns all six coefficients at {RATE:g}; a variant changes what its "
            "name says; those of the micro-batches are compared with the first of them. Losses in nats per token; "
            "coefficients are means over the seeds."
        ),
        Table(header, rows),
    ]
