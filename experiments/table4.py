"""Table 4: fine-tuning

Does MADA fit a new text better, starting from trained weights?
"""

from collections.abc import Mapping, Sequence
from typing import Any

from study.page import Block, Table, Text
from study.statistics import loss_cells

from . import language, small
from .experiment import PAPER, ROOT, Computation, Record, Run, Training, by_seed, final_losses
from .training_loss import EVALUATION_BATCHES, WINDOWS, mean_loss

SCALES = ("laptop", "paper")

SIX = ("beta1", "beta2", "beta3", "rho", "c", "gamma")
RATES = {name: 1e-4 if name in ("beta1", "beta2") else 2e-2 for name in SIX}  # config/gpt2_mada.py says why these
OPTIONS: dict[str, dict[str, Any]] = {  # MADA starts at Adam, as in config/finetune_gpt2xl_mada.py
    "mada": {"hyper_lr": RATES},
    "adam": {},
    "hyperadam": {"hyper_lr": {name: RATES[name] for name in ("beta1", "beta2")}},
}
LABELS = {"mada": "MADA", "adam": "Adam", "hyperadam": "HyperAdam"}
BASE = "words/adam-1"  # of table 3
SEEDS = (1, 2, 3)


def runs(scale: str) -> Sequence[Run]:
    if scale == "paper":
        return [
            Training(f"finetune/{key}-{seed}", scale, (f"config/finetune_gpt2xl_{key}.py",), {"seed": seed},
                     minutes=20.0, curves=False, on_train=True)
            for seed in SEEDS for key in OPTIONS
        ]  # fmt: skip
    base = next(run for run in language.small_runs(scale) if run.name == BASE)
    found: list[Run] = [base]
    for seed in SEEDS:
        for optimizer, options in OPTIONS.items():
            settings = {"base": BASE, "optimizer": optimizer, "options": options, "seed": seed, "steps": 100,
                        "batch_size": 2, "learning_rate": 1e-3}  # fmt: skip
            name = f"finetune/{optimizer}-{seed}"
            found.append(Computation(name, scale, finetune, settings, minutes=0.7, after=base))
    return found


def finetune(settings: Mapping[str, Any]) -> Record:
    """One run at a constant rate from the base's weights; the loss of 200 batches of the training split at its end."""
    import torch

    from data import open_dataset, val_starts
    from evaluation.perplexity import open_subject
    from optim import build_optimizer

    tokens = open_dataset("shakespeare", prepare=True).train
    model = open_subject(str(ROOT / "out" / "laptop" / settings["base"]), "newest").model
    B, seed, rates = settings["batch_size"], settings["seed"], [settings["learning_rate"]] * settings["steps"]
    starts = val_starts(tokens, model.config.block_size, EVALUATION_BATCHES * B)
    before = mean_loss(model, tokens, starts, B)
    torch.manual_seed(seed)
    options = settings["options"] | {"lr": settings["learning_rate"], "max_grad_norm": 1.0, "compile": False}
    optimizer = build_optimizer(settings["optimizer"], model.param_groups(0.1), **options)
    small.train(model.train(), optimizer, tokens, B, rates, seed)
    final = {"loss_on_train": mean_loss(model, tokens, starts, B), "before": before}
    return {"final": final | optimizer.coefficients, "parameters": model.num_parameters(), "tokens": len(tokens)}


def show(scale: str, records: dict[str, Record]) -> Sequence[Block]:
    tuned = by_seed(records, "finetune/")
    if not tuned:
        return [Text("The model is trained, not fine-tuned yet.")]
    losses = final_losses(tuned, "loss_on_train")
    rows = [
        [LABELS[name], str(len(losses[name])), *loss_cells(losses, name, "adam"), f"{paper:.3f}"]
        for name, paper in PAPER["table4"].items() if name in losses
    ]  # fmt: skip
    first = next(record for seeds in tuned.values() for record in seeds.values())
    about = in_the_large(first) if "config" in first else in_the_small(first)
    return [
        Text(f"{about} MADA starts at Adam (beta3 = 0, rho = 1), as the paper's other runs on Shakespeare. The loss is "
             f"over {WINDOWS}. The paper fine-tunes 1.5 billion parameters for about 2 epochs; it says neither at what "
             "rate (nanoGPT's recipe, 20 steps at 3e-5, cannot reach such losses) nor where MADA starts."),
        Table(["optimizer", "n", "training loss", "minus Adam's", "paper"], rows),
    ]  # fmt: skip


def in_the_large(record: Record) -> str:
    return f"From the weights of {record['config']['weights']}: {language.about({'': record})}"


def in_the_small(record: Record) -> str:
    settings = record["settings"]
    epochs = settings["steps"] * settings["batch_size"] * 128 / record["tokens"]
    return (
        f"Not GPT-2 XL: a model of {record['parameters']:,} parameters, trained here with Adam (table 3's) and "
        f"fine-tuned on {epochs:.2f} epochs of Shakespeare in GPT-2's tokens at a constant "
        f"{settings['learning_rate']:g}; its loss before was {record['final']['before']:.3f}."
    )
