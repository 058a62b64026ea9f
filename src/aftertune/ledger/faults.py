"""Turns database errors into a StorageError whose one-line message says what failed and what to do.

    with storage_errors(path): …      sqlite3 "disk I/O error"  ->  StorageError("/data/ledger.db: …")
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from aftertune.errors import DiskError, StorageError

#: SQLite's primary result code -> what is wrong and what to do.
ADVICE = {
    "NOTADB": "not a SQLite database; the file was not changed: set AFTERTUNE_LEDGER to another path, or "
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
    "BUSY": "another process has kept the ledger locked for longer than this one waits; try again when that process "
            "has ended",
    "LOCKED": "another connection of this process keeps the ledger locked; close it and try again",
    "IOERR": "the disk refused a read or write ({detail}; {free} MiB free); what was saved before is intact: "
             "check space, quota and disk, and run the same command again",
}

#: The result codes of a fault of the disk, not of the values.
_OF_THE_DISK = ("FULL", "IOERR")
#: Seconds that a transaction waits for one of another process. An import of a million samples takes minutes.
LOCK_TIMEOUT = 300.0


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn errors of SQLAlchemy and of the driver, and stored text that is not UTF-8 or JSON, into a StorageError that
    names the ledger."""
    try:
        yield
    except DBAPIError as error:
        raise storage_error(path, error.orig or error) from error
    except SQLAlchemyError as error:
        raise storage_error(path, error) from error
    except UnicodeDecodeError as error:
        raise StorageError(f"{path}: a stored text is damaged, it is not UTF-8 ({error}); `aftertune doctor` names its "
                           "entry and says what to do") from error
    except json.JSONDecodeError as error:
        raise StorageError(f"{path}: a stored value is damaged, it is not JSON ({error}); `aftertune doctor` names its "
                           "entry and says what to do") from error


def storage_error(path: Path, error: BaseException) -> StorageError:
    """The StorageError for a driver's ``error`` on the ledger at ``path``."""
    name = str(getattr(error, "sqlite_errorname", "")).removeprefix("SQLITE_").split("_")[0]
    detail = " ".join(str(error).split()) or type(error).__name__
    advice = ADVICE.get(name)
    if advice is None:
        return StorageError(f"{path}: the database reports: {detail}; check the ledger with `aftertune doctor`")
    kind = DiskError if name in _OF_THE_DISK else StorageError
    return kind(f"{path}: " + advice.format(detail=detail, free=_free(path)))


def _free(path: Path) -> int:
    """Free space on the ledger's disk in MiB; 0 if it is not known."""
    try:
        return shutil.disk_usage(path.parent).free >> 20
    except OSError:
        return 0
