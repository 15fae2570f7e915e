"""GPT-2 124M, 300 steps

At the paper's size, how far does each optimizer get in the first few hundred steps?

All that one GPU has time for, at the paper's own size.
"""

from collections.abc import Sequence

from study.page import Block, Table, Text
from study.statistics import loss_cells

from . import figure3, language
from .experiment import Record, Training, final_losses

SCALES = ("gpu",)

KEYS = ("adam", "adan", "hyperadam", "lion", "avgrad", "mada", "mada_rho0")
SEEDS = (1,)
# The largest text that needs no network where there is a DATA_MIRROR: 1.1 million of GPT-2's tokens. A step is what one
# of the paper's eight GPUs makes of one: 12 x 1024 x 5. The warm-up is a tenth of the run; rates and coefficients stay.
SHORT = {
    "dataset": "openwebtext1k", "gradient_accumulation_steps": 5, "max_iters": 300, "warmup_iters": 30,
    "log_interval": 1, "eval_interval": 100, "always_save_checkpoint": False, "keep_checkpoints": 1,
}  # fmt: skip
MINUTES = 3.0  # half of them to compile


def runs(scale: str) -> Sequence[Training]:
    return [
        Training(f"gpt2/{key}-{seed}", scale, (f"config/{language.ROWS[key].config}.py",), {**SHORT, "seed": seed},
                 minutes=MINUTES, alone=True)
        for seed in SEEDS
        for key in KEYS
    ]  # fmt: skip


def show(scale: str, records: dict[str, Record]) -> Sequence[Block]:
    found = {name.removeprefix("gpt2/"): record for name, record in records.items()}
    kinds = {"best_val_loss": "lowest validation loss", "val_loss": "the last", "train_loss": "training loss"}
    by_row = language.by_row(found)
    rows = []
    for key, seeds in by_row.items():
        cells = [cell for kind in kinds for cell in loss_cells(final_losses(by_row, kind), key, "adam")]
        rows.append([language.ROWS[key].label, str(len(seeds)), *cells, f"{language.PAPER_LOSS[key]:.4f}"])
    header = ["optimizer", "n", *(words for kind in kinds.values() for words in (kind, f"minus Adam's ({kind})")),
              "paper's, after 100,000 steps"]  # fmt: skip
    return [
        Text(
            f"{language.about(found)} That is about 16 times through the text: a validation loss that rises again is "
            "overfitting. Settings are those of the paper's runs but for length, warm-up and text."
        ),
        Table(header, rows),
        figure3.losses("gpt2", found),
    ]
