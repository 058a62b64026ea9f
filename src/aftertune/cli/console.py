"""What every verb uses: errors as one line with their exit code, progress with remaining time, JSON on stdout.

Results go to stdout, progress and warnings to stderr.
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
    except KeyboardInterrupt as error:  # training sets its own text
        kept = "stopped; the finished batches of an evaluation are kept: run the same command again to continue"
        return _report(None, str(error) or kept, 130)
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except Exception as error:
        return _usage(error)
    return code if isinstance(code, int) else 0


def _terminated(*_: Any) -> None:
    raise KeyboardInterrupt


def _usage(error: Exception) -> int:
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
    if error is not None and os.environ.get("AFTERTUNE_DEBUG"):
        raise error
    from aftertune.redaction import redact

    print(f"aftertune: {redact(text)}", file=sys.stderr)
    return code


def no_margin(margin: str, or_else: str = "") -> InputError:
    """The error for a --margin that is not allowed. margin: as the user wrote it; or_else: another allowed form."""
    return InputError(f"--margin {margin}: allowed are points above 0, up to 100{or_else}; without a margin a small "
                      "loss cannot be distinguished from noise, so use the smallest loss that matters (default: 2)")


def emit(value: Any) -> None:
    """One JSON object on stdout; a number that is not finite (a perplexity that overflowed) is null in it."""
    print(json.dumps(jsonable(value), ensure_ascii=False, allow_nan=False))


def jsonable(value: Any) -> Any:
    """A value of `aftertune.values`, or a structure of them, as dicts, lists and scalars; numbers that are not finite
    are None."""
    from pydantic_core import from_json, to_json

    return from_json(to_json(value, inf_nan_mode="null"))


@contextlib.contextmanager
def progress() -> Iterator[Progress]:
    """A progress bar with the remaining time on stderr; plain lines if stderr is not a terminal."""
    with _bar() if sys.stderr.isatty() else _lines() as update:
        yield update


@contextlib.contextmanager
def _bar() -> Iterator[Progress]:
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
        current = bar.add_task("starting", total=None)
        last = [""]

        def update(done: int, total: int, text: str) -> None:
            stage = text.split(": loss")[0]
            if stage != last[0]:  # a new stage starts its own clock
                bar.reset(current, total=total or None, description=text)
                last[0] = stage
            bar.update(current, completed=done, total=total or None, description=text)

        yield update


@contextlib.contextmanager
def _lines() -> Iterator[Progress]:
    """A line when a stage starts and at every tenth of it, with the remaining time."""
    import time

    stage, begun, tenth, before = "", 0.0, -1, 0

    def update(done: int, total: int, text: str) -> None:
        nonlocal stage, begun, tenth, before
        now, key = time.monotonic(), text.split(": loss")[0]
        if key != stage:
            stage, begun, tenth, before = key, now, -1, done
        part = 10 * done // total if total else 0
        if part == tenth:
            return
        tenth = part
        left = (now - begun) * (total - done) / (done - before) if done > before else None
        eta = f", {left:.0f} s left" if left else ""
        share = f" {100 * done // total} %" if total else ""
        print(f"{text}{share}{eta}", file=sys.stderr, flush=True)

    yield update
