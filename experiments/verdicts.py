"""The first page of the report: each claim of the paper, and ours, what was measured, and one word for it.

The word follows from the numbers: an interval of the difference on the paper's side of 0 is "sign reproduced", on the
other side "other sign here", around 0 "not seen". "Reproduced" and "contradicted" are kept for what is done here as in
the paper.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from study.page import Block, Heading, Table, Text
from study.statistics import FEW, Losses, Paired, Pooled, mean, p_text, paired, pooled, signed_rank

from . import (
    appendix_d,
    figure1,
    figure8,
    figure9,
    language,
    large_batch,
    placebo,
    proposition1,
    regime,
    seeds,
    small,
    table2,
    table4,
    table5,
    tuned,
)  # fmt: skip
from .experiment import PAPER, Record, by_seed, final_losses, records, without_diverged
from .tuning import holm_of, losses_of, verdict

REPRODUCED, CONTRADICTED = "reproduced", "contradicted"
SIGN, OTHER_SIGN, NOT_SEEN = "sign reproduced", "other sign here", "not seen"
WORDS = {"lower": "yes", "higher": "no, worse", "undecided": "undecided"}  # of claims that one ends below another
TABLE2 = {
    ("mada", "adam"): "MADA ends below Adam (table 2)",
    ("mada_rho0", "adam"): "MADA from AVGrad ends below Adam (table 6)",
    ("mada_rho0", "avgrad"): "... and below AVGrad, where it starts",
    ("mada_fs", "mada"): "MADA-FS, what was learned and is kept, ends below MADA",
    ("mada_poor", "adam_poor"): "From poor betas and rho = 0 MADA ends below Adam with the same betas",
    ("avgrad", "adam"): "AVGrad ends below Adam",
    ("hyperadam", "adam"): "HyperAdam ends below Adam",
    ("lion", "adam"): "Lion ends below Adam",
    ("adan", "adam"): "Adan ends below Adam",
}


class Verdict(NamedTuple):
    claim: str
    paper: str
    found: str
    scale: str
    word: str


def word(difference: Paired, paper: float) -> str:
    if difference.low <= 0 <= difference.high:
        return NOT_SEEN
    return SIGN if difference.difference * paper > 0 else OTHER_SIGN


def between(claim: str, theirs: float, losses: Mapping[str, Losses], key: str, against: str, scale: str,
            digits: int = 4, shared: Pooled | None = None) -> Iterator[Verdict]:  # fmt: skip
    """A row about `key` minus `against`, if both were run; `theirs` is the paper's difference."""
    shared = shared or pooled(losses, "adam")
    difference = paired(losses.get(against, {}), losses.get(key, {}), digits, shared)
    if difference and difference.n > 1:  # one seed is no verdict
        size = f"{scale}, n = {difference.n}" + (", pooled spread" if difference.pooled else "")
        yield Verdict(claim, f"{theirs:+.{digits}f}", str(difference), size, word(difference, theirs))


def laptop(module: Any) -> dict[str, Record]:
    """The laptop's records of an experiment's runs, without those that diverged."""
    return without_diverged(records(module.runs("laptop")))[0]


def size(found: Mapping[str, Record]) -> str:
    """Of the models that these runs trained."""
    record = next(iter(found.values()))
    config = record["config"]
    tokens = config["batch_size"] * config["gradient_accumulation_steps"] * config["block_size"]
    return f"{record['parameters']:,} parameters, {tokens:,} tokens a step, {config['max_iters']:,} steps"


Compare = Callable[[Losses, Losses], Paired | None]


def ours(claims: Mapping[tuple[str, str], str], losses: Mapping[str, Losses], where: str,
         compare: Compare = signed_rank) -> Iterator[Verdict]:  # fmt: skip
    """Rows about claims of our own, that the first of a pair ends below the second. All claims are one family, also
    those that are not recorded yet."""
    both = {pair: compare(losses.get(pair[1], {}), losses.get(pair[0], {})) for pair in claims}
    found = {pair: difference for pair, difference in both.items() if difference and difference.n > FEW}
    for pair, p in holm_of(claims, found).items():
        outcome = verdict(found[pair], p)
        text = f"{found[pair]}, Holm's {p_text(p)}"
        yield Verdict(claims[pair], "", text, f"{where}, n = {found[pair].n}", WORDS.get(outcome, f"no, {outcome}"))


def of_tuning() -> Iterator[Verdict]:
    everything = laptop(tuned)
    losses: dict[str, Losses] = {f"control {name}": its for name, its in tuned.of_controls(everything).items()}
    losses |= losses_of({name.removeprefix("tuned/"): r for name, r in everything.items() if "seeds" in r})
    yield from ours({
        ("mada", "adam"): "MADA from (0.9, 0.95) beats Adam whose beta2 was tuned as long (ours)",
        ("mada", "adam_08"): "... and Adam with beta1 = 0.8, its beta2 tuned as long",
        ("mada", "hyperadam"): "... and HyperAdam: beta3, rho, c and gamma add something",
        ("mada", "control fs"): "... and the constants that it learned, kept from the start",
        ("mada_fs", "mada"): "What MADA learned, kept and its rate tuned too, beats MADA (ours)",
        ("mada_fs", "adam"): "... and Adam whose beta2 was tuned",
        ("mada_fs", "adam_08"): "... and Adam with beta1 = 0.8, its beta2 tuned",
        ("mada", "mada_best"): "MADA with the box of beta2 to 0.99 beats MADA with the box to 0.9999 (ours)",
        ("hyperadam", "adam"): "HyperAdam beats Adam, both tuned (ours)",
        ("mada_avgrad", "avgrad"): "MADA from AVGrad beats AVGrad, both tuned (ours)",
        ("sign", "adam"): "Sign steps in log space beat tuned Adam (ours)",
        ("sign", "mada"): "... and MADA's own steps",
        ("sign", "adam_08"): "... and Adam with beta1 = 0.8, its beta2 tuned",
        ("sign", "control sign_fs"): "... and the constants that they learned, kept from the start",
        ("control sign_beta2", "adam"): "Sign steps on beta2 alone beat tuned Adam (ours)",
        ("sign", "control sign_above"): "Sign steps from beta2 = 0.95 beat those from 0.9995 (ours)",
        ("avgrad", "adam"): "AVGrad beats Adam, both tuned (ours)",
        ("lion", "adam"): "Lion beats Adam, both tuned (ours)",
        ("adan", "adam"): "Adan beats Adam, both tuned (ours)",
        ("prodigy", "adam"): "Prodigy beats Adam, both tuned (ours)",
        ("muon", "adam"): "Muon beats Adam, both tuned (ours)",
        ("soap", "adam"): "SOAP beats Adam, both tuned (ours)",
        ("schedule_free", "adam"): "Schedule-Free AdamW beats Adam, both tuned (ours)",
        ("schedule_free", "mada"): "... and MADA",
    }, losses, tuned.SIZES["laptop"])  # fmt: skip


def of_learning_at_a_large_batch() -> Iterator[Verdict]:
    """The five differences that were named before any arm but Adam had fresh seeds."""
    if not (found := large_batch.by_arm(laptop(large_batch))):
        return
    claims = (
        "At a large batch MADA from Adam beats the best of Adam's betas (ours)",
        "At a large batch MADA from Adam beats the constants that it learned, kept from the start (ours)",
        "At a large batch sign steps in log space beat the best of Adam's betas (ours)",
        "At a large batch MADA from AVGrad beats AVGrad (ours)",
        "At a large batch MADA from beta3 = 0.9, rho = 0 beats that start, kept (ours)",
    )
    yield from ours(dict(zip(large_batch.PRIMARY, claims, strict=True)), large_batch.losses_with_best(found),
                    f"{large_batch.size(found)}, each rate tuned")  # fmt: skip


def of_seeds() -> Iterator[Verdict]:
    if not (found := laptop(seeds)):
        return
    yield from ours({
        ("mada_shakespeare", "adam"): "At one untuned rate MADA from Adam beats Adam (ours)",
        ("mada_shakespeare", "adam_999"): "... and Adam with beta2 = 0.999",
        ("mada_rho0", "avgrad"): "At one untuned rate MADA from AVGrad beats AVGrad (ours)",
        ("mada_rho0", "adam_999"): "... and Adam with beta2 = 0.999",
        ("sign", "adam"): "At one untuned rate sign steps in log space beat Adam (ours)",
        ("sign", "adam_999"): "... and Adam with beta2 = 0.999",
        ("sign", "adam_08_999"): "... and Adam with betas (0.8, 0.999)",
        ("sign_beta2", "adam"): "At one untuned rate sign steps on beta2 alone beat Adam (ours)",
        ("sign", "sign_above"): "At one untuned rate sign steps from beta2 = 0.95 beat those from 0.9995 (ours)",
    }, seeds.validation_losses(found), f"{size(found)}, one untuned rate", paired)  # fmt: skip


def of_placebos() -> Iterator[Verdict]:
    """Of the runs at Adam's tuned rate and the smaller batch."""
    batch, rate = min(placebo.SEEDS), f"{placebo.TUNED:g}"
    found = {name.removeprefix("placebo/").removesuffix(f"-{batch}"): record["rows"][rate]
             for name, record in laptop(placebo).items() if name.endswith(f"-{batch}")}  # fmt: skip
    if found.keys() != {"none", *placebo.ENDS}:
        return
    size = f"width {small.MODEL['n_embd']}, {placebo.SETUP['steps']} steps, hyper rate {placebo.HYPER_LR}"
    where = f"{size}, n = {len(found['none']['w'])}"
    real, worthless = ([name for name, end in placebo.ENDS.items() if end.real is kind] for kind in (True, False))

    def listed(values: Mapping[str, str]) -> str:
        placebos, others = (", ".join(f"{placebo.ENDS[n].label} {values[n]}" for n in names)
                            for names in (worthless, real))  # fmt: skip
        return f"{placebos}; real ends: {others}"

    weights = {name: median(found[name]["w"]) for name in placebo.ENDS}
    kept = sum(weights[name] >= placebo.START for name in worthless)
    yield Verdict("A hypergradient keeps Adam against an end that is worth nothing (ours)", "",
                  f"Adam's weight, from {placebo.START}, ends in the median at: "
                  + listed({name: f"{w:.3f}" for name, w in weights.items()}),
                  where, f"for {kept} of {len(worthless)}")  # fmt: skip
    losses = {name: dict(enumerate(columns["val_loss"])) for name, columns in found.items()}
    yield from ours({(name, "none"): f"Learning between Adam and {placebo.ENDS[name].label} beats Adam alone (ours)"
                     for name in worthless}, losses, size)  # fmt: skip
    shares = {name: mean(found[name]["finite_share"]) for name in placebo.ENDS}
    told = sum(shares[name] > 0.5 for name in worthless)
    yield Verdict("The next batch's loss after a step along one end alone prefers Adam to a placebo (ours)", "",
                  f"Adam's is lower in: {listed({name: f'{share:.0%}' for name, share in shares.items()})}",
                  where, f"for {told} of {len(worthless)}")  # fmt: skip


def of_language_models() -> Iterator[Verdict]:
    runs = laptop(table2) | laptop(seeds)
    if not runs:
        return
    losses, paper = final_losses(language.by_row(runs), "val_loss"), language.PAPER_LOSS
    scale = f"{size(runs)}, one untuned rate"
    shared = pooled(final_losses(language.by_row(laptop(table2)), "val_loss"), "adam")  # as in that table
    for (key, against), claim in TABLE2.items():
        yield from between(claim, paper[key] - paper[against], losses, key, against, scale, shared=shared)


def of_large_batch() -> Iterator[Verdict]:
    found = large_batch.by_arm(laptop(large_batch))
    losses, paper = losses_of(found), language.PAPER_LOSS
    for (key, against), claim in TABLE2.items():
        difference = signed_rank(losses.get(against, {}), losses.get(key, {}))
        if difference and difference.n > FEW:
            theirs = paper[key] - paper[against]
            yield Verdict(claim, f"{theirs:+.4f}", str(difference),
                          f"{large_batch.size(found)}, each rate tuned, n = {difference.n}", word(difference, theirs))


def of_other_tables() -> Iterator[Verdict]:
    yield Verdict("MADA's perplexities on other texts are lower (table 3)", "61.25, Adam 63.85 on Wikitext", "",
                  "models of this size have perplexities above 2,000 there", "not testable here")  # fmt: skip
    if tuned_ones := laptop(table4):
        parameters = next(iter(tuned_ones.values()))["parameters"]
        yield from between("Fine-tuned with MADA, the training loss is lower (table 4)",
                           PAPER["table4"]["mada"] - PAPER["table4"]["adam"],
                           final_losses(by_seed(tuned_ones, "finetune/"), "loss_on_train"), "mada", "adam",
                           f"{parameters:,} parameters of our own, not GPT-2 XL; one pretrained model, seeds differ in "
                           "their batches")  # fmt: skip
    for model, name in table5.NAMES.items():
        if found := by_seed(laptop(table5), f"cifar/{model}-"):
            settings = next(iter(found["adam"].values()))["settings"]
            theirs = PAPER["table5"][model]["mada"][0] - PAPER["table5"][model]["adam"][0]
            yield from between(f"MADA's accuracy on CIFAR-10 is higher, {name} (table 5)", theirs,
                               final_losses(found, "accuracy"), "mada", "adam",
                               f"{settings['epochs']} epochs of {settings['images']:,} images, percent", 2)  # fmt: skip


def of_coefficients() -> Iterator[Verdict]:
    found = laptop(regime)
    if not found:
        return
    parameters = next(iter(found.values()))["parameters"]
    outcomes = regime.compare(regime.by_start(found), [(step, step) for step in regime.STEPS])[1]
    for batch, each in outcomes.items():
        free = [o for o in each if regime.is_free(o)]
        agree, freely = (sum(o.same == o.n for o in some) for some in (each, free))
        n = " to ".join(str(n) for n in sorted({o.n for o in each}))
        yield Verdict(
            f"At {batch} sequences the coefficients move as in figures 5 to 7",
            f"{len(each)} changes in the first {regime.STEPS[-1]} steps",
            f"{agree} of {len(each)} with the authors' sign in every seed; of the {len(free)} that do not start at an "
            f"end of their box {freely}",
            f"{parameters:,} parameters, n = {n}",
            SIGN if agree == len(each) else f"{freely} of {len(free)}",
        )


def of_figure8() -> Iterator[Verdict]:
    runs = records(figure8.runs("laptop"))
    laptop_grid = figure8.losses("laptop", runs)
    if runs and not any(np.isnan(grid).any() for grid in laptop_grid.values()):
        spans, others = ({name: float(np.ptp(grid[:, :columns])) for name, grid in laptop_grid.items()}
                         for columns in (None, -1))  # fmt: skip
        smaller = [its["MADA"] < its["Adam"] for its in (spans, others)]
        last = figure8.GRIDS["laptop"][0][-1]
        yield Verdict("MADA's final training loss depends less on the initial betas (figure 8)",
                      "0.63 to 0.79, Adam 0.60 to 0.94",
                      f"highest minus lowest: {spans['MADA']:.4f}, Adam {spans['Adam']:.4f}; without beta1 = {last}: "
                      f"{others['MADA']:.4f}, Adam {others['Adam']:.4f}",
                      f"{size(runs)}, {laptop_grid['MADA'].size} points, n = 1",
                      SIGN if all(smaller) else "one column decides" if any(smaller) else OTHER_SIGN)  # fmt: skip
    gpu = records(figure8.runs("gpu"))
    theirs = PAPER["figure8_grid"]["adam"]
    points, near = [], 0
    for record in gpu.values():
        at = f"{record['settings']['beta1']:g}, {record['settings']['beta2']:g}"
        if at in theirs and "loss_on_train" in record["final"]:
            ours = record["final"]["loss_on_train"], record["final"]["val_loss"]
            points.append(f"({at}) {ours[0]:.3f} / {ours[1]:.3f}")
            near += all(abs(a / b - 1) < 0.05 for a, b in zip(ours, theirs[at], strict=True))
    if points:
        named = ", ".join(f"({at}) {train:.3f} / {val:.3f}" for at, (train, val) in theirs.items())
        yield Verdict("Adam's training / validation losses in figure 8's grid", named, ", ".join(points),
                      "the paper's size, one H100, n = 1 each",
                      REPRODUCED if near == len(points) else f"{near} of {len(points)} within 5%")  # fmt: skip
    grid = PAPER["figure8_grid"]
    yield Verdict("What figure 8 measures is how fast a model overfits (ours, from the authors' own points)", "",
                  f"MADA's training loss is below Adam's at {grid['mada_lower_in_training']:.1%} of them, its "
                  f"validation loss above at {grid['mada_higher_in_validation']:.1%}, in the median by "
                  f"{grid['median_validation_difference']:+.4f}",
                  f"the authors' {grid['points']} points", "yes")  # fmt: skip


def of_theory() -> Iterator[Verdict]:
    exact = "the paper's own"
    for record in records(figure9.runs("laptop")).values():
        last = {name: curve["x"][-1] for name, curve in record["runs"].items()}
        yield Verdict("MADA started at Adam finds the optimum that Adam misses (figure 9)", "x to -1, Adam's to +1",
                      f"last x {last['MADA from Adam']:+.3f}, Adam's {last['Adam']:+.3f}", exact,
                      REPRODUCED if last["MADA from Adam"] < -0.5 < 0.5 < last["Adam"] else CONTRADICTED)  # fmt: skip
        yield Verdict("... also with algorithm 1's order as printed, weights first", "",
                      f"last x {last['MADA, weights first']:+.3f}", exact,
                      CONTRADICTED if last["MADA, weights first"] > 0 else REPRODUCED)  # fmt: skip
    for record in records(figure1.runs("laptop")).values():
        ones, others = ([case["best"][f"C1, C2, C3 = {constants}"] for case in record["cases"].values()]
                        for constants in ("1, 1, 1", "10, 10, 1"))  # fmt: skip
        yield Verdict("The bound of theorem 1 is smallest at rho = beta2 = 0.9 (figures 1 and 2)", "0.9",
                      f"for C1, C2, C3 = 1, 1, 1: {' and '.join(f'{rho:.3f}' for rho in ones)}; for 10, 10, 1: "
                      f"{' and '.join(f'{rho:.3f}' for rho in others)}", exact + ", which does not give the constants",
                      CONTRADICTED if any(abs(rho - 0.9) > 1e-3 for rho in ones)
                      else "reproduced for C = 1" if any(abs(rho - 0.9) > 1e-3 for rho in others)
                      else REPRODUCED)  # fmt: skip
    for record in records(proposition1.runs("laptop")).values():
        rises = {name: max(row["fraction"] for row in record["rows"] if row["schedule"] == name)
                 for name in ("1 / (t (1 - beta2) + 1), as printed", "beta2 / (t (1 - beta2) + 1)")}  # fmt: skip
        printed, corrected = rises.values()
        yield Verdict("Under proposition 1's bound on rho the effective learning rate never rises", "never",
                      f"in up to {printed:.1%} of steps; with beta2 in the numerator {corrected:.1%}", exact,
                      REPRODUCED if printed == 0 else CONTRADICTED)  # fmt: skip


def of_cost() -> Iterator[Verdict]:
    paper = PAPER["appendix_d"]["480"]
    for record in [record for name, record in laptop(appendix_d).items() if name == "cost/480"]:
        [ratio] = [row["adamw"][0] for row in record["rows"] if row["optimizer"] == "mada"]
        theirs = paper["mada"][0] / paper["adam"][0]
        yield Verdict("An iteration with MADA costs this many of Adam's (appendix D)", f"{theirs:.2f}", f"{ratio:.2f}",
                      f"{record['parameters']:,} parameters, {record['device']}",
                      "less" if ratio < 0.9 * theirs else REPRODUCED)  # fmt: skip


PARTS: Mapping[str, Sequence[Callable[[], Iterator[Verdict]]]] = {
    "Does learning the coefficients beat constants that were tuned as long?":
        (of_learning_at_a_large_batch, of_tuning, of_seeds),
    "Does a hypergradient tell a better optimizer from noise?": (of_placebos,),
    "The paper's tables": (of_large_batch, of_language_models, of_other_tables),
    "The paper's figures, theory and cost": (of_coefficients, of_figure8, of_theory, of_cost),
}  # fmt: skip


def show() -> list[Block]:
    words = (
        "Differences in nats of validation loss (table 4: training loss; table 5: points of accuracy), the first minus "
        "the second, with their 95% interval. Of the paper's claims: `sign reproduced`: the interval lies on the "
        "paper's side of 0; `other sign here`: on the other; `not seen`: it holds 0, which does not mean equal. Of "
        "ours: `yes` and `no, worse` by p with Holm's correction over all claims of ours at that scale; else "
        "`undecided`. Where a model is not the paper's own it is 75 to 2,000 times smaller: no such row refutes it."
    )
    header = ["claim", "verdict", "found here", "the paper", "where"]
    blocks: list[Block] = [Text(words)]
    for question, parts in PARTS.items():
        rows = [[v.claim, v.word, v.found, v.paper, v.scale] for part in parts for v in part()]
        blocks += [Heading(question), Table(header, rows)] if rows else []
    return blocks
