"""Opens a ledger in a SQLite file: chooses the library and the journal mode, and runs transactions.

    database = SqliteDatabase(path)
    with database.write() as connection: …       one BEGIN IMMEDIATE transaction, all or nothing
    with database.read() as connection: …        one snapshot
    SqliteDatabase(path, create=False, read_only=True)  changes nothing, and waits for a lock for seconds only

Why BEGIN IMMEDIATE: a deferred transaction that reads and then writes fails at once when another process
wrote in between, and the busy timeout does not cover that. Why not always WAL: SQLite 3.7.0 to 3.51.2 can
corrupt a database in WAL mode (the WAL-reset bug; fixed in 3.51.3, 3.50.7 and 3.44.6), and WAL needs shared
memory, which network file systems lack; the rollback journal is slower and safe in both.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import quote

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL
from sqlalchemy.exc import OperationalError

from aftertune.errors import InputError, StorageError
from aftertune.ledger import migration
from aftertune.ledger.address import VARIABLE
from aftertune.ledger.database import Database, LedgerFinding, OwnConnections
from aftertune.ledger.faults import LOCK_TIMEOUT, storage_error, storage_errors
from aftertune.ledger.schema import HEAD

#: The first version of SQLite without the WAL-reset bug, except for older patch releases.
FIXED_SQLITE = (3, 51, 3)

#: Settings with which a commit returns only when its rows are on the disk.
DURABLE: tuple[str, ...] = ("synchronous=FULL", "fullfsync=ON")
_LARGE = 4 << 30  # bytes
#: Seconds of one wait for a lock.
_WAIT = 0.25
#: Seconds that a reader without write access waits for a writer: someone looks at an empty page so long.
_READ_TIMEOUT = 5.0

_NETWORK = ("nfs", "cifs", "smb", "9p", "lustre", "gpfs", "beegfs", "ceph", "afs", "glusterfs", "pvfs",
            "orangefs", "panfs", "virtiofs", "fuse.", "macfuse", "osxfuse", "afpfs", "webdav", "davfs")


class SqliteDatabase(Database):
    """An open ledger file, migrated to the newest schema. Raises InputError or StorageError.

    create: make a missing file (False: a missing file is an InputError). module: the DBAPI module. read_only: SQLite
    refuses every change; a ledger with an older schema is a StorageError, because it would have to be migrated.
    """

    def __init__(self, path: Path, *, create: bool = True, module: ModuleType | None = None,
                 read_only: bool = False) -> None:
        self.path = self.place = path
        self.module = module or driver()
        self.read_only = read_only
        self._lock = threading.RLock()
        self._own = OwnConnections()
        self._prepare_folder(create and not read_only)
        state = migration.inspect_file(self.path, self.module, timeout=self.timeout)
        if read_only and state.revision != HEAD:
            raise StorageError(f"{self.path}: its schema is {state.revision or 'empty'}, and this version of aftertune "
                               f"reads {HEAD}; run `aftertune ledger size {shlex.quote(str(path))}` once, which "
                               "migrates it and keeps a copy")
        self.engine = self._engine()
        try:
            with storage_errors(self.path):
                self.journal = "" if read_only else self._choose_journal()
                if not read_only:
                    migration.migrate(migration.Target(self.path, self.module, self.migrate), state)
        except BaseException:
            self.engine.dispose()
            raise

    @property
    def timeout(self) -> float:
        """Seconds that a transaction waits for one of another process."""
        return min(_READ_TIMEOUT, LOCK_TIMEOUT) if self.read_only else LOCK_TIMEOUT

    @property
    def folder(self) -> Path:
        """The folder of the file."""
        return self.path.parent

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that sees one state of the ledger."""
        self._own_connections()
        with storage_errors(self.path), self.engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def write(self, *, within: bool = False) -> Iterator[Connection]:  # noqa: ARG002
        """A transaction that is committed at the end of the block, or rolled back if the block raises. SQLite has one
        writer at a time in any case."""
        if self.read_only:
            raise StorageError(f"{self.path}: the ledger was opened for reading; nothing was written")
        self._own_connections()
        with self._lock, storage_errors(self.path), self.engine.connect() as connection:
            connection.execution_options(aftertune_write=True)
            with connection.begin():
                yield connection

    @contextmanager
    def migrate(self) -> Iterator[Connection]:
        """A write transaction without checks of references: a migration that rebuilds a table drops the old one, and
        this must not delete the rows that refer to it."""
        with self._lock, storage_errors(self.path), self.engine.connect() as connection:
            raw: Any = connection.connection.dbapi_connection
            raw.execute("PRAGMA foreign_keys=OFF")
            try:
                connection.execution_options(aftertune_write=True)
                with connection.begin():
                    yield connection
            finally:
                raw.execute("PRAGMA foreign_keys=ON")

    @property
    def library(self) -> tuple[int, ...]:
        """Version of the SQLite library in use."""
        return tuple(self.module.sqlite_version_info)

    def findings(self) -> list[LedgerFinding]:
        """Path, size, SQLite library, journal mode, file system and integrity."""
        size = self.total_bytes()
        return [
            LedgerFinding(name="path", value=str(self.path)),
            LedgerFinding(name="size", value=f"{size / 2**20:.1f} MiB",
                          problem=f"larger than {_LARGE >> 30} GiB" if size > _LARGE else "",
                          remedy="delete evaluations that are no longer needed, then `aftertune ledger vacuum`"
                          if size > _LARGE else ""),
            _library(self), _journal(self), _integrity(self)]

    def total_bytes(self) -> int:
        """The size of the file."""
        return self.path.stat().st_size

    def sizes(self) -> dict[str, tuple[int, int | None]]:
        """Table -> its rows and its bytes with its indexes, where the library can count them (dbstat)."""
        counted: dict[str, int] = {}
        with contextlib.suppress(StorageError), self.read() as connection:
            counted = {str(name): int(size) for name, size in connection.exec_driver_sql(
                "SELECT s.tbl_name, SUM(d.pgsize) FROM dbstat d JOIN sqlite_schema s ON s.name = d.name GROUP BY 1")}
        return {name: (rows, counted.get(name)) for name, rows in self.row_counts().items()}

    def vacuum(self) -> None:
        """Write the file again without the space of deleted rows. Needs as much free space as the ledger has."""
        self._own_connections()
        with self._lock, storage_errors(self.path), closing(
                self.module.connect(str(self.path), timeout=self.timeout, isolation_level=None)) as raw:
            try:
                raw.execute("VACUUM")
                raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            except self.module.Error as error:
                raise storage_error(self.path, error) from None

    def _own_connections(self) -> None:
        """A SQLite connection must not be used across a fork: a child process opens its own."""
        if self._own.lost():
            self.engine.dispose(close=False)
            self._lock = threading.RLock()

    def _prepare_folder(self, create: bool) -> None:
        if self.path.is_dir():
            raise InputError(f"{self.path}: is a folder, but the ledger is a file; give a file in it, "
                             f"for example {self.path / 'ledger.db'}")
        if not self.path.exists() and not create:
            raise InputError(f"{self.path}: no ledger here yet; run `aftertune eval` or `aftertune tune` "
                             f"first, or set {VARIABLE} to the ledger's path")
        if self.read_only:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"{self.path.parent}: the ledger's folder cannot be created ({error.strerror}); "
                               f"set {VARIABLE} to a path in a writable folder") from None
        blocked = next((p for p in (self.path.parent, self.path)
                        if p.exists() and not os.access(p, os.R_OK | os.W_OK)), None)
        if blocked is not None:
            raise StorageError(f"{blocked}: no permission to read and write, which the ledger {self.path.name} "
                               f"needs; change its permissions, or set {VARIABLE} to a path in a writable "
                               "folder")

    def _engine(self) -> Engine:
        # mode=rw: a file that was removed is not made again; a rollback journal that a kill left is rolled back
        url = URL.create("sqlite", database=f"file:{quote(str(self.path))}", query={"mode": "rw", "uri": "true"}) if \
            self.read_only else URL.create("sqlite", database=str(self.path))
        engine = create_engine(url, module=self.module,
                               connect_args={"timeout": self.timeout, "isolation_level": None})

        @event.listens_for(engine, "connect")
        def _settings(connection: Any, _record: Any) -> None:
            for pragma in ("foreign_keys=ON", *DURABLE, *(("query_only=ON",) if self.read_only else ())):
                connection.execute(f"PRAGMA {pragma}")

        @event.listens_for(engine, "begin")
        def _begin(connection: Connection) -> None:
            writes = connection.get_execution_options().get("aftertune_write", False)
            begin = ["BEGIN IMMEDIATE"] if writes else ["BEGIN", "SELECT 1 FROM sqlite_master LIMIT 1"]
            self._begin(connection, begin)

        return engine

    def _begin(self, connection: Connection, statements: Iterable[str]) -> None:
        """Begin a transaction with the lock that it needs. SQLite waits without looking for Ctrl-C, so each of its
        waits is short."""
        raw: Any = connection.connection.dbapi_connection
        end = time.monotonic() + self.timeout
        raw.execute(f"PRAGMA busy_timeout={int(1000 * min(_WAIT, self.timeout))}")
        try:
            while True:
                try:
                    for statement in statements:
                        connection.exec_driver_sql(statement)
                    return
                except OperationalError as error:
                    if raw.in_transaction:
                        raw.rollback()
                    if time.monotonic() >= end or not _is_busy(error):
                        raise
        finally:
            raw.execute(f"PRAGMA busy_timeout={int(1000 * self.timeout)}")

    def _choose_journal(self) -> str:
        """Set WAL where it is safe, else the rollback journal; returns the mode that the file is in.

        A change needs exclusive access for a moment; the mode is not changed while other connections are open.
        """
        wanted = "wal" if not has_wal_reset_bug(self.library) and not on_network(self.path) else "delete"
        try:
            raw = self.module.connect(str(self.path), timeout=LOCK_TIMEOUT, isolation_level=None)
        except self.module.Error as error:
            raise storage_error(self.path, error) from None
        try:
            mode = str(raw.execute("PRAGMA journal_mode").fetchone()[0])
            raw.execute("PRAGMA busy_timeout=250")
            for wait in (0.01, 0.05, 0.2, 1.0):
                if mode == wanted:
                    break
                try:
                    mode = str(raw.execute(f"PRAGMA journal_mode={wanted}").fetchone()[0])
                except self.module.OperationalError as error:
                    if "locked" not in str(error):
                        raise
                    time.sleep(wait)
            return mode
        except self.module.Error as error:
            raise storage_error(self.path, error) from None
        finally:
            raw.close()


def _is_busy(error: OperationalError) -> bool:
    """True where another process has the lock."""
    return str(getattr(error.orig, "sqlite_errorname", "")).startswith("SQLITE_BUSY")


@cache
def driver() -> ModuleType:
    """The DBAPI module: pysqlite3 if it is installed and has no WAL-reset bug, else sqlite3."""
    try:
        module = import_module("pysqlite3.dbapi2")
    except ImportError:
        return sqlite3
    return module if tuple(module.sqlite_version_info) >= FIXED_SQLITE else sqlite3


def has_wal_reset_bug(version: tuple[int, ...]) -> bool:
    """True for the SQLite libraries that can corrupt a database in WAL mode."""
    fixed = version >= FIXED_SQLITE or (3, 50, 7) <= version < (3, 51) or (3, 44, 6) <= version < (3, 45)
    return version >= (3, 7) and not fixed


def on_network(path: Path) -> bool:
    """True if ``path`` is on a network file system, which has no memory that processes can share."""
    return file_system(path).startswith(_NETWORK)


def file_system(path: Path) -> str:
    """Name of the file system that holds ``path`` ("ext4", "nfs4", "apfs"), or "" if it is unknown."""
    import psutil

    folder = path.parent.resolve()
    mounts = {Path(p.mountpoint): p.fstype for p in psutil.disk_partitions(all=True)}
    return next((mounts[p] for p in (folder, *folder.parents) if p in mounts), "").lower()


def _library(database: SqliteDatabase) -> LedgerFinding:
    version = f"{'.'.join(map(str, database.library))} ({database.module.__name__.partition('.')[0]})"
    if not has_wal_reset_bug(database.library):
        return LedgerFinding(name="sqlite", value=version)
    return LedgerFinding(name="sqlite", value=version, remedy="pip install 'pysqlite3>=0.6.1'",
                         problem="this version can corrupt a database in WAL mode; the slower rollback journal is used "
                                 "instead")


def _journal(database: SqliteDatabase) -> LedgerFinding:
    mode, kind = database.journal, file_system(database.path) or "unknown file system"
    value = f"{mode} on {kind}"
    if mode == "wal" and has_wal_reset_bug(database.library):
        return LedgerFinding(name="journal", value=value,
                             problem="the ledger is in WAL mode, which this version of SQLite can corrupt",
                             remedy="close the other processes that use this ledger, then run the command again")
    if on_network(database.path):
        return LedgerFinding(name="journal", value=value,
                             problem="the ledger is on a network file system, whose locks are often unreliable",
                             remedy="set AFTERTUNE_LEDGER to a path on a local disk")
    return LedgerFinding(name="journal", value=value)


def _integrity(database: SqliteDatabase) -> LedgerFinding:
    """SQLite's check of the whole file and of every reference."""
    try:
        with database.read() as connection:
            messages = [str(r[0]) for r in connection.exec_driver_sql("PRAGMA integrity_check(3)")]
            broken = connection.exec_driver_sql("PRAGMA foreign_key_check").fetchmany(3)
    except StorageError as error:
        messages, broken = [str(error)], []
    if messages == ["ok"] and not broken:
        return LedgerFinding(name="integrity", value="ok")
    problem = "; ".join(messages if messages != ["ok"] else [f"broken reference {tuple(b)}" for b in broken])
    return LedgerFinding(name="integrity", value="damaged", problem=" ".join(problem.split()),
                         remedy="restore a backup, or save what `sqlite3 FILE .recover` finds")
