"""docs/BENCHMARKS.md shows what benchmarks/results/ holds."""

import importlib
import json
import re
from pathlib import Path

import pytest

from benchmarks import table
from benchmarks.measure import RESULTS

TEXT = (table.DOCS / "BENCHMARKS.md").read_text(encoding="utf-8")


def test_the_tables_are_those_of_the_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stale = tmp_path / "BENCHMARKS.md"
    stale.write_text("before\n<!-- benchmarks -->\nstale\n<!-- /benchmarks -->\nafter\n")
    (tmp_path / "SCALE.md").write_text("<!-- memory -->\nstale\n<!-- /memory -->\n")
    docs = table.DOCS
    monkeypatch.setattr(table, "DOCS", tmp_path)
    assert table.main([]) == 0
    assert (tmp_path / "SCALE.md").read_text().strip() in (docs / "SCALE.md").read_text(encoding="utf-8")
    before, generated, after = re.split("<!-- /?benchmarks -->", stale.read_text(encoding="utf-8"))
    assert (before, after) == ("before\n", "\nafter\n")
    assert generated == re.split("<!-- /?benchmarks -->", TEXT)[1], "run python -m benchmarks.table"


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("evaluate", ["--windows=0", "--seconds=x", "--device=gpu", "--nothing"]),
        ("gpu_day", ["--hours=1", "--minutes=nan", "--device=gpu", "--tiny --device=cpu --only=nothing"]),
        ("half", ["--seeds=0", "--seeds=nan", "--optimizer=nothing", "nothing.py"]),
        ("iteration", ["--seconds=-1", "--seconds=1e999", "--only=adam", "--alone=nothing", "--n_layer=0"]),
        ("optimizer_step", ["--sizes=0", "--sizes=1e5,x", "--only=nothing", "--device=gpu", "--out=HERE"]),
        ("prepare", ["--input=HERE", "--copies=0", "--rounds=x", "--workers=-1", "--nothing"]),
        ("save", ["--gb=0", "--gb=nan", "--rounds=1", "--nothing"]),
        ("scale", ["--only=nothing", "--processes=0", "--seconds=x", "--n_layer=0"]),
        ("soak", ["--hours=x", "--between=x", "--seed=0", "--flat=-1", "--n_layer=0"]),
        ("table", ["--nothing"]),
    ],
)
def test_a_mistake_is_one_line(name: str, arguments: list[str], tmp_path: Path, capsys) -> None:
    main = importlib.import_module(f"benchmarks.{name}").main
    (tmp_path / "HERE").write_text("[]")
    for argument in arguments:
        assert main(argument.replace("HERE", str(tmp_path / "HERE")).split()) == 2, argument
        said = capsys.readouterr().err
        assert said.startswith(f"benchmarks.{name}: ") and said.count("\n") == 1, said


def test_every_benchmark_has_its_place_in_the_document() -> None:
    results = [json.loads(path.read_text(encoding="utf-8")) for path in RESULTS.glob("*.json")]
    assert len(results) >= 8
    for result in results:
        tabulated = TEXT.count(f"({result['device'].split(',')[0]}")
        assert tabulated and (f"`benchmarks.{result['benchmark']}`" in TEXT or result["benchmark"] in table.TABLES)
    links = re.findall(r"\]\(([\w/.]+)\)", TEXT)
    assert len(links) >= 6
    for link in links:
        assert (table.DOCS / link).exists(), f"docs/BENCHMARKS.md names {link}"


@pytest.mark.parametrize(
    "row",
    [  # the figures as they were reported when they were measured on an H100
        "| adamw_fused | 8 | 28 | 1.00 | 1.351 | 1.13 |",
        "| mada | 28 | 100 | 3.32 (3.31 to 3.33) | 4.476 | 1.06 |",
        "| lion | 4 | 20 | 0.66 (0.66 to 0.67) | 0.890 | 1.05 |",
        "| ours, MADA, all six learned, bfloat16, compiled | 138.6 | 1.024 | 443,296 | 38.3% | 36 | 10.20 |",
        "| nanoGPT at 3adf61e, fused AdamW, bfloat16, compiled | 138.0 | 1.020 | 445,186 | 38.5% | 36 | 10.25 |",
        "| the same as released: float32 with TF32 matmuls, eager | 731.4 | 5.405 | 84,005 | 7.3% | 7 | 24.92 |",
    ],
)
def test_the_h100_is_shown(row: str) -> None:
    assert TEXT.count(f"\n{row}\n") == 1


def test_no_name_of_a_contender_is_left_out() -> None:
    rows = [json.loads(line) for line in (RESULTS / "iteration_peers.jsonl").read_text().splitlines()]
    assert {row["name"] for row in rows} == set(table.PEERS) and len(rows) == len(table.PEERS)
