"""Runs of several processes, one after another, forked by tests/forks.py.

    ranks FOLDER [{"ranks": 2, "argv": [...], "patch": "code that each rank begins with"}, ...]

One line of JSON for each run: the exit codes, and from each rank its coefficients and the sum of its part of the model.
"""

import json
import os
import signal
import socket
from pathlib import Path

import train


def work(rank: int, job: dict, record: Path, build=train.optimizers.build) -> int:
    built = []

    def keep(*args, **kwargs):
        built.append(build(*args, **kwargs))
        return built[-1]

    train.optimizers.build = keep
    exec(job.get("patch", ""), {"rank": rank})
    code = train.main(job["argv"])
    if code == 0:
        sums = [bucket.x.double().sum().item() for bucket in built[-1].buckets]
        record.write_text(json.dumps([built[-1].coefficients, sums]))
    return code


def launch(job: dict, folder: Path) -> list[int]:
    """The process ids of the ranks of a run."""
    ranks = job["ranks"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    pids = []
    for rank in range(ranks):
        record = folder / f"{rank}.json"
        record.unlink(missing_ok=True)
        pids.append(os.fork())
        if pids[-1] == 0:
            if ranks > 1:
                os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks),
                               "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}  # fmt: skip
            os._exit(work(rank, job, record))
    return pids


def finish(pids: list[int]) -> list[int]:
    """Their exit codes."""
    codes: dict[int, int] = {}
    while len(codes) < len(pids):
        pid, status = os.wait()
        codes[pid] = os.waitstatus_to_exitcode(status)
        if codes[pid] not in (0, 130):  # as torchrun: when one dies, the others go
            for other in set(pids) - codes.keys():
                os.kill(other, signal.SIGKILL)
    return [codes[pid] for pid in pids]


def run(job: dict, folder: Path) -> dict:
    codes = finish(launch(job, folder))
    records = [folder / f"{rank}.json" for rank in range(job["ranks"])]
    found = [json.loads(record.read_text()) if record.exists() else None for record in records]
    return {"codes": codes, "ranks": found}


def main(argv: list[str]) -> int:
    folder, jobs = argv
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # what the runs say goes to stderr
        for job in json.loads(jobs):
            print(json.dumps(run(job, Path(folder))), file=answers, flush=True)
    return 0
