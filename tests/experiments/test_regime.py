"""The coefficients at three batch sizes, beside the authors'."""

import pytest

from experiments import regime
from experiments.experiment import ROOT, Record, by_seed, records
from runtime.figure import COEFFICIENTS
from runtime.optimizers import adapt
from runtime.settings import read_files
from study.page import Figure, Table, Text, picture
from study.statistics import mean

STEPS = [0, 10, 100, 300, 500]


def record(start: str, **at_the_end: float) -> Record:
    """Of a run whose coefficients change in proportion to the step, to `at_the_end`; those not named stay."""
    config = {"dataset": "words", "block_size": 64, "max_iters": 500, "hyper_start": 50, "learning_rate": 4e-3,
              "warmup_iters": 50}  # fmt: skip
    first = {name: regime.AUTHORS[start][name][0] for name in COEFFICIENTS}
    curves = {name: [q + (at_the_end.get(name, q) - q) * step / 500 for step in STEPS] for name, q in first.items()}
    return {"config": config, "parameters": 10, "final": {"val_loss": 2.0}, "curves": {"step": STEPS, **curves}}


def shown(records: dict[str, Record]) -> tuple[str, Table, Table, Figure]:
    _, _, verdict, _, by_step, _, by_fraction, figure = regime.show("laptop", records)
    assert isinstance(verdict, Text) and isinstance(by_step, Table) and isinstance(by_fraction, Table)
    assert isinstance(figure, Figure)
    return verdict.words, by_step, by_fraction, figure


def test_the_batch_alone_differs_between_runs_of_a_start_and_seed() -> None:
    settings: dict[tuple[str, int], list[dict]] = {}
    for run in regime.runs("laptop"):
        read = read_files([ROOT / path for path in run.configs], run.all_settings(), adapt)
        settings.setdefault((run.configs[0], run.settings["seed"]), []).append(read)
    assert len(settings) == 9
    for runs in settings.values():
        assert [run.pop("batch_size") for run in runs] == [12, 48, 256]
        assert runs[0] == runs[1] == runs[2]
        assert runs[0]["gradient_accumulation_steps"] == 1 and runs[0]["max_iters"] == 500


def test_the_authors_runs_start_where_ours_do() -> None:
    assert regime.AUTHORS["steps"] == sorted(regime.AUTHORS["steps"])
    assert set(regime.STEPS) < set(regime.AUTHORS["steps"])
    assert {part * regime.AUTHORS["steps"][-1] for part in regime.FRACTIONS} < set(regime.AUTHORS["steps"])
    for start in regime.STARTS:
        config = read_files([ROOT / f"config/{regime.language.ROWS[start].config}.py"], {}, adapt)
        for name in COEFFICIENTS:
            values = regime.AUTHORS[start][name]
            assert len(values) == len(regime.AUTHORS["steps"])
            assert values[0] == config["coefficients"].get(name, 1.0), (start, name)


def test_a_change_is_that_of_the_last_value_known_at_the_step() -> None:
    curves = {"step": [0, 10, 20], "rho": [0.5, 0.25, 0.75]}
    assert [regime.change(curves, "rho", step) for step in (5, 10, 19.5, 20, 100)] == [0, -0.25, -0.25, 0.25, 0.25]


@pytest.mark.parametrize(("authors", "ours", "same"), [
    (0.01, 0.2, True), (-2e-4, -1e-6, True), (0.01, -0.01, False), (0.01, 0.0, False), (-2e-4, 1e-6, False),
    (0.0, 0.009, True), (0.0, -0.009, True), (0.0, 0.05, False),
])  # fmt: skip
def test_signs_agree(authors: float, ours: float, same: bool) -> None:
    assert regime.agrees(authors, ours) is same


def test_the_tables_count_the_seeds_that_agree() -> None:
    paper = {"beta1": 0.91, "beta2": 0.9499, "rho": 0.1, "c": 0.999}  # the authors' signs in figure 5
    records = {
        "regime/mada_rho0-12-1": record("mada_rho0", **paper | {"beta1": 0.89, "beta3": 0.06}),
        "regime/mada_rho0-12-2": record("mada_rho0", **paper | {"beta1": 0.92}),
        "regime/mada_rho0-256-1": record("mada_rho0", **paper),
    }
    verdict, by_step, by_fraction, figure = shown(records)
    rows = {row[0]: row[1:] for row in by_step.rows}
    assert len(rows) == 6  # one start
    assert rows["Figure 5: from (0.9, 0.95, 0): beta1"] == [
        "+0.0003, +0.0041, +0.0121", "+0.0010, +0.0030, +0.0050 (1 of 2)", "", "+0.0020, +0.0060, +0.0100 (1 of 1)"
    ]  # fmt: skip
    assert rows["Figure 5: from (0.9, 0.95, 0): beta3"] == ["0, 0, 0", "+0.006, +0.018, +0.030 (1 of 2)", "",
                                                            "0, 0, 0 (1 of 1)"]  # fmt: skip
    at_step_500, at_the_end_of_the_run = verdict.split("At the end of the run: ")
    assert "at 12 sequences 4 of 6 (n = 2, median" in at_step_500 and "; not: figure 5 beta1, beta3)" in at_step_500
    assert "at 256 sequences 6 of 6 (n = 1, median of ours / theirs 0.79; not: none)" in at_step_500
    assert "48" not in verdict
    assert "at 256 sequences 5 of 6" in at_the_end_of_the_run and "not: figure 5 beta3)" in at_the_end_of_the_run
    at_the_end = {row[0]: row[1:] for row in by_fraction.rows}  # there the authors' beta3 has risen
    assert at_the_end["Figure 5: from (0.9, 0.95, 0): beta3"][0] == "0, +0.005, +0.011, +0.081"
    assert at_the_end["Figure 5: from (0.9, 0.95, 0): beta3"][3] == "0, 0, 0, 0 (0 of 1)"
    assert len(picture(figure)) > 5000


@pytest.mark.parametrize(("name", "sign"), [("beta1", 1), ("rho", 1), ("c", -1)])
@pytest.mark.parametrize("start", regime.STARTS)
def test_the_recorded_changes_grow_with_the_batch_in_the_authors_direction(start: str, name: str, sign: int) -> None:
    found = by_seed(records(regime.runs("laptop")), "regime/")
    curves = {batch: [one["curves"] for one in found[f"{start}-{batch}"].values()] for batch in regime.BATCHES}
    at_12, at_48, at_256 = (
        sign * mean([regime.change(c, name, 500) for c in curves[batch]]) for batch in (12, 48, 256)
    )
    assert at_12 < at_48 < at_256 < sign * regime.change(regime.authors(start), name, 500)


def test_the_recorded_beta3_of_figure_7_falls_at_12_sequences_and_rises_at_more() -> None:
    found = by_seed(records(regime.runs("laptop")), "regime/")
    for batch, sign in ((12, -1), (48, 1), (256, 1)):
        changes = [regime.change(one["curves"], "beta3", 500) for one in found[f"mada-{batch}"].values()]
        assert len(changes) >= (1 if batch == 256 else 3)
        assert all(sign * change > 0 for change in changes)
