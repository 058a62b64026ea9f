"""Everything that the command line prints goes through here: no secret and no control character gets to the terminal.

    with safe_streams():                 stdout and stderr of the process are cleaned until the end of the block
        print(name)                      "red\\x1b[31m" is shown as "red⟨U+001B⟩[31m"
    rich_console().print(table)          a console of rich, whose cells are cleaned before they are coloured

Names of models, tasks, metrics and files come from other people's files. A control sequence in one of them could change
the title of a terminal, move the cursor over another line, or reverse the order of a line.

stderr holds messages and tracebacks, so everything that looks like a secret is removed there (`redaction.redact`).
stdout holds results, among them examples of data: only known secrets are removed (`redaction.redact_known`).
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TextIO, cast

from aftertune.errors import StorageError, visible_characters
from aftertune.redaction import redact, redact_known

if TYPE_CHECKING:
    from rich.console import Console


class CheckedStream:
    """A text stream that cannot fail with anything but StorageError, or BrokenPipeError if its reader is gone.

    raw: the stream that it writes to.
    """

    def __init__(self, raw: TextIO) -> None:
        self.raw = raw

    def write(self, text: str) -> int:
        """Write ``text``; returns its number of characters."""
        with self._checked():
            self.raw.write(text)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write each of ``lines``."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Write what is held back."""
        with self._checked():
            self.raw.flush()

    @contextlib.contextmanager
    def _checked(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            raise
        except OSError as error:
            discard(self.raw)
            raise StorageError(f"{str(getattr(self.raw, 'name', 'output')).strip('<>')}: cannot be written "
                               f"({error.strerror}); make room or write to another place") from None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.raw, name)


class SafeStream(CheckedStream):
    """A text stream that cleans what is written to it."""

    def __init__(self, raw: TextIO, clean: Callable[[str], str]) -> None:
        super().__init__(raw)
        self._clean = clean

    def write(self, text: str) -> int:
        """Write cleaned ``text``; returns the number of characters that were given."""
        super().write(visible_characters(self._clean(text).replace("\r\n", "\n")))
        return len(text)


@contextlib.contextmanager
def safe_streams() -> Iterator[None]:
    """Clean everything that is written to stdout and stderr, also by libraries, until the end of the block.

    A character that the terminal's encoding lacks is written as its code point.
    """
    before = sys.stdout, sys.stderr
    for stream in before:
        if hasattr(stream, "reconfigure"):
            with contextlib.suppress(OSError, ValueError):
                stream.reconfigure(errors="backslashreplace")
    sys.stdout, sys.stderr = (cast(TextIO, SafeStream(before[0], redact_known)),
                              cast(TextIO, SafeStream(before[1], redact)))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def rich_console(*, stderr: bool = False) -> Console:
    """A console of rich on stdout or stderr that cleans every text before it adds its own control sequences."""
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment

    class SafeConsole(Console):
        """Cleans the text of every segment; segments with control codes are rich's own."""

        def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
            for text, style, control in super().render(renderable, options):
                yield Segment(text if control else visible_characters(redact_known(text)), style, control)

        def on_broken_pipe(self) -> None:
            """Pass the error on; rich would end the process with exit code 1."""
            raise BrokenPipeError

    stream = sys.stderr if stderr else sys.stdout
    raw = stream.raw if isinstance(stream, SafeStream) else stream
    return SafeConsole(file=cast(TextIO, CheckedStream(raw)), stderr=stderr)


def discard(stream: TextIO) -> None:
    """Send the rest of a stream that cannot be written, also what it holds back, to nowhere."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
