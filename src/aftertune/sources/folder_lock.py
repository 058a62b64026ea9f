"""Locks an output folder, so that only one process at a time writes into it.

    with folder_lock(Path("runs/orders"), "runs a study"): …      FolderInUse, with pid and host, if it is locked
    with try_folder_lock(Path("runs/orders")) as free: …          False if another process holds the lock
    in_use(Path("runs/orders"))                                   the same as a look, which takes no lock

It is a file lock, which the operating system releases when the process ends. The file ``.running.json`` beside it names
the process for the message of others.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from aftertune.errors import FolderInUse
from aftertune.sources.cache import write_atomic
from aftertune.values import from_json

if TYPE_CHECKING:
    from filelock import FileLock

LOCK, HOLDER = ".running", ".running.json"


@contextlib.contextmanager
def folder_lock(out: Path, does: str) -> Iterator[None]:
    """Hold the folder's lock. does: what its holder does, for the message. Raises FolderInUse if another process
    holds it."""
    with try_folder_lock(out) as free:
        if not free:
            raise FolderInUse(f"{out}: another process{_holder(out)} {does} in this folder; wait until it ends, or "
                              "give another --out")
        try:
            with contextlib.suppress(OSError):  # it only makes a message better
                write_atomic(out / HOLDER, json.dumps({"pid": os.getpid(), "host": platform.node()}))
            yield
        finally:
            with contextlib.suppress(OSError):  # the work is done, so that another process may take the folder
                (out / HOLDER).unlink(missing_ok=True)
                (out / LOCK).unlink(missing_ok=True)


@contextlib.contextmanager
def try_folder_lock(out: Path) -> Iterator[bool]:
    """Take the lock of ``out`` if it is free.

    True: this process now holds it, or the folder does not exist. False: another process holds it, or the lock file
    cannot be opened.
    """
    if not out.exists():  # filelock would create it
        yield True
        return
    lock = _acquire(out / LOCK)
    try:
        yield lock is not None
    finally:
        if lock is not None:
            lock.release()


def in_use(out: Path) -> bool:
    """Whether a process seems to work in a folder, by the file that names it. Nothing is locked or written, so that a
    look disturbs nobody; a process of another machine counts as alive while its file is there."""
    import psutil

    try:
        written = (out / HOLDER).stat().st_mtime
        holder = from_json((out / HOLDER).read_bytes())
        if holder["host"] != platform.node():
            return True
        return bool(psutil.Process(int(holder["pid"])).create_time() <= written + 1)
    except (OSError, ValueError, KeyError, TypeError, OverflowError, psutil.Error):
        return False


def _acquire(path: Path) -> FileLock | None:
    """The acquired lock, or None.

    Its last holder may have removed the file after this process opened it, and another process may have locked a new
    file since. While a file is open, no other file has its inode, so the same inode before and after means that the
    file that is locked is the one that others find.
    """
    from filelock import FileLock, Timeout

    while True:
        lock = FileLock(path, blocking=False)
        try:
            path.touch()
            before = path.stat().st_ino
            lock.acquire()
        except FileNotFoundError:  # removed after the touch
            if not path.parent.exists():
                return None
            continue
        except (Timeout, OSError):
            return None
        with contextlib.suppress(OSError):
            if path.stat().st_ino == before:
                return lock
        lock.release()


def _holder(out: Path) -> str:
    """ " (PID on HOST)" of the process that holds the lock; "" where that is not known."""
    try:
        holder = from_json((out / HOLDER).read_bytes())
        return f" ({int(holder['pid'])} on {str(holder['host'])[:80]})"
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return ""
