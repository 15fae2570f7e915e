"""Preparation of a data set: tokens/s and peak memory, ours beside nanoGPT's way, on the same documents.

    python -m benchmarks.prepare [--input=documents.jsonl] [--copies=4,16] [--rounds=3] [--workers=2] [--out=FILE]

nanoGPT's way is that of its data/openwebtext/prepare.py: `datasets` maps `encode_ordinary` over the documents with
num_proc workers, and the ids are then copied into a memory-mapped file. Both start from the same file (`copies` times
the input), end with uint16 ids on disk, and run in turn, each in a process of its own. The clock starts after the
imports. Memory is the largest sum of proportional set sizes (PSS) of the process and its children, seen every 50 ms:
pages that several of them share count once, mapped pages of files count too.
"""

import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from cli import Mistake, program

from benchmarks.measure import numbers, own_options, write
from benchmarks.table import show
from data.download import mirrored

ROOT = Path(__file__).resolve().parents[1]

OURS = """
import sys, time
from pathlib import Path
from data.prepare import source
from data.preparation import prepare
documents, folder, workers = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
start = time.perf_counter()
ours = source([documents], "ours", val_fraction=0.0005)
ours.required = ()  # of few documents none may fall into val
prepare(ours, folder, threads=workers)
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


def memory(pid: int) -> int:
    """Proportional set size of a process and its descendants in bytes; 0 for what has just ended."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        found = re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    except OSError:
        return 0
    return (1024 * int(found[1]) if found else 0) + sum(memory(int(child)) for child in children)


def run(script: str, documents: Path, workers: int) -> dict[str, float]:
    """One preparation in a new process: {"seconds", "peak_bytes", "tokens"}."""
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as errors:
        command = [sys.executable, "-c", script, str(documents), folder, str(workers)]
        process = subprocess.Popen(command, env=os.environ | offline, stdout=subprocess.PIPE, stderr=errors, text=True)
        peak = 0
        while process.poll() is None:
            peak = max(peak, memory(process.pid))
            time.sleep(0.05)
        errors.seek(0)
        if process.returncode:
            raise Mistake(f"a preparation failed: {(errors.read().strip() or 'killed').splitlines()[-1]}")
        assert process.stdout
        tokens = sum(path.stat().st_size for path in Path(folder).glob("*.bin")) // 2
        return {"seconds": float(process.stdout.read().split()[-1]), "peak_bytes": peak, "tokens": tokens}


@program("benchmarks.prepare")
def main(argv: list[str]) -> None:
    defaults = {"input": "", "copies": "4,16", "rounds": 3, "workers": os.cpu_count(), "out": ""}
    own, _ = own_options(__doc__, argv, defaults, more=False)
    all_copies, rounds = numbers("--copies", own["copies"], int), own["rounds"]
    source = Path(own["input"]) if own["input"] else mirrored("openwebtext10k_val.jsonl")
    if not source or not source.is_file() or not sys.platform.startswith("linux"):
        raise Mistake(f"{source} is not there: it needs Linux, and --input=FILE.jsonl or that file in DATA_MIRROR")
    if cached := mirrored("tiktoken_cache"):
        os.environ.setdefault("TIKTOKEN_CACHE_DIR", str(cached.resolve()))

    rows = []
    text = source.read_bytes().rstrip(b"\n") + b"\n"
    for copies in all_copies:
        with tempfile.NamedTemporaryFile(suffix=".jsonl") as documents:
            for _ in range(copies):
                documents.write(text)
            documents.flush()
            found: dict[str, list[dict[str, float]]] = {"ours": [], "nanoGPT's": []}
            for _ in range(rounds):
                for way, script in (("ours", OURS), ("nanoGPT's", NANOGPT)):
                    found[way].append(run(script, Path(documents.name), own["workers"]))
        if len({result["tokens"] for results in found.values() for result in results}) != 1:
            raise Mistake(f"the two ways gave different numbers of tokens: {found}")
        for way, results in found.items():
            speed = statistics.median(result["tokens"] / result["seconds"] for result in results)
            peak = statistics.median(result["peak_bytes"] for result in results)
            rows.append({"bytes": copies * len(text), "way": way, "tokens_per_second": speed, "peak_bytes": peak,
                         "runs": results})  # fmt: skip
        written = write(own["out"], "prepare", "cpu", rows, input=source.name, workers=own["workers"])
    show(written)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
