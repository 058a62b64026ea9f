"""One process at a time runs a study into a folder: owns the lock, which ends with the process, however that ends."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from aftertune.errors import StorageError


@contextlib.contextmanager
def alone(out: Path) -> Iterator[None]:
    """The only run of ``out`` meanwhile, as long as this process lives. Raises StorageError where there is another."""
    with held(out) as mine:
        if not mine:
            raise StorageError(f"{out}: another process runs a study here; wait for its end, or give another --out")
        yield


@contextlib.contextmanager
def held(out: Path) -> Iterator[bool]:
    """Whether the run of ``out`` is this one; False where another process has it, or where it cannot be said."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield True
        return
    try:
        file = (out / ".running").open("w")
    except OSError:
        yield not out.exists()
        return
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True
