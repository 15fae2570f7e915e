"""The command line: see the package's docstring."""

from __future__ import annotations

import argparse
import fnmatch
import os
import shlex
import signal
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import experiments

from . import EXPERIMENTS
from .frame import HERE, ROOT, SCALES, Computation, Evaluation, Experiment, Run, Training, diverged, end_running, read


def main(argv: Sequence[str]) -> int:
    """Exit code 0: done; 1: a run failed; 2: a mistake on the command line; 130: interrupted."""
    parser = argparse.ArgumentParser("python -m experiments", description=experiments.__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="every experiment and what is missing")
    run = commands.add_parser("run", help="make the missing runs of an experiment")
    run.add_argument("name", choices=["all", *EXPERIMENTS])
    run.add_argument("--scale", choices=SCALES, default="laptop")
    run.add_argument("--only", metavar="PATTERN", default="*", help="runs whose name fits, such as 'mada-*'")
    run.add_argument("--jobs", type=int, default=None, help="runs at a time (default: one a core; on a GPU 4)")
    report = commands.add_parser("report", help="write report.md, report.html and README.md's table")
    report.add_argument("--folder", type=Path, default=HERE)
    compute = commands.add_parser("compute")  # one Computation in this process; `run` calls it
    compute.add_argument("experiment", choices=EXPERIMENTS)
    compute.add_argument("run")
    compute.add_argument("--scale", choices=SCALES, default="laptop")
    arguments = parser.parse_args(argv)
    try:
        if arguments.command == "list":
            list_experiments()
        elif arguments.command == "run":
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
                    signal.signal(number, end)
            return make(named(arguments.name), arguments.scale, arguments.only, arguments.jobs)
        elif arguments.command == "report":
            from .report import refresh_readme, write_report

            for path in write_report(list(EXPERIMENTS.values()), arguments.folder):
                print(path)
            if arguments.folder == HERE:
                refresh_readme(EXPERIMENTS["table2"])
        else:
            for one in EXPERIMENTS[arguments.experiment].runs(arguments.scale):
                if one.name == arguments.run and isinstance(one, Computation):
                    one.compute()
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def end(*_: object) -> None:
    """The runs under way end with this process: no signal of the terminal reaches them."""
    end_running()
    raise KeyboardInterrupt


def list_experiments() -> None:
    """For each scale: runs that have a record, of how many, and what the missing ones cost."""
    print(f"{'name':14}" + "".join(f"{scale:>24}" for scale in SCALES) + "   title")
    rows = {e.name: (e.title, [e.runs(scale) for scale in SCALES]) for e in EXPERIMENTS.values()}
    rows["all"] = ("all but seeds, each shared run once", [[*all_runs(named("all"), s).values()] for s in SCALES])
    for name, (title, scales) in rows.items():
        cells = []
        for runs in scales:
            absent = [run for run in runs if read(run) is None]
            cells.append(
                "" if not runs else f"{len(runs) - len(absent)}/{len(runs)}"
                + (f", {cost(absent)} to go" if absent else "")
            )  # fmt: skip
        print(f"{name:14}" + "".join(f"{cell:>24}" for cell in cells) + f"   {title}")


def named(name: str) -> list[Experiment]:
    return [e for e in EXPERIMENTS.values() if e.in_all] if name == "all" else [EXPERIMENTS[name]]


def all_runs(chosen: Iterable[Experiment], scale: str) -> dict[str, Run]:
    """{name: run} of all of them."""
    return {run.name: run for experiment in chosen for run in experiment.runs(scale)}


def cost(runs: Sequence[Run]) -> str:
    """What these runs cost one after the other: minutes, hours of a machine."""
    minutes = sum(run.minutes for run in runs)
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.0f} h"


def make(chosen: Sequence[Experiment], scale: str, only: str, jobs: int | None) -> int:
    """Run what has no record yet; at the paper's scale print the commands instead, but record what is finished."""
    wanted = {name: run for name, run in all_runs(chosen, scale).items() if fnmatch.fnmatch(name, only)}
    if not wanted:
        names = ", ".join(experiment.name for experiment in chosen)
        like = f" like {only!r}" if only != "*" else ""
        print(f"{names}: no run{like} at scale {scale} (`list` shows the scales of each)", file=sys.stderr)
        return 2
    absent = [run for run in wanted.values() if read(run) is None]
    print(f"{len(wanted)} runs at scale {scale}, {len(wanted) - len(absent)} recorded, {len(absent)} to go")
    for run in [*absent]:  # a record is committed, a run's folder is not: some need that
        source = run.after if isinstance(run, Computation) else run.of if isinstance(run, Evaluation) else None
        if source is not None and source not in absent and not source.finished():
            record = read(source)
            if record is None or not diverged(record):
                absent.insert(0, source)
    if scale == "paper":
        return show_commands(absent)
    cores = os.cpu_count() or 1
    jobs = jobs or (cores if scale == "laptop" else 4)
    failed = 0
    while ready := [run for run in absent if run.ready()]:  # a MADA-FS waits for its MADA, an evaluation for its run
        together = [run for run in ready if not run.alone]
        now, at_once = (together, jobs) if together else (ready, 1)  # what is timed has the machine for itself, at last
        environment = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, cores // at_once)))}
        if scale == "laptop":
            environment["CUDA_VISIBLE_DEVICES"] = ""  # the same thing on a machine that has a GPU
        failed += execute(now, at_once, environment)
        absent = [run for run in absent if run not in now]
    for run in absent:
        print(f"{run.name}: not made, for want of the run that it builds on")
    return int(bool(failed or absent))


def show_commands(absent: Sequence[Run]) -> int:
    """Record those that are finished, print the commands of the others; 1 if a folder is in the way."""
    failed = 0
    for run in absent:
        if not run.ready():
            print(f"\n# {run.name}: when the run that it builds on is finished")
            continue
        try:
            if isinstance(run, Training):
                run.left()
            if isinstance(run, Training | Evaluation) and run.finished():
                run.execute({})
                print(f"recorded {run.name}")
            else:
                print(f"\n# {run.name}: about {cost([run])} of the machine\n{shlex.join(run.command())}")
        except RuntimeError as error:
            failed = 1
            print(f"\n# {run.name}: {error}")
    return failed


def execute(runs: Sequence[Run], jobs: int, environment: dict[str, str]) -> int:
    """Run them, `jobs` at a time; the number that failed."""
    failed = 0
    with ThreadPoolExecutor(jobs) as pool:
        waiting = {pool.submit(run.execute, environment): run for run in runs}
        try:
            for i, future in enumerate(as_completed(waiting), 1):
                run = waiting[future]
                error = future.exception()
                failed += error is not None
                print(f"{i}/{len(runs)} {run.name}: {error or f'recorded in {run.path.relative_to(ROOT)}'}", flush=True)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
