"""Keeps rows on disk while a file is read, so that memory does not grow with the file.

    with Staging() as staging:
        rows = staging.part()
        rows.add("12", value, state)                what stays, and what later lines of the file may change
        rows.find("12")                             (number, state), or None
        rows.change(number, state)
        for value, state in rows: …                 in the order in which they were added

Values and states are JSON. The rows are in a temporary SQLite file, in the folder TMPDIR if it is set, else in /var/tmp
or the system's folder for temporary files. Where the system allows it, the file loses its name at once, so it is gone
when the program ends, however it ends. (A database without a name would be in memory: pysqlite3 is built so.)
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

from aftertune.errors import StorageError
from aftertune.ledger.sqlite import driver

#: Rows of one part; the number of a row is its part times this, and its place in the part.
_ROWS = 2**40
_SETTINGS = ("PRAGMA journal_mode=OFF", "PRAGMA synchronous=OFF", "PRAGMA locking_mode=EXCLUSIVE",
             "PRAGMA cache_size=-16384")
_TABLE = ("CREATE TABLE row (number INTEGER PRIMARY KEY, part INTEGER NOT NULL, key TEXT NOT NULL, "
          "value TEXT NOT NULL, state TEXT NOT NULL, UNIQUE (part, key))")


class Staging:
    """A temporary table of rows, in parts that are filled and read one by one or at the same time."""

    def __init__(self) -> None:
        module = driver()
        self.errors: tuple[type[Exception], ...] = (module.Error,)
        self._parts = 0
        try:
            handle, name = tempfile.mkstemp(prefix="aftertune-", suffix=".db", dir=temporary_root())
            os.close(handle)
            self._path = Path(name)
            self.raw = module.connect(name, isolation_level=None)
            for statement in (*_SETTINGS, "BEGIN", _TABLE):
                self.raw.execute(statement)
        except (OSError, *self.errors) as error:
            self.refuse(error)
        self._unlink()

    def _unlink(self) -> None:
        """Remove the name of the file. Windows refuses that while it is open."""
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)

    def part(self) -> StagedRows:
        """A new part without rows."""
        self._parts += 1
        return StagedRows(self, self._parts)

    def refuse(self, error: Exception) -> NoReturn:
        """Raise StorageError for an error of the database."""
        raise StorageError("the temporary folder cannot take what is being imported "
                           f"({' '.join(str(error).split())}); nothing was imported: free some space, or set TMPDIR to "
                           "a folder on a disk with more space") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.raw.close()
        self._unlink()


def temporary_root() -> str | None:
    """The folder for large temporary files: TMPDIR, else /var/tmp, because /tmp may be in memory; None for the
    system's choice."""
    given = os.environ.get("TMPDIR")
    return given or ("/var/tmp" if os.access("/var/tmp", os.W_OK) else None)


class StagedRows:
    """Rows with different keys, in the order in which they were added."""

    def __init__(self, staging: Staging, part: int) -> None:
        self._staging, self._part, self._first, self._count = staging, part, part * _ROWS, 0

    def __len__(self) -> int:
        return self._count

    def add(self, key: str, value: Any, state: Any) -> None:
        """Add a row. Its key must be new."""
        row = (self._first + self._count, self._part, key, json.dumps(value), json.dumps(state))
        try:
            self._staging.raw.execute("INSERT INTO row VALUES (?, ?, ?, ?, ?)", row)
        except self._staging.errors as error:
            self._staging.refuse(error)
        self._count += 1

    def find(self, key: str) -> tuple[int, Any] | None:
        """(number, state) of the row with this key, or None."""
        try:
            row = self._staging.raw.execute("SELECT number, state FROM row WHERE part = ? AND key = ?",
                                            (self._part, key)).fetchone()
        except self._staging.errors as error:
            self._staging.refuse(error)
        return None if row is None else (row[0], json.loads(row[1]))

    def change(self, number: int, state: Any) -> None:
        """Replace the state of a row."""
        try:
            self._staging.raw.execute("UPDATE row SET state = ? WHERE number = ?", (json.dumps(state), number))
        except self._staging.errors as error:
            self._staging.refuse(error)

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        """(value, state) of each row."""
        yield from ((json.loads(value), json.loads(state)) for value, state in self._read("value, state"))

    def states(self) -> Iterator[Any]:
        """The state of each row."""
        yield from (json.loads(state) for state, in self._read("state"))

    def values(self) -> Iterator[Any]:
        """The value of each row."""
        yield from (json.loads(value) for value, in self._read("value"))

    def _read(self, columns: str) -> Iterator[tuple[str, ...]]:
        query = f"SELECT {columns} FROM row WHERE number BETWEEN ? AND ? ORDER BY number"
        try:  # map: a generator that nobody finishes would close the cursor, perhaps after the database
            yield from map(tuple, self._staging.raw.execute(query, (self._first, self._first + _ROWS - 1)))
        except self._staging.errors as error:
            self._staging.refuse(error)
