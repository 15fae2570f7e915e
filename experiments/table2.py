"""Tables 2, 6 and 7: the validation loss of every optimizer."""

from __future__ import annotations

from collections.abc import Sequence

from . import language
from .compare import mean_and_spread, paired
from .frame import Block, Experiment, Record, Table, Text, Training

# First what the question is about, so that an interrupted run of all has it.
KEYS = ("adam", "mada_shakespeare", "mada", "hyperadam", "mada_rho0", "avgrad", "adan", "lion", "mada_poor",
        "adam_poor", "mada_fs", "mada_rho0_fs", "medium_adam", "medium_mada")  # fmt: skip


def runs(scale: str) -> Sequence[Training]:
    return language.runs(scale, KEYS)


def show(scale: str, records: dict[str, Record]) -> Sequence[Block]:
    rows = []
    found = language.by_row(records)
    losses = {
        which: {key: {seed: record["final"][which] for seed, record in seeds.items()} for key, seeds in found.items()}
        for which in ("val_loss", "train_loss")
    }
    for key, seeds in found.items():
        against = "medium_adam" if key.startswith("medium") else "adam"
        cells = [language.ROWS[key].label, str(len(seeds))]
        for which in ("val_loss", "train_loss"):
            difference = paired(losses[which].get(against, {}), losses[which][key]) if key != against else None
            cells += [mean_and_spread([*losses[which][key].values()]), str(difference or "")]
        paper, adam = language.PAPER_LOSS.get(key), language.PAPER_LOSS[against]
        cells += [f"{paper:.4f}", f"{paper - adam:+.4f}" if key != against else ""] if paper else ["not in it", ""]
        rows.append(cells)
    header = ["optimizer", "n", "validation loss", "minus Adam's", "training loss", "training, minus Adam's",
              "paper's validation loss", "paper's, minus Adam's"]  # fmt: skip
    return [
        Text(
            language.about(records) + " Losses in nats per token at the end; the training loss is the mean over the "
            "batches of the last tenth of the run. The paper's column is another model on another text: compare the "
            "signs, not the numbers."
        ),
        Table(header, rows),
    ]


EXPERIMENT = Experiment(
    "table2",
    "Tables 2, 6 and 7: validation losses",
    "Does MADA end below Adam and the other fixed optimizers, also from poor coefficients?",
    runs,
    show,
)
