"""Processes that tests start."""

import functools
import json
import os
import socket
import subprocess
import sys
from itertools import zip_longest
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ENV = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}:{os.environ.get('PYTHONPATH', '')}"}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


def small_run(corpus: str, out_dir: Path) -> list[str]:
    """The command line of a run that takes seconds: MADA learning everything, dropout, two micro-batches a step."""
    return [
        f"--dataset={corpus}", f"--out_dir={out_dir}", "--n_layer=2", "--n_head=2", "--n_embd=16",
        "--block_size=16", "--batch_size=4", "--gradient_accumulation_steps=2", "--dropout=0.1", "--max_iters=12",
        "--eval_interval=6", "--eval_iters=10", "--log_interval=3", "--warmup_iters=4", "--learning_rate=1e-2",
        "--min_lr=1e-3", "--optimizer=mada", "--hyper_momentum=0.5", "--device=cpu", "--compile=False",
        "--hyper_lr={'beta1': 1e-2, 'beta2': 1e-2, 'beta3': 1e-2, 'rho': 1e-2, 'c': 1e-2, 'gamma': 1e-2}",
    ]


def in_processes(folder: Path, *runs: tuple[int, list[str]], patch: str = "") -> None:
    """Runs of so many processes each, one after another; `patch` is code that each process begins with."""
    jobs = [{"ranks": size, "argv": argv, "patch": patch} for size, argv in runs]
    command = [sys.executable, ROOT / "tests" / "ranks.py", folder]
    done = subprocess.run(command, input=json.dumps(jobs), env=ENV, capture_output=True, text=True,
                          timeout=300 + 60 * len(runs))  # fmt: skip
    codes = [json.loads(line)["codes"] for line in done.stdout.splitlines()]
    assert codes == [size * [0] for size, _ in runs], done.stderr


@functools.cache
def server() -> subprocess.Popen[str]:
    """tests/forks.py, which ends with this process."""
    return subprocess.Popen([sys.executable, ROOT / "tests" / "forks.py"], env=ENV, cwd=ROOT, stdin=subprocess.PIPE,
                            stdout=subprocess.PIPE, text=True)  # fmt: skip


def forked(*jobs: Any) -> list:
    """What became of each job (tests/forks.py): programs in processes of their own, the imports made once."""
    asked, answers = server().stdin, server().stdout
    assert asked and answers
    found = []
    for job in jobs:
        print(json.dumps(job), file=asked, flush=True)
        found.append(json.loads(answers.readline()))
    return found


def ranks(*argvs: list[str], patches: tuple[str, ...] = (), **more: str) -> list[dict]:
    """A job for each process of a run, with command lines of their own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    place = {"WORLD_SIZE": str(len(argvs)), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [{"argv": argv, "env": {**place, "RANK": str(rank), "LOCAL_RANK": str(rank), **more}, "patch": patch}
            for rank, (argv, patch) in enumerate(zip_longest(argvs, patches, fillvalue=""))]  # fmt: skip
