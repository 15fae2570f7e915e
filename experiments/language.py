"""The language models behind tables 2, 3, 6, 7 and figures 3 to 7: which runs there are, and under which names.

At the paper's scale a run is its config file. At a smaller scale config/laptop.py or config/gpu.py is laid over that
same file: the optimizer and its coefficients stay, the model, the text and the length change.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from .experiment import PAPER, Record, Training, by_seed


@dataclass(frozen=True)
class Row:
    """A run: how a table calls it, its config and what it sets otherwise."""

    label: str
    config: str
    settings: Mapping[str, object] = field(default_factory=dict)
    reduced: Mapping[str, object] = field(default_factory=dict)  # what it sets at reduced scale only
    fixed_from: str | None = None  # MADA-FS: the row whose final coefficients it keeps


ROWS = {
    "adam": Row("Adam", "gpt2_adam"),
    "adan": Row("Adan, betas (0.98, 0.92, 0.99)", "gpt2_adan"),
    "hyperadam": Row("HyperAdam", "gpt2_hyperadam"),
    "lion": Row("Lion, a quarter of the rate", "gpt2_lion", reduced={"learning_rate": 2.5e-4, "min_lr": 2.5e-5}),
    "avgrad": Row("AVGrad", "gpt2_avgrad"),
    "mada": Row("MADA (from beta3 = 0.9, rho = 0)", "gpt2_mada"),
    "mada_fs": Row("MADA-FS", "gpt2_mada_fs", fixed_from="mada"),
    "mada_poor": Row("MADA-, from betas (0.7, 0.8), rho = 0", "gpt2_mada_poor"),
    "adam_poor": Row("Adam-, betas (0.7, 0.8)", "gpt2_adam_poor"),
    "mada_rho0": Row("MADA from AVGrad (rho = 0, beta3 = 0)", "gpt2_mada_rho0"),
    "mada_rho0_fs": Row("MADA-FS of it", "gpt2_mada_fs", fixed_from="mada_rho0"),
    # Not in the paper's tables. The epsilon is that of all others here.
    "mada_shakespeare": Row("MADA, Shakespeare setting (from Adam)", "shakespeare_char", {"eps": 1e-6}),
    "adam_999": Row("Adam, beta2 = 0.999", "gpt2_adam", {"beta2": 0.999}),
    "medium_adam": Row("Adam, 355M", "gpt2_medium_adam"),
    "medium_mada": Row("MADA, 355M", "gpt2_medium_mada"),
}
SEEDS = {"laptop": (1, 2, 3), "gpu": (1, 2, 3), "paper": (5000,)}
MINUTES = {"laptop": 3.7, "gpu": 1.0, "paper": 320.0}
PAPER_LOSS: dict[str, float] = PAPER["table2"] | PAPER["table6"] | PAPER["table7"]


def runs(scale: str, keys: Sequence[str]) -> list[Training]:
    """All seeds of these rows; those of table 7 and of the Shakespeare setting where they belong."""
    belongs = [key for key in keys if (key != "mada_shakespeare" if scale == "paper" else not key.startswith("medium"))]
    return [run(scale, key, seed) for seed in SEEDS[scale] for key in belongs]


def run(scale: str, key: str, seed: int) -> Training:
    """The run of one row and seed."""
    row = ROWS[key]
    settings = {"seed": seed, **row.settings, **({} if scale == "paper" else row.reduced)}
    return Training(
        f"{key}-{seed}",
        scale,
        (f"config/{row.config}.py", *([] if scale == "paper" else [f"config/{scale}.py"])),
        settings,
        minutes=MINUTES[scale] * (3 if key.startswith("medium") else 1),
        processes=8 if scale == "paper" else 1,
        coefficients_from=run(scale, row.fixed_from, seed) if row.fixed_from else None,
    )


def small_runs(scale: str) -> list[Training]:
    """Models of GPT-2's tokens that a laptop can train, for tables 3 and 4."""
    configs = {key: (f"config/{ROWS[key].config}.py", "config/tiny_words.py") for key in ("adam", "mada", "hyperadam")}
    return [
        Training(f"words/{key}-{seed}", scale, configs[key], {"seed": seed}, minutes=1.0, curves=False)
        for seed in SEEDS[scale]
        for key in configs
    ]


def by_row(records: dict[str, Record]) -> dict[str, dict[int, Record]]:
    """{row: {seed: record}} in the order of ROWS, of those that have one."""
    found = by_seed(records)
    return {key: found[key] for key in ROWS if key in found}


def pair_label(key: str, against: str) -> str:
    return f"{ROWS[key].label} minus {ROWS[against].label}"


def about(records: dict[str, Record]) -> str:
    """The scale in a sentence, from what the runs wrote down."""
    record = next(iter(records.values()))
    config = record["config"]
    sequences = config["batch_size"] * config["gradient_accumulation_steps"]
    devices = " and ".join(sorted({str(record["device"]) for record in records.values()}))
    return (
        f"{record['parameters']:,} parameters, {config['dataset']}, blocks of {config['block_size']} tokens, "
        f"{sequences} sequences a step, {config['max_iters']:,} steps, on {devices}."
    )
