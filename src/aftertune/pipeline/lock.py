"""Locks an output folder, so that only one process at a time runs a study into it.

    with folder_lock(Path("runs/orders")): …             StorageError if another process holds the lock
    with try_folder_lock(Path("runs/orders")) as free: …      False if another process holds it

It is a file lock, which the operating system releases when the process ends.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from aftertune.errors import StorageError


@contextlib.contextmanager
def folder_lock(out: Path) -> Iterator[None]:
    """Hold the folder's lock. Raises StorageError if another process holds it."""
    with try_folder_lock(out) as free:
        if not free:
            raise StorageError(f"{out}: another process is running a study in this folder; wait until it ends, or give "
                               "another --out")
        yield


@contextlib.contextmanager
def try_folder_lock(out: Path) -> Iterator[bool]:
    """Take the lock of ``out`` if it is free.

    True: this process now holds it, or the folder does not exist. False: another process holds it, or the lock file
    cannot be opened.
    """
    from filelock import FileLock, Timeout

    if not out.exists():  # filelock would create it
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
