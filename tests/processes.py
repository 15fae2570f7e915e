"""Processes that tests start."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ENV = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}:{os.environ.get('PYTHONPATH', '')}"}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


def in_processes(folder: Path, *runs: tuple[int, list[str]], patch: str = "") -> None:
    """Runs of so many processes each, one after another; `patch` is code that each process begins with."""
    jobs = [{"ranks": size, "argv": argv, "patch": patch} for size, argv in runs]
    command = [sys.executable, ROOT / "tests" / "ranks.py", folder]
    done = subprocess.run(command, input=json.dumps(jobs), env=ENV, capture_output=True, text=True,
                          timeout=300 + 60 * len(runs))  # fmt: skip
    codes = [json.loads(line)["codes"] for line in done.stdout.splitlines()]
    assert codes == [size * [0] for size, _ in runs], done.stderr
