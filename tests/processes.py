"""Processes that tests start."""

import contextlib
import functools
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ENV = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}:{os.environ.get('PYTHONPATH', '')}"}
TORCHRUN = ["torchrun", "--standalone", "--nproc_per_node=2"]


def small_run(corpus: str, out_dir: Path) -> list[str]:
    """The command line of a run that takes seconds: MADA learning everything, dropout, two micro-batches a step."""
    return [
        f"--dataset={corpus}", f"--out_dir={out_dir}", "--n_layer=2", "--n_head=2", "--n_embd=16",
        "--block_size=16", "--batch_size=4", "--gradient_accumulation_steps=2", "--dropout=0.1", "--max_iters=12",
        "--eval_interval=6", "--eval_iters=10", "--log_interval=3", "--warmup_iters=4", "--learning_rate=1e-2",
        "--min_lr=1e-3", "--optimizer=mada", "--hyper_momentum=0.5", "--device=cpu", "--compile=False",
        "--hyper_lr={'beta1': 1e-2, 'beta2': 1e-2, 'beta3': 1e-2, 'rho': 1e-2, 'c': 1e-2, 'gamma': 1e-2}",
    ]


def launched(folder: Path, *runs: tuple) -> list[dict]:
    """(processes, command line[, code that each begins with]) of each run, one after another -> its exit codes and what
    its ranks ended with (tests/ranks.py); `said` is what all said."""
    jobs = [dict(zip(("ranks", "argv", "patch"), run, strict=False)) for run in runs]
    (end,) = forked({"argv": ["ranks", str(folder), json.dumps(jobs)], "seconds": 300})
    answers = [json.loads(line) for line in end["out"].splitlines()]
    assert len(answers) == len(jobs), end["err"]
    return [answer | {"said": end["err"]} for answer in answers]


def in_processes(folder: Path, *runs: tuple) -> list[dict]:
    """The same, of runs that end well."""
    answers = launched(folder, *runs)
    assert [answer["codes"] for answer in answers] == [size * [0] for size, *_ in runs], answers[-1]["said"]
    return answers


@functools.cache
def server() -> subprocess.Popen[str]:
    """tests/forks.py, which ends with this process."""
    return subprocess.Popen([sys.executable, ROOT / "tests" / "forks.py"], env=ENV, cwd=ROOT, stdin=subprocess.PIPE,
                            stdout=subprocess.PIPE, text=True)  # fmt: skip


class Begun:
    """A job under way in processes `pids`."""

    def __init__(self, job: Any) -> None:
        asked, self.answers = server().stdin, server().stdout
        assert asked and self.answers
        print(json.dumps(job), file=asked, flush=True)
        self.pids = json.loads(self.answers.readline())
        self.came: Any = None

    def end(self) -> Any:
        """What came of it, once it has ended."""
        assert self.answers
        self.came = self.came or json.loads(self.answers.readline())
        return self.came


@contextlib.contextmanager
def begun(job: Any) -> Iterator[Begun]:
    """One job at a time; it does not outlive the block."""
    process = Begun(job)
    try:
        yield process
    finally:
        if process.came is None:
            for pid in process.pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            print(process.end())  # beside the failure


def forked(*jobs: Any) -> list:
    """What became of each job (tests/forks.py): programs in processes of their own, the imports made once."""
    return [Begun(job).end() for job in jobs]


def forked_call(self: Any, command: list[str], log: Path, allowed: Sequence[int] = (0,)) -> int:
    """In place of Runner.call of study/runner.py: the same program, forked."""
    log.parent.mkdir(parents=True, exist_ok=True)
    _, program, *argv = command
    (end,) = forked({"argv": [Path(program).name, *argv], "cwd": str(self.root)})
    with log.open("a", encoding="utf-8") as file:
        file.write(end["out"] + end["err"])
    assert end["code"] in allowed, end
    return end["code"]


def ranks(*argvs: list[str], patches: tuple[str, ...] = (), **more: str) -> list[dict]:
    """A job for each process of a run, with command lines of their own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    place = {"WORLD_SIZE": str(len(argvs)), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [{"argv": argv, "env": {**place, "RANK": str(rank), "LOCAL_RANK": str(rank), **more}, "patch": patch}
            for rank, (argv, patch) in enumerate(zip_longest(argvs, patches, fillvalue=""))]  # fmt: skip
