"""The command line: see the package's docstring."""

import fnmatch
import os
import shlex
import sys
import time
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from cli import Mistake, Parser, program

from tqdm import tqdm

import experiments
from data.manifest import expand
from study.runner import Runner

from . import EXPERIMENTS
from .experiment import HERE, ROOT, SCALES, Computation, Experiment, Run, diverged


@program("experiments", again="the same command goes on from here")
def main(argv: list[str]) -> int:
    """Exit code 0: done; 1: a run failed; 2: a mistake on the command line; 130: interrupted."""
    parser = Parser("python -m experiments", experiments.__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="every experiment and what is missing")
    run = commands.add_parser("run", help="make the missing runs of an experiment")
    run.add_argument("name", choices=["all", *EXPERIMENTS])
    run.add_argument("--scale", choices=SCALES, default="laptop")
    run.add_argument("--only", metavar="PATTERN", default="*", help="runs whose name fits, such as 'mada-*'")
    run.add_argument("--jobs", type=int, default=None, help="runs at a time (default: one a core; on a GPU 4)")
    run.add_argument("--again", action="store_true", help="make them anew; the old ones move to NAME.previous")
    report = commands.add_parser("report", help="write report.md and report.html")
    report.add_argument("--folder", type=Path, default=HERE)
    compute = commands.add_parser("compute")  # one Computation in this process; `run` calls it
    compute.add_argument("run")
    compute.add_argument("--scale", choices=SCALES, default="laptop")
    arguments = parser.parse_args(argv)
    if arguments.command == "list":
        list_experiments()
    elif arguments.command == "run":
        with Runner(ROOT).ending_on_signals() as runner:
            chosen = named(arguments.name)
            return make(runner, chosen, arguments.scale, arguments.only, arguments.jobs, arguments.again)
    elif arguments.command == "report":
        from .report import write_report

        for path in write_report(list(EXPERIMENTS.values()), expand(arguments.folder)):
            print(path)
    else:
        one = all_runs(EXPERIMENTS.values(), arguments.scale)[arguments.run]
        assert isinstance(one, Computation)
        one.compute()
    return 0


def list_experiments() -> None:
    """For each scale: runs that have a record, of how many, and what the missing ones cost."""

    def cell(runs: Sequence[Run]) -> str:
        absent = [run for run in runs if run.record() is None]
        to_go = f", {cost(absent)} to go" if absent else ""
        return f"{len(runs) - len(absent)}/{len(runs)}{to_go}" if runs else ""

    print(f"{'name':14}" + "".join(f"{scale:>24}" for scale in SCALES) + "   title")
    rows = [(e.name, e.title, [e]) for e in EXPERIMENTS.values()]
    for name, title, chosen in [*rows, ("all", "all that are not asked for by name, shared runs once", named("all"))]:
        cells = [cell([*all_runs(chosen, scale).values()]) for scale in SCALES]
        print(f"{name:14}" + "".join(f"{text:>24}" for text in cells) + f"   {title}")


def named(name: str) -> list[Experiment]:
    return [e for e in EXPERIMENTS.values() if e.in_all] if name == "all" else [EXPERIMENTS[name]]


def all_runs(chosen: Iterable[Experiment], scale: str) -> dict[str, Run]:
    """{name: run} of all of them."""
    return {run.name: run for experiment in chosen for run in experiment.runs_at(scale)}


def cost(runs: Sequence[Run]) -> str:
    """What these runs cost one after the other: minutes, hours of a machine."""
    minutes = sum(run.minutes for run in runs)
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.0f} h"


def make(
    runner: Runner, chosen: Sequence[Experiment], scale: str, only: str, jobs: int | None, again: bool = False
) -> int:
    """Run what has no record yet; at the paper's scale print the commands instead, but record what is finished."""
    wanted = [run for name, run in all_runs(chosen, scale).items() if fnmatch.fnmatch(name, only)]
    if not wanted:
        names = ", ".join(experiment.name for experiment in chosen)
        like = f" like {only!r}" if only != "*" else ""
        raise Mistake(f"{names}: no run{like} at scale {scale} (`list` shows the scales of each)")
    if again:
        for run in wanted:
            run.set_aside()
    absent = [run for run in wanted if run.record() is None]
    print(f"{len(wanted)} runs at scale {scale}, {len(wanted) - len(absent)} recorded, {len(absent)} to go: "
          f"about {cost(absent)} one after the other")  # fmt: skip
    for run in [*absent]:  # a record is committed, a run's folder is not: some need that
        if run.after is not None and run.after not in absent and not run.after.finished():
            record = run.after.record()
            if record is None or not diverged(record):
                absent.insert(0, run.after)
    if scale == "paper":
        return show_commands(runner, absent)
    jobs = jobs or ((os.cpu_count() or 1) if scale == "laptop" else 4)
    if scale == "laptop":
        runner.environment["CUDA_VISIBLE_DEVICES"] = ""  # the same thing on a machine that has a GPU
    failed = 0
    while ready := [run for run in absent if run.ready()]:  # a MADA-FS waits for its MADA, an evaluation for its run
        together = [run for run in ready if not run.alone]
        now, at_once = (together, jobs) if together else (ready, 1)  # what is timed has the machine for itself, at last
        runner.share_cores(at_once)
        progress = Progress(now)
        tasks = {run.name: partial(progress.execute, run, runner) for run in now}
        with progress.bar:
            failed += runner.execute(tasks, at_once, progress.end, progress.tick)
        absent = [run for run in absent if run not in now]
    for run in absent:
        print(f"{run.name}: not made, for want of the run that it builds on")
    return int(bool(failed or absent))


class Progress:
    """One line for each run at its end and, on a terminal, how many of the minutes that all are expected to take are
    over."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = {run.name: run for run in runs}
        self.begun: dict[str, float] = {}
        self.ended: list[str] = []
        total = sum(run.minutes for run in runs)
        shown = "{l_bar}{bar}| {n:.1f} of about {total:.0f} min of work"
        self.bar = tqdm(total=total, disable=None, bar_format=shown)

    def execute(self, run: Run, runner: Runner) -> None:
        self.begun[run.name] = time.monotonic()
        run.execute(runner)

    def end(self, name: str, error: BaseException | None) -> None:
        self.ended.append(name)
        path = self.runs[name].path.relative_to(ROOT)
        self.bar.write(f"{len(self.ended)}/{len(self.runs)} {name}: {error or f'recorded in {path}'}", file=sys.stdout)

    def tick(self) -> None:
        over = [self.runs[name].minutes if name in self.ended else
                min(self.runs[name].minutes, (time.monotonic() - begun) / 60)
                for name, begun in [*self.begun.items()]]  # fmt: skip
        self.bar.update(sum(over) - self.bar.n)


def show_commands(runner: Runner, absent: Sequence[Run]) -> int:
    """Record those that are finished, print the commands of the others; 1 if a folder is in the way."""
    failed = 0
    for run in absent:
        if not run.ready():
            print(f"\n# {run.name}: when the run that it builds on is finished")
            continue
        try:
            run.left()
            if run.finished():
                run.execute(runner)
                print(f"recorded {run.name}")
            else:
                print(f"\n# {run.name}: about {cost([run])} of the machine\n{shlex.join(run.command())}")
        except Mistake as error:
            failed = 1
            print(f"\n# {run.name}: {error}")
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
