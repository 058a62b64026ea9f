"""Running out of memory: the failing batch is halved, finished rows stay, and one row that does not fit is told."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from aftertune.errors import ResourceError


def split_on_oom(parts: list[Any], run: Callable[[list[Any]], dict[int, Any]],
                 halved: Callable[[int], None]) -> dict[int, Any]:
    """``run(parts)``; where memory runs out, its halves, one after the other, down to single parts."""
    if not parts:
        return {}
    try:
        return run(parts)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        if len(parts) == 1:
            raise _told() from error
    halved(len(parts))
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    middle = (len(parts) + 1) // 2
    first = split_on_oom(parts[:middle], run, halved)
    return first | split_on_oom(parts[middle:], run, halved)


@contextlib.contextmanager
def one_row() -> Iterator[None]:
    """What runs out of memory in here cannot be halved."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise _told() from error


def out_of_memory(error: BaseException) -> bool:
    """True for the ways in which torch says that memory ran out, on any device."""
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "out of memory" in text \
        or "not enough memory" in text


def _told() -> ResourceError:
    return ResourceError("out of memory with one row in the batch: use a smaller dtype, another --device, or a shorter "
                         "context (--num-fewshot); finished rows are kept")
