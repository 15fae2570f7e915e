"""Standard output is not the run: on a full disk, closed by its reader, in ASCII, everything else is as if."""

from pathlib import Path

import pytest
from outcomes import ends_equal
from processes import forked

import train

FULL = "standard output cannot be written (No space left on device)\n"


@pytest.fixture
def undisturbed(small: list[str], tmp_path: Path) -> Path:
    assert train.main([*small, f"--out_dir={tmp_path / 'undisturbed'}"]) == 0
    return tmp_path / "undisturbed"


def test_a_run_is_complete_whatever_becomes_of_its_standard_output(
    small: list[str], tmp_path: Path, undisturbed: Path
) -> None:
    notebook = {"PYTHONIOENCODING": "ascii", "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    cases = {"full": f"train.py: {FULL}", "left": "", "closed": "", str(tmp_path / "ä.txt"): ""}
    runs = [tmp_path / f"räte-{i}" for i in range(len(cases))]
    (runs[-1] / ".figure.png.tmp").mkdir(parents=True)  # its picture cannot be written
    jobs = [{"argv": ["train.py", *small, f"--out_dir={run}"], "out": out, "to the end": True,
             "env": notebook if "ä" in out else {}, "drawn": out not in ("left", "closed")}
            for run, out in zip(runs, cases, strict=True)]  # fmt: skip
    assert [(end["code"], end["err"]) for end in forked(*jobs)] == [(0, said) for said in cases.values()]
    for run in runs:
        ends_equal(undisturbed, run)
    assert (runs[0] / "figure.png").exists() and not (runs[-1] / "figure.png").exists()
    shown = (tmp_path / "ä.txt").read_text("ascii")
    assert "the run is in " in shown and "r\\xe4te-3, its figure failed: " in shown


def test_no_program_fails_at_its_end(undisturbed: Path, corpus: str, tmp_path: Path) -> None:
    here, text = f"--out_dir={undisturbed}", tmp_path / "text.txt"
    text.write_text("a b c\n" * 9000)
    commands = [
        (2, "sample.py", here),  # its text is all that it makes
        (0, "sample.py", "--help"),
        (0, "evaluate.py", here, f"--dataset={corpus}"),
        (0, "export.py", here, f"--folder={tmp_path / 'exported'}"),
        (0, "plot.py", undisturbed),
        (0, "compare.py", undisturbed, "--out", tmp_path / "compared"),
        (0, "experiments", "list"),
        (0, "prepare.py", "--input", text, "--tokenizer=char", f"--out={tmp_path / 'data'}"),
    ]
    ends = forked(*({"argv": [*map(str, argv)], "out": "full", "to the end": True} for _, *argv in commands))
    for (code, name, *_), end in zip(commands, ends, strict=True):
        if name == "prepare.py":  # it says all on stderr
            assert "Exception" not in end["err"] and end["code"] == 0
        else:
            assert (end["code"], end["err"].splitlines(keepends=True)[-1:]) == (code, [f"{name}: {FULL}"]), end["err"]
            assert "Traceback" not in end["err"] and "Exception" not in end["err"], end["err"]
    made = ["exported/model.safetensors", "data/manifest.json", "compared/compare.html", "*/ckpt_*.evaluation.json"]
    assert [name for name in made if not [*tmp_path.glob(name)]] == []


def test_nobody_reads_on(undisturbed: Path) -> None:
    jobs = [["sample.py", f"--out_dir={undisturbed}", "--num_samples=100000"], ["plot.py", "--help"]]
    ends = forked(*({"argv": job, "out": "left", "to the end": True} for job in jobs))
    assert [(end["code"], end["err"]) for end in ends] == 2 * [(0, "")]
