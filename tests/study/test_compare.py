"""compare.py on made-up runs, its numbers against a calculation of its own."""

import json
import math
import re
from pathlib import Path

import pytest

import compare
from runtime import movement
from study import comparison
from study.runs import group_runs, read_result

CONFIG = {
    "out_dir": "x", "seed": 1, "dataset": "words", "block_size": 8, "eval_iters": 0, "max_iters": 100,
    "batch_size": 2, "optimizer": "adam", "learning_rate": 0.001, "min_lr": 0.0001,
    "coefficients": {"beta1": 0.9, "beta2": 0.95}, "hyper_lr": {}, "hyper_momentum": 0.0,
}  # fmt: skip


def leave(folder: Path, losses: list[float], last: int = 100, refused: bool = False, **config: object) -> Path:
    """A run's folder: `losses` at equal distances from step 0 to max_iters, written up to step `last`."""
    folder.mkdir(parents=True)
    full = {**CONFIG, **config}
    about = {"config": full, "commit": "abc", "parameters": 10, "device": "cpu"}
    (folder / "config.json").write_text(json.dumps(about))
    learned = list(full["hyper_lr"])  # type: ignore[call-overload]
    names = list(full["coefficients"])  # type: ignore[call-overload]
    columns = ["step", "tokens", "seconds", "train_loss", "val_loss", "lr", "grad_norm", *names]
    lines = [",".join([*columns, *(f"h_{name}" for name in learned)])]
    every = int(full["max_iters"]) // (len(losses) - 1)  # type: ignore[call-overload]
    for step in range(0, last + 1, 5):
        loss = losses[step // every] if step % every == 0 else ""
        train = "nan" if refused and step == last else 2.0 if step else ""
        moved = [0.9 + (0.0001 * step if name in learned else 0.0) for name in names]
        row = [step, step * 16, step / 10, train, loss, 0.001, 1.0, *moved, *("-0.5" for _ in learned)]
        lines.append(",".join(map(str, row)))
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    return folder


ADAM = {1: 1.50, 2: 1.62, 3: 1.57, 4: 1.49, 5: 1.55}
MADA = {1: 1.45, 2: 1.60, 3: 1.50, 4: 1.46, 5: 1.51}
LION = {1: 1.49, 2: 1.63, 3: 1.58, 4: 1.47}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Five seeds of Adam and MADA, four of Lion, which starts from other weights than none of them."""
    folder = tmp_path / "runs"
    for seed, loss in ADAM.items():
        leave(folder / f"adam-{seed}", [3, 2, loss], seed=seed)
    for seed, loss in MADA.items():
        leave(folder / f"mada-{seed}", [3, 1.4, loss], seed=seed, optimizer="mada",
              coefficients={"beta1": 0.9, "rho": 0.9}, hyper_lr={"rho": 0.02})  # fmt: skip
    for seed, loss in LION.items():
        leave(folder / f"lion-{seed}", [3, 2, loss], seed=seed, optimizer="lion", coefficients={"beta1": 0.9})
    return folder


def students_p(differences: list[float]) -> tuple[float, float, float]:
    """(mean, t, two-sided p) by adding up the density of Student's distribution, in none of the product's ways."""
    n = len(differences)
    centre = math.fsum(differences) / n
    error = math.sqrt(math.fsum((d - centre) ** 2 for d in differences) / (n - 1)) / math.sqrt(n)
    t, nu = abs(centre) / error, n - 1
    constant = math.gamma((nu + 1) / 2) / math.sqrt(nu * math.pi) / math.gamma(nu / 2)
    width = 1e-4
    inside = math.fsum(constant * (1 + (x * x) / nu) ** (-(nu + 1) / 2) * width
                       for x in (width * (i + 0.5) for i in range(int(t / width))))  # fmt: skip
    return centre, t, 1 - 2 * inside


def test_the_numbers_are_those_of_another_calculation(runs: Path, tmp_path: Path) -> None:
    said = comparison.write([runs], tmp_path / "out")
    content = json.loads((tmp_path / "out/compare.json").read_text())
    assert content["baseline"] == "adam" and list(content["differs"]) == ["optimizer"]
    found = {group["label"]: group for group in content["groups"]}
    assert list(found) == ["adam", "lion", "mada"] and found["adam"]["difference"] is None
    p = {}
    for name, losses in (("mada", MADA), ("lion", LION)):
        centre, t, p[name] = students_p([losses[seed] - ADAM[seed] for seed in losses])
        difference = found[name]["difference"]
        assert difference["n"] == len(losses)
        assert difference["difference"] == pytest.approx(centre, abs=1e-12)
        assert difference["p"] == pytest.approx(p[name], abs=1e-4)
        half = (difference["high"] - difference["low"]) / 2  # whose t is that of p = 0.05
        assert t * half / abs(centre) == pytest.approx({5: 2.776, 4: 3.182}[len(losses)], abs=2e-3)
        values = [*losses.values()]
        assert found[name]["val_loss"]["mean"] == pytest.approx(sum(values) / len(values))
        assert f"{found[name]['val_loss']['mean']:.4f} ± {found[name]['val_loss']['spread']:.4f}" in said
    small, large = sorted(p.values())
    corrected = sorted(found[name]["difference"]["p_holm"] for name in p)
    assert corrected == pytest.approx([2 * small, max(2 * small, large)], abs=2e-4)
    assert found["mada"]["best_val_loss"]["mean"] == pytest.approx(1.4)


def test_steps_and_seconds_to_the_baselines_loss_are_interpolated(runs: Path, tmp_path: Path) -> None:
    comparison.write([runs], tmp_path / "out")
    found = {group["label"]: group for group in json.loads((tmp_path / "out/compare.json").read_text())["groups"]}
    expected = [50 * (3 - loss) / (3 - 1.4) for loss in ADAM.values()]
    assert found["mada"]["steps_to_baseline"] == pytest.approx(sum(expected) / 5)
    assert found["mada"]["seconds_to_baseline"] == pytest.approx(sum(expected) / 50)
    assert found["adam"]["steps_to_baseline"] == pytest.approx(100) and found["adam"]["reached"] == 5
    assert found["lion"]["reached"] == 2  # 1.49 <= 1.50 and 1.47 <= 1.49


def test_the_page_needs_no_other_file_and_shows_the_picture(runs: Path, tmp_path: Path) -> None:
    comparison.write([runs], tmp_path / "out")
    page = (tmp_path / "out/compare.html").read_text()
    assert "data:image/png;base64," in page and "://" not in page and ">mada</td>" in page
    assert (tmp_path / "out/compare.png").stat().st_size > 10_000


def test_movement_and_advice(runs: Path, tmp_path: Path) -> None:
    said = comparison.write([runs], tmp_path / "out")
    assert "Hyper rates, mada: rho +0.01 per 100 steps, h of one sign in 100%" in said
    moved = {g["label"]: g["movement"] for g in json.loads((tmp_path / "out/compare.json").read_text())["groups"]}
    assert moved["adam"] == {} and set(moved["mada"]) == {"rho"}
    assert moved["mada"]["rho"]["net"] == pytest.approx(0.01) and moved["mada"]["rho"]["one_sign"] == 1
    assert "10 times higher" in movement.hint(movement.Movement(0.001, 0.001, 0.9, False))
    assert "10 times lower" in movement.hint(movement.Movement(0.01, 0.5, 0.55, False))
    assert "noise" in movement.hint(movement.Movement(0.0, 0.001, 0.5, False))
    assert "end of its range" in movement.hint(movement.Movement(0.01, 0.01, 0.9, True))
    assert movement.hint(movement.Movement(0.05, 0.06, 0.9, False)) == ""


def test_what_cannot_be_compared_is_named_and_left_out(runs: Path, tmp_path: Path) -> None:
    leave(runs / "going", [3, 2, 1], last=55, seed=9)
    leave(runs / "lost", [3, 2, 1], last=40, refused=True, seed=10)
    leave(runs / "longer", [3, 2, 1], last=200, seed=11, max_iters=200)
    leave(runs / "other", [3, 2, 1], seed=12, dataset="letters")
    leave(runs / "twice", [3, 2, 1], seed=1)
    said = comparison.write([runs], tmp_path / "out")
    left_out = "\n".join(json.loads((tmp_path / "out/compare.json").read_text())["left_out"])
    for line in ("going: at step 55 of 100", "lost: diverged at step 40", "longer: max_iters=200, not 100 as most have",
                 "other: dataset=letters, not words as most have", "twice: the same settings and seed as"):  # fmt: skip
        assert line in left_out and line in said
    assert "14 runs in 3 groups" in said


def test_groups_are_told_apart_by_as_few_settings_as_needed(tmp_path: Path) -> None:
    for rate in (0.001, 0.002):
        for seed in (1, 2):
            for name, coefficients in (("adam", {"beta1": 0.9}), ("mine.py:Rule", {"power": 0.5})):
                leave(tmp_path / f"{name[:4]}-{rate}-{seed}", [3, 2, 1 + rate], seed=seed, learning_rate=rate,
                      min_lr=rate / 10, optimizer=name, coefficients=coefficients)  # fmt: skip
    grouping = group_runs([read_result(path) for path in sorted(tmp_path.iterdir())])
    assert sorted(group.label for group in grouping.groups) == [
        "adam, learning_rate 0.001", "adam, learning_rate 0.002",
        "mine.py:Rule, learning_rate 0.001", "mine.py:Rule, learning_rate 0.002",
    ]  # fmt: skip
    assert list(grouping.differs) == ["optimizer", "learning_rate"] and "min_lr" in grouping.implied
    assert all(list(group.runs) == [1, 2] for group in grouping.groups) and len(grouping.groups) == 4


def test_a_foreign_optimizer_has_no_coefficients_and_is_compared(runs: Path, tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        leave(runs / f"soap-{seed}", [3, 2, 1.3], seed=seed, optimizer="pytorch_optimizer:SOAP", coefficients={})
    said = comparison.write([runs], tmp_path / "out", "SOAP")
    assert re.search(r"adam +5 .* \+0\.2633 \[", said)


@pytest.mark.parametrize("arguments", [["nothing"], [".", "--baseline=none"]])
def test_mistakes_are_one_line(runs: Path, arguments: list[str], monkeypatch, capsys) -> None:
    monkeypatch.chdir(runs)
    assert compare.main(arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("compare.py: ")
    assert arguments[-1].removeprefix("--") in lines[0].replace("'", "")


def test_records_of_experiments_are_read_too() -> None:
    records = Path(compare.__file__).parent / "experiments/records/laptop"
    names = [f"{name}-{seed}.json" for name in ("adam", "mada") for seed in (1, 2)]
    grouping = group_runs([read_result(records / name) for name in names])
    assert [group.label for group in grouping.groups] == ["adam", "mada"] and not grouping.left_out
    run = grouping.groups[0].runs[1]
    at = run.reached(run.final["val_loss"])
    assert at is not None and at[0] == 2000 and at[1] == pytest.approx(run.final["seconds"])
