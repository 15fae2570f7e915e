"""Tables 2, 6 and 7: validation losses

Does MADA end below Adam and the other fixed optimizers, also from poor coefficients?
"""

from collections.abc import Mapping, Sequence

from study.page import Block, Table, Text
from study.statistics import Losses, loss_cells, paired, pooled

from . import language
from .experiment import Record, Training, final_losses

# First what the question is about, so that an interrupted run of all has it.
KEYS = ("adam", "mada_shakespeare", "mada", "hyperadam", "mada_rho0", "avgrad", "adan", "lion", "mada_poor",
        "adam_poor", "mada_fs", "mada_rho0_fs", "medium_adam", "medium_mada")  # fmt: skip
# Beside Adam: a MADA and where it starts, a MADA-FS and what it keeps the end of.
# MADA- and Adam- are no such pair: MADA- starts at rho = 0, where AVGrad is.
PAIRS = (("mada_rho0", "avgrad"), ("mada_fs", "mada"), ("mada_rho0_fs", "mada_rho0"))


KINDS = ("val_loss", "train_loss")


def runs(scale: str) -> Sequence[Training]:
    return language.runs(scale, KEYS)


def show(scale: str, records: dict[str, Record]) -> Sequence[Block]:
    found = language.by_row(records)
    losses = {kind: final_losses(found, kind) for kind in KINDS}
    rows = []
    for key, seeds in found.items():
        against = "medium_adam" if key.startswith("medium") else "adam"
        cells = [cell for kind in KINDS for cell in loss_cells(losses[kind], key, against)]
        paper, adam = language.PAPER_LOSS.get(key), language.PAPER_LOSS[against]
        cells += [f"{paper:.4f}", f"{paper - adam:+.4f}" if key != against else ""] if paper else ["not in it", ""]
        rows.append([language.ROWS[key].label, str(len(seeds)), *cells])
    header = ["optimizer", "n", "validation loss", "minus Adam's", "training loss", "training, minus Adam's",
              "paper's validation loss", "paper's, minus Adam's"]  # fmt: skip
    return [
        Text(
            language.about(records)
            + ("" if scale == "paper" else " The learning rate is the scale's, tuned for none of the optimizers.")
            + " Losses in nats per token at the end; the training loss is the mean over the "
            "batches of the last tenth of the run. The paper's column is another model on another text: compare the "
            "signs, not the numbers."
        ),
        Table(header, rows),
        *between(losses),
    ]


def between(losses: Mapping[str, Mapping[str, Losses]]) -> Sequence[Block]:
    """PAIRS, those of which there are seeds."""
    rows = []
    for key, against in PAIRS:
        both = [paired(of_kind.get(against, {}), of_kind.get(key, {}), shared=pooled(of_kind, "adam"))
                for of_kind in losses.values()]  # fmt: skip
        if both[0]:
            paper = language.PAPER_LOSS[key] - language.PAPER_LOSS[against]
            rows.append([language.pair_label(key, against), str(both[0].n), *map(str, both), f"{paper:+.4f}"])
    header = ["pair", "n", "validation loss", "training loss", "paper's validation loss"]
    words = "What learning adds, and what fixing its result does, paired over seeds:"
    return [Text(words), Table(header, rows)] if rows else []
