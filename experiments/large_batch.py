"""Table 2 at a large batch, each learning rate tuned

Where the coefficients move as in the paper, does learning them help?

At 256 sequences the hypergradients have the paper's signs (see the experiment "regime"), and Adam's best learning rate
is several times that of 12 sequences: so each arm is a `sweep.py --tune` of its learning rate alone. All else is what
the arm's config file says: MADA's hyper rates are the paper's, or those of its Shakespeare setting, tuned for nothing.
"""

from collections.abc import Mapping, Sequence

from runtime.figure import COEFFICIENTS
from study.page import Block, Table, Text
from study.statistics import Losses, mean_and_spread, signed_rank

from . import language, regime
from .experiment import Computation, Record
from .tuning import EQUAL, FRESH, TUNED_ON, Arm, figure, learned, losses_of, table, where_they_end

SCALES = ("laptop",)
IN_ALL = False

# With a warm-up of 30 steps one seed in two of so narrow a model ends 0.15 above the others, at 100 none does.
OVERLAYS = ("config/tiny.py",)
COMMON = {"learning_rate": "8e-3,16e-3,32e-3", "batch_size": "256", "block_size": "32", "max_iters": "300",
          "warmup_iters": "100", "eval_interval": "100"}  # fmt: skip
BASELINE = "adam"
SIGN = {"hyper_optimizer": "sign", "hyper_space": "log", "hyper_momentum": "0", "hyper_lr": "1e-2",
        "box": "{'beta2': (0.501, 0.9999)}"}  # fmt: skip


def row(key: str) -> Arm:
    """A row of table 2."""
    its = language.ROWS[key]
    return Arm(its.label, {name: str(value) for name, value in its.settings.items()}, its.config)


ARMS = {
    "adam": row("adam"),
    "mada_rho0": row("mada_rho0"),
    "avgrad": row("avgrad"),
    "mada_adam": Arm("MADA from Adam, Shakespeare setting", {"eps": "1e-6"}),
    "adam_99": Arm("Adam, beta2 = 0.99", {"beta2": "0.99"}, "gpt2_adam"),
    "mada": row("mada"),
    "sign": Arm("MADA from Adam, sign steps in log space", {"eps": "1e-6"} | SIGN),
    "mada_poor": row("mada_poor"),
    "adam_poor": row("adam_poor"),
    "hyperadam": row("hyperadam"),
    "adam_999": row("adam_999"),
    "lion": Arm("Lion", {"learning_rate": "1e-3,2e-3,4e-3"}, "gpt2_lion"),
    "adan": row("adan"),
    "sign_beta2": Arm("Adam, sign steps on beta2 alone", SIGN | {"hyper_lr": "{'beta2': 1e-2}"}, "gpt2_adam"),
    "sign_above": Arm("MADA from beta2 = 0.9995, sign steps", {"eps": "1e-6", "beta2": "0.9995"} | SIGN),
    "adam_08_95": Arm("Adam, betas (0.8, 0.95)", {"beta1": "0.8"}, "gpt2_adam"),
    "adam_08_999": Arm("Adam, betas (0.8, 0.999)", {"beta1": "0.8", "beta2": "0.999"}, "gpt2_adam"),
}  # fmt: skip
# What these learned, kept from the start: MADA-FS.
KEPT = {"mada_adam_fs": "mada_adam", "mada_rho0_fs": "mada_rho0", "mada_fs": "mada", "sign_fs": "sign"}
PAIRS = (("mada_adam", "adam"), ("mada_adam_fs", "mada_adam"), ("mada_rho0", "avgrad"), ("mada_rho0_fs", "mada_rho0"),
         ("mada_fs", "mada"), ("mada_poor", "adam_poor"), ("sign", "sign_fs"), ("sign", "sign_beta2"),
         ("sign", "sign_above"), ("sign", "adam_08_999"), ("sign", "adam_99"), ("mada_adam", "adam_99"))  # fmt: skip


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
        "paired by seed. Differences, intervals and p by Wilcoxon's signed ranks, p with Holm's correction over all "
        f"rows. Equal: the 95% interval lies within {EQUAL} nats."
    )
    return [Text(about), table(found, labels, BASELINE), *pairs(losses_of(found), labels), *changes(found),
            figure("large_batch", found, labels), Text(where_they_end(found, labels))]  # fmt: skip


def pairs(losses: Mapping[str, Losses], labels: Mapping[str, str]) -> Sequence[Block]:
    """PAIRS, those of which there are seeds."""
    rows = []
    for key, against in PAIRS:
        if difference := signed_rank(losses.get(against, {}), losses.get(key, {})):
            rows.append([labels[key], labels[against], str(difference.n), str(difference)])
    words = "What learning adds to where it starts, and what keeping its result from the start does:"
    return [Text(words), Table(["first", "second", "n", "first minus second"], rows)] if rows else []


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
