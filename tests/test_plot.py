"""The figure of a run, also of one that has only begun."""

import os
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

import plot
import train
from runtime import figure

pytestmark = pytest.mark.usefixtures("drawn")

ROOT = Path(__file__).resolve().parents[1]
COMMON = "step,tokens,seconds,train_loss,val_loss,lr,grad_norm"
HEADER = f"{COMMON},beta1,beta2,h_beta1\n"
ROWS = "".join(f"{s},{s},1,{4 - s / 50},{3 if s % 20 == 0 else ''},0.1,1,{0.9 - s / 1000},0.95,{(-1) ** s * s}\n"
               for s in range(1, 101))  # fmt: skip


def run(folder: Path, text: str) -> Path:
    (folder / "metrics.csv").write_text(text)
    return folder


def axes_of(text: str, tmp_path: Path) -> list:
    rows = figure.read_metrics(run(tmp_path, text) / "metrics.csv")
    return figure.make_figure(rows, "a run").axes


@pytest.mark.parametrize(
    ("text", "panels"),
    [
        (HEADER + ROWS, 3),
        (HEADER + "0,0,0.1,,4.2,,,0.9,0.95,\n", 3),  # only the first validation so far
        (HEADER + ROWS + "101,101,1,2.0", 3),  # the last line is being written
        (HEADER.replace(",h_beta1", "") + "1,1,1,2,,1,1,0.9,0.95\n", 1),  # nothing is learned
        (COMMON + "\n1,1,1,2,,1,1\n", 1),  # an optimizer without coefficients
        (COMMON + ",lr_learned,h_lr\n1,1,1,2,,1e-3,1,1e-3,\n2,2,1,2,,1e-3,1,2e-3,-4\n", 3),
    ],
)
def test_a_run_becomes_a_picture_without_empty_panels(tmp_path: Path, text: str, panels: int) -> None:
    path = figure.draw(run(tmp_path, text))
    assert path == tmp_path / "figure.png"
    height, width, _ = matplotlib.image.imread(path).shape
    assert (width, height) == (1200, 75 + 450 * panels)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["figure.png", "metrics.csv"]
    found = axes_of(text, tmp_path)
    assert len(found) == panels and [bool(axes.lines) for axes in found] == [True] * panels


def test_coefficients_near_one_are_told_apart(tmp_path: Path) -> None:
    names = ("rho", "c", "gamma")
    text = f"{COMMON},{','.join(names)},{','.join(f'h_{name}' for name in names)}\n"
    text += "1,1,1,2,,1,1,1.0,1.0,1.0,,,\n2,2,1,2,,1,1,0.99,0.997,0.9995,1,1,1\n"
    values = axes_of(text, tmp_path)[1]
    ends = np.array([[2.0, line.get_ydata()[-1]] for line in values.lines])
    heights = values.transData.transform(ends)[:, 1] / values.bbox.height  # of the panel
    assert len(heights) == 3 and np.diff(np.sort(heights)).min() > 0.03
    labels = [entry.get_text() for entry in values.get_legend().get_texts()]
    assert labels == ["ρ 1 → 0.99", "c 1 → 0.997", "γ 1 → 0.9995"]


def test_the_scale_of_coefficients_can_be_inverted() -> None:
    x = np.array([0, 1e-4, 0.3, 0.9, 0.9999, 1])
    np.testing.assert_allclose(figure.unstretched(figure.stretched(x)), x, atol=1e-12)


def test_a_coefficient_outside_the_unit_interval_gets_a_linear_axis(tmp_path: Path) -> None:
    values = axes_of(f"{COMMON},alpha,h_alpha\n1,1,1,2,,1,1,3.0,\n2,2,1,2,,1,1,-2.0,1\n", tmp_path)[1]
    assert values.get_yscale() == "linear" and values.get_ylim()[0] < -2 < 3 < values.get_ylim()[1]


def test_what_is_fixed_and_what_a_negative_hypergradient_does_is_written(tmp_path: Path) -> None:
    found = axes_of(HEADER + ROWS, tmp_path)
    assert "fixed: β₂ = 0.95" in found[0].figure.get_suptitle()
    assert "a negative one raises its coefficient" in found[2].get_title(loc="left")


def test_a_learned_rate_is_drawn_beside_the_schedule(tmp_path: Path) -> None:
    rate = axes_of(COMMON + ",lr_learned,h_lr\n1,1,1,2,,1e-3,1,1e-3,\n2,2,1,2,,5e-4,1,2e-3,-4\n", tmp_path)[1]
    assert {line.get_label(): list(line.get_ydata()) for line in rate.lines} == {
        "schedule": [1e-3, 5e-4], "learned": [1e-3, 2e-3]}  # fmt: skip


def test_series_are_the_measured_cells() -> None:
    rows = [{"step": "1", "val_loss": ""}, {"step": "5", "val_loss": "2.5"}]
    assert figure.series(rows, "val_loss") == ([5], [2.5])


def test_the_command_names_what_is_missing(tmp_path: Path, capsys) -> None:
    assert plot.main([str(tmp_path / "nowhere")]) == 2
    assert "nowhere/metrics.csv does not exist: give the out_dir of a run" in capsys.readouterr().err
    assert plot.main([str(run(tmp_path, HEADER))]) == 2
    assert "has no row yet" in capsys.readouterr().err
    assert plot.main([str(run(tmp_path, HEADER + ROWS))]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/figure.png\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"step,loss\n1,2\n", "is not the metrics of a run"),
        (b"\xff\xfe\n1,2\n", "cannot be read"),
        (HEADER.encode() + b"1,1,1,x,,1,1,0.9,0.95,1\n", "is not the metrics of a run"),
    ],
)
def test_a_foreign_or_damaged_file_is_one_line(tmp_path: Path, content: bytes, message: str, capsys) -> None:
    (tmp_path / "metrics.csv").write_bytes(content)
    assert plot.main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert message in error and str(tmp_path / "metrics.csv") in error and error.count("\n") == 1


def test_paths_that_cannot_be_read_or_written_are_one_line(tmp_path: Path, capsys) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "figure.png").mkdir()  # which no file can replace
    run(tmp_path, HEADER + ROWS)
    for path, message in ((tmp_path / "loop", "Too many levels of symbolic links"), ("x" * 300, "File name too long"),
                          (tmp_path, "figure.png cannot be written")):  # fmt: skip
        assert plot.main([str(path)]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


def test_home_is_expanded(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    run(tmp_path, HEADER + ROWS)
    assert figure.draw("~") == tmp_path / "figure.png"


@pytest.mark.parametrize("backend", ["module://matplotlib_inline.backend_inline", "no_such_backend"])
def test_no_backend_of_the_environment_is_needed(tmp_path: Path, backend: str) -> None:
    """That of a notebook, and one that matplotlib refuses to be imported with."""
    run(tmp_path, HEADER + ROWS)
    done = subprocess.run([sys.executable, "plot.py", tmp_path], cwd=ROOT, env=os.environ | {"MPLBACKEND": backend},
                          capture_output=True, text=True, timeout=120)  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{tmp_path}/figure.png\n", "")


@pytest.mark.parametrize("failure", ["folder", "backend"])
def test_a_failing_picture_does_not_change_the_exit_code_of_a_run(small: list[str], failure: str, monkeypatch, capsys,
                                                                  tmp_path: Path) -> None:  # fmt: skip
    if failure == "folder":
        (tmp_path / "run" / ".figure.png.tmp").mkdir(parents=True)  # which no file can take the place of
    else:
        monkeypatch.setattr(figure, "make_figure", lambda *_: 1 / 0)
    assert train.main([*small, "--max_iters=2"]) == 0
    assert f"the run is in {tmp_path / 'run'}, its figure failed: " in capsys.readouterr().out
