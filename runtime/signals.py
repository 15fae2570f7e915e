"""Signals that stop a run: Ctrl-C, SIGTERM and SIGUSR1 (which cluster schedulers send before they kill).

Before the first step is done there is nothing to save, and a signal stops the run immediately (in data preparation,
compilation or validation). After that it sets a flag that the training loop checks between steps, to save and stop. A
second Ctrl-C ends the process immediately, even in a kernel or a save.
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
    """A signal stopped the run. Not an Exception, so that code which handles any Exception does not catch it."""


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """Install the handlers; restore the previous ones afterwards."""
    global _asked, _at_boundaries
    _asked = _at_boundaries = False
    before = {number: signal.signal(number, _handle) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def between_steps_only() -> None:
    """From now on, signals only set the flag: the run stops between two steps."""
    global _at_boundaries
    _at_boundaries = True


def asked() -> bool:
    """Whether this process got a signal."""
    return _asked


def _handle(number: int, _frame: Any) -> None:
    global _asked
    _asked = True
    if number == signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second one ends the process even outside Python code
    if not _at_boundaries:
        raise Stopped(f"before its first step, with nothing new to save; {GO_ON}")
