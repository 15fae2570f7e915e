"""Table 5: CIFAR-10

Does MADA help outside of language, on a small CNN and on ResNet-9?
"""

from collections.abc import Mapping, Sequence
from typing import Any

from study.page import Block, Table, Text
from study.statistics import loss_cells

from .cifar import TRAIN, train
from .experiment import PAPER, Computation, Record, by_seed, final_losses

LABELS = {"mada": "MADA", "adam": "Adam", "hyperadam": "HyperAdam", "sgd": "SGD, momentum 0.9"}
# The paper does not give the betas and eps of these runs; 0.99 is the largest beta2 that MADA can learn.
BETAS = {"beta1": 0.9, "beta2": 0.99, "eps": 1e-8}
HYPER = {"beta1": 1e-4, "beta2": 1e-4, "beta3": 1e-2, "rho": 1e-2, "c": 1e-2, "gamma": 1e-2}
OPTIONS: dict[str, dict[str, Any]] = {
    "mada": BETAS | {"hyper_lr": HYPER},
    "adam": BETAS,
    "hyperadam": BETAS | {"hyper_lr": {name: HYPER[name] for name in ("beta1", "beta2")}},
    "sgd": {"momentum": 0.9},
}
MODELS: dict[str, dict[str, Any]] = {
    "cnn": {"batch_size": 256, "schedule": "constant", "augment": False},
    "resnet9": {"batch_size": 400, "schedule": "one cycle", "augment": True, "dropout": 0.2},
}
NAMES = {"cnn": "5-layer CNN", "resnet9": "ResNet-9"}
RATE = {"cnn": {"sgd": 1e-2}, "resnet9": {"sgd": 1e-1}}
DEFAULT_RATE = {"cnn": 1e-3, "resnet9": 1e-2}
FULL: dict[str, tuple[int, int, int, float]] = {"cnn": (6, TRAIN, 50, 2.0), "resnet9": (64, TRAIN, 50, 2.0)}
# scale: (seeds, {model: (width, images to train on, epochs, minutes a run)})
SIZES: dict[str, tuple[tuple[int, ...], dict[str, tuple[int, int, int, float]]]] = {
    "laptop": ((1, 2, 3), {"cnn": (6, 20_000, 4, 0.5), "resnet9": (8, 5_000, 4, 0.5)}),
    "gpu": ((1, 2, 3), FULL),
    "paper": ((1, 2, 3, 4, 5), FULL),
}


def runs(scale: str) -> Sequence[Computation]:
    seeds, models = SIZES[scale]
    found = []
    for model, (width, images, epochs, minutes) in models.items():
        for seed in seeds:
            for optimizer, options in OPTIONS.items():
                rate = RATE[model].get(optimizer, DEFAULT_RATE[model])
                settings: Mapping[str, Any] = {
                    "model": model, "width": width, "images": images, "optimizer": optimizer,
                    "options": options | {"lr": rate}, "epochs": epochs, "seed": seed, **MODELS[model],
                }  # fmt: skip
                name = f"cifar/{model}-{optimizer}-{seed}"
                found.append(Computation(name, scale, train, settings, minutes=minutes))
    return found


def show(scale: str, records: dict[str, Record]) -> Sequence[Block]:
    sizes = {record["settings"]["model"]: record["settings"] for record in records.values()}
    rows = []
    for model in MODELS:
        accuracy = final_losses(by_seed(records, f"cifar/{model}-"), "accuracy")
        for optimizer, label in LABELS.items():
            if seeds := accuracy.get(optimizer):
                ours = loss_cells(accuracy, optimizer, "adam", 2)
                mean, error = PAPER["table5"][model][optimizer]
                rows.append([NAMES[model], label, str(len(seeds)), *ours, f"{mean:.2f} ± {error:.2f}"])
    words = [
        f"{NAMES[model]}: {s['epochs']} epochs over {s['images']:,} images"
        + (f", {s['width']} of {FULL[model][0]} channels" if s["width"] != FULL[model][0] else "")
        for model, s in sizes.items()
    ]
    origins = " and ".join(sorted({record["data"] for record in records.values()}))
    header = ["model", "optimizer", "n", "test accuracy (%)", "minus Adam's", "paper"]
    return [
        Text(
            f"{'; '.join(words)} (the paper: 50 epochs over 50,000). Data: {origins}. Not given in the paper and "
            "chosen here: betas (0.9, 0.99), eps 1e-8, no weight decay; shifts and mirror images for ResNet-9, none "
            "for the CNN. ResNet-9 is the one of the notebook that the paper links, github.com/Moddy2024/ResNet-9, "
            "dropout 0.2 included. That notebook trains with Adam (amsgrad) at weight decay 1e-4, gradients clipped to "
            "±0.12 each, a beta1 that goes down and up with the rate (OneCycleLR's default) and rotated images; the "
            "paper mentions none of these, and they are not used here."
        ),
        Table(header, rows),
    ]
