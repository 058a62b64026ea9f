"""Turns database errors into a StorageError whose one-line message says what failed and what to do.

    with storage_errors(place): …      sqlite3 "disk I/O error"  ->  StorageError("/data/ledger.db: …")

place: the ledger's file, or the address of its server, of which no password is in any message.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from aftertune.errors import DiskError, StorageError
from aftertune.ledger.address import VARIABLE, DatabaseAddress, StoredAt

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

_STORED = "what was saved before is stored: run the same command again"
#: The beginning of PostgreSQL's error code -> what is wrong and what to do.
SERVER_ADVICE = {
    "08": f"the connection to the server was lost ({{detail}}); {_STORED}",
    "57P": f"the server was stopped or closed the connection ({{detail}}); {_STORED}",
    "25P03": f"the server closed a transaction that had waited for too long; {_STORED}",
    "40": f"the database has undone the transaction again and again ({{detail}}); {_STORED}",
    "53100": f"the server's disk is full; {_STORED} when there is space",
    "53300": "the server takes no more connections ({detail}); stop other programs that use it, or raise its "
             "max_connections",
    "53": f"the server is out of resources ({{detail}}); {_STORED} when it has some",
    "58": f"the server's disk refused a read or write ({{detail}}); {_STORED} when it works",
    "55P03": ADVICE["BUSY"],
    "57014": f"the server cancelled a statement ({{detail}}); {_STORED}",
    "28": f"the server refused the login ({{detail}}); check the user and the password in {VARIABLE} or ~/.pgpass",
    "3D000": "the server has no such database; create it: createdb NAME",
    "3F000": f"no schema of the search path exists; create it, or leave it out of {VARIABLE}",
    "42501": "the database user may not do this ({detail}); GRANT it the rights that docs/postgres.md lists",
    "25006": f"the server takes no changes (a standby, or set to read only); set {VARIABLE} to the primary server",
    "XX": "the database reports damage ({detail}); nothing was written: restore a backup",
    "54000": "the database cannot store so large a value ({detail}); nothing was written",
}
#: The codes after which the same transaction may succeed: lost connection, shutdown, serialisation, deadlock.
_TRANSIENT = re.compile(r"08...|57P0[1-5]|25P03|40...|53300")
#: What a server says that has no connections to give now.
_STARTING = re.compile(r"starting up|shutting down|recovery mode|not yet accepting|too many clients|slots are reserved")
#: The result codes of a fault of the disk, not of the values.
_OF_THE_DISK = ("FULL", "IOERR")
#: Seconds that a transaction waits for one of another process. An import of a million samples takes minutes.
LOCK_TIMEOUT = 300.0


class TransactionLost(StorageError):
    """A transaction that was not committed because the connection ended or the database undid it."""


@contextmanager
def storage_errors(place: StoredAt) -> Iterator[None]:
    """Turn errors of SQLAlchemy and of the driver, and stored text that is not UTF-8 or JSON, into a StorageError that
    names the ledger."""
    try:
        yield
    except DBAPIError as error:
        raise storage_error(place, error.orig or error) from error
    except SQLAlchemyError as error:
        raise storage_error(place, error) from error
    except UnicodeDecodeError as error:
        raise StorageError(f"{place}: a stored text is damaged, it is not UTF-8 ({error}); `aftertune doctor` names "
                           "its entry and says what to do") from error
    except json.JSONDecodeError as error:
        raise StorageError(f"{place}: a stored value is damaged, it is not JSON ({error}); `aftertune doctor` names "
                           "its entry and says what to do") from error


def storage_error(place: StoredAt, error: BaseException) -> StorageError:
    """The StorageError for a driver's ``error`` on the ledger at ``place``."""
    detail = " ".join(str(error).split()) or type(error).__name__
    if isinstance(place, DatabaseAddress):
        return _server_error(place, error, place.without_secrets(detail))
    name = str(getattr(error, "sqlite_errorname", "")).removeprefix("SQLITE_").split("_")[0]
    advice = ADVICE.get(name)
    if advice is None:
        return StorageError(f"{place}: the database reports: {detail}; check the ledger with `aftertune doctor`")
    kind = DiskError if name in _OF_THE_DISK else StorageError
    return kind(f"{place}: " + advice.format(detail=detail, free=_free(place)))


def _server_error(place: DatabaseAddress, error: BaseException, detail: str) -> StorageError:
    """The StorageError for an error of PostgreSQL; a TransactionLost where the same transaction may succeed."""
    code = sqlstate(error)
    if code is None:
        if type(error).__name__ in ("OperationalError", "InterfaceError"):
            return TransactionLost(f"{place}: {SERVER_ADVICE['08'].format(detail=detail)}")
        return StorageError(f"{place}: the database reports: {detail}; check the ledger with `aftertune doctor`")
    advice = next((SERVER_ADVICE[code[:n]] for n in (5, 3, 2) if code[:n] in SERVER_ADVICE), None)
    text = f"the database reports: {{detail}} ({code})" if advice is None else advice
    kind = TransactionLost if _TRANSIENT.fullmatch(code) else DiskError if code == "53100" or code[:2] == "58" else \
        StorageError
    return kind(f"{place}: " + text.format(detail=detail))


def sqlstate(error: BaseException) -> str | None:
    """PostgreSQL's code of an error; None for one of the connection."""
    code = getattr(error, "sqlstate", None)
    return str(code) if code else None


def connection_error(place: DatabaseAddress, error: BaseException) -> StorageError:
    """The StorageError for a connection that cannot be made."""
    detail = place.without_secrets(" ".join(str(error).split()))
    return StorageError(f"{place}: the database cannot be reached ({detail[:500]}); check that the server runs, and "
                        f"user, password, host and database in {VARIABLE}; what was saved before is stored")


def has_no_room_yet(error: BaseException) -> bool:
    """True where a server answers that it has no connection to give at this moment."""
    return _STARTING.search(str(error)) is not None


def is_lost(error: DBAPIError) -> bool:
    """True for an error of the connection, not of what was asked."""
    code = sqlstate(error.orig) if error.orig is not None else None
    return error.connection_invalidated or (code is None and type(error.orig).__name__ == "OperationalError") or \
        (code is not None and _TRANSIENT.fullmatch(code) is not None)


def _free(path: Path) -> int:
    """Free space on the ledger's disk in MiB; 0 if it is not known."""
    try:
        return shutil.disk_usage(path.parent).free >> 20
    except OSError:
        return 0
