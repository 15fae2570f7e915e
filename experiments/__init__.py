"""The paper's tables and figures, from records of runs, beside the paper's numbers.

    python -m experiments list                             what there is, and what is missing at each scale
    python -m experiments run table2 --scale=laptop        makes the runs that are missing; again after an interruption
    python -m experiments report                           report.md and report.html of all that is recorded

One module per table or figure: its title and question (the docstring), the runs it needs, and how their records become
the table. A record is a small JSON file in records/SCALE/, made from what a run wrote (metrics.csv, config.json);
records are committed, runs are not: to make everything anew, delete records/SCALE and out/SCALE first, or say --again.
Nothing in here imports train.py.
"""

from importlib import import_module

from .experiment import Experiment

NAMES = ("tuned", "large_batch", "regret", "placebo", "table2", "seeds", "table3", "table4", "table5", "figure3",
         "figure5", "regime", "figure8", "figure9", "figure1", "proposition1", "appendix_d", "ablations",
         "gpt2")  # fmt: skip
EXPERIMENTS: dict[str, Experiment] = {name: Experiment.of(import_module(f".{name}", __package__)) for name in NAMES}
