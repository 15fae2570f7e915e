"""What the benchmarks share: two or more things timed in turn in one process, and results written with their device."""

import json
import platform
import re
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

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


def status(key: str) -> int:
    """Bytes of a line in /proc/self/status, such as VmHWM: the most memory that this process held at a time."""
    found = re.search(rf"{key}:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found
    return 1024 * int(found[1])


def own_options(argv: list[str], defaults: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """(a benchmark's own options of a command line, the rest, which is train.py's)."""
    own, rest = dict(defaults), []
    for argument in argv:
        name, equals, value = argument.removeprefix("--").partition("=")
        if equals and name in own:
            own[name] = value
        else:
            rest.append(argument)
    return own, rest


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


def results_path(out: str | None, benchmark: str, device: str) -> Path:
    """Where results go: `out`, or else benchmarks/results/BENCHMARK-DEVICE.json."""
    slug = "".join(c if c.isalnum() else "-" for c in device_name(device).lower())
    return Path(out) if out else RESULTS / f"{benchmark}-{slug}.json"


def write(out: str | None, benchmark: str, device: str, rows: list[dict[str, Any]], **settings: Any) -> Path:
    """JSON with the rows, the settings and the device."""
    path = results_path(out, benchmark, device)
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {"benchmark": benchmark, "device": device_name(device), "torch": torch.__version__}
    path.write_text(json.dumps(about | settings | {"rows": rows}, indent=1) + "\n")
    return path


def earlier(out: str | None, benchmark: str, device: str) -> list[dict[str, Any]]:
    """The rows that an earlier call of the same benchmark wrote, with the same torch on the same device; else none."""
    path = results_path(out, benchmark, device)
    if not path.exists():
        return []
    found = json.loads(path.read_text())
    same = (found["benchmark"], found["device"], found["torch"]) == (benchmark, device_name(device), torch.__version__)
    return found["rows"] if same else []
