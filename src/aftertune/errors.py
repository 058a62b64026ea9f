"""Every error that aftertune raises on purpose, each with its exit code.

    AftertuneError                   1
    ├── GateFailed                   1   a gate found a proven drop beyond its limit
    ├── InputError                   2   bad input: a flag, a file, a study, a model source, a task
    │   ├── SourceError              2   a model, adapter, tokenizer or data source cannot be used
    │   ├── TaskError                2   a task is unknown, or its data cannot be had
    │   └── ResumeRefused            2   a stored run was made under other conditions (--fork starts anew)
    ├── NotComparable                3   two evaluations differ in what must agree
    ├── ResourceError                4   out of memory, disk, or a device or package that is not there
    └── StorageError                 5   the ledger cannot be read or written

A message is one line and says what was found, where, what is allowed, and what to do next.
"""

from __future__ import annotations

from typing import Any


class AftertuneError(Exception):
    """Base of all expected errors; the CLI prints its message without a traceback."""

    exit_code: int = 1


class GateFailed(AftertuneError):
    """A gate found a proven drop beyond its limit."""

    exit_code = 1


class InputError(AftertuneError):
    """Something the user gave cannot be used."""

    exit_code = 2


class SourceError(InputError):
    """A model, adapter, tokenizer or data source cannot be used."""


class TaskError(InputError):
    """A task is unknown, or its data cannot be had."""


class ResumeRefused(InputError):
    """A stored run was made under conditions that this process does not meet."""


class NotComparable(AftertuneError):
    """Two evaluations differ in what must agree for a paired comparison; ``differences`` holds each."""

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


def nearest(word: str, known: list[str], n: int = 3) -> str:
    """" (did you mean 'a', 'b'?)" for a mistyped word, or an empty string."""
    from difflib import get_close_matches

    matches = get_close_matches(word, known, n=n, cutoff=0.6)
    return f" (did you mean {', '.join(repr(m) for m in matches)}?)" if matches else ""
