"""What a run of several processes says and does when one of them hangs or dies."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import sys
import threading
import time
from pathlib import Path

import torch
import torch.distributed as dist

LOST = 4  # exit code of a process that waited too long for another one, or lost it
GO_ON = "--init_from=auto goes on from the newest checkpoint"
LIBRARIES = tuple(str(Path(module.__file__ or "").parent) for module in (torch, os))


class PeerLost(Exception):
    """Another process of the run is gone."""


class Watchdog(threading.Thread):
    """Ends a process that has not gone on for `timeout` seconds, with a line on where each process is.

    Whatever a process hangs in, its watch tells the others of its place, through the store in which torchrun made them
    meet. The timeouts of gloo and NCCL stay behind it: they see collectives only, and know no step.
    """

    def __init__(self, rank: int, size: int, timeout: float) -> None:
        super().__init__(daemon=True)
        self.rank, self.size, self.timeout = rank, size, timeout
        self.step, self.since = 0, float("inf")  # nobody is late before the first step
        self.over = threading.Event()
        self.start()

    def at(self, step: int | None) -> None:
        self.step, self.since = self.step if step is None else step, time.monotonic()

    def run(self) -> None:
        pause = min(self.timeout / 4, 10.0)
        store = None
        while time.monotonic() - self.since <= self.timeout:
            with contextlib.suppress(RuntimeError):  # a process that does not reach the store knows of itself alone
                store = store or store_of_torchrun(10)
                store.set(f"place/{self.rank}", json.dumps([time.time(), self.step, _where()]))
            if self.over.wait(pause):
                return
        places = {f"in step {self.step}, {_where()}": [self.rank]}
        for rank in {*range(self.size)} - {self.rank}:
            try:
                seen, step, where = json.loads(store.get(f"place/{rank}"))  # type: ignore[union-attr]
                silent = time.time() - seen
                ago = f" {silent:.0f} seconds ago, and not heard of since" if silent > 3 * pause + 1 else ""
                places.setdefault(f"in step {step}, {where}{ago}", []).append(rank)
            except (RuntimeError, AttributeError):
                places.setdefault("not heard of", []).append(rank)
        words = "; ".join(f"rank {', '.join(map(str, ranks))}: {place}" for place, ranks in places.items())
        late = time.monotonic() - self.since
        print(f"train.py: {late:.0f} seconds without a step. {words}. {GO_ON}", file=sys.stderr)
        time.sleep(pause + 1)  # the store may live in this process, and the others read it too
        os._exit(LOST)


def store_of_torchrun(seconds: float) -> dist.Store:
    """The store in which torchrun makes the processes meet, without what those before a restart left in it."""
    store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]),
                          timeout=datetime.timedelta(seconds=seconds))  # fmt: skip
    return dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _where() -> str:
    """The line of our code that the main thread is at."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame and frame.f_code.co_filename.startswith((*LIBRARIES, "<")):
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} ({frame.f_code.co_name})" if frame else "nowhere"
