"""The figure of a run, also of one that has only begun."""

from pathlib import Path

import matplotlib.image
import pytest

import plot
from runtime import figure

HEADER = "step,tokens,seconds,train_loss,val_loss,lr,grad_norm,beta1,beta2,h_beta1\n"
ROWS = "".join(f"{s},{s},1,{4 - s / 50},{3 if s % 20 == 0 else ''},0.1,1,{0.9 - s / 1000},0.95,{(-1) ** s * s}\n"
               for s in range(1, 101))  # fmt: skip


def run(folder: Path, text: str) -> Path:
    (folder / "metrics.csv").write_text(text)
    return folder


@pytest.mark.parametrize(
    "text",
    [
        HEADER + ROWS,
        HEADER + "0,0,0.1,,4.2,,,0.9,0.95,\n",  # only the first validation so far
        HEADER + ROWS + "101,101,1,2.0",  # the last line is being written
        HEADER.replace(",h_beta1", "") + "1,1,1,2,,1,1,0.9,0.95\n",  # nothing is learned
    ],
)
def test_a_run_becomes_a_picture(tmp_path: Path, text: str) -> None:
    path = figure.draw(run(tmp_path, text))
    assert path == tmp_path / "figure.png"
    height, width, _ = matplotlib.image.imread(path).shape
    assert (width, height) == (1200, 1350)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["figure.png", "metrics.csv"]


def test_series_are_the_measured_cells() -> None:
    rows = [{"step": "1", "val_loss": ""}, {"step": "5", "val_loss": "2.5"}]
    assert figure._series(rows, "val_loss") == ([5], [2.5])


def test_the_command_says_what_is_missing(tmp_path: Path, capsys) -> None:
    assert plot.main([str(tmp_path / "nowhere")]) == 2
    assert "nowhere/metrics.csv does not exist: give the out_dir of a run" in capsys.readouterr().err
    assert plot.main([str(run(tmp_path, HEADER))]) == 2
    assert "has no row yet" in capsys.readouterr().err
    assert plot.main([str(run(tmp_path, HEADER + ROWS))]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/figure.png\n"
