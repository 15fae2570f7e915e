"""The one door of all programs: what ends one becomes a line on stderr and an exit code; its output is not its work."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import functools
import io
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

MISTAKE, DIVERGED, LOST, STOPPED = 2, 3, 4, 130  # exit codes
ROOT = Path(__file__).resolve().parent
alone = False  # whether this process has joined others: its errors may be its own


def _started(place: str) -> bool:
    """Whether this process was started as a program of this repository, by its path or by `python -m`."""
    path = Path(place).resolve()
    return place == "-m" or (path.suffix == ".py" and ROOT in path.parents and "site-packages" not in path.parts)


# While the program imports torch, and while Python ends, Ctrl-C ends it without a traceback.
if _started(sys.argv[0]) and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Mistake(ValueError):
    """Something for the user to put right: one line for each, with the value and what to do."""

    exit_code = MISTAKE


class HelpRequested(Exception):
    """--help was given; the message is the help text."""


def reason(error: BaseException) -> str:
    """What an exception says: of the system's, without its number and the file's name."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


class Parser(argparse.ArgumentParser):
    """argparse with our help and without abbreviations; a mistake is one line."""

    def __init__(self, prog: str | None, description: str | None = None, **more: Any) -> None:
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(prog, description=description, formatter_class=formatter, allow_abbrev=False, **more)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        for argument in args or ():
            if argument.endswith("=--"):  # which argparse takes for an empty list
                self.error(f"{argument} has no value")
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        raise Mistake(f"{message} (--help lists the options)")


class Output:
    """Standard output or error. When the disk is full or the reader has left, the program goes on without it."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream or os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")  # None where the shell closed it
        self.error: OSError | None = None
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        self._try(self.stream.write, text)
        return len(text)

    def flush(self) -> None:
        self._try(self.stream.flush)

    def _try(self, action: Callable[..., object], *arguments: str) -> None:
        try:
            action(*arguments)
        except OSError as error:
            self.error = self.error or error
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())  # for what is buffered, at exit too


def program(name: str, again: str = "") -> Callable[[Callable[[list[str]], int | None]], Callable[[list[str]], int]]:
    """Decorate `main(argv) -> exit code or None`: errors of the user, of other processes and of the system become a
    line, and a standard output that fails becomes one at the end.

    Exit codes: 0 done; 2 a mistake; 4 another process hangs or died; 130 stopped by a signal; others as returned by
    main. Other exceptions are bugs and keep their traceback; with NANOMADA_TRACEBACK=1, all exceptions do.

    Args:
        again: what a user can do after Ctrl-C.
    """

    def decorate(main: Callable[[list[str]], int | None]) -> Callable[[list[str]], int]:
        @functools.wraps(main)
        def run(argv: list[str]) -> int:
            keep_memory()
            at_ctrl_c = signal.getsignal(signal.SIGINT)
            if at_ctrl_c is signal.SIG_DFL:
                signal.signal(signal.SIGINT, signal.default_int_handler)
            before = sys.stdout, sys.stderr
            sys.stdout, sys.stderr = out, _ = [Output(stream) for stream in before]  # type: ignore[assignment]
            try:
                return _run(name, again, main, argv)
            finally:
                out.flush()
                if out.error and not isinstance(out.error, BrokenPipeError):
                    _say(f"{name}: standard output cannot be written ({out.error.strerror})")
                sys.stdout, sys.stderr = before
                if at_ctrl_c is signal.SIG_DFL:
                    signal.signal(signal.SIGINT, signal.SIG_DFL)

        return run

    return decorate


def keep_memory() -> None:
    """Let glibc keep what was freed. It would return the memory of a step's tensors to the system and take it anew, a
    page fault for every 4 KB: 7% of an iteration of the quickstart (docs/LOG.md). Elsewhere, nothing."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 1 << 25)  # M_MMAP_THRESHOLD: smaller blocks are cut from the heap
        libc.mallopt(-1, 1 << 28)  # M_TRIM_THRESHOLD: free memory that the heap keeps at its end


def _run(name: str, again: str, main: Callable[[list[str]], int | None], argv: list[str]) -> int:
    try:
        return main(argv) or 0
    except HelpRequested as text:
        print(text)
        return 0
    except (Mistake, OSError, MemoryError, KeyboardInterrupt, RuntimeError) as raised:
        # Before Python 3.12 a Ctrl-C while a class gets its attributes, as in an import, is a RuntimeError's cause.
        error = raised.__cause__ if isinstance(raised.__cause__, KeyboardInterrupt) else raised
        if isinstance(error, RuntimeError) or os.environ.get("NANOMADA_TRACEBACK", "0") not in ("", "0"):
            raise
        if isinstance(error, KeyboardInterrupt):
            line = f"stopped {error}" if str(error) else f"interrupted; {again}" if again else ""
            if line and os.environ.get("RANK", "0") == "0":
                _say(f"{name}: {line}")
            return STOPPED
        complain(name, error)
        return error.exit_code if isinstance(error, Mistake) else MISTAKE


def complain(name: str, error: BaseException) -> None:
    """Print the error that ends this process. Before the process group exists, all processes of a machine have the
    same error and only the first prints it."""
    text = reason(error)
    if isinstance(error, OSError) and error.filename is not None:
        text = f"{error.filename}: {text}"
    elif isinstance(error, MemoryError):
        text = f"out of memory {text}".strip()
    rank = os.environ.get("RANK", "0")
    text = "\n".join(line if len(line) < 1000 else f"{line[:500]} ... {line[-300:]}" for line in text.splitlines())
    if alone or not os.environ.get("RANK") or not os.environ.get("LOCAL_RANK", "0").strip("0").isdecimal():
        _say(f"{name}: {text}" if rank == "0" else f"{name}: rank {rank}: {text}")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
