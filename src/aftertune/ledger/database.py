"""Transactions over a ledger's database: what SQLite (`sqlite.py`) and PostgreSQL (`postgres.py`) share.

    with database.write() as connection: …            one transaction, all or nothing; one writer at a time
    with database.write(within=True) as connection: … only within the row that `hold` names; other entries go on
    with database.read() as connection: …             one snapshot

A block is never run twice: it may have taken items from an iterator, or asked a clock. What can be done again is a
whole method, which says so with `repeatable`.
"""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from sqlalchemy import Connection, Engine, Float, Table, cast, func, literal, select

from aftertune.ledger.address import StoredAt
from aftertune.ledger.faults import TransactionLost

P = ParamSpec("P")
T = TypeVar("T")
C = TypeVar("C")
#: How often a method whose transaction was lost is called again. Each waits for the database to come back.
_REPEATS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerFinding:
    """One fact about the ledger. problem: what is wrong, or ""; remedy: what to do about it, or ""."""

    name: str
    value: str
    problem: str = ""
    remedy: str = ""


class Database(ABC):
    """An open ledger at the newest schema. place: its file or server. Threads and forked processes may share it."""

    place: StoredAt
    engine: Engine
    read_only: bool

    @property
    @abstractmethod
    def folder(self) -> Path:
        """The folder of this machine for files that belong to the ledger, such as texts that a base wrote."""

    @abstractmethod
    def read(self) -> AbstractContextManager[Connection]:
        """A transaction that sees one state of the ledger."""

    @abstractmethod
    def write(self, *, within: bool = False) -> AbstractContextManager[Connection]:
        """A transaction that is committed at the end of the block, or rolled back if the block raises.

        Until it ends, no other writer begins one. within: it changes only what belongs to one row, which it locks with
        `hold` before it reads what it changes; then writers of other rows go on at the same time, where the database
        can do that.
        """

    @abstractmethod
    def findings(self) -> list[LedgerFinding]:
        """Place, size, version, settings and integrity of the database."""

    @abstractmethod
    def sizes(self) -> dict[str, tuple[int, int | None]]:
        """Table -> its rows and its bytes with its indexes; None where the database does not say."""

    @abstractmethod
    def vacuum(self) -> None:
        """Give the space of deleted rows back."""

    @abstractmethod
    def total_bytes(self) -> int:
        """The size of the ledger."""

    def revision(self) -> str:
        """The schema that the ledger has now: another process may have migrated it since it was opened."""
        with self.read() as connection:
            return str(connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar())

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()

    def row_counts(self) -> dict[str, int]:
        """Table -> number of its rows."""
        from aftertune.ledger.schema import metadata

        with self.read() as connection:
            return {name: connection.execute(select(func.count()).select_from(table)).scalar_one()
                    for name, table in sorted(metadata.tables.items())}


class OwnConnections:
    """Tells a forked child from its parent: a connection must not be used in both."""

    def __init__(self) -> None:
        self.process = os.getpid()

    def lost(self) -> bool:
        """True once in a child process."""
        child, self.process = self.process != os.getpid(), os.getpid()
        return child


def hold(connection: Connection, table: Table, seq: int) -> None:
    """Lock a row until the transaction ends, so that nobody else changes what belongs to it. SQLite has one writer in
    any case."""
    connection.execute(select(table.c.seq).where(table.c.seq == seq).with_for_update())


def database_clock(connection: Connection) -> Any:
    """The time as an expression, in seconds since 1970: of the server, whose clock all machines share; of a file, this
    machine's."""
    if connection.dialect.name == "postgresql":
        return cast(func.extract("epoch", func.clock_timestamp()), Float(53))
    return literal(time.time())


def database_time(connection: Connection) -> float:
    """The time by the clock of `database_clock`."""
    if connection.dialect.name != "postgresql":
        return time.time()
    return float(connection.execute(select(database_clock(connection))).scalar_one())


def repeatable(*names: str) -> Callable[[type[C]], type[C]]:
    """Names the methods of a class that may be called twice with the same result, each of one transaction: they are
    called again where the connection was lost, or the database has undone the transaction."""
    def mark(owner: type[C]) -> type[C]:
        for name in names:
            setattr(owner, name, repeating(getattr(owner, name)))
        return owner

    return mark


def repeating(method: Callable[P, T]) -> Callable[P, T]:
    """A function that may be called twice; it is called again as `repeatable` says."""
    @wraps(method)
    def call(*given: P.args, **named: P.kwargs) -> T:
        for repeat in range(_REPEATS):
            try:
                return method(*given, **named)
            except TransactionLost:
                time.sleep(min(0.01 * 2**repeat, 1.0))
        return method(*given, **named)

    return call
