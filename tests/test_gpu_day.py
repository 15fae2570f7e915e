"""benchmarks/gpu_day.py without its GPU: what its parts come to, and a part of its rehearsal."""

import json
import tarfile
import time
from pathlib import Path

import pytest

from benchmarks import gpu_day
from benchmarks.gpu_day import Part, judged, main, parts, run

SLEEP = ["timeit", "-n1", "-r1", "import time; time.sleep(60)"]
NOTHING = ["timeit", "-n1", "-r1", "pass"]


@pytest.mark.parametrize(
    ("commands", "together", "end"),
    [
        ([NOTHING, NOTHING], False, "done"),
        ([NOTHING, ["no_such_module"]], True, "exit code 1"),
        ([SLEEP, NOTHING], False, "stopped after 2 s"),
        ([SLEEP, NOTHING, SLEEP], True, "stopped after 2 s"),
    ],
)
def test_a_part_ends_by_itself_or_at_its_limit(tmp_path: Path, commands, together: bool, end: str) -> None:
    limit = 2 if SLEEP in commands else 60
    begun = time.monotonic()
    found = run(Part("part", limit, commands, together), limit, tmp_path / "log", {})
    assert found["end"] == end and found["seconds"] - 0.1 < time.monotonic() - begun < 20
    started = (tmp_path / "log").read_text().count("\n$ ")
    assert started == (1 if commands[0] is SLEEP and not together else len(commands))


def test_goals_are_met_or_not_or_not_shown() -> None:
    rows = {
        "small": [{"case": "11M-mada", "seconds": 1 / 300}, {"case": "0.8M-mada", "seconds": 1 / 400}],
        "iteration": [{"optimizer": "adamw", "ms": 100.0, "mfu": 0.46}, {"optimizer": "mada", "ms": 102.0}],
        "batch-60": [{"case": "124M-adamw", "mfu": 0.44}],
        "soak": [{"lives": [{"from": -1}], "differences": []},
                 {"lives": [{"from": -1}, {"from": 40}], "differences": ["model"]}],
        "grid": [{}] * 9,
    }  # fmt: skip
    found = {row["goal"]: (row["figure"], row["met"]) for row in judged(rows, 150.0)}
    assert found["steps/s of 11M"] == (pytest.approx(300), True) and found["steps/s of 0.8M"][1] is False
    assert found["MFU of 124M, fused AdamW"] == (0.46, True)
    assert found["MFU of 124M, fused AdamW, micro-batches of 60"] == (0.44, False)
    assert found["iteration of mada, times AdamW's"] == (pytest.approx(1.02), False)
    assert found["iteration of mada_half, times AdamW's"] == (None, None)
    assert found["parts that differ after a kill and a resume, deterministic"] == (1, False)
    assert found["minutes of figure 8's coarse grid, 18 runs"] == (5.0, True)
    rows["soak"][1] = {"lives": [{"from": -1}], "differences": []}  # nothing was resumed
    assert judged(rows, 0.0)[-2]["met"] is None


@pytest.mark.parametrize("tiny", [True, False])
def test_the_day_fits_and_names_what_exists(tiny: bool, tmp_path: Path) -> None:
    day = parts(tiny, "cpu", tmp_path)
    assert sum(part.limit for part in day[:-1]) < 15 * 60  # above what the parts take: not all of them will be reached
    for command in [command for part in day for command in part.commands]:
        package, _, module = command[0].partition(".")
        assert (gpu_day.ROOT / package / (f"{module}.py" if module else "__main__.py")).exists()


def test_a_cut_down_rehearsal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--tiny", "--device=cpu", "--only=xl,grid", f"--out={tmp_path}"]) == 0
    found = json.loads((tmp_path / "gpu_day.json").read_text())
    ends = {part["part"]: part["end"] for part in found["parts"]}
    assert len(ends) == 11 and {name for name, end in ends.items() if end == "done"} == {"xl", "grid"}
    assert {*ends.values()} == {"done", "not asked for"}
    files = [*tmp_path.iterdir()]
    assert len(files) <= 8 and sum(path.stat().st_size for path in files) < 16e6
    with tarfile.open(tmp_path / "records.tar") as tar:
        assert all(name.startswith("experiments/records/laptop/grid/") for name in tar.getnames())
    (row,) = json.loads((tmp_path / "scale.json").read_text())["rows"]
    assert row["part"] == "xl" and row["first_step_seconds"] > row["seconds"] > 0
    printed = capsys.readouterr().out
    assert "first step of GPT-2 XL with an empty cache, s" in printed and "not shown" in printed


def test_no_time_left_is_said(tmp_path: Path) -> None:
    assert main(["--tiny", "--device=cpu", "--minutes=0", f"--out={tmp_path}"]) == 1
    found = json.loads((tmp_path / "gpu_day.json").read_text())
    assert {part["end"] for part in found["parts"]} == {"not started: no time left"}
    assert main(["--hours=1"]) == 2
