"""Opens a ledger in a PostgreSQL database, for several people and machines.

    database = PostgresDatabase(locate("postgresql+psycopg://me@db/aftertune"))

The tables are in the first schema of the search path (``?options=-csearch_path=team`` chooses one), so a database may
have several ledgers.

Writers. SQLite's BEGIN IMMEDIATE lets one writer in at a time, and the ledger relies on it: it looks whether a row is
there and then inserts it, and seals rows that it has read. So each write transaction first takes an advisory lock of
the ledger (pg_advisory_xact_lock, given back by the server at its end, however it ends). It is READ COMMITTED, so that
what it reads after it has the lock is what the writers before it left. With one writer no serialization failure and no
deadlock among ours is possible, and no block must run twice, which a context manager could not do. What runs often and
changes only one evaluation or tuning (a batch, a heartbeat, a step) takes the lock shared and then locks its row
(`hold`), so that many evaluations are written at the same time; writers that add or remove entries wait for them.

Faults. What is committed is on the server's disk (synchronous_commit). A transaction waits for the server where it
begins, for `Database.patience` seconds at most; in its middle it is lost as a whole and raises TransactionLost, and the
methods that may be called twice are (`repeatable`). The same holds for 40001 and 40P01, which other programs can cause.

Bytes are compared as SQLite does: columns have the collation "C".
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError

from aftertune.errors import InputError, ResourceError, StorageError
from aftertune.ledger import migration
from aftertune.ledger.address import DEFAULT, VARIABLE, DatabaseAddress
from aftertune.ledger.database import Database, LedgerFinding, OwnConnections
from aftertune.ledger.faults import LOCK_TIMEOUT, connection_error, has_no_room_yet, is_lost, storage_errors
from aftertune.ledger.schema import HEAD, metadata

#: The oldest server.
OLDEST = 14
#: Seconds that the begin of a transaction waits for a server that was there before; a reader of pages, less.
PATIENCE, _READER_PATIENCE = 120.0, 5.0
#: Seconds without a statement after which the server ends a write transaction: its process was stopped.
_IDLE = 600
#: The first number of our advisory locks; the second is that of the schema.
_LOCK_CLASS = 0x41465455
#: How the driver connects, unless the address says otherwise. A peer that is gone is noticed within a minute.
_CONNECT = {"connect_timeout": 10, "keepalives": 1, "keepalives_idle": 30, "keepalives_interval": 10,
            "keepalives_count": 3, "tcp_user_timeout": 60_000, "application_name": "aftertune"}
#: What every session has, whatever a role or a database sets: numbers with all their digits, and commits that are on
#: the disk.
_SESSION = ("SET extra_float_digits = 1; "
            "SET tcp_keepalives_idle = 60; SET tcp_keepalives_interval = 10; SET tcp_keepalives_count = 6; "
            "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'")


class PostgresDatabase(Database):
    """An open ledger of a server, at the newest schema.

    create: make the tables where there are none (False: an InputError). read_only: the server refuses every change.
    Raises InputError; ResourceError without the driver; StorageError, of which no message has a password.
    """

    def __init__(self, address: DatabaseAddress, *, create: bool = True, read_only: bool = False) -> None:
        self.address = self.place = address
        self.read_only = read_only
        self._own = OwnConnections()
        self._reached = False
        self._lock_key = 0
        self.engine = self._engine()
        try:
            self._open(create and not read_only)
        except BaseException:
            self.engine.dispose()
            raise

    @property
    def patience(self) -> float:
        """Seconds that the begin of a transaction waits for the server."""
        return min(_READER_PATIENCE, PATIENCE) if self.read_only else PATIENCE

    @property
    def folder(self) -> Path:
        """``.aftertune`` in the working directory: the server has no folder of this machine."""
        return DEFAULT.parent.absolute()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that sees one state of the ledger."""
        yield from self._transaction("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")

    @contextmanager
    def write(self, *, within: bool = False) -> Iterator[Connection]:
        """A transaction that is committed at the end of the block, or rolled back if the block raises.

        within: the lock of the ledger is shared; the block locks the row that it changes something of (`hold`).
        """
        if self.read_only:
            raise StorageError(f"{self.place}: the ledger was opened for reading; nothing was written")
        yield from self._transaction(
            f"BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; SET LOCAL lock_timeout = {int(LOCK_TIMEOUT * 1000)}; "
            f"SET LOCAL idle_in_transaction_session_timeout = '{_IDLE}s'; "
            f"SELECT pg_advisory_xact_lock{'_shared' if within else ''}({_LOCK_CLASS}, {self._lock_key})")

    def _transaction(self, begin: str) -> Iterator[Connection]:
        if self._own.lost():
            self.engine.dispose(close=False)
        with storage_errors(self.place):
            connection = self._begun(begin)
            transaction = connection.get_transaction()
            assert transaction is not None
            with connection, transaction:
                yield connection

    def _begun(self, begin: str) -> Connection:
        """A connection with a transaction that has begun. Waits for a server that was there before, or is starting."""
        end, pause = time.monotonic() + self.patience, 0.02
        while True:
            connection: Connection | None = None
            try:
                connection = self.engine.connect()
                self._reached = True
                connection.execution_options(aftertune_begin=begin)
                connection.begin()
                return connection
            except DBAPIError as error:
                lost = is_lost(error)
                waits = lost and (self._reached or has_no_room_yet(error.orig or error))
                if not waits or time.monotonic() >= end:
                    if lost and connection is None:
                        raise connection_error(self.address, error.orig or error) from None
                    raise
                time.sleep(pause)
                pause = min(2 * pause, 1.0)
            finally:
                if connection is not None and not connection.in_transaction():
                    connection.close()

    def _engine(self) -> Engine:
        url = self.address.url
        settings = {key: value for key, value in _CONNECT.items() if key not in url.query}
        settings["client_encoding"] = "utf8"  # PGCLIENTENCODING may say otherwise
        try:
            import_module("psycopg")
        except ImportError as error:  # not installed, or without the library of PostgreSQL
            raise ResourceError(f"a ledger on a PostgreSQL server needs psycopg ({error.msg.splitlines()[0]}): pip "
                                "install 'aftertune[postgres]'") from None
        engine = create_engine(url, connect_args=settings, isolation_level="AUTOCOMMIT", pool_timeout=LOCK_TIMEOUT,
                               hide_parameters=True)

        @event.listens_for(engine, "connect")
        def _settings(connection: Any, _record: Any) -> None:
            with connection.cursor() as cursor:
                cursor.execute(_SESSION + ("; SET default_transaction_read_only = on" if self.read_only else ""))

        @event.listens_for(engine, "begin")
        def _begin(connection: Connection) -> None:  # the driver begins nothing by itself (AUTOCOMMIT)
            connection.exec_driver_sql(connection.get_execution_options()["aftertune_begin"])

        return engine

    def _open(self, create: bool) -> None:
        """Look at the schema, and create or migrate its tables. Raises as the class says."""
        with self.read() as connection:
            version = int(connection.exec_driver_sql("SHOW server_version_num").scalar_one())
            if version < OLDEST * 10_000:
                raise StorageError(f"{self.place}: the server is PostgreSQL {version // 10_000}; aftertune needs "
                                   f"{OLDEST} or newer")
            encoding = str(connection.exec_driver_sql("SHOW server_encoding").scalar_one())
            if encoding != "UTF8":
                raise StorageError(f"{self.place}: the encoding of the database is {encoding}, and texts need UTF8; "
                                   "create another one: createdb --encoding UTF8 --locale C --template template0 NAME")
            key = connection.exec_driver_sql("SELECT current_schema()::regnamespace::oid::bigint").scalar()
            if key is None:
                raise StorageError(f"{self.place}: no schema of the search path exists or may be used; create one, or "
                                   f"name another in {VARIABLE} (?options=-csearch_path%3DNAME)")
            self._lock_key = int(key) - (1 << 32 if int(key) >= 1 << 31 else 0)
            state = self._state(connection)
        if state.revision == HEAD:
            return
        if state.revision is None and not create:
            raise InputError(f"{self.place}: no ledger here yet; run `aftertune eval` or `aftertune tune` first, or "
                             f"set {VARIABLE} to the ledger's address")
        if self.read_only:
            raise StorageError(f"{self.place}: its schema is {state.revision}, and this version of aftertune reads "
                               f"{HEAD}; run `aftertune ledger size ADDRESS` once, which migrates it")
        with self.write() as connection:
            self._state(connection)  # another process may have been faster, and newer
            migration.upgrade(connection)

    def _state(self, connection: Connection) -> migration.State:
        tables = {str(name) for name in connection.exec_driver_sql(
            "SELECT relname FROM pg_class WHERE relkind IN ('r', 'p') AND relnamespace = "
            "current_schema()::regnamespace").scalars()}
        revisions = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalars().all() if \
            "alembic_version" in tables else []
        return migration.known_state(self.place, tables, list(map(str, revisions)))

    def findings(self) -> list[LedgerFinding]:
        """Address, size, version, durability and integrity."""
        with self.read() as connection:
            version, fsync, whole, commit = connection.exec_driver_sql(
                "SELECT current_setting('server_version'), current_setting('fsync'), "
                "current_setting('full_page_writes'), current_setting('synchronous_commit')").one()
            broken = connection.exec_driver_sql(
                "SELECT c.relname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid WHERE c.relnamespace = "
                "current_schema()::regnamespace AND NOT (i.indisvalid AND i.indisready) UNION ALL SELECT conname FROM "
                "pg_constraint WHERE connamespace = current_schema()::regnamespace AND NOT convalidated ORDER BY 1"
                ).scalars().all()
        durable = fsync == whole == "on"
        return [
            LedgerFinding(name="address", value=str(self.place)),
            LedgerFinding(name="size", value=f"{self.total_bytes() / 2**20:.1f} MiB"),
            LedgerFinding(name="server", value=f"PostgreSQL {version.split()[0]}"),
            LedgerFinding(name="durability", value=f"fsync {fsync}, full_page_writes {whole}, synchronous_commit "
                          f"{commit}", problem="" if durable else "a crash of the server's machine may lose or damage "
                          "what was stored", remedy="" if durable else "set fsync = on and full_page_writes = on in "
                          "postgresql.conf"),
            LedgerFinding(name="integrity", value="damaged" if broken else "ok",
                          problem=f"not valid: {', '.join(broken[:3])}" if broken else "",
                          remedy="REINDEX the schema, or restore a backup" if broken else "")]

    def total_bytes(self) -> int:
        """The size of the tables with their indexes."""
        return sum(size or 0 for _, size in self._table_sizes().values())

    def sizes(self) -> dict[str, tuple[int, int | None]]:
        """Table -> its rows and its bytes with its indexes."""
        sizes = self._table_sizes()
        return {name: (rows, sizes.get(name, (0, 0))[1]) for name, rows in self.row_counts().items()}

    def _table_sizes(self) -> dict[str, tuple[int, int]]:
        with self.read() as connection:
            rows = connection.exec_driver_sql(
                "SELECT relname, pg_total_relation_size(oid) FROM pg_class WHERE relkind = 'r' AND relnamespace = "
                "current_schema()::regnamespace ORDER BY relname").all()
        return {str(name): (0, int(size)) for name, size in rows}

    def vacuum(self) -> None:
        """Mark the space of deleted rows as free and count rows again for the planner. Others may read and write."""
        if self._own.lost():
            self.engine.dispose(close=False)
        warned: list[str] = []

        def hear(notice: Any) -> None:
            if notice.severity_nonlocalized == "WARNING":
                warned.append(str(notice.message_primary))

        with storage_errors(self.place), closing(self.engine.raw_connection()) as raw, closing(raw.cursor()) as cursor:
            driver: Any = raw.driver_connection
            driver.add_notice_handler(hear)
            try:
                for name in sorted(metadata.tables):
                    cursor.execute(f'VACUUM (ANALYZE) "{name}"')
            finally:
                driver.remove_notice_handler(hear)
        if warned:  # the server skips the tables of others
            raise StorageError(f"{self.place}: the server left {len(warned)} tables as they were ({warned[0]}); vacuum "
                               "as the user who created them")
