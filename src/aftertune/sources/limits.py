"""Limits in time, memory and size for foreign templates, patterns and files.

    with time_limit(5.0):                raises OutOfTime if the block takes longer
        pattern.findall(text)

    with template_limits():              raises OutOfTime or MemoryError instead of running for ever
        text = checked_size(template.render(messages=messages))

    limited(source, lambda: tokenizer.apply_chat_template(messages, tokenize=False))       all of it, for chat templates

A template runs in Jinja's sandbox, which keeps it from running code, but three nested loops never end, and a text that
is doubled 40 times has 10 TB. A rendering therefore has a time limit and may take a limited amount of new memory.
Both limits cost a few microseconds for each rendering. They hold in the main thread, on systems with interval timers
and (for the memory) with ``/proc``.
"""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from aftertune import bounds

Rendered = TypeVar("Rendered")
#: Seconds for one rendering. A normal one takes less than a thousandth of it.
RENDER_TIMEOUT = bounds.TEMPLATE_SECONDS
#: Bytes of new memory for one rendering.
RENDER_MEMORY = bounds.TEMPLATE_MEMORY
#: Characters of a rendered text. A context of ten million tokens is shorter.
RENDER_LENGTH = bounds.TEMPLATE_CHARACTERS
#: Seconds after which an interruption is repeated, because a library may swallow the first one.
_REPEAT = 0.5


class OutOfTime(Exception):
    """The block took longer than its time limit."""


class TooLong(Exception):
    """A rendered text is longer than RENDER_LENGTH."""


class TemplateLimit(Exception):
    """A chat template went beyond the limits of a rendering. The message says which one."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Interrupt the block after ``seconds``. Raises OutOfTime.

    The timer is a signal, which the interpreter and the matchers of `re` and `regex` check for. So there is a limit
    only in the main thread and on systems with interval timers. A timer that was already running is restored
    afterwards.
    """
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return
    previous_handler, start = signal.signal(signal.SIGALRM, _raise_out_of_time), time.monotonic()
    remaining, interval = signal.setitimer(signal.ITIMER_REAL, seconds, _REPEAT)
    try:
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.signal(signal.SIGALRM, previous_handler)
        if remaining:
            signal.setitimer(signal.ITIMER_REAL, max(remaining - (time.monotonic() - start), 0.001), interval)


def _raise_out_of_time(*_: object) -> None:
    raise OutOfTime


@contextlib.contextmanager
def memory_limit(new_bytes: int) -> Iterator[None]:
    """Let the process take at most ``new_bytes`` more address space inside the block. Raises MemoryError.

    There is a limit only in the main thread of a Linux process.
    """
    size = _address_space()
    if size is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    bounds = [bound for bound in (soft, hard) if bound != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min([size + new_bytes, *bounds]), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


#: (time, bytes) of the last measurement, which takes longer than everything else here.
_measured: tuple[float, int | None] = (-math.inf, None)
_MEASUREMENT_HOLDS = 0.05


def _address_space() -> int | None:
    """Bytes of address space that this process uses, or None where the system does not say so."""
    global _measured
    now = time.monotonic()
    if now - _measured[0] > _MEASUREMENT_HOLDS:
        _measured = now, _measure()
    return _measured[1]


def _measure() -> int | None:
    try:
        with Path("/proc/self/statm").open("rb", buffering=0) as file:
            pages = int(file.read(64).split()[0])
    except (OSError, ValueError, IndexError):
        return None
    import resource

    return pages * resource.getpagesize()


@contextlib.contextmanager
def template_limits() -> Iterator[None]:
    """The limits of one rendering. Raises OutOfTime or MemoryError."""
    with memory_limit(RENDER_MEMORY), time_limit(RENDER_TIMEOUT):
        yield


#: Templates that took too long once. They are not tried again in another form of the same conversation.
_slow: set[str] = set()


def limited(template: str, render: Callable[[], Rendered]) -> Rendered:
    """The result of ``render``, which renders the template. Raises TemplateLimit."""
    try:
        if template in _slow:
            raise OutOfTime
        with template_limits():
            result = render()
        if isinstance(result, str):
            checked_size(result)
        return result
    except (OutOfTime, MemoryError, TooLong) as error:
        if isinstance(error, OutOfTime):
            _slow.add(template)
        raise TemplateLimit(template_fault(error)) from None


def checked_size(text: str) -> str:
    """The rendered text. Raises TooLong."""
    if len(text) > RENDER_LENGTH:
        raise TooLong(f"{len(text):,} characters")
    return text


def template_fault(error: BaseException) -> str:
    """Why a rendering failed, in one short line."""
    if isinstance(error, OutOfTime):
        return f"it takes more than {RENDER_TIMEOUT:g} s"
    if isinstance(error, MemoryError):
        return f"it needs more than {RENDER_MEMORY // 2**20} MB of memory"
    if isinstance(error, TemplateLimit):
        return str(error)
    if isinstance(error, TooLong):
        return f"its text has {error}, and {RENDER_LENGTH:,} are allowed"
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
