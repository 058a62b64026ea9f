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
    ├── ResourceError                4   out of memory or disk, or a device or package is missing
    └── StorageError                 5   the ledger cannot be read or written

A message is one line. It says what was found, where, what is allowed, and what to do next.
"""

from __future__ import annotations

import reprlib
from typing import Any

_LONGEST_WORD = 200  # characters of a word whose nearest known words are looked for


class AftertuneError(Exception):
    """Base class of all expected errors. The command line prints the message without a traceback."""

    exit_code: int = 1


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


class ResourceError(AftertuneError):
    """Memory, disk, a device or an optional package is missing."""

    exit_code = 4


class StorageError(AftertuneError):
    """The ledger cannot be read or written."""

    exit_code = 5


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
