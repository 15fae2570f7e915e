"""Ten seeds: is learning better than keeping?

Started at Adam or at AVGrad, does MADA end below the optimizer that stays there?
"""

from collections.abc import Sequence
from typing import Any

from study.page import COLORS, Block, Figure, Table, Text
from study.statistics import differences, paired

from . import language
from .experiment import Record, Training, final_losses

SCALES = ("laptop",)
IN_ALL = False

SEEDS = range(1, 11)  # the first three are table 2's
KEYS = ("adam", "mada_shakespeare", "avgrad", "mada_rho0", "mada", "adam_999")
# What learning adds to where it starts; then what there is to find: AVGrad remembers longer than Adam's beta2 = 0.95.
PAIRS = (("mada_shakespeare", "adam"), ("mada_rho0", "avgrad"), ("mada", "adam"), ("avgrad", "adam"),
         ("adam_999", "adam"), ("avgrad", "adam_999"))  # fmt: skip
KINDS = {"val_loss": "validation loss", "train_loss": "training loss"}


def runs(scale: str) -> Sequence[Training]:
    return [language.run(scale, key, seed) for seed in SEEDS for key in KEYS]


def show(scale: str, records: dict[str, Record]) -> Sequence[Block]:
    losses = {kind: final_losses(language.by_row(records), kind) for kind in KINDS}
    shown = [(key, against) for key, against in PAIRS
             if losses["val_loss"].get(key, {}).keys() & losses["val_loss"].get(against, {}).keys()]  # fmt: skip

    rows = []
    for key, against in shown:
        cells = [language.pair_label(key, against)]
        for its in losses.values():
            points = differences(its[against], its[key])
            lower = sum(point < 0 for point in points)
            cells += [str(paired(its[against], its[key])), f"{lower} of {len(points)}"]
        rows.append(cells)

    def draw(figure: Any) -> None:
        for axes, (kind, title) in zip(figure.subplots(1, 2, sharey=True), KINDS.items(), strict=True):
            for i, (key, against) in enumerate(shown):
                first, second = losses[kind][against], losses[kind][key]
                points, both = differences(first, second), paired(first, second)
                axes.plot(points, [i] * len(points), "o", color=COLORS[i + 1], markersize=5, alpha=0.6)
                if both and both.n > 2:
                    axes.plot([both.low, both.high], [i + 0.25] * 2, color="black", linewidth=2)
            axes.axvline(0, color="grey", linewidth=0.8)
            axes.set(title=title.capitalize(), xlabel="difference, nats per token")
            axes.set(yticks=range(len(shown)), ylim=(len(shown) - 0.5, -0.5))
            axes.set_yticklabels([cells[0].replace(" minus ", "\nminus ") for cells in rows], fontsize=8)

    header = ["pair, paired over seeds", *(text for kind in KINDS.values() for text in (kind, "lower in"))]
    caption = "Each dot a seed; bars: 95% confidence interval of the mean. Left of 0, the first of the pair is better."
    about = f"{language.about(records)} The first three seeds are table 2's. p is not corrected for {len(PAIRS)} pairs."
    return [Text(about), Table(header, rows), Figure("seeds", caption, draw, (9, 3.6))]
