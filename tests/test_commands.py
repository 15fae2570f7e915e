"""Every command line of train.py that the documents show is one that it takes."""

import re
import shlex
from pathlib import Path

import pytest
import torch

import train
from runtime.settings import HelpRequested

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("config/*.py"), *ROOT.glob("*.py")]
COMMAND = re.compile(r"(.*)\btrain\.py((?: +(?:config/[\w/.]+|--[\w.]+(?:=[^\s`]+)?))+)")


def commands() -> list:
    """(processes, arguments) of each, named after its place."""
    found = []
    for path in sorted(DOCUMENTS):
        text = path.read_text(encoding="utf-8")
        names = dict(re.findall(r"^#SBATCH --(nodes)=(\d+)", text, flags=re.M))
        text = text.replace("$SLURM_NNODES", names.get("nodes", "")).replace("config/NAME.py", "config/gpt2_mada.py")
        own = ROOT / "tests" / "own_rule.py"  # in place of a reader's
        text = re.sub(r"--optimizer=[\w/]+\.py:(?!build)\w+", f"--optimizer={own}:AdaMomentum", text)
        text = re.sub(r"--optimizer=[\w/]+\.py:build", f"--optimizer={own}:build", text)
        for before, arguments in COMMAND.findall(text.replace("\\\n", " ")):
            each, machines = (re.search(rf"--{key}=(\d+)", before) for key in ("nproc_per_node", "nnodes"))
            per_machine = int(each[1]) if each else 1
            found.append(pytest.param(per_machine, int(machines[1]) if machines else 1, shlex.split(arguments),
                                      id=f"{path.relative_to(ROOT)}:{arguments.strip()}"))  # fmt: skip
    return found


@pytest.mark.parametrize(("per_machine", "machines", "arguments"), commands())
def test_what_is_shown_is_taken(per_machine: int, machines: int, arguments: list[str], monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # on a machine with GPUs enough
    monkeypatch.setattr(torch.cuda, "device_count", lambda: per_machine)
    place = {"LOCAL_WORLD_SIZE": per_machine, "WORLD_SIZE": per_machine * machines, "RANK": 0, "LOCAL_RANK": 0}
    for name, value in (place | {"MASTER_ADDR": "localhost", "MASTER_PORT": 29500}).items():
        monkeypatch.setenv(name, str(value))
    try:
        train.parse(train.Config, arguments, train.check, "train.py")
    except HelpRequested:
        assert "--help" in arguments


def test_there_are_such_commands() -> None:
    assert {8, 16} <= {case.values[0] * case.values[1] for case in commands()} and len(commands()) > 20
