"""Table 2 at a large batch, each learning rate tuned

Where the coefficients move as in the paper, does learning them help?

At 256 sequences the hypergradients have the paper's signs (see the experiment "regime"), and Adam's best learning rate
is several times that of 12 sequences: so each arm is a `sweep.py --tune` of its learning rate alone. All else is what
the arm's config file says: MADA's hyper rates are the paper's, or 2.5e-3 and, for sign steps, 1e-2, which "tuned" chose
at 24 sequences. PRIMARY, five differences, was fixed before any run on a fresh seed but Adam's; only they are tested.
The arm with a tenth of MADA's hyper rate was added when MADA's ten seeds were seen.
"""

from collections.abc import Mapping, Sequence

from runtime.figure import COEFFICIENTS
from study.page import Block, Table, Text
from study.statistics import Losses, Paired, mean, mean_and_spread, p_text, signed_rank

from . import language, regime
from .experiment import Computation, Record
from .tuning import (
    EQUAL,
    FRESH,
    TUNED_ON,
    Arm,
    figure,
    holm_of,
    learned,
    losses_of,
    table,
    verdict,
    where_they_end,
)

SCALES = ("laptop",)
IN_ALL = False

# With a warm-up of 30 steps one of two seeds (Adam, 1 and 2) ends 0.15 above the other, with one of 100 none does.
OVERLAYS = ("config/tiny.py",)
COMMON = {"learning_rate": "8e-3,16e-3,32e-3", "batch_size": "256", "block_size": "32", "max_iters": "300",
          "warmup_iters": "100", "eval_interval": "100"}  # fmt: skip
BASELINE = "adam"
BOX = {"box": "{'beta2': (0.501, 0.9999)}"}  # MADA's own ends at 0.99
SIGN = BOX | {"hyper_optimizer": "sign", "hyper_space": "log", "hyper_momentum": "0", "hyper_lr": "1e-2"}


def row(key: str) -> Arm:
    """A row of table 2."""
    its = language.ROWS[key]
    return Arm(its.label, {name: str(value) for name, value in its.settings.items()}, its.config)


ARMS = {
    "adam": row("adam"),
    "mada_adam": Arm("MADA from Adam", {"eps": "1e-6"} | BOX),
    "mada_slow": Arm("MADA from Adam, a tenth of the hyper rate", {"eps": "1e-6", "hyper_lr": "2.5e-4"} | BOX),
    "adam_99": Arm("Adam, beta2 = 0.99", {"beta2": "0.99"}, "gpt2_adam"),
    "adam_08_99": Arm("Adam, betas (0.8, 0.99)", {"beta1": "0.8", "beta2": "0.99"}, "gpt2_adam"),
    "mada_rho0": row("mada_rho0"),
    "avgrad": row("avgrad"),
    "sign": Arm("MADA from Adam, sign steps in log space", {"eps": "1e-6"} | SIGN),
    "mada": row("mada"),
    "mada_start": Arm("beta3 = 0.9, rho = 0, kept", {"hyper_lr": "0"}, "gpt2_mada"),
    "adam_999": row("adam_999"),
    "adam_08_999": Arm("Adam, betas (0.8, 0.999)", {"beta1": "0.8", "beta2": "0.999"}, "gpt2_adam"),
    "adam_08_95": Arm("Adam, betas (0.8, 0.95)", {"beta1": "0.8"}, "gpt2_adam"),
    "sign_beta2": Arm("Adam, sign steps on beta2 alone", SIGN | {"hyper_lr": "{'beta2': 1e-2}"}, "gpt2_adam"),
    "sign_above": Arm("MADA from beta2 = 0.9995, sign steps", {"eps": "1e-6", "beta2": "0.9995"} | SIGN),
    "mada_poor": row("mada_poor"),
    "avgrad_poor": Arm("AVGrad, betas (0.7, 0.8)", {"beta1": "0.7", "beta2": "0.8"}, "gpt2_avgrad"),
    "adam_poor": row("adam_poor"),
    "hyperadam": row("hyperadam"),
    "lion": Arm("Lion", {"learning_rate": "1e-3,2e-3,4e-3"}, "gpt2_lion"),
    "adan": row("adan"),
}  # fmt: skip
CONSTANTS = ("adam", "adam_99", "adam_999", "adam_08_95", "adam_08_99", "adam_08_999")  # Adam, tuned over its betas
BEST = "best"  # of these, chosen on the seeds that all are tuned on
# What these learned on the seeds they are tuned on, kept from the start: MADA-FS.
KEPT = {"mada_adam_fs": "mada_adam", "sign_fs": "sign", "mada_rho0_fs": "mada_rho0", "mada_fs": "mada"}
PRIMARY = (("mada_adam", BEST), ("mada_adam", "mada_adam_fs"), ("sign", BEST), ("mada_rho0", "avgrad"),
           ("mada", "mada_start"))  # fmt: skip
PAIRS = (*PRIMARY, ("mada_adam", "adam"), ("mada_slow", "adam"), ("sign", "adam"), ("sign", "mada_adam"),
         ("sign", "sign_fs"), ("sign", "sign_beta2"), ("sign", "sign_above"), ("mada_rho0", "mada_rho0_fs"),
         ("mada", "mada_fs"), ("mada_poor", "avgrad_poor"), ("hyperadam", "adam"))  # fmt: skip


def run(name: str, arm: Arm) -> Computation:
    return arm.run(f"large_batch/{name}", "laptop", OVERLAYS, COMMON, minutes=14.0)


def arms() -> dict[str, Arm]:
    """With those that keep what another one's record ends with."""
    found = dict(ARMS)
    for name, source in KEPT.items():
        if record := run(source, ARMS[source]).record():
            found[name] = kept(source, record)
    return found


def kept(source: str, record: Record) -> Arm:
    """The constants at which an arm's record ends."""
    settings = {"eps": "1e-6", "optimizer": "mada", "hyper_lr": "0"}
    settings |= {name: f"{value:g}" for name, value in learned(record).items()}
    return Arm(f"What it learned, kept: {ARMS[source].label}", settings)


def runs(scale: str) -> Sequence[Computation]:
    return [run(name, arm) for name, arm in arms().items()]


# ------------------------------------------------------------------------------------------------------------ report


def by_arm(records: Mapping[str, Record]) -> dict[str, Record]:
    return {name: records[f"large_batch/{name}"] for name in arms() if f"large_batch/{name}" in records}


def size(found: Mapping[str, Record]) -> str:
    parameters, tokens = next(iter(found.values()))["parameters"], int(COMMON["batch_size"]) * int(COMMON["block_size"])
    return f"{parameters:,} parameters, {tokens:,} tokens a step, {COMMON['max_iters']} steps"


def show(scale: str, records: dict[str, Record]) -> Sequence[Block]:
    found, labels = by_arm(records), {name: arm.label for name, arm in arms().items()}
    about = (
        f"{size(found)}. Three learning rates, "
        f"seeds {TUNED_ON} at each, widened until the lowest mean loss lies inside; then {FRESH} fresh seeds there, "
        "paired by seed. Differences, intervals and p by Wilcoxon's signed ranks. Arms of the paper's files learn from "
        "step 51 on, the others from the start. Sorted by the median loss:"
    )
    return [Text(about), table(found, labels, BASELINE, test=False),
            *pairs(found, labels), *changes(found),
            figure("large_batch", found, labels), *where_they_end(found, labels)]  # fmt: skip


def best_constants(found: Mapping[str, Record]) -> str | None:
    """The arm of CONSTANTS with the lowest mean loss of the seeds that it is tuned on; None until all have a record."""
    lowest = {name: min(mean(point["val_loss"]) for point in found[name]["grid"] if None not in point["val_loss"])
              for name in CONSTANTS if name in found}  # fmt: skip
    return min(lowest, key=lambda name: lowest[name]) if len(lowest) == len(CONSTANTS) else None


def losses_with_best(found: Mapping[str, Record]) -> dict[str, Losses]:
    """{arm: {fresh seed: loss}}, those of the best constants also as BEST."""
    losses, best = losses_of(found), best_constants(found)
    return losses | ({BEST: losses[best]} if best else {})


def differences(losses: Mapping[str, Losses]) -> dict[tuple[str, str], Paired]:
    """PAIRS, those of which there are seeds."""
    found = {pair: signed_rank(losses.get(pair[1], {}), losses.get(pair[0], {})) for pair in PAIRS}
    return {pair: difference for pair, difference in found.items() if difference}


def pairs(found: Mapping[str, Record], labels: Mapping[str, str]) -> Sequence[Block]:
    best, rows = best_constants(found), []
    shown = differences(losses_with_best(found))
    corrected = holm_of(PRIMARY, shown)
    for (key, against), difference in shown.items():
        second = f"{labels[best]}, the best constants" if against == BEST and best else labels[against]
        tested = (key, against) in corrected
        cells = [p_text(p := corrected[key, against]), verdict(difference, p)] if tested else ["", ""]
        rows.append([labels[key], second, str(difference.n), str(difference), *cells])
    words = (
        "What learns, beside the best constants, where it starts, what it learned, and other ways to learn. The best "
        f"constants are those of {len(CONSTANTS)} arms of Adam with the lowest mean on seeds {TUNED_ON}: "
        f"{len(CONSTANTS)} times the trials of an arm that learns. Holm's p over the {len(PRIMARY)} pairs named before "
        "any arm but Adam had fresh seeds; the others are not corrected and get no verdict. Equal: the 95% interval "
        f"lies within {EQUAL} nats."
    )
    header = ["first", "second", "n", "first minus second", "p, Holm", "verdict"]
    return [Text(words), Table(header, rows)] if rows else []


def changes(found: Mapping[str, Record]) -> Sequence[Block]:
    """How far the coefficients went by the end, beside the authors' at step 500 and at the end of their run."""
    rows = []
    for start in (start for start in regime.STARTS if start in found):
        theirs = regime.authors(start)
        for name in COEFFICIENTS:
            early, last = (regime.change(theirs, name, step) for step in (regime.STEPS[-1], theirs["step"][-1]))
            ours = [value - theirs[name][0] for value in found[start]["coefficients"][name]]
            agree = [sum(regime.agrees(change, value) for value in ours) for change in (early, last)]
            rows.append([f"{regime.TITLES[start]}: {name}", *(regime.changes([value], name) for value in (early, last)),
                         mean_and_spread(ours), *(f"{count} of {len(ours)}" for count in agree)])  # fmt: skip
    words = "Changes of the coefficients from the start to the end of a run, beside the authors' in their run:"
    header = ["change of", "authors, step 500", "authors, end", "here, end", "sign of their step 500",
              "sign of their end"]  # fmt: skip
    return [Text(words), Table(header, rows)] if rows else []
