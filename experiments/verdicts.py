"""The first page of the report: each claim of the paper, and ours, what was measured, and one word for it.

The word follows from the numbers: an interval of the difference on the paper's side of 0 is "sign reproduced", on the
other side "contradicted", around 0 "not seen". "Reproduced" is kept for what is done here as in the paper.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from study.page import Block, Heading, Table, Text
from study.statistics import FEW, Losses, Paired, mean, paired, pooled, signed_rank

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
from .tuning import EQUAL, losses_of

REPRODUCED, SIGN, NOT_SEEN, CONTRADICTED = "reproduced", "sign reproduced", "not seen", "contradicted"


TABLE2 = {
    ("mada", "adam"): "MADA ends below Adam (table 2)",
    ("mada_rho0", "adam"): "MADA from AVGrad ends below Adam (table 6)",
    ("mada_rho0", "avgrad"): "... and below AVGrad, where it starts",
    ("mada_fs", "mada"): "MADA-FS, what was learned and is kept, ends below MADA",
    ("mada_poor", "adam_poor"): "From poor betas MADA ends below Adam with the same betas",
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
    return SIGN if difference.difference * paper > 0 else CONTRADICTED


def between(claim: str, theirs: float, losses: Mapping[str, Losses], key: str, against: str, scale: str,
            digits: int = 4) -> Iterator[Verdict]:  # fmt: skip
    """A row about `key` minus `against`, if both were run; `theirs` is the paper's difference."""
    shared = pooled(losses, "adam")
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


def of_language_models() -> Iterator[Verdict]:
    runs = laptop(table2) | laptop(seeds)
    if not runs:
        return
    losses, paper = final_losses(language.by_row(runs), "val_loss"), language.PAPER_LOSS
    scale = f"{size(runs)}, one untuned rate"
    for (key, against), claim in TABLE2.items():
        yield from between(claim, paper[key] - paper[against], losses, key, against, scale)


def of_large_batch() -> Iterator[Verdict]:
    found = large_batch.by_arm(laptop(large_batch))
    losses, paper = losses_of(found), language.PAPER_LOSS
    for (key, against), claim in TABLE2.items():
        difference = signed_rank(losses.get(against, {}), losses.get(key, {}))
        if difference and difference.n >= FEW:
            theirs = paper[key] - paper[against]
            yield Verdict(claim, f"{theirs:+.4f}", str(difference),
                          f"{large_batch.size(found)}, each rate tuned, n = {difference.n}", word(difference, theirs))


def of_learning_at_a_large_batch() -> Iterator[Verdict]:
    found = large_batch.by_arm(laptop(large_batch))
    claims = {
        ("mada_adam", "adam"): "At a large batch MADA from Adam (0.9, 0.95) beats Adam (ours)",
        ("mada_adam", "adam_99"): "... and Adam with beta2 = 0.99",
        ("mada_adam", "mada_adam_fs"): "... and the constants that it learned, kept from the start",
        ("sign", "adam"): "At a large batch sign steps in log space beat Adam (ours)",
        ("sign", "sign_fs"): "... and the constants that they learned, kept from the start",
        ("sign", "adam_08_999"): "... and Adam with betas (0.8, 0.999)",
        ("sign_beta2", "adam"): "... and on beta2 alone they beat Adam",
    }
    yield from ours(claims, losses_of(found), f"{large_batch.size(found)}, each rate tuned" if found else "")


def ours(claims: Mapping[tuple[str, str], str], losses: Mapping[str, Losses], where: str) -> Iterator[Verdict]:
    """Rows about claims of our own: the first of a pair minus the second, over fresh seeds at tuned rates."""
    for (key, against), claim in claims.items():
        difference = signed_rank(losses.get(against, {}), losses.get(key, {}))
        if difference and difference.n >= FEW:
            equal = difference.low > -EQUAL and difference.high < EQUAL
            verdict = "yes" if difference.high < 0 else "no, worse" if difference.low > 0 else "not seen"
            yield Verdict(claim, "", str(difference), f"{where}, n = {difference.n}",
                          f"no, equal within {EQUAL}" if equal else verdict)  # fmt: skip


def of_other_tables() -> Iterator[Verdict]:
    yield Verdict("MADA's perplexities on other texts are lower (table 3)", "61.25, Adam 63.85 on Wikitext", "",
                  "models of this size have perplexities above 2,000 there", "not testable here")  # fmt: skip
    if tuned_ones := laptop(table4):
        parameters = next(iter(tuned_ones.values()))["parameters"]
        yield from between("Fine-tuned with MADA, the training loss is lower (table 4)",
                           PAPER["table4"]["mada"] - PAPER["table4"]["adam"],
                           final_losses(by_seed(tuned_ones, "finetune/"), "loss_on_train"), "mada", "adam",
                           f"{parameters:,} parameters of our own, not GPT-2 XL")  # fmt: skip
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
    outcomes = regime.compare(regime.by_start(found), regime.fractions(found))[1]
    for batch in (min(outcomes), max(outcomes)):
        each = outcomes[batch]
        agree = sum(o.same == o.n for o in each)
        n = " to ".join(str(n) for n in sorted({o.n for o in each}))
        yield Verdict(
            "The coefficients go where figures 5 to 7 show",
            f"{len(each)} changes from step 0 to the end",
            f"{agree} of {len(each)} with the authors' sign in every seed",
            f"{parameters:,} parameters, {batch} sequences a step, n = {n}",
            SIGN if agree == len(each) else CONTRADICTED,
        )


def of_figure8() -> Iterator[Verdict]:
    runs = laptop(figure8)
    laptop_grid = figure8.losses("laptop", runs)
    if laptop_grid["Adam"].size and not any((grid != grid).any() for grid in laptop_grid.values()):
        spans = {name: float(grid.max() - grid.min()) for name, grid in laptop_grid.items()}
        yield Verdict("MADA's final training loss depends less on the initial betas (figure 8)",
                      "0.63 to 0.79, Adam 0.60 to 0.94",
                      f"highest minus lowest: {spans['MADA']:.4f}, Adam {spans['Adam']:.4f}",
                      f"{size(runs)}, {laptop_grid['MADA'].size} points, n = 1",
                      SIGN if spans["MADA"] < spans["Adam"] else CONTRADICTED)  # fmt: skip
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
    [record] = records(figure9.runs("laptop")).values()
    last = {name: curve["x"][-1] for name, curve in record["runs"].items()}
    yield Verdict("MADA started at Adam finds the optimum that Adam misses (figure 9)", "x to -1, Adam's to +1",
                  f"last x {last['MADA from Adam']:+.3f}, Adam's {last['Adam']:+.3f}", exact,
                  REPRODUCED if last["MADA from Adam"] < -0.5 < 0.5 < last["Adam"] else CONTRADICTED)  # fmt: skip
    yield Verdict("... also with algorithm 1's order as printed, weights first", "",
                  f"last x {last['MADA, weights first']:+.3f}", exact,
                  CONTRADICTED if last["MADA, weights first"] > 0 else REPRODUCED)  # fmt: skip
    [record] = records(figure1.runs("laptop")).values()
    best = [case["best"]["C1, C2, C3 = 1, 1, 1"] for case in record["cases"].values()]
    yield Verdict("The bound of theorem 1 is smallest at rho = beta2 = 0.9 (figures 1 and 2)", "0.9",
                  " and ".join(f"{rho:.3f}" for rho in best), exact,
                  REPRODUCED if all(abs(rho - 0.9) < 1e-3 for rho in best) else CONTRADICTED)  # fmt: skip
    [record] = records(proposition1.runs("laptop")).values()
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
                      "contradicted: less" if ratio < 0.9 * theirs else REPRODUCED)  # fmt: skip


def of_tuning() -> Iterator[Verdict]:
    everything = laptop(tuned)
    found = {name.removeprefix("tuned/"): r for name, r in everything.items() if "seeds" in r}
    losses: dict[str, Losses] = {f"control {name}": its for name, its in tuned.of_controls(everything).items()}
    losses |= losses_of(found)
    claims = {
        ("mada", "adam"): "MADA from (0.9, 0.95) beats Adam whose beta2 was tuned as long (ours)",
        ("mada", "control fs"): "... and the constants that it learned, kept from the start",
        ("mada", "control adam"): "... and Adam with betas (0.8, 0.99)",
        ("mada_best", "adam"): "MADA from Adam's best beta2 beats tuned Adam (ours)",
        ("mada_avgrad", "avgrad"): "MADA from AVGrad beats AVGrad, both tuned (ours)",
        ("mada_fs", "adam"): "What MADA learned, kept and tuned, beats Adam's constants (ours)",
        ("sign", "adam"): "Sign steps in log space beat tuned constants (ours)",
        ("sign", "control sign_fs"): "... and the constants that they learned, kept from the start",
        ("control sign_beta2", "adam"): "... and on beta2 alone they beat tuned constants",
        ("avgrad", "adam"): "AVGrad beats Adam, both tuned (ours)",
        ("muon", "adam"): "Muon beats Adam, both tuned (ours)",
        ("schedule_free", "adam"): "Schedule-Free AdamW beats Adam, both tuned (ours)",
        ("soap", "adam"): "SOAP beats Adam, both tuned (ours)",
    }
    yield from ours(claims, losses, tuned.SIZES["laptop"])


def of_placebos() -> Iterator[Verdict]:
    """Of the runs at Adam's tuned rate and the smaller batch."""
    batch, rate = min(placebo.SEEDS), f"{placebo.TUNED:g}"
    found = {name.removeprefix("placebo/").removesuffix(f"-{batch}"): record["rows"][rate]
             for name, record in laptop(placebo).items() if name.endswith(f"-{batch}")}  # fmt: skip
    if found.keys() != {"none", *placebo.ENDS}:
        return
    of = {name: found[name] for name in placebo.ENDS}
    where = f"width {small.MODEL['n_embd']}, {placebo.SETUP['steps']} steps, n = {len(found['none']['w'])}"
    last = {name: mean(columns["w"]) for name, columns in of.items()}
    real, worthless = ([name for name, end in placebo.ENDS.items() if end.real is kind] for kind in (True, False))

    def listed(values: Mapping[str, str], names: Sequence[str]) -> str:
        return ", ".join(f"{placebo.ENDS[name].label} {values[name]}" for name in names)

    shown = {name: f"{w:.3f}" for name, w in last.items()}
    yield Verdict("A hypergradient leaves Adam for a better end rather than for a worthless one (ours)", "",
                  f"Adam's weight, from {placebo.START}, ends at: {listed(shown, real)}; {listed(shown, worthless)}",
                  where, "yes" if max(last[n] for n in real) < min(last[n] for n in worthless) else "no")  # fmt: skip
    alone = dict(enumerate(found["none"]["val_loss"]))
    lowest = min(worthless, key=lambda name: last[name])
    cost = paired(alone, dict(enumerate(of[lowest]["val_loss"])))
    assert cost is not None
    yield Verdict(f"... without harm ({placebo.ENDS[lowest].label}, minus Adam alone)", "", str(cost), where,
                  "no, worse" if cost.low > 0 else "yes" if cost.high < 0 else "not seen")  # fmt: skip
    shares = {name: mean(columns["finite_share"]) for name, columns in of.items()}
    percent = {name: f"{share:.0%}" for name, share in shares.items()}
    yield Verdict("The next batch's loss after a step along one end alone tells them apart (ours)", "",
                  f"Adam's is lower in: {listed(percent, real)}; {listed(percent, worthless)}", where,
                  "yes" if max(shares[n] for n in real) < min(shares[n] for n in worthless) else "no")  # fmt: skip


PARTS: Mapping[str, Sequence[Callable[[], Iterator[Verdict]]]] = {
    "Does learning the coefficients beat constants that were tuned as long?": (of_tuning, of_learning_at_a_large_batch),
    "Does a hypergradient tell a better optimizer from noise?": (of_placebos,),
    "The paper's tables": (of_large_batch, of_language_models, of_other_tables),
    "The paper's figures, theory and cost": (of_coefficients, of_figure8, of_theory, of_cost),
}


def show() -> list[Block]:
    words = (
        "Differences in nats of validation loss (table 4: training loss; table 5: points of accuracy), the first minus "
        "the second. `sign reproduced`: the 95% interval lies on the paper's side of 0; `contradicted`: on the other; "
        "`not seen`: around 0. But for what has the paper's own size, all is about models thousands of times smaller."
    )
    header = ["claim", "verdict", "found here", "the paper", "where"]
    blocks: list[Block] = [Text(words)]
    for question, parts in PARTS.items():
        rows = [[v.claim, v.word, v.found, v.paper, v.scale] for part in parts for v in part()]
        blocks += [Heading(question), Table(header, rows)] if rows else []
    return blocks
