"""Notices that a ledger has changed, without reading it.

    changes = changes_of(place)
    changes.happened()        True the first time, and when another connection has committed since the last call

SQLite counts the commits of other connections (``PRAGMA data_version``), so a look costs microseconds. A file that was
replaced or moved counts as a change. PostgreSQL shows which transactions have begun and ended
(``pg_current_snapshot``); those of its other databases count as changes too. The object may be used by one thread at a
time.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from aftertune.errors import StorageError
from aftertune.ledger.address import DatabaseAddress, StoredAt
from aftertune.ledger.faults import storage_error
from aftertune.ledger.sqlite import driver

if TYPE_CHECKING:
    from aftertune.ledger.postgres import PostgresDatabase

#: Seconds that a look waits for a lock of another process.
_WAIT = 1.0


def changes_of(place: StoredAt) -> LedgerChanges | ServerChanges:
    """What notices the changes of a ledger."""
    return ServerChanges(place) if isinstance(place, DatabaseAddress) else LedgerChanges(place)


class LedgerChanges:
    """A connection of its own that only asks for the version of the data."""

    def __init__(self, path: Path) -> None:
        self.path, self.module = path, driver()
        self._lock = threading.Lock()
        self._connection: Any = None
        self._file: tuple[int, int] | None = None
        self._version: int | None = None

    def happened(self) -> bool:
        """Whether the ledger has changed since the last call. StorageError where it cannot be read."""
        with self._lock:
            try:
                status = self.path.stat()
                if self._file != (status.st_dev, status.st_ino):
                    self._close()
                    self._connection = self.module.connect(f"file:{quote(str(self.path))}?mode=rw", uri=True,
                                                           timeout=_WAIT, check_same_thread=False)
                    self._connection.execute("PRAGMA query_only=ON")
                    self._file, self._version = (status.st_dev, status.st_ino), None
                before = self._version
                self._version = int(self._connection.execute("PRAGMA data_version").fetchone()[0])
                return before != self._version
            except OSError:
                self._close()
                raise StorageError(f"{self.path}: the ledger is not there any more; move it back, or start the view "
                                   "with its new place") from None
            except self.module.Error as error:
                self._close()
                raise storage_error(self.path, error) from None

    def close(self) -> None:
        """Close the connection; a later look opens one again."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = self._file = self._version = None


class ServerChanges:
    """A connection of its own that only asks which transactions there were."""

    def __init__(self, address: DatabaseAddress) -> None:
        self.address = address
        self._lock = threading.Lock()
        self._database: PostgresDatabase | None = None
        self._seen = ""

    def happened(self) -> bool:
        """Whether the ledger, or another database of the server, has changed since the last call. StorageError where it
        cannot be read."""
        from aftertune.ledger.postgres import PostgresDatabase

        with self._lock:
            if self._database is None:
                self._database = PostgresDatabase(self.address, create=False, read_only=True)
            with self._database.read() as connection:
                now = str(connection.exec_driver_sql("SELECT pg_current_snapshot()::text").scalar_one())
            before, self._seen = self._seen, now
            return before != now

    def close(self) -> None:
        """Close the connection; a later look opens one again."""
        with self._lock:
            if self._database is not None:
                self._database.close()
            self._database, self._seen = None, ""
