"""Preparation of a data set: tokens/s and peak memory, ours beside nanoGPT's way, on the same documents.

    python -m benchmarks.prepare [--input=documents.jsonl] [--copies=4,16] [--rounds=3] [--workers=2] [--out=FILE]

nanoGPT's way is that of its data/openwebtext/prepare.py: `datasets` maps `encode_ordinary` over the documents with
num_proc workers, and the ids are then copied into a memory-mapped file. Both start from the same file (`copies` times
the input), end with uint16 ids on disk, and run in turn, each in a process of its own. The clock starts after the
imports. Memory is the largest sum of proportional set sizes (PSS) of the process and its children, seen every 50 ms:
pages that several of them share count once, mapped pages of files count too.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.measure import device_name, write

ROOT = Path(__file__).resolve().parents[1]

OURS = """
import sys, time
from pathlib import Path
from data.prepare import source
from data.preparation import prepare
documents, folder, workers = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
start = time.perf_counter()
prepare(source([documents], "ours", val_fraction=0.0005), folder, threads=workers)
print(time.perf_counter() - start)
"""

NANOGPT = """
import sys, time
import numpy as np, tiktoken
from datasets import load_dataset
documents, folder, workers = sys.argv[1], sys.argv[2], int(sys.argv[3])
encoding = tiktoken.get_encoding("gpt2")

def process(example):
    ids = encoding.encode_ordinary(example["text"]) + [encoding.eot_token]
    return {"ids": ids, "len": len(ids)}

start = time.perf_counter()
dataset = load_dataset("json", data_files=documents, split="train", cache_dir=folder + "/cache")
split = dataset.train_test_split(test_size=0.0005, seed=2357, shuffle=True)
tokenized = split.map(process, remove_columns=["text"], num_proc=workers)
for name, part in tokenized.items():
    ids = np.memmap(f"{folder}/{name}.bin", dtype=np.uint16, mode="w+", shape=(np.sum(part["len"], dtype=np.uint64),))
    shards, index = min(1024, len(part)), 0
    for i in range(shards):
        batch = np.concatenate(part.shard(num_shards=shards, index=i, contiguous=True).with_format("numpy")["ids"])
        ids[index : index + len(batch)] = batch
        index += len(batch)
    ids.flush()
print(time.perf_counter() - start)
"""


def tree(pid: int) -> list[int]:
    """A process and its descendants."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid, *(p for child in children for p in tree(int(child)))]


def memory(pid: int) -> int:
    """Proportional set size of one process in bytes; 0 where it has just ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def run(script: str, documents: Path, workers: int) -> dict[str, float]:
    """One preparation in a new process: {"seconds", "peak_bytes", "tokens"}."""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    }
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", script, str(documents), folder, str(workers)]
        with tempfile.TemporaryFile("w+") as errors:
            process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True)
            peak = 0
            while process.poll() is None:
                peak = max(peak, sum(map(memory, tree(process.pid))))
                time.sleep(0.05)
            errors.seek(0)
            if process.returncode:
                sys.exit(f"error: a preparation failed:\n{errors.read()}")
        assert process.stdout
        tokens = sum(path.stat().st_size for path in Path(folder).glob("*.bin")) // 2
        return {"seconds": float(process.stdout.read().split()[-1]), "peak_bytes": peak, "tokens": tokens}


def spread(values: list[float], digits: int) -> str:
    """Median and range, in millions."""
    median, low, high = (f"{f(values) / 1e6:.{digits}f}" for f in (statistics.median, min, max))
    return f"{median} ({low} to {high})"


def main() -> None:
    mirror = os.environ.get("DATA_MIRROR")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--input",
        type=Path,
        default=Path(mirror, "openwebtext10k_val.jsonl") if mirror else None,
        help='documents, one JSON a line with key "text" (default: openwebtext10k_val.jsonl of DATA_MIRROR)',
    )
    parser.add_argument("--copies", default="4,16", help="how often the input is repeated (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="threads, processes (default: %(default)s)")
    parser.add_argument("--out", help="JSON file for the result (default: in benchmarks/results)")
    arguments = parser.parse_args()
    if not arguments.input or not arguments.input.is_file() or not sys.platform.startswith("linux"):
        sys.exit("error: needs Linux, and --input=FILE.jsonl or that file in DATA_MIRROR")
    if mirror and Path(mirror, "tiktoken_cache").is_dir():
        os.environ.setdefault("TIKTOKEN_CACHE_DIR", str(Path(mirror, "tiktoken_cache").resolve()))

    rows = []
    print(f"{device_name('cpu')}, {arguments.workers} workers, median of {arguments.rounds} (and range)")
    print("| documents, MB | way | Mtok/s | peak memory, MB |\n|---|---|---|---|")
    for copies in map(int, arguments.copies.split(",")):
        with tempfile.NamedTemporaryFile(suffix=".jsonl") as documents:
            text = arguments.input.read_bytes().rstrip(b"\n") + b"\n"
            for _ in range(copies):
                documents.write(text)
            documents.flush()
            found: dict[str, list[dict[str, float]]] = {"ours": [], "nanoGPT's": []}
            for _ in range(arguments.rounds):
                for way, script in (("ours", OURS), ("nanoGPT's", NANOGPT)):
                    found[way].append(run(script, Path(documents.name), arguments.workers))
            if len({result["tokens"] for results in found.values() for result in results}) != 1:
                sys.exit(f"error: the two ways gave different numbers of tokens: {found}")
            for way, results in found.items():
                speed = [result["tokens"] / result["seconds"] for result in results]
                peak = [result["peak_bytes"] for result in results]
                size = f"{copies * len(text) / 1e6:.0f}"
                print(f"| {size} | {way} | {spread(speed, 2)} | {spread(peak, 0)} |", flush=True)
                medians = {"tokens_per_second": statistics.median(speed), "peak_bytes": statistics.median(peak)}
                rows.append({"bytes": copies * len(text), "way": way, **medians, "runs": results})
    write(arguments.out, "prepare", "cpu", rows, input=arguments.input.name, workers=arguments.workers)


if __name__ == "__main__":
    main()
