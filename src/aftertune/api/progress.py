"""Shows the progress of a call: a bar in a notebook or a terminal, nothing elsewhere.

    with shown_progress(None) as update:
        update(3, 10, "answering")
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from html import escape
from typing import Any

from aftertune.errors import visible_characters
from aftertune.values import Progress

#: Seconds between two changes of what is shown.
_PAUSE = 0.2
#: Characters of a line on a terminal.
_LINE = 78


@contextlib.contextmanager
def shown_progress(progress: Progress | bool | None) -> Iterator[Progress]:
    """What reports the progress of a call.

    progress: a function that is called with (done, total, text); True for a bar; False for none; None for a bar in a
    notebook or a terminal.
    """
    if callable(progress):
        yield progress
        return
    display = None if progress is False else notebook_display()
    if display is not None:
        with _bar(lambda html, handle: handle.update(html) if handle else display(html)) as update:
            yield update
    elif progress or (progress is None and sys.stderr.isatty()):
        with _line() as update:
            yield update
    else:
        yield lambda *_: None


def notebook_display() -> Callable[[Any], Any] | None:
    """What shows HTML in the notebook that runs this, and returns a handle to change it; None outside of one."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if shell is None or not hasattr(shell, "kernel"):
        return None
    from IPython.display import display

    return lambda value: display(value, display_id=True)


class _Html:
    """HTML for a notebook."""

    def __init__(self, text: str) -> None:
        self.text = text

    def _repr_html_(self) -> str:
        return self.text


@contextlib.contextmanager
def _bar(show: Callable[[Any, Any], Any]) -> Iterator[Progress]:
    """A bar that is one output of the cell; it is removed at the end. show: called with HTML and the handle."""
    handle: Any = None

    def draw(done: int, total: int, text: str) -> None:
        nonlocal handle
        bar = f'<progress value="{done}" max="{total}"></progress> {100 * done // total} % ' if total else ""
        handle = show(_Html(f"<div>{bar}{escape(visible_characters(text))}</div>"), handle) or handle

    try:
        yield _paced(draw)
    finally:
        if handle is not None:
            handle.update(_Html(""))


@contextlib.contextmanager
def _line() -> Iterator[Progress]:
    """One line on stderr that is written over; it is removed at the end."""
    def draw(done: int, total: int, text: str) -> None:
        share = f"{100 * done // total:3} % " if total else ""
        sys.stderr.write(f"\r{share}{visible_characters(text)}"[:_LINE].ljust(_LINE))
        sys.stderr.flush()

    try:
        yield _paced(draw)
    finally:
        sys.stderr.write("\r" + " " * _LINE + "\r")


def _paced(draw: Progress) -> Progress:
    """The same, called at most every _PAUSE seconds, and for each new stage."""
    last, stage = 0.0, ""

    def update(done: int, total: int, text: str) -> None:
        nonlocal last, stage
        now, here = time.monotonic(), text.split(": loss")[0]
        if here != stage or now - last >= _PAUSE:
            last, stage = now, here
            draw(done, total, text)

    return update
