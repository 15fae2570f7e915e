"""Train the product of lists of settings, each run in a folder of its own, and compare what comes out.

    python sweep.py config/tiny.py --optimizer=adam,lion,mada --learning_rate=1e-3,2e-3,4e-3 --seed=1..3
    python sweep.py config/tiny.py --optimizer=adam,lion --learning_rate=x0.5,x1,x2 --seed=1..3 --jobs=2
    python sweep.py config/tiny.py --learning_rate=1e-4..1e-2 --trials=20 --seed=1..2
    python sweep.py config/tiny.py --optimizer=adam,mada --learning_rate=1e-3,2e-3 --seed=1,2 --tune

Everything that train.py takes may be a list: a,b,c or whole numbers 1..3. x2 is twice the optimizer's own learning
rate: the config files', a quarter of it for Lion as in the paper. Where learning_rate is set here and min_lr is not,
min_lr keeps the ratio to it that the config files have. The same command goes on where it was interrupted: finished
and diverged runs are kept, failed ones are tried again.
"""

import argparse
import itertools
import math
import random
import re
import shutil
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from cli import DIVERGED, Mistake, Parser, program

from tqdm import tqdm

from data.manifest import expand, read_json, read_text, write_json
from runtime.optimizers import adapt
from runtime.settings import from_text, read_files
from study import comparison
from study.runner import Runner
from study.runs import differences, read_result, read_rows

ROOT = Path(__file__).parent
LEARNING_RATE, MIN_LR = 6e-4, 6e-5  # train.py's defaults
OWN_RATE = {"lion": 0.25}  # of the config files', for an optimizer that they are not written for: the paper's ratio
WIDENINGS = 8  # of a grid, at most
Settings = dict[str, str]


@program("sweep.py", again="the same command goes on from here")
def main(argv: list[str]) -> int:
    """Exit code 0: done; 1: a run failed; 2: a mistake to put right; 130: interrupted."""
    parser = Parser("sweep.py", __doc__)
    parser.add_argument("configs", nargs="*", metavar="CONFIG")
    parser.add_argument("--out", type=Path, default=Path("out/sweep"), help="folder of the runs and the comparison")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, which share the cores")
    parser.add_argument("--runs", type=Path, help="a file with one run's settings a line, instead of a product")
    parser.add_argument("--trials", type=int, help="draw so many points: from lists, or log-uniform between a..b")
    parser.add_argument("--tune", action="store_true", help="widen the grid of numbers until the lowest loss is inside "
                        "it, then run fresh seeds there and compare those")  # fmt: skip
    parser.add_argument("--fresh", type=int, default=5, help="fresh seeds of --tune")
    parser.add_argument("--baseline", help="of the comparison: see compare.py")
    parser.add_argument("--plan", action="store_true", help="say what would run and about how long, and stop")
    options, settings = parser.parse_known_args(argv)
    try:
        with Runner(Path.cwd()).ending_on_signals() as runner:
            return Sweep(options, runner).run(settings)
    except ValueError as error:  # a setting that is no number, a sweep.json that is none
        raise Mistake(str(error)) from error


def lists_of(arguments: Sequence[str]) -> dict[str, list[str]]:
    """{setting: its values} of --key=value arguments. Raises Mistake."""
    found = {}
    for argument in arguments:
        match = re.fullmatch(r"--([\w.]+)(?:=(.*))?", argument, re.DOTALL)
        if match is None:
            raise Mistake(f"{argument}: write --key=value, or --key=a,b,c for a list")
        text = "True" if match[2] is None else match[2]
        numbers = re.fullmatch(r"(-?\d+)\.\.(-?\d+)", text)
        if numbers:
            found[match[1]] = [str(i) for i in range(int(numbers[1]), int(numbers[2]) + 1)]
        else:  # commas inside brackets belong to a dict or a pair
            found[match[1]] = re.findall(r"(?:[^,{(\[]|\{[^}]*\}|\([^)]*\)|\[[^\]]*\])+", text) or [""]
        if not found[match[1]]:
            raise Mistake(f"{argument}: an empty range")
    return found


def draw(lists: Mapping[str, Sequence[str]], trials: int) -> list[Settings]:
    """So many points, the same each time: a value of each list, log-uniform to three digits for a range a..b."""
    generator = random.Random(0)

    def value(values: Sequence[str]) -> str:
        match = re.fullmatch(r"([\d.e+-]+?)\.\.([\d.e+-]+)", values[0])
        if match is None:
            return generator.choice(values)
        low, high = float(match[1]), float(match[2])
        if not 0 < low < high:
            raise Mistake(f"{values[0]}: a range to draw from needs 0 < low < high")
        return f"{math.exp(generator.uniform(math.log(low), math.log(high))):.3g}"

    found: dict[tuple[str, ...], Settings] = {}
    for _ in range(100 * trials):
        point = {name: value(values) for name, values in lists.items()}
        if len(found) < trials:
            found.setdefault(tuple(point.values()), point)
    if len(found) < trials:
        raise Mistake(f"--trials={trials}: these lists have only {len(found)} points")
    return [*found.values()]


def is_number(text: str) -> bool:
    return type(from_text(text.removeprefix("x"))) in (int, float)


def steps_done(folder: Path) -> int:
    """The step of the last whole row of metrics.csv; 0 if there is none."""
    path = folder / "metrics.csv"
    if not path.is_file():
        return 0
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 4096))
        rows = file.read().decode(errors="replace").split("\n")[:-1]
    first = rows[-1].partition(",")[0] if rows else ""
    return int(first) if first.isdigit() else 0


@dataclass(frozen=True)
class Trial:
    """One run: its settings beside the config files, and its folder."""

    settings: Mapping[str, str]
    folder: Path


class Sweep:
    def __init__(self, options: argparse.Namespace, runner: Runner) -> None:
        if options.jobs < 1:
            raise Mistake(f"jobs={options.jobs} must be 1 or more")
        self.options, self.runner, self.out = options, runner, expand(options.out)
        self.files = read_files(options.configs)
        runner.lock(self.out / ".lock")
        self.state_path = self.out / "sweep.json"
        runner.share_cores(options.jobs)
        self.exits: dict[str, int] = {}  # exit codes of the runs that ended, by folder
        if self.state_path.is_file():
            try:
                self.exits = dict(read_json(self.state_path))
            except (TypeError, ValueError) as error:
                raise Mistake(f"{self.state_path} is not what sweep.py wrote ({error}): move it away") from None

    def run(self, arguments: Sequence[str]) -> int:
        """Everything: the plan, the runs, the comparison; the exit code."""
        lists = lists_of(arguments)
        if self.options.tune and (self.options.runs or self.options.trials):
            raise Mistake("--tune widens lists of numbers: leave out --runs and --trials")
        if self.options.tune:
            lists.setdefault("seed", ["1", "2"])
        self.named = [n for n, values in lists.items() if len(values) > 1 or (n == "seed" and self.options.tune)]
        trials = [self.trial(point) for point in self.points(lists)]
        self.say_plan(trials)
        if self.options.plan:
            return 0
        failed = self.execute(trials)
        if self.options.tune:
            more, trials = self.tune(lists, trials)
            failed += more
        done = [trial.folder for trial in trials if (trial.folder / "config.json").is_file()]
        print(comparison.write(done, self.out, self.options.baseline))
        return int(failed > 0)

    def points(self, lists: Mapping[str, Sequence[str]]) -> list[Settings]:
        """The settings of every run, seeds last, so that each point has its first seed early."""
        seeds = [{"seed": seed} for seed in lists.get("seed", ())] or [{}]
        others: Mapping[str, Sequence[str]] = {name: values for name, values in lists.items() if name != "seed"}
        if self.options.runs:
            try:
                lines = read_text(expand(self.options.runs)).splitlines()
            except ValueError as error:
                raise Mistake(f"--runs={self.options.runs} is not UTF-8 text ({error})") from None
            found = [lists_of(line.split()) for line in lines if line.strip() and not line.startswith("#")]
            if not found:
                raise Mistake(f"--runs={self.options.runs} holds no run: write one's settings a line")
            for name, values in (setting for point in (others, *found) for setting in point.items()):
                if len(values) > 1:
                    raise Mistake(f"--runs={self.options.runs}: {name} is a list: write a line for each run")
            base = [{name: values[0] for name, values in {**others, **point}.items()} for point in found]
            self.named = list(dict.fromkeys([*self.named, *(name for point in found for name in point)]))
        elif self.options.trials:
            base = draw(others, self.options.trials)
            self.named = list(dict.fromkeys([*self.named, *(n for n, v in others.items() if ".." in v[0])]))
        else:
            base = [dict(zip(others, values, strict=True)) for values in itertools.product(*others.values())]
        return [{**point, **seed} for point in base for seed in seeds]

    def trial(self, point: Settings) -> Trial:
        """A point with relative rates made absolute, and the folder that it is named by."""
        settings = dict(point)
        if "learning_rate" in settings:
            own, rate = float(self.files.get("learning_rate", LEARNING_RATE)), settings["learning_rate"]
            if rate.startswith("x"):
                optimizer = settings.get("optimizer", self.files.get("optimizer"))
                share = 1.0 if optimizer == self.files.get("optimizer") else OWN_RATE.get(str(optimizer), 1.0)
                rate = settings["learning_rate"] = f"{float(rate[1:]) * own * share:.6g}"
            ratio = float(self.files.get("min_lr", MIN_LR)) / own if own else 0.0
            settings.setdefault("min_lr", f"{float(rate) * ratio:.6g}")
        named = sorted((name for name in self.named if name in settings), key=lambda name: name == "seed")  # last
        parts = [settings[name] if name == "optimizer" else f"{name}={settings[name]}" for name in named]
        name = re.sub(r"[^\w.,=+-]", "_", ",".join(parts)) or "run"
        return Trial(settings, self.out / name)

    def finished(self, trial: Trial) -> bool:
        """Whether the run is at its end, or diverged. Raises Mistake if its folder holds another run."""
        if not (trial.folder / "config.json").is_file():
            return False
        result = read_result(trial.folder)
        settings = {name: from_text(value) for name, value in trial.settings.items()}
        asked = read_files(self.options.configs, settings, adapt)
        asked |= {k: str(expand(v)) for k, v in asked.items() if isinstance(v, str) and v.startswith("~")}
        if asked.get("coefficients_from"):
            asked["coefficients"] = {}  # those that it found there
        if wrong := differences(asked, result.facts["config"]):
            raise Mistake(f"{trial.folder} holds a run with {'; '.join(wrong)}: choose another --out")
        return result.state == "finished" or self.exits.get(trial.folder.name) == DIVERGED

    def train(self, trial: Trial, **others: Any) -> None:
        """Run it to its end, with `others` of its settings changed. Raises Mistake with the end of its log."""
        settings = {**trial.settings, "out_dir": trial.folder, "init_from": "auto", **others}
        command = [sys.executable, str(ROOT / "train.py"), *self.options.configs]
        command += [f"--{name}={value}" for name, value in settings.items()]
        code = self.runner.call(command, Path(settings["out_dir"]) / "log.txt", (0, DIVERGED))
        if not others:
            self.exits[trial.folder.name] = code

    def execute(self, trials: Sequence[Trial]) -> int:
        """Run those that are not finished; the number that failed."""
        left = {trial.folder.name: trial for trial in trials if not self.finished(trial)}
        steps = {name: self.steps(trial) for name, trial in left.items()}
        with tqdm(total=sum(steps.values()), unit="step", disable=None, dynamic_ncols=True, smoothing=0.02) as bar:
            ended_so_far = dict.fromkeys(("finished", "diverged", "failed"), 0)

            def ended(name: str, error: BaseException | None) -> None:
                kind = "failed" if error else "diverged" if self.exits.get(name) == DIVERGED else "finished"
                ended_so_far[kind] += 1
                write_json(self.state_path, dict(self.exits))  # other threads add to it
                bar.write(f"{sum(ended_so_far.values())}/{len(left)} {name}: {error or kind}", file=sys.stdout)

            def tick() -> None:
                done = sum(min(steps_done(trial.folder), steps[name]) for name, trial in left.items())
                bar.set_postfix({kind: n for kind, n in ended_so_far.items() if n}, refresh=False)
                bar.update(done - bar.n)

            tasks = {name: partial(self.train, trial) for name, trial in left.items()}
            return self.runner.execute(tasks, self.options.jobs, ended, tick)

    def steps(self, trial: Trial) -> int:
        return int(trial.settings.get("max_iters", self.files.get("max_iters", 100_000)))

    def say_plan(self, trials: Sequence[Trial]) -> None:
        """How many runs, and about how long they take: as long as the finished ones, else by a few steps of the first.

        Raises Mistake if these steps fail, as every run would.
        """
        if len({trial.folder for trial in trials}) < len(trials):
            raise Mistake("two runs have the same settings: leave out what is listed twice")
        left = [trial for trial in trials if not self.finished(trial)]
        print(f"{len(trials)} runs in {self.out}, {len(trials) - len(left)} ended before, {len(left)} to go, "
              f"{self.options.jobs} at a time", flush=True)  # fmt: skip
        print("".join(f"  {trial.folder.name}\n" for trial in left), end="")
        if not left:
            return
        ended = [read_result(trial.folder).final for trial in trials if trial not in left]
        times = [final["seconds"] for final in ended if final]
        each = statistics.mean(times) + 10 if times else self.probe(left[0])
        minutes = each * math.ceil(len(left) / self.options.jobs) / 60
        more = ", and what --tune adds" if self.options.tune else ""
        print(f"about {minutes:.0f} min, {each:.0f} s a run{more}", flush=True)

    def probe(self, trial: Trial) -> float:
        """Seconds that a run takes, from 10 of its steps, its first validation, and the start."""
        folder = self.out / ".probe"
        shutil.rmtree(folder, ignore_errors=True)  # of a sweep that was interrupted then
        begun = time.perf_counter()
        self.train(trial, out_dir=folder, max_iters=10, warmup_iters=1, eval_interval=10, log_interval=1)
        wall = time.perf_counter() - begun
        rows = read_rows(folder / "metrics.csv")
        shutil.rmtree(folder)
        seconds = [float(row["seconds"] or 0) for row in rows]
        step = statistics.median(after - before for before, after in itertools.pairwise(seconds[:-1]))
        every = int(trial.settings.get("eval_interval", self.files.get("eval_interval", 500)))
        return wall - seconds[-1] + self.steps(trial) * step + (1 + self.steps(trial) / every) * seconds[0]

    def tune(self, lists: Mapping[str, Sequence[str]], trials: list[Trial]) -> tuple[int, list[Trial]]:
        """Widen each optimizer's grid until its lowest mean loss is inside, then run fresh seeds there.

        The grids are compared in OUT/grid. Returns (runs that failed, the trials of the fresh seeds).
        """
        axes = [n for n, v in lists.items() if n != "seed" and len(v) > 1 and all(map(is_number, v))]
        failed = 0
        for _ in range(WIDENINGS):
            wider = [self.trial({**point, "seed": seed}) for best, grid in self.optima(trials, axes, lists)
                     for point in beyond(best, grid, axes) for seed in lists["seed"]]  # fmt: skip
            if not wider:
                break
            print(f"the lowest loss lies at an edge: {len(wider)} more runs")
            failed += self.execute(wider)
            trials = trials + wider
        else:
            print(f"an optimum still lies at an edge after {WIDENINGS} widenings: start with another grid")
        comparison.write([trial.folder for trial in trials], self.out / "grid", self.options.baseline)
        first = max(map(int, lists["seed"])) + 1
        fresh = []
        for best, _ in self.optima(trials, axes, lists):
            words = ", ".join(f"{name} {value}" for name, value in best.items() if name in self.named)
            print(f"optimum: {words}; {self.options.fresh} fresh seeds")
            fresh += [self.trial({**best, "seed": str(first + i)}) for i in range(self.options.fresh)]
        return failed + self.execute(fresh), fresh

    def optima(
        self, trials: Sequence[Trial], axes: Sequence[str], lists: Mapping[str, Any]
    ) -> list[tuple[Settings, list[Settings]]]:
        """(the point of the lowest mean final loss, all points) of each combination of settings other than `axes`."""
        arms: dict[tuple[str, ...], dict[tuple[str, ...], tuple[Settings, list[float]]]] = {}
        for trial in trials:
            point = {name: trial.settings[name] for name in lists if name != "seed"}
            arm = arms.setdefault(tuple(value for name, value in point.items() if name not in axes), {})
            ran = (trial.folder / "config.json").is_file()
            loss = read_result(trial.folder).final.get("val_loss", math.inf) if ran else math.inf  # failed or diverged
            arm.setdefault(tuple(point.values()), (point, []))[1].append(loss)
        best = [min(arm.values(), key=lambda found: statistics.mean(found[1]))[0] for arm in arms.values()]
        return [(one, [point for point, _ in arm.values()]) for one, arm in zip(best, arms.values(), strict=True)]


def beyond(best: Settings, grid: Sequence[Settings], axes: Sequence[str]) -> list[Settings]:
    """What has to be tried around the best point: along each axis its neighbours on the grid, and where it lies at an
    end one point further, by the grid's last ratio there; decays (beta1, beta2, ...) by that of 1 - beta. An end at 0
    is not passed."""
    found = []
    for name in axes:
        texts = {float(point[name]): point[name] for point in grid}
        row = {float(point[name]) for point in grid if all(point[k] == best[k] for k in axes if k != name)}
        for values in (sorted(texts), sorted(texts, reverse=True)) if len(texts) > 1 else ():
            at = values.index(float(best[name]))
            if at:
                found += [{**best, name: texts[values[at - 1]]}] if values[at - 1] not in row else []
                continue
            end, next_ = values[:2]
            decay = name.removeprefix("coefficients.").startswith("beta")
            further = 1 - (1 - end) ** 2 / (1 - next_) if decay else end * end / next_ if next_ > 0 else 2 * end
            further = round(further) if all(text.isdigit() for text in texts.values()) else further
            if further > 0 and further not in texts:
                found.append({**best, name: f"{further:.6g}"})
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
