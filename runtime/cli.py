"""Turns the errors of a program into one line on stderr and an exit code."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable

from data import DataError
from runtime.checkpoint import CheckpointError
from runtime.parallel import complain
from runtime.settings import ConfigError, HelpRequested
from runtime.spikes import STOPPED
from runtime.watchdog import GO_ON, LOST, PeerLost

MISTAKE = 2  # exit code


def program(name: str) -> Callable[[Callable[[list[str]], int | None]], Callable[[list[str]], int]]:
    """Decorate `main(argv) -> exit code or None` to report errors of the user and of other processes.

    Exit codes: 0 done; 2 invalid input; 4 another process hangs or died; 130 stopped by a signal; others as returned by
    main. Other exceptions are bugs and keep their traceback; with NANOMADA_TRACEBACK=1, all exceptions do.
    """

    def decorate(main: Callable[[list[str]], int | None]) -> Callable[[list[str]], int]:
        @functools.wraps(main)
        def run(argv: list[str]) -> int:
            try:
                return main(argv) or 0
            except HelpRequested as text:
                print(text)
                return 0
            except (ConfigError, DataError, CheckpointError, PeerLost, KeyboardInterrupt) as error:
                if os.environ.get("NANOMADA_TRACEBACK"):
                    raise
                if isinstance(error, PeerLost):
                    print(f"{name}: {error}; {GO_ON}", file=sys.stderr)
                    return LOST
                if isinstance(error, KeyboardInterrupt):
                    if str(error) and os.environ.get("RANK", "0") == "0":
                        print(f"{name}: stopped {error}", file=sys.stderr)
                    return STOPPED
                complain(name, error)
                return MISTAKE

        return run

    return decorate
