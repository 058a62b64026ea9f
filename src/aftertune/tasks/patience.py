"""How long others' filters and patterns may think about one answer: a regular expression can take for ever.

    with limited(5.0):          raises OutOfTime where the block takes longer
        pattern.findall(text)

The clock is a signal, which Python's and `regex`'s matchers look for; it runs in the main thread of a system that has
interval timers, elsewhere the block takes its time. A timer of somebody else goes on afterwards.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator

#: Seconds for one answer: a filter that does no harm takes less than a thousandth of it.
ANSWER = 5.0
#: Seconds more for each answer, where a filter takes all answers of a task at once.
EACH = 0.01


class OutOfTime(Exception):
    """The block took longer than it may."""


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Let the block run for so many seconds. Raises OutOfTime."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return
    before, begun = signal.signal(signal.SIGALRM, _ring), time.monotonic()
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.signal(signal.SIGALRM, before)
        if left:
            signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - begun), 0.001), interval)


def _ring(*_: object) -> None:
    raise OutOfTime
