"""How a run is asked to leave: Ctrl-C, SIGTERM and SIGUSR1 (what cluster schedulers send before they kill).

Before its first step a run has nothing to lose: it leaves at once, wherever it is (data, compilation, validation).
After it, a signal only leaves a note, which the loop reads between two steps, to save and leave. A second Ctrl-C ends
the process at once, even inside a kernel or a save.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import Any

from runtime.watchdog import GO_ON

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_asked = False
_at_boundaries = False


class Stopped(KeyboardInterrupt):
    """The run was asked to leave. No Exception: nothing that goes on after errors (compilers, sinks) swallows it."""


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """From here on the signals mean what this module says; afterwards what they meant before."""
    global _asked, _at_boundaries
    _asked = _at_boundaries = False
    before = {number: signal.signal(number, _handle) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def between_steps_only() -> None:
    """There is something to save now: no more leaving in the middle of things."""
    global _at_boundaries
    _at_boundaries = True


def asked() -> bool:
    """Whether this process was asked to leave."""
    return _asked


def _handle(number: int, _frame: Any) -> None:
    global _asked
    _asked = True
    if number == signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # the system answers a second one, whatever Python is waiting for
    if not _at_boundaries:
        raise Stopped(f"before its first step, with nothing new to save; {GO_ON}")
