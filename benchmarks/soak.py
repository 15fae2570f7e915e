"""Endurance: a run that is killed at random times and resumed, compared with one that was left alone.

    python -m benchmarks.soak config/quickstart.py [--key=value ...] [--hours=2] [--between=60,300] [--seed=1]

First the undisturbed run, then for `hours` one run after another: 60 to 300 seconds (`between`) after the first save of
each process a signal, SIGKILL three times of four and otherwise SIGTERM, after which `--init_from=auto` resumes the
run. When finished it must have the rows (except for seconds) and the last checkpoint of the undisturbed one, bit by
bit. A "life" is one process of a run. Its anonymous memory (without the page cache: mapped tokens, libraries) is read
twice a second; from its first save to its last step, the mean of the last third of the readings may be at most 3%
(`--flat=0.03`) above that of the first third (saves and validations move single readings by as much). The run that is
going on when the time is over is finished without more kills. Exit code 1: something was not equal or not flat.
"""

import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean
from typing import Any
from cli import Mistake, program

import torch

from benchmarks import training
from benchmarks.measure import numbers, own_options, status, write
from runtime import checkpoint, parallel
from runtime.records import read_metrics

ROOT = Path(__file__).resolve().parents[1]
EVERY = 0.5  # seconds between two readings


def live(argv: list[str], out_dir: Path, seconds: float, number: int) -> dict[str, Any]:
    """One life of a run, ended `seconds` after its first save by a signal if it has not ended before."""
    command = [sys.executable, "train.py", *argv, f"--out_dir={out_dir}", "--init_from=auto"]
    before, samples, begun = newest(out_dir), [], time.monotonic()
    saved = float("inf")  # when this life's first save was seen
    with out_dir.with_suffix(".log").open("ab") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        while process.poll() is None:
            time.sleep(EVERY)
            age, step = round(time.monotonic() - begun, 1), newest(out_dir)
            if now := status("RssAnon", process.pid):
                samples.append({"seconds": age, "step": step, "anonymous": round(now / 2**20, 1)})  # MB
                saved = min(saved, age if step > max(before, 0) else saved)
            if age - saved > seconds:
                process.send_signal(number)
                seconds = float("inf")
    end = newest(out_dir) if process.returncode == 0 else float("inf")  # after its last step it draws its figure
    after = [sample["anonymous"] for sample in samples if sample["seconds"] >= saved and sample["step"] < end]
    third = max(1, len(after) // 3)
    growth = mean(after[-third:]) / mean(after[:third]) - 1 if after else 0.0
    return {"from": before, "to": newest(out_dir), "seconds": round(time.monotonic() - begun, 1),
            "exit": process.returncode, "growth": round(growth, 4), "memory": samples[:: max(1, len(samples) // 20)]}


def newest(out_dir: Path) -> int:
    """Step of the newest checkpoint; -1 where there is none."""
    return max((found.step for found in checkpoint.find(out_dir)), default=-1)


def differences(one: Path, other: Path) -> list[str]:
    """What two finished runs do not have in common, bit by bit."""
    rows = [[{k: v for k, v in row.items() if k != "seconds"} for row in read_metrics(out_dir / "metrics.csv")]
            for out_dir in (one, other)]  # fmt: skip
    ends = [checkpoint.load(checkpoint.newest(out_dir)) for out_dir in (one, other)]
    found = ["metrics.csv"] if rows[0] != rows[1] else []
    return found + [part for part in ("step", "model", "optimizer") if not same(ends[0][part], ends[1][part])]


def same(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a.nan_to_num(7.5), b.nan_to_num(7.5))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@program("benchmarks.soak")
def main(argv: list[str]) -> int:
    options = {"hours": 2.0, "between": "60,300", "seed": 1, "out": "", "flat": 0.03}
    own, argv = own_options(__doc__, argv, options)
    device = parallel.resolve(training.config(argv, "benchmarks.soak").device)
    between = numbers("--between", own["between"], float)
    shortest, longest = between[0], between[-1]
    rng, flat = random.Random(own["seed"]), own["flat"]
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    print(f"the runs and what they print are in {folder}", flush=True)

    end = time.monotonic() + 3600 * own["hours"]
    untouched = live(argv, folder / "undisturbed", float("inf"), signal.SIGKILL)
    if untouched["exit"]:
        raise Mistake(f"the undisturbed run failed: {(folder / 'undisturbed.log').read_text()[-1000:]}")
    runs: list[dict[str, Any]] = [{"lives": [untouched], "differences": []}]
    print(f"undisturbed: {untouched['seconds']:.0f} s, memory grew by {untouched['growth']:.2%}", flush=True)
    bad = untouched["growth"] > flat
    while time.monotonic() < end:
        out_dir, lives = folder / f"run-{len(runs)}", []
        while True:
            kill = rng.uniform(shortest, longest)
            number = signal.SIGKILL if rng.random() < 0.75 else signal.SIGTERM
            lives.append(live(argv, out_dir, kill if time.monotonic() + kill < end else float("inf"), number))
            code = lives[-1]["exit"]
            print(f"run {len(runs)}, life {len(lives)}: step {lives[-1]['from']} to {lives[-1]['to']}, "
                  f"{lives[-1]['seconds']:.0f} s, exit {code}, memory grew by {lives[-1]['growth']:.2%}", flush=True)
            bad |= lives[-1]["growth"] > flat
            if code == 0:
                break
            if code not in (-signal.SIGKILL, 130, -signal.SIGTERM):  # the last: before train.py handles signals
                raise Mistake(f"the run failed: {(folder / f'{out_dir.name}.log').read_text()[-1000:]}")
        unequal = differences(folder / "undisturbed", out_dir)
        bad |= bool(unequal)
        runs.append({"lives": lives, "differences": unequal})
        print(f"run {len(runs) - 1} {'differs in ' + ', '.join(unequal) if unequal else 'equals the undisturbed one'}",
              flush=True)
        hours = (time.monotonic() - end) / 3600 + own["hours"]
        path = write(own["out"], "soak", device, runs, config=argv, hours=round(hours, 3))
    if len(runs) == 1:
        raise Mistake(f"the undisturbed run took all the time: give more than --hours={own['hours']}")
    kills = sum(len(run["lives"]) - 1 for run in runs)
    verdict = "NOT equal or NOT flat" if bad else "all equal, memory flat"
    print(f"{len(runs) - 1} runs, {kills} kills in {hours:.2f} hours: {verdict}; {path}")
    return int(bad)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
