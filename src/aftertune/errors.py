"""Defines the errors that aftertune raises on purpose, each with its exit code.

    AftertuneError                   1
    ├── GateFailed                   1   a gate found a proven drop beyond its limit
    ├── InputError                   2   bad input: a flag, a file, a study, a model source, a task
    │   ├── SourceError              2   a model, adapter, tokenizer or data source cannot be used
    │   ├── AmbiguousName            2   several entries of the ledger have the name
    │   ├── TaskError                2   a task is unknown, or its data cannot be read
    │   │   ├── UnknownTask          2   no task has this name
    │   │   └── TasksFailed          2   some tasks of an evaluation failed; the others are stored
    │   ├── RequestError             2   a request of a task cannot be run
    │   └── ResumeRefused            2   a stored run was made under other conditions (--fork starts a new one)
    ├── NotComparable                3   two evaluations differ in a setting that must agree
    ├── NotProven                    3   a bundle or a card says what its answers do not prove
    ├── ResourceError                4   out of memory or disk, or a device or package is missing
    │   └── InUse                    4   another process works on an evaluation
    └── StorageError                 5   the ledger cannot be read or written
        ├── FolderInUse              5   another process writes into an output folder
        └── DiskError                5   because its disk is full, or refuses a read or write

A message is one line. It says what was found, where, what is allowed, and what to do next. It quotes names, values and
messages of other programs, so every error makes its message one line without control characters, of bounded length.
"""

from __future__ import annotations

import os
import re
import reprlib
import traceback
import unicodedata
from typing import Any

#: Characters of a message. Of a longer one, the start and the end are kept.
LONGEST_MESSAGE = 1000
_LONGEST_WORD = 200  # characters of a word whose nearest known words are looked for


class AftertuneError(Exception):
    """Base class of all expected errors. The command line prints the message without a traceback."""

    exit_code: int = 1

    def __init__(self, message: str = "") -> None:
        super().__init__(one_line(message))

    def _render_traceback_(self) -> list[str]:
        """What IPython and Jupyter show instead of a traceback: one line. AFTERTUNE_DEBUG=1 shows the traceback."""
        if os.environ.get("AFTERTUNE_DEBUG"):
            return "".join(traceback.format_exception(self)).splitlines()
        return [f"{type(self).__name__}: {self}"]


class GateFailed(AftertuneError):
    """A gate found a proven drop beyond its limit."""

    exit_code = 1


class InputError(AftertuneError):
    """An input of the user cannot be used."""

    exit_code = 2


class SourceError(InputError):
    """A model, adapter, tokenizer or data source cannot be used."""


class AmbiguousName(InputError):
    """Several entries of the ledger have the name; the message lists their ids."""


class TaskError(InputError):
    """A task is unknown, or its data cannot be read."""


class UnknownTask(TaskError):
    """No task or group has this name."""


class TasksFailed(TaskError):
    """Some tasks of an evaluation failed; the others are stored. evaluations: what was stored."""

    def __init__(self, message: str, evaluations: tuple[Any, ...] = ()) -> None:
        super().__init__(message)
        self.evaluations = evaluations


class RequestError(InputError):
    """A request of a task cannot be run. position: of the request."""

    def __init__(self, message: str, position: int) -> None:
        super().__init__(message)
        self.position = position


class ResumeRefused(InputError):
    """A stored run was made under conditions that this process does not meet, so it cannot be resumed."""


class NotComparable(AftertuneError):
    """Two evaluations differ in settings that must agree for a paired comparison; ``differences`` lists them."""

    exit_code = 3

    def __init__(self, message: str, differences: tuple[Any, ...] = ()) -> None:
        super().__init__(message)
        self.differences = differences


class NotProven(AftertuneError):
    """What is handed on says something that the stored answers do not prove."""

    exit_code = 3


class ResourceError(AftertuneError):
    """Memory, disk, a device or an optional package is missing."""

    exit_code = 4


class InUse(ResourceError):
    """Another process works on an evaluation."""


class StorageError(AftertuneError):
    """The ledger cannot be read or written."""

    exit_code = 5


class FolderInUse(StorageError):
    """Another process writes into an output folder."""


class DiskError(StorageError):
    """The disk of a ledger is full, or refuses a read or write; nothing is wrong with the values."""


def shown(value: object, limit: int = 80) -> str:
    """A value of the user's as a message shows it: its repr, cut off where it is long."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = limit
    try:
        text = short.repr(value)
    except ValueError:  # Python refuses to write a number of thousands of digits
        return "a number of thousands of digits"
    return text if len(text) <= limit + 20 else f"{text[:limit]} …"


def nearest(word: str, known: list[str], n: int = 3) -> str:
    """The known words that are most similar to a mistyped one, as " (did you mean 'a', 'b'?)"; "" where there are
    none."""
    from difflib import get_close_matches

    if len(word) > _LONGEST_WORD:
        return ""
    matches = get_close_matches(word, known, n=n, cutoff=0.6)
    return f" (did you mean {', '.join(repr(m) for m in matches)}?)" if matches else ""


# --- Messages that quote what other people wrote ---

_LINE_ENDS = re.compile(r"[ \t]*[\t\n\v\f\r\x1c-\x1e\x85\u2028\u2029]\s*")
#: A character outside the common Latin ones, which are all visible.
UNUSUAL = re.compile(r"[^\n\t -~\xa0-\xac\xae-\u02ff]")


def one_line(text: str) -> str:
    """A message as one line without control characters. Of a long one, the middle is left out: the start says where,
    the end what to do."""
    if len(text) > 2 * LONGEST_MESSAGE:
        text = _without_middle(text, LONGEST_MESSAGE, LONGEST_MESSAGE)  # so that a megabyte takes no time
    line = visible_characters(_LINE_ENDS.sub(" ", text))
    return line if len(line) <= LONGEST_MESSAGE else _without_middle(line, LONGEST_MESSAGE - 303, 300)


def _without_middle(text: str, head: int, tail: int) -> str:
    """At most ``head`` characters of the start and ``tail`` of the end. A word is not cut, unless it is very long: the
    half of a token could not be recognised as a secret."""
    start, end = text[:head], text[max(len(text) - tail, head):]
    whole_start, whole_end = start.rpartition(" ")[0], end.partition(" ")[2]
    start = whole_start if head - len(whole_start) < _LONGEST_WORD else start
    return f"{start} … {whole_end if tail - len(whole_end) < _LONGEST_WORD else end}"


def visible_characters(text: str) -> str:
    """The whole of ``text`` with every control and direction-changing character as its code point, except newline and
    tab."""
    return UNUSUAL.sub(lambda match: f"⟨U+{ord(match[0]):04X}⟩" if is_hidden(match[0]) else match[0], text)


def is_hidden(character: str) -> bool:
    """True for control, format (such as changes of direction), half and private characters."""
    return unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")
