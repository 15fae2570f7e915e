"""From records to the report."""


import re
from pathlib import Path

import pytest
from made_runs import leave

from experiments import EXPERIMENTS, experiment, figure8, language, report, table3
from experiments.experiment import ROOT, Computation, Training, write
from study.page import Figure, Table, Text, picture
from study.runner import Runner


def test_the_papers_numbers_have_rows() -> None:
    assert set(language.PAPER_LOSS) <= set(language.ROWS)


def test_the_area_of_a_plane() -> None:
    import numpy as np

    plane = np.array([[0.0, 1.0], [0.0, 1.0]])
    assert figure8.area_near(plane, (0, 1), (0, 1), 0.25) == pytest.approx(0.25, abs=5e-3)


def test_table_3_stands_beside_the_papers() -> None:
    rows = [{"dataset": name, "perplexity": 10.0 + i} for i, name in enumerate(("openwebtext", *table3.OTHERS))]
    table = table3.show("paper", {"mada-5000": {}, "mada-5000-perplexity": {"rows": rows}})[1]
    assert isinstance(table, Table)
    assert table.rows == [
        [language.ROWS["mada"].label, "1", "10.00", "17.8249", "11.00", "61.2513", "12.00", "74.2480"]
    ]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of made-up runs of table 2 and figure 8, all there, and of the committed records of the others."""
    folder = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "training_loss", lambda out_dir: 1.0 + len(str(out_dir)) / 1000)
        real = experiment.RECORDS
        patch.setattr(experiment, "ROOT", folder)
        patch.setattr(experiment, "RECORDS", folder / "records")
        (folder / "config").symlink_to(ROOT / "config")
        for each in EXPERIMENTS.values():
            for run in each.runs_at("laptop"):
                if isinstance(run, Training) and run.name == "grid/adam-0.99-0.99":
                    leave(run)
                    record = run.made_record(gave_up=True)
                    assert record is not None
                    write(run.path, record)
                elif isinstance(run, Training):
                    leave(run, gain=0.25 if run.name.startswith("mada-") else run.settings.get("beta1", 0) / 10)
                    run.execute(Runner(experiment.ROOT))
                elif isinstance(run, Computation) and (real / "laptop" / f"{run.name}.json").is_file():
                    run.path.parent.mkdir(parents=True, exist_ok=True)
                    run.path.write_text((real / "laptop" / f"{run.name}.json").read_text())
        (folder / "figures").mkdir()
        (folder / "figures" / "photo.png").write_bytes(b"a user's")
        report.write_report(list(EXPERIMENTS.values()), folder)
    return folder


def test_the_report_shows_the_records(built: Path) -> None:
    markdown = (built / "report.md").read_text()
    assert "rho = 0) | 3 | 1.7500 ± 0.0000 | -0.2500 [-0.2500, -0.2500] |" in markdown
    assert "| 2.8806 | -0.0150 |" in markdown
    assert "| MADA-FS minus MADA (from beta3 = 0.9, rho = 0) | 3 | +0.0000 [" not in markdown
    assert "| MADA-FS minus MADA (from beta3 = 0.9, rho = 0) | 3 | +0.2500 [+0.2500, +0.2500] |" in markdown
    assert re.search(r"\| Adam \| 1\.0\d+ \| .* \| diverged \| 11 of 12 \| \d+% \| 0\.94 at", markdown)
    assert "200 batches of windows spread evenly over the training split" in markdown
    for path in re.findall(r"\]\((figures/.*?)\)", markdown):
        assert (built / path).stat().st_size > 5000
    assert (built / "figures" / "photo.png").exists()
    page = (built / "report.html").read_text()
    assert page.count("data:image/png;base64,") == len(re.findall(r"\]\(figures/", markdown)) >= 4
    assert 'src="figures' not in page and "://" not in page  # it stands alone
    assert len(page) < 1_000_000


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_any_one_record_is_enough_to_show(name: str, built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment, "ROOT", built)
    monkeypatch.setattr(experiment, "RECORDS", built / "records")
    found = experiment.without_diverged(experiment.records(EXPERIMENTS[name].runs_at("laptop")))[0]
    kinds = {path.rpartition("-")[0]: path for path in found}  # one of each
    for path in kinds.values():
        assert EXPERIMENTS[name].show("laptop", {path: found[path]})


def test_gpt2_is_shown_beside_the_paper(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment, "ROOT", built)
    monkeypatch.setattr(experiment, "RECORDS", built / "gpu")
    runs = EXPERIMENTS["gpt2"].runs("gpu")
    for run in runs[:3]:
        assert isinstance(run, Training)
        leave(run)
        run.execute(Runner(experiment.ROOT))
    words, table, figure = EXPERIMENTS["gpt2"].show("gpu", experiment.records(runs))
    assert isinstance(words, Text) and "60 sequences a step, 300 steps" in words.words
    assert isinstance(table, Table) and [row[0][:5] for row in table.rows] == ["Adam", "Adan,", "Hyper"]
    assert isinstance(figure, Figure) and len(picture(figure)) > 5000


def test_all_devices_are_named() -> None:
    record = {"config": {"batch_size": 2, "gradient_accumulation_steps": 3, "block_size": 4, "max_iters": 5,
                         "dataset": "words"}, "parameters": 6}  # fmt: skip
    found = {device: record | {"device": device} for device in ("cuda:0", "cpu")}
    assert language.about(found).endswith("on cpu and cuda:0.")


def test_the_same_records_make_the_same_report(built: Path) -> None:
    block = Figure("f", "a line", lambda figure: figure.subplots().plot([0, 1], [0, 1]))
    assert picture(block) == picture(block)
