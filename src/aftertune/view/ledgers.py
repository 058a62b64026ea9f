"""The ledger of the view: one open connection pool for reading, and an open and close for each change.

    source = LedgerSource(place)                     a file, or the address of a server
    with source.read() as ledger: …         the database refuses writes; opened again after a migration or a new file
    with source.write() as ledger: …        for a name, a tag or a note

A ledger that is locked, missing, damaged or newer than this program is one clear line (StorageError or InputError).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from aftertune.errors import StorageError
from aftertune.ledger import DatabaseAddress, Ledger, StoredAt
from aftertune.ledger.schema import HEAD


class LedgerSource:
    """Opens the ledger for requests. Threads share it."""

    def __init__(self, place: StoredAt) -> None:
        self.place = place
        self._lock = threading.Lock()
        self._open: tuple[tuple[int, int], Ledger] | None = None

    @contextmanager
    def read(self) -> Iterator[Ledger]:
        """The ledger as it is now, for reading."""
        ledger = self._current()
        try:
            yield ledger
        except StorageError:
            self._forget(ledger)  # the next request looks again
            raise

    @contextmanager
    def write(self) -> Iterator[Ledger]:
        """The ledger for one change."""
        with Ledger(self.place, create=False) as ledger:
            yield ledger

    def close(self) -> None:
        """Close the connections."""
        with self._lock:
            if self._open is not None:
                self._open[1].close()
            self._open = None

    def _current(self) -> Ledger:
        file = _file(self.place)
        current = self._open
        if current is not None and current[0] == file and current[1].database.revision() == HEAD:
            return current[1]
        with self._lock:
            if self._open is current:  # no other thread has opened it since
                if current is not None:
                    current[1].close()
                self._open = None
                self._open = file, Ledger(self.place, create=False, read_only=True)
            if self._open is None:
                raise StorageError(f"{self.place}: the ledger cannot be opened now; try again")
            return self._open[1]

    def _forget(self, ledger: Ledger) -> None:
        with self._lock:
            if self._open is not None and self._open[1] is ledger:
                self._open = None
                ledger.close()


def _file(place: StoredAt) -> tuple[int, int]:
    """Which file is at a place now; (0, 0) for a server, and where there is none: opening it says what is wrong."""
    if isinstance(place, DatabaseAddress):
        return 0, 0
    try:
        status = place.stat()
        return status.st_dev, status.st_ino
    except OSError:
        return 0, 0
