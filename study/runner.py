"""Commands that run as subprocesses, several at a time, and end when this process is told to."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from cli import Mistake

from data.manifest import make_folder


class Runner:
    """Runs commands from the folder `root`, each in a process group of its own, so that a signal of the terminal does
    not reach them and `end` reaches all that they started.

    environment   variables set for each command, on top of this process's
    """

    def __init__(self, root: Path, environment: Mapping[str, str] | None = None) -> None:
        self.root = root
        self.environment = dict(environment or {})
        self._lock: int | None = None
        self._running: set[subprocess.Popen[bytes]] = set()
        self._ending = threading.Event()  # set: what runs is to end, and nothing else begins

    def lock(self, path: Path) -> None:
        """Wait until no other process has this lock, and no command that one left running when it was killed."""
        make_folder(path.parent)
        self._lock = os.open(path, os.O_CREAT | os.O_RDWR)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another command, or what one left running, works in {path.parent}: waiting for its end", flush=True)
            fcntl.flock(self._lock, fcntl.LOCK_EX)

    def share_cores(self, jobs: int) -> None:
        """Give each of `jobs` commands its part of the cores, unless OMP_NUM_THREADS says how many."""
        threads = max(1, (os.cpu_count() or 1) // jobs)
        self.environment["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", str(threads))

    def call(self, command: Sequence[str], log: Path, allowed: Sequence[int] = (0,)) -> int:
        """Run a command to its end, its output appended to `log`; its exit code, one of `allowed`.

        Raises Mistake, with the end of the log, for any other.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as file:
            variables = {**os.environ, **self.environment}
            with subprocess.Popen(command, cwd=self.root, stdout=file, stderr=subprocess.STDOUT, env=variables,
                                  process_group=0, pass_fds=[self._lock] if self._lock else []) as process:  # fmt: skip
                self._running.add(process)
                if self._ending.is_set():  # since before it was added
                    self.end()
                code = process.wait()
                self._running.discard(process)
        if code not in allowed:
            last = log.read_text(encoding="utf-8").strip().splitlines()[-3:]
            raise Mistake(f"{' '.join(command)}\nended with {code}; {log} ends with\n" + "\n".join(last))
        return code

    def end(self, number: int = signal.SIGTERM) -> None:
        """Ask the commands under way to end, each with all that it started; train.py saves a checkpoint first."""
        self._ending.set()
        for process in [*self._running]:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, number)

    @contextlib.contextmanager
    def ending_on_signals(self) -> Iterator[Runner]:
        """SIGINT, SIGTERM and SIGHUP end the commands under way and raise KeyboardInterrupt here; at last, unlock."""

        def end(*_: object) -> None:
            self.end()
            raise KeyboardInterrupt

        numbers = [n for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) != signal.SIG_IGN]
        before = {number: signal.signal(number, end) for number in numbers}  # nohup ignores SIGHUP: so do we
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            if self._lock is not None:
                os.close(self._lock)

    def execute(
        self,
        tasks: Mapping[str, Callable[[], object]],
        jobs: int,
        ended: Callable[[str, BaseException | None], None],
        tick: Callable[[], None] | None = None,
    ) -> int:
        """Call `tasks`, `jobs` at a time; the number that raised. One that raises does not stop the others.

        ended(name, error)   is called here for each at its end, `error` None for one that returned
        tick()               is called about every second meanwhile
        """
        failed = 0
        with ThreadPoolExecutor(jobs) as pool:
            names = {pool.submit(task): name for name, task in tasks.items()}
            waiting = set(names)
            try:
                while waiting:
                    done, waiting = wait(waiting, 1.0 if tick else None, FIRST_COMPLETED)
                    for future in done:
                        failed += future.exception() is not None
                        ended(names[future], future.exception())
                    if tick:
                        tick()
            except KeyboardInterrupt:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return failed
