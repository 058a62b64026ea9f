"""Turns an error of the database into one line that says what failed and what to do.

    with explained(path): …      sqlite3 "disk I/O error"  ->  StorageError("/data/ledger.db: …")
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from aftertune.errors import StorageError

#: SQLite's result code, without its extension, -> what is wrong and what to do.
ADVICE = {
    "NOTADB": "not a SQLite database; the file was left as it is: set AFTERTUNE_LEDGER to another path, or "
              "move the file away",
    "CORRUPT": "the database file is malformed; nothing was written: restore a backup, or move the file away "
               "and save what `sqlite3 FILE .recover` finds",
    "FULL": "no space left on the disk ({free} MiB free); what was saved before is intact: free some space "
            "and run the same command again",
    "READONLY": "the ledger cannot be written (read-only file, folder or disk); make it writable, or set "
                "AFTERTUNE_LEDGER to a path in a writable folder",
    "CANTOPEN": "the ledger cannot be opened (is the folder missing or not writable?); make it writable, or "
                "set AFTERTUNE_LEDGER to a path in a writable folder",
    "PERM": "the ledger cannot be opened (no permission); make it writable, or set AFTERTUNE_LEDGER to a "
            "path in a writable folder",
    "BUSY": "another process has kept the ledger locked for more than {patience} seconds; run the command "
            "again when it has ended",
    "LOCKED": "another connection of this process keeps the ledger locked; close it and try again",
    "IOERR": "the disk refused a read or write ({detail}; {free} MiB free); what was saved before is intact: "
             "check space, quota and disk, and run the same command again",
}

PATIENCE = 30.0  # seconds that a transaction waits for another process's


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn errors of SQLAlchemy and of the driver into a StorageError that names the ledger."""
    try:
        yield
    except DBAPIError as error:
        raise fault(path, error.orig or error) from error
    except SQLAlchemyError as error:
        raise fault(path, error) from error


def fault(path: Path, error: BaseException) -> StorageError:
    """The StorageError for a driver's ``error`` on the ledger at ``path``."""
    name = str(getattr(error, "sqlite_errorname", "")).removeprefix("SQLITE_").split("_")[0]
    detail = " ".join(str(error).split()) or type(error).__name__
    advice = ADVICE.get(name)
    if advice is None:
        return StorageError(f"{path}: the ledger refused: {detail}; `aftertune doctor` checks it")
    return StorageError(f"{path}: " + advice.format(detail=detail, free=_free(path), patience=int(PATIENCE)))


def _free(path: Path) -> int:
    """Free space where the ledger lies, in MiB; 0 where it cannot be asked."""
    try:
        return shutil.disk_usage(path.parent).free >> 20
    except OSError:
        return 0
