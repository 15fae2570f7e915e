"""Programs in processes of their own, forked from one that has imported everything, because importing is what costs.

    python tests/forks.py < jobs, one JSON a line > the process ids of each and what came of it, two lines of JSON

A job: {"argv": ["train.py", ...], "seconds": until it is killed, "out": what its standard output is, "env": {...},
"cwd": its folder, "patch": code that it begins with, "drawn": whether a run draws its picture, which takes a second,
"to the end": whether Python ends as it always does}, or a list of jobs that run at the same time. What came of it:
{"code": ..., "out": ..., "err": ..., "seconds": ...}, or a list. Other programs are "-c" and code; "ranks"
(tests/ranks.py); "torchrun", whose agent is torch's and whose workers are forked as well; and "torchrun of new
processes", whose workers start as a user's do.
"""

import gc
import json
import os
import resource
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import matplotlib.backends.backend_agg  # noqa: F401
import ranks
import torch
import torch._dynamo
import torch.distributed.run

import compare
import data.prepare
import evaluate
import experiments.__main__
import export
import plot
import sample
import sweep
import train
from runtime import figure, parallel, shards  # noqa: F401 (they are imported late)
from study import pictures  # noqa: F401

torch.set_num_threads(1)
PROGRAMS: dict[str, Callable[[list[str]], int | None]] = {
    "train.py": train.main, "sample.py": sample.main, "evaluate.py": evaluate.main, "export.py": export.main,
    "plot.py": plot.main, "compare.py": compare.main, "sweep.py": sweep.main, "experiments": experiments.__main__.main,
    "prepare.py": lambda _: data.prepare.main(),
    "-c": lambda argv: exec(argv[0], {"__name__": "__main__", "argv": argv[1:]}),
    "ranks": ranks.main, "torchrun": lambda argv: torchrun(argv),
    "torchrun of new processes": torch.distributed.run.main,
}  # fmt: skip


class Worker(subprocess.Popen):
    """A process of torchrun, forked where torchrun starts Python anew."""

    def _execute_child(self, args: Any, *more: Any) -> None:
        sys.stdout.flush()
        if pid := os.fork():
            self.pid, self._child_created = pid, True  # type: ignore[attr-defined]
            return
        os.setsid()
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):  # which torchrun passes on
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.alarm(480)
        os.environ |= more[5]
        script = next(i for i, arg in enumerate(args) if arg.endswith(".py"))
        sys.argv = [*args[script:]]
        finish(lambda _: runpy.run_path(sys.argv[0], run_name="__main__") and 0, [])


def torchrun(argv: list[str]) -> None:
    handler = torch.distributed.elastic.multiprocessing.subprocess_handler.SubprocessHandler
    handler._popen = lambda self, args, env: Worker(args, env=env)  # type: ignore[method-assign]
    torch.distributed.run.main(argv)


def finish(program: Callable[[list[str]], int | None], argv: list[str], to_the_end: bool = False) -> None:
    """Run a program and leave with its exit code."""
    try:
        code = program(argv) or 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    if to_the_end:  # Python's own end takes a second
        parallel.end(code)
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.flush()
    os._exit(code)


def become(job: dict, out: str, err: str) -> None:
    """The process of a job, from here to its end, as if the program had been started."""
    reading, left = os.pipe()
    os.close(reading)
    where = {"full": "/dev/full", None: out}
    for number, to in ((1, job.get("out")), (2, err)):
        if to == "closed":
            os.close(number)
        else:
            os.dup2(left if to == "left" else os.open(where.get(to, to), os.O_WRONLY | os.O_CREAT), number)
    sys.stdout = None if job.get("out") == "closed" else open(1, "w", closefd=False)  # noqa: SIM115
    os.environ |= job.get("env", {})
    os.chdir(job.get("cwd", "."))
    if job["argv"][0] in ("train.py", "ranks", "torchrun") and not job.get("drawn"):
        figure.draw = lambda out_dir: Path(out_dir, "figure.png")
    exec(job.get("patch", ""), {})
    if encoding := job.get("env", {}).get("PYTHONIOENCODING"):
        sys.stdout.reconfigure(encoding=encoding)
    sys.argv = job["argv"]
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background has it ignored
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    seconds = job.get("seconds", 60)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, seconds)  # of computing,
    signal.alarm(8 * seconds)  # and, as others compute too, of waiting
    finish(PROGRAMS[job["argv"][0]], job["argv"][1:], job.get("to the end", False))


def start(job: dict, out: Path, err: Path) -> int:
    out.touch()
    err.touch()
    if (pid := os.fork()) == 0:
        become(job, str(out), str(err))  # raises SystemExit: Python ends as it always does
    return pid


def results(jobs: Iterable[dict | list[dict]]) -> Iterable[dict | list[dict] | list[int]]:
    folder = Path(tempfile.mkdtemp())  # the children's exits pass here too: no `with`
    for i, job in enumerate(jobs):
        group = job if isinstance(job, list) else [job]
        files = [(folder / f"{i}.{k}.out", folder / f"{i}.{k}.err") for k in range(len(group))]
        begun = time.monotonic()
        pids = [start(one, *its) for one, its in zip(group, files, strict=True)]
        yield pids
        ends = []
        for pid, its in zip(pids, files, strict=True):
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            out, err = (file.read_text(errors="replace") for file in its)
            ends.append({"code": code, "out": out, "err": err, "seconds": time.monotonic() - begun})
        yield ends if isinstance(job, list) else ends[0]
    shutil.rmtree(folder)


if __name__ == "__main__":
    gc.freeze()  # what is imported is garbage for nobody: processes need not look at it, nor copy it
    answers = os.fdopen(os.dup(1), "w")
    for answer in results(map(json.loads, iter(sys.stdin.readline, ""))):
        print(json.dumps(answer), file=answers, flush=True)
