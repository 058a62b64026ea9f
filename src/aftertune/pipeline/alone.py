"""Lets one process at a time run a study into a folder, by a file lock that the operating system ends with the process.

    with alone(Path("runs/orders")): …       StorageError where another process runs a study there
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from aftertune.errors import StorageError


@contextlib.contextmanager
def alone(out: Path) -> Iterator[None]:
    """Hold the folder's lock. Raises StorageError where another process holds it."""
    with held(out) as mine:
        if not mine:
            raise StorageError(f"{out}: another process runs a study here; wait for its end, or give another --out")
        yield


@contextlib.contextmanager
def held(out: Path) -> Iterator[bool]:
    """Take the lock of ``out`` where it is free: True where this process now has it, or where there is no folder yet;
    False where another process has it, or where the lock file cannot be opened."""
    from filelock import FileLock, Timeout

    if not out.exists():  # filelock would make it
        yield True
        return
    lock = FileLock(out / ".running", blocking=False)
    try:
        lock.acquire()
    except (Timeout, OSError):
        yield False
        return
    try:
        yield True
    finally:
        lock.release()
