"""Runs the command line, prints errors as one line, and shows progress and JSON.

    sys.exit(guarded(app))                    an expected error becomes one line on stderr and an exit code
    with progress() as update:                a progress bar with the remaining time, on stderr
        update(3, 10, "encoding")
    emit({"evaluation": "e-1f…"})             one JSON object on stdout

Results go to stdout; progress and warnings go to stderr.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from aftertune.api.objects import jsonable as jsonable
from aftertune.cli.other_tools import advice
from aftertune.cli.streams import discard, rich_console, safe_streams
from aftertune.errors import AftertuneError, InputError, ResourceError, StorageError
from aftertune.redaction import escape_hidden
from aftertune.values import Progress

#: Errors of the operating system that say that there is no room.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
_LONGEST = 300  # characters of another library's message
_MESSAGE = 2000  # characters of any message


class Passed(BaseException):
    """Carries Ctrl-C, or a closed pipe, past typer, which would end without a message. error: the exception."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(error)
        self.error = error


def guarded(app: Callable[..., Any]) -> int:
    """Run the command line; an error becomes one line on stderr and an exit code. With --debug, its traceback too."""
    with safe_streams(), _interruptible():
        try:
            code = _run(app)
        except BrokenPipeError:
            discard(sys.stdout)
            return 0
        except KeyboardInterrupt as error:  # training raises it with a message
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            message = "stopped; finished batches of an evaluation are stored; run the same command again to continue"
            code = _report(None, str(error) or message, 130)
        except OSError as error:
            code = _report(error, *_system_error(error))
        except Exception as error:
            if missing := _missing_package(error):
                return _report(error, missing, ResourceError.exit_code)
            where = traceback.extract_tb(error.__traceback__)[-1]
            code = _report(error, f"unexpected {type(error).__name__} in {Path(where.filename).name}:{where.lineno}: "
                           f"{_short(error)}; this is a fault of aftertune: please report it with the traceback, which "
                           "`aftertune --debug` and the same words show", 1)
        return code


def _run(app: Callable[..., Any]) -> int:
    """Run the command line; expected errors and errors of usage are reported."""
    try:
        code = app(prog_name="aftertune", standalone_mode=False)
        sys.stdout.flush()
    except Passed as passed:
        raise passed.error from None
    except AftertuneError as error:
        return _report(error, str(error), error.exit_code)
    except Exception as error:
        return _report_usage(error)
    return code if isinstance(code, int) else 0


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Handle SIGTERM until the end of the block."""
    before = signal.getsignal(signal.SIGINT), signal.signal(signal.SIGTERM, _terminated)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before[0])
        signal.signal(signal.SIGTERM, before[1])


def _terminated(*_: Any) -> None:
    """Handle SIGTERM like Ctrl-C, so that finished work is stored; a second one does not disturb that."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def _system_error(error: OSError) -> tuple[str, int]:
    """Message and exit code for an error of the operating system that no part of the program expected."""
    reason = error.strerror or _short(error)
    where = f"{error.filename}: " if error.filename is not None else ""
    if error.errno in _FULL:
        return (f"{where}cannot be written ({reason}); make room, then run the same command again: it continues",
                StorageError.exit_code)
    return f"{where}{reason}; check the path and its permissions, then run the same command again", InputError.exit_code


def _missing_package(error: Exception) -> str:
    """The message for a library that aftertune needs and this environment lacks; "" for any other error."""
    name = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if name in ("", "aftertune"):
        return ""
    return (f"the library {name!r} is missing in this environment ({sys.prefix}), or is broken; install what aftertune "
            "needs again: pip install --upgrade aftertune")


def _short(error: BaseException) -> str:
    """The message of an error of another library, on one line and not longer than a few."""
    text = " ".join(str(error).split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} …"


def _report_usage(error: Exception) -> int:
    """Report a usage error of the parser, which has its own message and exit code; raise any other error."""
    code = getattr(error, "exit_code", None)
    if isinstance(code, int) and hasattr(error, "format_message"):
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()  # type: ignore[attr-defined]
            return code
        context = getattr(error, "ctx", None)
        if context is not None and type(error).__name__ == "NoSuchOption":
            known = {option for p in context.command.params for option in (*p.opts, *p.secondary_opts)}
            option = str(getattr(error, "option_name", ""))
            if (answer := advice(context.info_name or "", option, known)) is not None:
                return _report(None, f"{context.command_path} has no {option}: {answer}; see `{context.command_path} "
                                     "--help`", code)
        help_ = f"; see `{context.command_path} --help`" if context is not None else ""
        return _report(None, f"{' '.join(error.format_message().split()).rstrip('.')}{help_}", code)
    if type(error).__name__ == "Abort":
        return 130
    raise error


def _report(error: BaseException | None, text: str, code: int) -> int:
    """Print a message, after the traceback if it is wanted, and return the exit code. stderr removes secrets."""
    if error is not None and os.environ.get("AFTERTUNE_DEBUG"):
        print("".join(traceback.format_exception(error)), file=sys.stderr, end="")
    print(f"aftertune: {' '.join(text.splitlines())[:_MESSAGE]}", file=sys.stderr)
    return code


def margin_error(margin: str, alternative: str = "") -> InputError:
    """The error for a --margin that is not allowed. margin: as the user wrote it; alternative: another allowed form."""
    return InputError(f"--margin {margin}: allowed are points above 0, up to 100{alternative}; use the smallest loss "
                      "that matters (default: 2)")


def emit(value: Any) -> None:
    """Print one JSON object on stdout. Numbers that are not finite, such as an overflowed perplexity, become null."""
    print(escape_hidden(json.dumps(jsonable(value), ensure_ascii=False, allow_nan=False)))


class Pace:
    """The stage of a long work, from its progress texts, and the seconds that remain of it.

    stage: the text without its details, such as "training" of "training: step 3 of 40, loss 1.9"; detail: the rest of
    it; new: whether the last update began the stage; share: of the stage, None while its length is not known.
    """

    def __init__(self) -> None:
        self.stage, self.detail, self.new = "", "", False
        self.share: float | None = None
        self._started, self._first = 0.0, 0
        self.left: float | None = None

    def update(self, done: int, total: int, text: str) -> None:
        """Take in the next progress report. The pace is that of this run: what an earlier one did takes no time."""
        import time

        now = time.monotonic()
        stage, _, detail = text.partition(": step ")
        self.detail = f"step {detail}" if detail else ""
        self.new = stage != self.stage
        if self.new:
            self.stage, self._started, self._first = stage, now, done
        self.share = done / total if total else None
        self.left = (now - self._started) * (total - done) / (done - self._first) if done > self._first else None


@contextlib.contextmanager
def progress() -> Iterator[Progress]:
    """A progress bar with the remaining time on stderr; plain lines if stderr is not a terminal."""
    with _bar() if sys.stderr.isatty() else _lines() as update:
        yield update


@contextlib.contextmanager
def _bar() -> Iterator[Progress]:
    """Show a progress bar of the current stage, and its details in a line below it."""
    from rich.console import Group
    from rich.live import Live
    from rich.progress import (
        BarColumn,
        Progress,
        SpinnerColumn,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Remaining(TimeRemainingColumn):
        """The remaining time; nothing while the length of the stage is not known."""

        def render(self, task: Any) -> Text:
            return Text.assemble("ETA ", super().render(task)) if task.total else Text()

    console, pace = rich_console(stderr=True), Pace()
    bar = Progress(SpinnerColumn(), TextColumn("{task.description}", markup=False),
                   BarColumn(bar_width=24 if console.width >= 80 else 10), TaskProgressColumn(), TimeElapsedColumn(),
                   Remaining(), console=console)
    task = bar.add_task("starting", total=None)
    with Live(get_renderable=lambda: Group(bar, *([Text(f"  {pace.detail}", "dim")] if pace.detail else ())),
              console=console, transient=True):

        def update(done: int, total: int, text: str) -> None:
            pace.update(done, total, text)
            if pace.new:  # the remaining time is that of the stage
                bar.reset(task, total=total or None, completed=done, description=pace.stage)
            bar.update(task, completed=done, total=total or None)

        yield update


@contextlib.contextmanager
def _lines() -> Iterator[Progress]:
    """Print a line when a stage starts and at each tenth of it, with the remaining time."""
    pace, last_tenth = Pace(), -1

    def update(done: int, total: int, text: str) -> None:
        nonlocal last_tenth
        pace.update(done, total, text)
        tenth = 10 * done // total if total else 0
        if tenth == last_tenth and not pace.new:
            return
        last_tenth = tenth
        eta = f", {pace.left:.0f} s left" if pace.left else ""
        share = f" {100 * done // total} %" if total else ""
        print(f"{text}{share}{eta}", file=sys.stderr, flush=True)

    yield update
