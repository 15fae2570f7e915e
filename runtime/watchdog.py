"""Ends the processes of a run when one of them hangs, with a report on each of them."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import sys
import threading
import time
from pathlib import Path
from cli import LOST, Mistake

import torch
import torch.distributed as dist

GO_ON = "--init_from=auto resumes from the newest checkpoint"
LIBRARIES = tuple(str(Path(module.__file__ or "").parent) for module in (torch, os))


class PeerLost(Mistake):
    """Another process of the run died."""

    exit_code = LOST


class Watchdog(threading.Thread):
    """Ends its process after `timeout` seconds without progress, and prints the step and line of each process.

    The processes exchange their positions through torchrun's store. The timeouts of gloo and NCCL, which only cover
    collectives and do not know the step, are longer.
    """

    def __init__(self, rank: int, size: int, timeout: float) -> None:
        super().__init__(daemon=True)
        self.rank, self.size, self.timeout = rank, size, timeout
        self.step, self.since = 0, float("inf")  # no timeout before the first step
        self.over = threading.Event()
        self.start()

    def at(self, step: int | None) -> None:
        self.step, self.since = self.step if step is None else step, time.monotonic()

    def run(self) -> None:
        pause = min(self.timeout / 4, 10.0)
        store = None
        while time.monotonic() - self.since <= self.timeout:
            with contextlib.suppress(RuntimeError):  # the store cannot be reached
                store = store or store_of_torchrun(10)
                store.set(f"place/{self.rank}", json.dumps([time.time(), self.step, _where()]))
            if self.over.wait(pause):
                return
        places = {f"in step {self.step}, {_where()}": [self.rank]}
        for rank in {*range(self.size)} - {self.rank}:
            try:
                seen, step, where = json.loads(store.get(f"place/{rank}"))  # type: ignore[union-attr]
                silent = time.time() - seen
                ago = f" {silent:.0f} seconds ago, no report since" if silent > 3 * pause + 1 else ""
                places.setdefault(f"in step {step}, {where}{ago}", []).append(rank)
            except (RuntimeError, AttributeError):
                places.setdefault("no report", []).append(rank)
        words = "; ".join(f"rank {', '.join(map(str, ranks))}: {place}" for place, ranks in places.items())
        late = time.monotonic() - self.since
        print(f"train.py: {late:.0f} seconds without a step. {words}. {GO_ON}", file=sys.stderr)
        time.sleep(pause + 1)  # this process may host the store, which the others still read
        os._exit(LOST)


def store_of_torchrun(seconds: float) -> dist.Store:
    """The rendezvous store of torchrun, with keys of its own for each restart."""
    store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]),
                          timeout=datetime.timedelta(seconds=seconds))  # fmt: skip
    return dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _where() -> str:
    """The line of this repository that the main thread executes."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame and frame.f_code.co_filename.startswith((*LIBRARIES, "<")):
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} ({frame.f_code.co_name})" if frame else "unknown"
