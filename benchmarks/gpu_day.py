"""All that only a GPU can show, on one card in nine minutes, most valuable first.

    NANOMADA_COMMIT=$(git rev-parse HEAD) python -m benchmarks.gpu_day --out=FOLDER [--only=grid] [--minutes=9]
    python -m benchmarks.gpu_day --tiny --device=cpu    # rehearsed on any machine

Each part calls other benchmarks, or the experiments' runner, and has a limit of its own; what is not started, too slow
or fails is listed with its reason. The compiler's cache begins empty: the first parts time a cold start and one with
the cache. Then everything else is compiled, all at once, and timed alone. FOLDER (default: $OUT, or out/gpu_day) gets

    optimizer-step.json iteration.json soak.json    as these benchmarks write them, for benchmarks/results
    scale.json      rows of benchmarks.scale, each with its part
    records.tar     records of figure 8's grid with their validation losses, to be unpacked in the repository's root
    gpu_day.json    parts with their seconds and ends, and the goals that were met
    log.txt         all that was printed
"""

import json
import os
import shutil
import signal
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from cli import Mistake, program

import torch

from benchmarks import optimizer_step
from benchmarks.measure import chosen, device_name, own_options, write
from benchmarks.scale import TINY
from data import open_dataset
from data.manifest import make_folder
from runtime.parallel import device_problems, resolve
from runtime.recorder import commit
from study.runner import Runner

ROOT = Path(__file__).resolve().parents[1]
GRACE = 10.0  # seconds from SIGTERM, on which a run saves, to SIGKILL
PAPER = ["config/gpt2_mada.py", "--dataset=random", "--gradient_accumulation_steps=5"]  # the paper's batch on one of 8


@dataclass(frozen=True)
class Part:
    """Command lines of modules, one after another or `together`, with a limit in seconds for all."""

    name: str
    limit: float
    commands: list[list[str]]
    together: bool = False


def parts(tiny: bool, device: str, work: Path) -> list[Part]:
    """The day, in its order; `work` gets their results."""
    here = [f"--device={device}", *([*TINY, "--dataset=pystdlib", "--compile=False"] if tiny else [])]
    size, seconds = ("1e4", "0") if tiny else ("1.24e8", "1")
    names = ["adamw_fused", "adam"] if tiny else ["adamw_fused", "adamw_fused_clip", *optimizer_step.OURS]

    def scale(name: str, limit: float, cases: str, *more: str) -> Part:
        options = [f"--only={cases}", f"--seconds={seconds}", f"--out={work / name}.json"]
        return Part(name, limit, [["benchmarks.scale", *options, *here, *more]])

    def step(out: str, seconds: str, *names: str) -> list[str]:
        return ["benchmarks.optimizer_step", f"--sizes={size}", f"--seconds={seconds}", f"--only={','.join(names)}",
                f"--out={work / out}.json", f"--device={device}"]  # fmt: skip

    iteration = ["benchmarks.iteration", *PAPER, *here]
    cached = ("0.8M-mada", "11M-mada", "11M-mada-deterministic")
    soak = ["benchmarks.soak", "config/shakespeare_char.py", "--dataset=pystdlib", "--deterministic", "--max_iters=400",
            "--checkpoint_interval=40", "--eval_interval=200", "--eval_iters=64", "--log_interval=1", "--flat=1",
            f"--out={work / 'soak.json'}", "--hours=0.0125", "--between=1,3", *here]  # fmt: skip
    if tiny:
        soak += ["--max_iters=60", "--checkpoint_interval=5", "--hours=0.03"]
    grid = ["experiments", *(["list"] if tiny else ["run", "figure8", "--scale=gpu", "--jobs=6"])]
    return [
        scale("first-step", 75, "124M-mada", "--gradient_accumulation_steps=5"),
        scale("first-step-cached", 40, "124M-mada", "--gradient_accumulation_steps=5"),
        scale("xl", 120, "1.5B-mada"),
        Part("compile", 100, [
            *(step(f"compile-{i}", "0", *some) for i in range(4) if (some := names[i::4])),
            *([*iteration, f"--alone={name}"] for name in ("adamw", "adam", "mada_half")),
            *(["benchmarks.scale", f"--alone={case}", "--seconds=0", *here] for case in cached),
        ], together=True),
        Part("optimizer-step", 100, [step("optimizer-step", seconds, *names)]),
        Part("iteration", 150, [[*iteration, "--only=adamw,adam,mada,mada_half", f"--out={work / 'iteration.json'}",
                                 f"--seconds={'1' if tiny else '20'}"]]),
        # The same batch in fewer micro-batches: in five, adding gradients up takes 3.2 ms of 135 on an H100 and casting
        # weights to bfloat16 some 2, in one a fifth of that. 60 sequences need about 30 GB.
        *(scale(f"batch-{B}", 40, "124M-adamw", f"--batch_size={B}", f"--gradient_accumulation_steps={60 // B}")
          for B in (30, 60)),
        scale("small", 90, "0.8M-mada,11M-mada,11M-mada-deterministic,11M-mada-launched"),
        Part("soak", 110, [soak]),
        Part("grid", 600, [grid]),
    ]  # fmt: skip


def run(part: Part, limit: float, log: Path, environment: Mapping[str, str]) -> dict[str, Any]:
    """Run a part to its end or its limit: {"seconds", "end"}, "end" what became of it."""
    begun, ends = time.monotonic(), list[str]()
    signals = {0.0: signal.SIGTERM, GRACE: signal.SIGKILL}  # by the seconds after the limit, each once

    def late() -> float:
        return time.monotonic() - begun - limit

    def call(command: list[str]) -> None:
        if late() > 0:
            return
        with log.open("a") as file:
            print(f"\n$ {' '.join(command)}", file=file)
        code = runner.call([sys.executable, "-m", *command], log, range(-64, 256))
        ends.append(f"stopped after {limit:.0f} s" if late() > 0 else f"exit code {code}")

    def tick() -> None:
        for after in [*signals]:
            if late() > after:
                runner.end(signals.pop(after))

    with Runner(ROOT, environment).ending_on_signals() as runner:
        tasks = {str(i): partial(call, command) for i, command in enumerate(part.commands)}
        jobs = len(tasks) if part.together else 1
        runner.execute(tasks, jobs, lambda _, error: ends.append(str(error)) if error else None, tick)
    wrong = [text for text in ends if text != "exit code 0"]
    return {"seconds": round(time.monotonic() - begun, 1), "end": "; ".join(dict.fromkeys(wrong)) or "done"}


def collect(tiny: bool, work: Path, out: Path) -> dict[str, list[dict[str, Any]]]:
    """Copy what the parts left to `out`; the rows by part."""
    rows: dict[str, list[dict[str, Any]]] = {}
    scale = []
    for path in sorted(work.glob("*.json")):
        result = json.loads(path.read_text())
        rows[path.stem] = result["rows"]
        if result["benchmark"] == "scale":
            scale += [{"part": path.stem, "config": result["config"], **row} for row in result["rows"]]
        elif not path.stem.startswith("compile"):
            shutil.copy(path, out / path.name)
    if scale:
        write(str(out / "scale.json"), "scale", "cuda" if torch.cuda.is_available() else "cpu", scale)
    now = commit()
    with tarfile.open(out / "records.tar", "w") as tar:
        for path in sorted((ROOT / "experiments/records" / ("laptop" if tiny else "gpu") / "grid").glob("*.json")):
            tar.add(path, path.relative_to(ROOT))
            record = json.loads(path.read_text())
            rows.setdefault("grid", []).extend([record] if record["commit"] == now else [])
    return rows


def goals(rows: Mapping[str, list[dict[str, Any]]], seconds: float) -> Iterator[tuple[str, float | None, str]]:
    """(what, its figure or None, the bound "<= x" or ">= x" that is the goal); `seconds` were spent on figure 8."""

    def of(part: str, field: str, **key: str) -> float | None:
        return next((row[field] for row in rows.get(part, []) if key.items() <= row.items()), None)

    def rate(case: str) -> float | None:
        taken = of("small", "seconds", case=case)
        return 1 / taken if taken else None

    adamw = of("iteration", "ms", optimizer="adamw") or float("nan")
    yield "first step of 124M with an empty cache, s", of("first-step", "first_step_seconds"), "<= 15"
    yield "first step of 124M with the cache, s", of("first-step-cached", "first_step_seconds"), "<= 5"
    yield "first step of GPT-2 XL with an empty cache, s", of("xl", "first_step_seconds"), "<= 40"
    yield "steps/s of 11M", rate("11M-mada"), ">= 248"
    yield "steps/s of 0.8M", rate("0.8M-mada"), ">= 500"
    yield "MFU of 124M, fused AdamW", of("iteration", "mfu", optimizer="adamw"), ">= 0.45"
    for part in ("batch-30", "batch-60"):
        yield f"MFU of 124M, fused AdamW, micro-batches of {part[6:]}", of(part, "mfu"), ">= 0.45"
    for name in ("mada", "mada_half"):
        ms = of("iteration", "ms", optimizer=name)
        yield f"iteration of {name}, times AdamW's", ms and ms / adamw, "<= 1.01"
    lives = [life for row in rows.get("soak", [])[1:] for life in row["lives"]]
    resumed = any(life["from"] > 0 for life in lives)  # otherwise nothing was shown
    unequal = sum(len(row["differences"]) for row in rows.get("soak", []))
    yield "parts that differ after a kill and a resume, deterministic", unequal if resumed else None, "<= 0"
    runs = len(rows.get("grid", []))
    yield "minutes of figure 8's coarse grid, 18 runs", seconds / runs * 18 / 60 if runs else None, "<= 6"


def judged(rows: Mapping[str, list[dict[str, Any]]], seconds: float) -> list[dict[str, Any]]:
    """The goals with whether each is met; None where its figure is missing."""
    found = []
    for what, figure, bound in goals(rows, seconds):
        sign, _, limit = bound.partition(" ")
        met = None if figure is None else figure <= float(limit) if sign == "<=" else figure >= float(limit)
        found.append({"goal": what, "figure": figure, "bound": bound, "met": met})
    return found


@program("benchmarks.gpu_day")
def main(argv: list[str]) -> int:
    """Exit code 0 if every part was done to its end."""
    out_default, tiny = os.environ.get("OUT", str(ROOT / "out" / "gpu_day")), "--tiny" in argv
    options = {"out": out_default, "minutes": 45.0 if tiny else 9.0, "only": "", "device": "auto"}
    own, _ = own_options(__doc__, [one for one in argv if one != "--tiny"], options, more=False)
    for _, problem in device_problems(own["device"]):
        raise Mistake(problem)
    device = resolve(own["device"])
    if device == "cpu" and not tiny:
        raise Mistake("torch finds no GPU here: rehearse with --tiny --device=cpu")
    end_at = time.monotonic() + 60 * own["minutes"]
    out = Path(os.path.abspath(own["out"]))
    make_folder(out)
    log = out / "log.txt"
    log.write_text("")
    with tempfile.TemporaryDirectory(prefix="gpu_day-") as folder:
        work, cache = Path(folder), Path(folder) / "cache"
        environment = {"TORCHINDUCTOR_CACHE_DIR": str(cache), "TRITON_CACHE_DIR": str(cache / "triton")}
        done, day = [], parts(tiny, device, work)
        names = chosen(own["only"] or ",".join(part.name for part in day), [part.name for part in day])
        open_dataset("pystdlib", prepare=True)
        for part in day:
            left = end_at - time.monotonic() - GRACE
            if part.name not in names:
                ended: dict[str, Any] = {"seconds": 0, "end": "not asked for"}
            elif left < 5:
                ended = {"seconds": 0, "end": "not started: no time left"}
            else:
                ended = run(part, min(part.limit * (5 if tiny else 1), left), log, environment)  # a CPU is slower
            if part.name == "compile":  # what was fastest beside others need not be so alone
                for path in cache.rglob("*.best_config"):
                    path.unlink()
            done.append({"part": part.name, **ended})
            print(f"{part.name:20} {ended['seconds']:6.1f} s  {ended['end']}", flush=True)
        results = judged(collect(tiny, work, out), done[-1]["seconds"])
    about = {"device": device_name(device), "torch": torch.__version__, "commit": commit(), "tiny": tiny}
    (out / "gpu_day.json").write_text(json.dumps({**about, "parts": done, "goals": results}, indent=1) + "\n")
    for row in results:
        verdict = {True: "met", False: "NOT met", None: "not shown"}[row["met"]]
        figure = "-" if row["figure"] is None else f"{row['figure']:.3g}"
        print(f"{row['goal']:62} {figure:>8} {row['bound']:>7}  {verdict}")
    print("written to", out)
    return int(any(row["end"] not in ("done", "not asked for") for row in done))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
