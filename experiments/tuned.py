"""Every optimizer tuned with the same budget

Does learning the coefficients beat constants that were tuned as long?

Equal grids, widened until the optimum is inside, then fresh seeds (sweep.py --tune). What is tuned beside the learning
rate is what the optimizer is known for: Adam's beta2, MADA's hyper rates, the weight decay of the others.
"""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from study.page import Block, Table, Text
from study.statistics import Losses, mean_and_spread, signed_rank

from .experiment import Computation, Record, Run, Training, by_seed, final_losses
from .tuning import EQUAL, FRESH, TUNED_ON, Arm, figure, learned, losses_of, table, where_they_end

SCALES = ("laptop", "gpu")
IN_ALL = False

# MADA's Shakespeare setting; the others ignore its part. Narrower models stay for hundreds of steps, which differ from
# seed to seed, at what single characters predict.
OVERLAYS = {"laptop": ("config/tiny.py",), "gpu": ()}
COMMON = {
    "laptop": {"n_embd": "128", "n_head": "4", "batch_size": "24", "block_size": "32", "max_iters": "300",
               "warmup_iters": "30", "eval_interval": "100"},
    "gpu": {"n_layer": "4", "n_embd": "128", "n_head": "4", "dropout": "0", "batch_size": "256", "block_size": "64",
            "max_iters": "2000", "warmup_iters": "100", "eval_interval": "200", "eval_iters": "0"},
}  # fmt: skip
SIZES = {"laptop": "406,272 parameters, 768 tokens a step, 300 steps",
         "gpu": "0.8 million parameters, 16,384 tokens a step, 2,000 steps"}  # fmt: skip
RATES, DECAYS = "4e-3,8e-3,16e-3", "0,0.1,1"
BETA2 = "0.95,0.99,0.999"
BASELINE = "adam"
PLATEAU = 2.25  # nats: above it a run has not left what single characters predict


def foreign(name: str, **settings: str) -> dict[str, str]:
    return {"optimizer": name, "weight_decay": DECAYS} | settings


ARMS = {
    "adam": Arm("Adam", {"optimizer": "adam", "beta2": BETA2}),
    "mada": Arm("MADA from Adam (0.9, 0.95)", {"optimizer": "mada", "hyper_lr": "2.5e-4,2.5e-3,2.5e-2"}),
    "avgrad": Arm("AVGrad", foreign("avgrad")),
    "mada_avgrad": Arm("MADA from AVGrad", {"optimizer": "mada", "rho": "0", "hyper_lr": "2.5e-4,2.5e-3,2.5e-2"}),
    "muon": Arm("Muon, the rest by AdamW", {
        "optimizer": "torch.optim:Muon", "coefficients.adjust_lr_fn": "match_rms_adamw",
        "coefficients.adamw_lr": "4e-3,8e-3,16e-3"}),
    "sign": Arm("MADA, sign steps in log space", {
        "optimizer": "mada", "hyper_optimizer": "sign", "hyper_space": "log", "box": "{'beta2': (0.501, 0.9999)}",
        "hyper_momentum": "0", "hyper_lr": "3e-3,1e-2,3e-2"}),
    "adam_08": Arm("Adam, beta1 = 0.8", {"optimizer": "adam", "beta1": "0.8", "beta2": BETA2}),
    "lion": Arm("Lion", foreign("lion", learning_rate="1e-3,2e-3,4e-3", beta1="0.95", beta2="0.98")),
    "soap": Arm("SOAP", foreign("pytorch_optimizer:SOAP")),
    "schedule_free": Arm("Schedule-Free AdamW", foreign("pytorch_optimizer:ScheduleFreeAdamW", decay_lr="False")),
    "hyperadam": Arm("HyperAdam", {"optimizer": "hyperadam", "hyper_lr": "2.5e-4,2.5e-3,2.5e-2"}),
    "prodigy": Arm("Prodigy", foreign("pytorch_optimizer:Prodigy", learning_rate="0.5,1,2")),
    "adan": Arm("Adan", foreign("adan", beta1="0.98", beta2="0.99", beta3="0.92")),
    "adam_decay": Arm("Adam, weight decay", foreign("adam", beta2="0.99")),
}  # fmt: skip


def arms(scale: str) -> dict[str, Arm]:
    """With those that start where another one's record ends: the constants that MADA learned, and MADA from Adam's best
    constants."""
    found = dict(ARMS)
    if mada := run(scale, "mada", ARMS["mada"]).record():
        kept = {name: f"{value:g}" for name, value in learned(mada).items()}
        found["mada_fs"] = Arm("MADA-FS: what MADA learned, kept", {
            "optimizer": "mada", "hyper_lr": "0", "weight_decay": DECAYS} | kept)  # fmt: skip
    if adam := run(scale, "adam", ARMS["adam"]).record():
        found["mada_best"] = Arm("MADA, the box of beta2 to 0.9999", {
            "optimizer": "mada", "beta2": adam["optimum"]["beta2"], "box": "{'beta2': (0.501, 0.9999)}",
            "hyper_lr": "2.5e-4,2.5e-3,2.5e-2"})  # fmt: skip
    return found


def run(scale: str, name: str, arm: Arm) -> Computation:
    return arm.run(f"tuned/{name}", scale, OVERLAYS[scale], {"learning_rate": RATES} | COMMON[scale], minutes=15.0)


# Runs at the optimum of an arm that learns, on its fresh seeds: {name: (the arm, what it is)}.
CONTROLS = {
    "fs": ("mada", "the constants that MADA learned, kept"),
    "adam": ("mada", "Adam, betas (0.8, 0.99)"),
    "sign_fs": ("sign", "the constants that sign steps learned, kept"),
    "sign_adam_95": ("sign", "Adam, betas (0.8, 0.95)"),
    "sign_beta2": ("sign", "sign steps on beta2 alone, the rest Adam's"),
    "sign_above": ("sign", "sign steps, beta2 from 0.9995"),
}


def controls(scale: str) -> list[Training]:
    """Constants near those that an arm learned, and other ways to learn them. They are tuned for nothing."""
    found: list[Training] = []
    configs = ("config/shakespeare_char.py", *OVERLAYS[scale])
    for name, (arm, _) in CONTROLS.items():
        if (record := run(scale, arm, ARMS[arm]).record()) is None:
            continue
        kept = learned(record)
        rate, hyper = (float(record["optimum"][k]) for k in ("learning_rate", "hyper_lr"))
        common: dict[str, Any] = {k: int(value) for k, value in COMMON[scale].items()}
        common |= {"learning_rate": rate, "min_lr": float(f"{rate / 10:.6g}"), "weight_decay": 0.1}
        sign = {"hyper_optimizer": "sign", "hyper_space": "log", "box": {"beta2": [0.501, 0.9999]}, "hyper_momentum": 0}
        settings: dict[str, Any] = {
            "fs": {"optimizer": "mada", "hyper_lr": 0, **kept},
            "adam": {"optimizer": "adam", "beta1": 0.8, "beta2": 0.99},
            "sign_fs": {"optimizer": "mada", "hyper_lr": 0, **kept},
            "sign_adam_95": {"optimizer": "adam", "beta1": 0.8, "beta2": 0.95},
            "sign_beta2": {"optimizer": "adam", "hyper_lr": {"beta2": hyper}} | sign,
            "sign_above": {"optimizer": "mada", "hyper_lr": hyper, "beta2": 0.9995} | sign,
        }[name]
        found += [Training(f"tuned/control-{name}-{seed}", scale, configs, common | settings | {"seed": seed},
                           minutes=0.6, curves=False) for seed in record["seeds"]]  # fmt: skip
    return found


def of_controls(records: Mapping[str, Record]) -> dict[str, dict[int, float]]:
    """{control: {seed: validation loss}}"""
    found = final_losses(by_seed(records, "tuned/control-"), "val_loss")
    return {name: found[name] for name in CONTROLS if name in found}


def runs(scale: str) -> Sequence[Run]:
    return [*controls(scale), *(run(scale, name, arm) for name, arm in arms(scale).items())]


# ------------------------------------------------------------------------------------------------------------ report


def show(scale: str, records: dict[str, Record]) -> Sequence[Block]:
    found = {name: records[f"tuned/{name}"] for name in arms(scale) if f"tuned/{name}" in records}
    if not found:
        return [Text("No optimizer is tuned yet.")]
    labels = {name: arm.label for name, arm in arms(scale).items()}
    about = (
        f"{SIZES[scale]}. Each optimizer has a grid of 3 learning rates times 3 values of one thing more, seeds "
        f"{TUNED_ON} at each. Where the lowest mean loss lies at an end, that end is moved out by the grid's ratio "
        f"until it does not (points tried: all of them). Then {FRESH} fresh seeds at the optimum, the same for all, "
        "paired by seed. MADA's hyper rates are its second axis: they are charged to its budget as beta2 is to Adam's. "
        "Weight decay is 0.1 where it is not the axis. A tuned rate lies near the edge at which a model of this size "
        "stays on the plateau of single characters (2.47), and in some seeds it does: so the difference is the median "
        "of all pairs' averages, with the interval and p of Wilcoxon's signed-rank test, chosen when Adam's ten seeds "
        "were seen and no other's; Holm's correction over all arms. Equal: the 95% interval of the difference lies "
        f"within {EQUAL} nats, a bound set before the runs. Not set before: the difference without the pairs in which "
        f"a loss is above {PLATEAU}. The intervals are over fresh seeds at the points chosen; that these were chosen "
        "on two seeds, and rates by factors of two, is not in them."
    )
    return [Text(about), table(found, labels, BASELINE, PLATEAU), *more_trials(found),
            *constants(losses_of(found), records), figure("tuned", found, labels),
            *where_they_end(found, labels)]  # fmt: skip


def more_trials(found: Mapping[str, Record]) -> Sequence[Block]:
    """The two arms that stand on another one's record, and what that record says."""
    if not {"adam", "mada", "mada_fs", "mada_best"} <= found.keys():
        return []
    ends = found["mada"]["coefficients"]["beta2"]
    return [Text(
        "Two arms had more trials: MADA-FS its own and MADA's, and the constants that it keeps are means over the "
        "fresh seeds, on which it is then judged; MADA with the wider box its own and Adam's. It starts at Adam's best "
        f"beta2, {found['adam']['optimum']['beta2']}, MADA at 0.95, whose beta2 ends between {min(ends):.4f} and "
        f"{max(ends):.4f}: its box ends at 0.99."
    )]  # fmt: skip


def constants(losses: Mapping[str, Losses], records: Mapping[str, Record]) -> Sequence[Block]:
    """What learns beside constants near those that it learned, and beside other ways to learn them."""
    rows = []
    seeds = by_seed(records, "tuned/control-")
    for name, its in of_controls(records).items():
        arm, label = CONTROLS[name]
        if difference := signed_rank(its, losses.get(arm, {})):
            beta2 = mean_and_spread([record["final"]["beta2"] for record in seeds[name].values()])
            cells = [str(difference.n), f"{median(its.values()):.4f}", beta2, str(difference)]
            rows.append([ARMS[arm].label, label, *cells])
    words = (
        "Is it the learning or its result? And is a coefficient led to a better value, or only away from its start? "
        "The controls run at the rate and on the seeds of the arm that learns; none is tuned, p is not corrected:"
    )
    header = ["learned", "control", "n", "median loss", "beta2 at the end", "first minus control"]
    return [Text(words), Table(header, rows)] if rows else []
