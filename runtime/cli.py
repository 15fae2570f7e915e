"""Where an error becomes a line: the main function of every program goes through `program`."""

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
    """Make `main(argv) -> exit code or None` a main whose errors are one line on stderr and an exit code.

    0: done; 2: a mistake to put right; 4: another process is gone or hangs; 130: interrupted; others as main returns
    them. Any other exception is a bug and keeps its traceback; with NANOMADA_TRACEBACK=1 all of them do.
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
