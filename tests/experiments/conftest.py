"""A folder of the test's own in the place of the repository's."""

from pathlib import Path

import pytest

from experiments import experiment


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs, records and a config file in a folder of the test."""
    (tmp_path / "config").mkdir()
    (tmp_path / "config/a.py").write_text("batch_size = 2\ndevice = 'cpu'\n")
    monkeypatch.setattr(experiment, "ROOT", tmp_path)
    monkeypatch.setattr(experiment, "RECORDS", tmp_path / "records")
    return tmp_path
