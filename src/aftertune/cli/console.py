"""Runs the command line, prints errors as one line, and shows progress and JSON.

    sys.exit(guarded(app))                    an expected error becomes one line on stderr and an exit code
    with progress() as update:                a progress bar with the remaining time, on stderr
        update(3, 10, "encoding")
    emit({"evaluation": "e-1f…"})             one JSON object on stdout

Results go to stdout; progress and warnings go to stderr.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

from aftertune.errors import AftertuneError, InputError
from aftertune.values import Progress


def guarded(app: Callable[..., Any]) -> int:
    """Run the command line; expected errors become one line on stderr and their exit code."""
    signal.signal(signal.SIGTERM, _terminated)
    try:
        code = app(prog_name="aftertune", standalone_mode=False)
    except AftertuneError as error:
        return _report(error, str(error), error.exit_code)
    except KeyboardInterrupt as error:  # training raises it with a message
        message = "stopped; finished batches of an evaluation are stored; run the same command again to continue"
        return _report(None, str(error) or message, 130)
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except Exception as error:
        return _report_usage(error)
    return code if isinstance(code, int) else 0


def _terminated(*_: Any) -> None:
    """Handle SIGTERM like Ctrl-C, so that finished work is stored."""
    raise KeyboardInterrupt


def _report_usage(error: Exception) -> int:
    """Report a usage error of the parser, which has its own message and exit code; raise any other error."""
    code = getattr(error, "exit_code", None)
    if isinstance(code, int) and hasattr(error, "format_message"):
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()  # type: ignore[attr-defined]
            return code
        context = getattr(error, "ctx", None)
        help_ = f"; see `{context.command_path} --help`" if context is not None else ""
        return _report(None, f"{' '.join(error.format_message().split()).rstrip('.')}{help_}", code)
    if type(error).__name__ == "Abort":
        return 130
    raise error


def _report(error: BaseException | None, text: str, code: int) -> int:
    """Print a message without secrets and return the exit code; raise ``error`` if tracebacks are wanted."""
    if error is not None and os.environ.get("AFTERTUNE_DEBUG"):
        raise error
    from aftertune.redaction import redact

    print(f"aftertune: {redact(text)}", file=sys.stderr)
    return code


def margin_error(margin: str, alternative: str = "") -> InputError:
    """The error for a --margin that is not allowed. margin: as the user wrote it; alternative: another allowed form."""
    return InputError(f"--margin {margin}: allowed are points above 0, up to 100{alternative}; use the smallest loss "
                      "that matters (default: 2)")


def emit(value: Any) -> None:
    """Print one JSON object on stdout. Numbers that are not finite, such as an overflowed perplexity, become null."""
    print(json.dumps(jsonable(value), ensure_ascii=False, allow_nan=False))


def jsonable(value: Any) -> Any:
    """A value of `aftertune.values`, or a structure of them, as dicts, lists and scalars.

    Numbers that are not finite become None.
    """
    from pydantic_core import from_json, to_json

    return from_json(to_json(value, inf_nan_mode="null"))


@contextlib.contextmanager
def progress() -> Iterator[Progress]:
    """A progress bar with the remaining time on stderr; plain lines if stderr is not a terminal."""
    with _bar() if sys.stderr.isatty() else _lines() as update:
        yield update


@contextlib.contextmanager
def _bar() -> Iterator[Progress]:
    """Show a progress bar of the current stage."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(bar_width=24),
               TextColumn("{task.percentage:>3.0f}%"), TimeElapsedColumn(), TextColumn("ETA"),
               TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=None)
        current_stage = ""

        def update(done: int, total: int, text: str) -> None:
            nonlocal current_stage
            stage = _stage(text)
            if stage != current_stage:  # the remaining time is that of the stage
                bar.reset(task, total=total or None, description=text)
                current_stage = stage
            bar.update(task, completed=done, total=total or None, description=text)

        yield update


@contextlib.contextmanager
def _lines() -> Iterator[Progress]:
    """Print a line when a stage starts and at each tenth of it, with the remaining time."""
    import time

    current_stage, started, last_tenth, first_done = "", 0.0, -1, 0

    def update(done: int, total: int, text: str) -> None:
        nonlocal current_stage, started, last_tenth, first_done
        now, stage = time.monotonic(), _stage(text)
        if stage != current_stage:
            current_stage, started, last_tenth, first_done = stage, now, -1, done
        tenth = 10 * done // total if total else 0
        if tenth == last_tenth:
            return
        last_tenth = tenth
        remaining = (now - started) * (total - done) / (done - first_done) if done > first_done else None
        eta = f", {remaining:.0f} s left" if remaining else ""
        share = f" {100 * done // total} %" if total else ""
        print(f"{text}{share}{eta}", file=sys.stderr, flush=True)

    yield update


def _stage(text: str) -> str:
    """The stage of a progress text, which is the text without a training loss."""
    return text.split(": loss")[0]
