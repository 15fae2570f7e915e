"""What the benchmarks share: two or more things timed in turn in one process, and results written with their device."""

import json
import platform
import re
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any
from cli import HelpRequested, Mistake

import torch

from data.manifest import make_folder, read_json
from optim import MADA

RESULTS = Path(__file__).parent / "results"
SIX = dict.fromkeys(MADA.learns, 1e-4)  # MADA's coefficients, all learned


def interleaved(
    contenders: Mapping[str, Callable[[], Any]], device: str, seconds: float, calls: int = 1
) -> dict[str, list[float]]:
    """Seconds of each call, the contenders called in turn for about `seconds` in all (5 to 200 rounds, after 3 that do
    not count), so that a machine that slows down does so for all of them. Of `calls` in a row the mean: a GPU is waited
    for once, as in training, where the host runs ahead of it."""
    wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    times: dict[str, list[float]] = {name: [] for name in contenders}
    rounds, begun = 0, time.perf_counter()
    while rounds < 8 or (rounds < 203 and time.perf_counter() - begun < seconds):
        if rounds == 3:
            times = {name: [] for name in contenders}
            begun = time.perf_counter()
        for name, call in contenders.items():
            wait()
            start = time.perf_counter()
            for _ in range(calls):
                call()
            wait()
            times[name].append((time.perf_counter() - start) / calls)
        rounds += 1
    return times


def ratio(times: Mapping[str, list[float]], name: str, base: str) -> tuple[float, float, float]:
    """Quartiles of the ratio name / base, round by round: (median, lower, upper)."""
    lower, median, upper = statistics.quantiles([a / b for a, b in zip(times[name], times[base], strict=True)])
    return median, lower, upper


def status(key: str, pid: int | str = "self") -> int:
    """Bytes of a line in /proc/PID/status, such as VmHWM: the most memory that a process held at a time. 0 if it has
    ended."""
    try:
        found = re.search(rf"{key}:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0
    return 1024 * int(found[1]) if found else 0


def own_options(
    doc: str | None, argv: list[str], defaults: Mapping[str, Any], more: bool = True
) -> tuple[dict[str, Any], list[str]]:
    """(a benchmark's own options of a command line, each of its default's type; the rest, which is train.py's).

    Raises Mistake for a number that is none, is negative or, where it counts, 0, and for a rest unless `more`;
    HelpRequested with `doc`.
    """
    if {"-h", "--help"} & {*argv}:
        raise HelpRequested(doc)
    own, rest = dict(defaults), []
    for argument in argv:
        name, equals, value = argument.removeprefix("--").partition("=")
        if equals and name in own:
            own[name] = numbers(argument, value, type(own[name]))[0] if not isinstance(own[name], str) else value
        else:
            rest.append(argument)
    if rest and not more:
        raise Mistake(f"unknown {' '.join(rest)}: it has --{', --'.join(defaults)}")
    return own, rest


def chosen(text: str, known: Iterable[str]) -> list[str]:
    """The names in `text`, with commas between them. Raises Mistake for one that is not known."""
    names = text.split(",")
    if unknown := sorted({*names} - {*known}):
        raise Mistake(f"unknown {', '.join(map(repr, unknown))}: choose among {', '.join(known)}")
    return names


def numbers(where: str, text: str, kind: type) -> list[Any]:
    """Numbers with commas between them: int from 1, float from 0. Raises Mistake."""
    try:
        found = [kind(float(one)) if kind is int else kind(one) for one in text.split(",")]
        if all((one > 0 or kind is float) and 0 <= one < 1e12 for one in found):
            return found
    except (ValueError, OverflowError):
        pass
    raise Mistake(f"{where}: {text!r} must be a number {'from 1' if kind is int else 'from 0'} on")


def device_name(device: str) -> str:
    """The accelerator's name, or the processor's with the threads that torch uses."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{model}, {torch.get_num_threads()} threads"


def results_path(out: str, benchmark: str, device: str) -> Path:
    """Where results go: `out`, or else benchmarks/results/BENCHMARK-DEVICE.json."""
    slug = "".join(c if c.isalnum() else "-" for c in device_name(device).lower())
    return Path(out) if out else RESULTS / f"{benchmark}-{slug}.json"


def write(out: str, benchmark: str, device: str, rows: list[dict[str, Any]], **settings: Any) -> Path:
    """JSON with the rows, the settings and the device."""
    path = results_path(out, benchmark, device)
    make_folder(path.parent)
    about = {"benchmark": benchmark, "device": device_name(device), "torch": torch.__version__}
    path.write_text(json.dumps(about | settings | {"rows": rows}, indent=1) + "\n")
    return path


def earlier(out: str, benchmark: str, device: str) -> list[dict[str, Any]]:
    """The rows that an earlier call of the same benchmark wrote, with the same torch on the same device; else none."""
    path = results_path(out, benchmark, device)
    if not path.exists():
        return []
    try:
        found = read_json(path)
        made = (found["benchmark"], found["device"], found["torch"])
        return found["rows"] if made == (benchmark, device_name(device), torch.__version__) else []
    except (ValueError, TypeError, LookupError):
        raise Mistake(f"{path} is not a result of a benchmark: name another file with --out") from None
