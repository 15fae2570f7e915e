"""What a save costs: seconds that the training waits for each GB of checkpoint.

    python -m benchmarks.save [--gb=1] [--rounds=5] [--folder=FOLDER] [--out=FILE]

`synchronous` is checkpoint.save as train.py calls it: pickled, hashed, written, on the disk. `of which` times its parts
alone: sha256 of as many bytes, and writing and syncing them. `asynchronous` is the least that a save in the background
would make the training wait: the copy of every tensor that the next step overwrites, into memory that is there already
(`first` into memory that is new). Rounds take turns; medians, and quartiles of all rounds.
"""

import hashlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from cli import Mistake, program

import torch

from benchmarks.measure import own_options, write
from benchmarks.table import show
from runtime import checkpoint


@program("benchmarks.save")
def main(argv: list[str]) -> None:
    own, _ = own_options(__doc__, argv, {"gb": 1.0, "rounds": 5, "folder": "", "out": ""}, more=False)
    gb, rounds = own["gb"], own["rounds"]
    if gb < 1e-6 or rounds < 2:
        raise Mistake(f"gb={gb} must be 1e-6 or more, rounds={rounds} 2 or more")
    tensors = {f"t{i}": torch.randn(int(gb * 1e9 / 4 / 32)) for i in range(32)}  # as many as a small model has
    there = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    step = 0

    with tempfile.TemporaryDirectory(dir=own["folder"] or None) as folder:

        def synchronous() -> None:
            nonlocal step
            step += 1
            checkpoint.save(folder, step, None, {"model": tensors}, keep=1)

        def digest() -> None:
            hashed = hashlib.sha256()
            for tensor in tensors.values():
                hashed.update(tensor.numpy())  # type: ignore[arg-type]

        def disk() -> None:
            with Path(folder, "plain").open("wb") as file:
                for tensor in tensors.values():
                    file.write(tensor.numpy())  # type: ignore[arg-type]
                file.flush()
                os.fsync(file.fileno())

        def copy() -> None:
            for name, tensor in tensors.items():
                there[name].copy_(tensor)

        ways: dict[str, Callable[[], object]] = {
            "synchronous": synchronous, "of which sha256": digest, "of which writing and syncing": disk,
            "asynchronous": copy, "asynchronous, first": lambda: [tensor.clone() for tensor in tensors.values()],
        }  # fmt: skip
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, way in ways.items():
                begun = time.perf_counter()
                way()
                times[name].append((time.perf_counter() - begun) / gb)
    rows = []
    for name, seconds in times.items():
        lower, median, upper = statistics.quantiles(seconds)
        rows.append({"way": name, "seconds_per_gb": [median, lower, upper]})
    show(write(own["out"], "save", "cpu", rows, gb=gb, rounds=rounds))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
