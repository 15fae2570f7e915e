"""Ten seeds: is learning better than keeping?

Started at Adam or at AVGrad, does MADA end below the optimizer that stays there?
"""

from collections.abc import Sequence
from typing import Any

from study.page import COLORS, Block, Figure, Table, Text
from study.statistics import differences, mean_and_spread, paired

from . import language
from .experiment import Record, Training, by_seed, final_losses

SCALES = ("laptop",)
IN_ALL = False

SEEDS = range(1, 11)  # the first three are table 2's
KEYS = ("adam", "mada_shakespeare", "avgrad", "mada_rho0", "mada", "adam_999")
# What learning adds to where it starts; then what there is to find: AVGrad remembers longer than Adam's beta2 = 0.95.
PAIRS = (("mada_shakespeare", "adam"), ("mada_rho0", "avgrad"), ("mada", "adam"), ("avgrad", "adam"),
         ("adam_999", "adam"), ("avgrad", "adam_999"))  # fmt: skip
# Is the rise of beta2 under the sign of its hypergradient a benefit, or a bias? 1.5e-3 a step over 2,000 steps goes as
# far as the tuned 1e-2 over 300.
SIGN = {"eps": 1e-6, "hyper_optimizer": "sign", "hyper_space": "log", "hyper_momentum": 0, "hyper_lr": 1.5e-3,
        "box": {"beta2": [0.501, 0.9999]}}  # fmt: skip
CONTROLS = {
    "sign": language.Row("MADA from Adam, sign steps in log space", "shakespeare_char", SIGN),
    "sign_beta2": language.Row("Adam, sign steps on beta2 alone", "gpt2_adam", SIGN | {"hyper_lr": {"beta2": 1.5e-3}}),
    "adam_08_999": language.Row("Adam, betas (0.8, 0.999)", "gpt2_adam", {"beta1": 0.8, "beta2": 0.999}),
    "sign_above": language.Row("MADA from beta2 = 0.9995, sign steps", "shakespeare_char", SIGN | {"beta2": 0.9995}),
    "adam_08_95": language.Row("Adam, betas (0.8, 0.95)", "gpt2_adam", {"beta1": 0.8}),
}
CONTROL_PAIRS = (("sign", "adam"), ("sign", "adam_999"), ("sign", "adam_08_999"), ("sign", "sign_above"),
                 ("sign_beta2", "adam"), ("adam_08_999", "adam"), ("adam_08_95", "adam"))  # fmt: skip
KINDS = {"val_loss": "validation loss", "train_loss": "training loss"}


def runs(scale: str) -> Sequence[Training]:
    return [*(language.run(scale, key, seed) for seed in SEEDS for key in KEYS),
            *(control(scale, key, seed) for seed in SEEDS for key in CONTROLS)]  # fmt: skip


def control(scale: str, key: str, seed: int) -> Training:
    its = CONTROLS[key]
    return Training(f"sign/{key}-{seed}", scale, (f"config/{its.config}.py", f"config/{scale}.py"),
                    {**its.settings, "seed": seed}, minutes=language.MINUTES[scale], curves=False)  # fmt: skip


def validation_losses(records: dict[str, Record]) -> dict[str, dict[int, float]]:
    """{row or control: {seed: loss}}"""
    rows = final_losses(language.by_row(records), "val_loss")
    return rows | final_losses(by_seed(records, "sign/"), "val_loss")


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
    labels = {name: its.label for name, its in (language.ROWS | CONTROLS).items()}
    both = validation_losses(records)
    ends = {name: mean_and_spread([record["final"]["beta2"] for record in its.values()])
            for name, its in by_seed(records, "sign/").items()}  # fmt: skip
    controls = [[labels[key], labels[against], str(found), ends.get(key, "")] for key, against in CONTROL_PAIRS
                if (found := paired(both.get(against, {}), both.get(key, {})))]  # fmt: skip
    signs = "Steps by the sign of the hypergradient in log space, and what they are to be told from (validation loss):"
    about = f"{language.about(records)} The first three seeds are table 2's. p is not corrected for {len(PAIRS)} pairs."
    blocks: list[Block] = [Text(about), Table(header, rows), Figure("seeds", caption, draw, (9, 3.6))]
    sign_header = ["first", "second", "first minus second", "first's beta2 at the end"]
    return [*blocks, Text(signs), Table(sign_header, controls)] if controls else blocks
