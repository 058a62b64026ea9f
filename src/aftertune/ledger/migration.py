"""Brings a ledger to the newest schema; a database that this program does not understand stays unchanged.

    new               the tables of `schema.metadata`, stamped with the newest revision, in one transaction
    older schema      the missing migrations in one transaction, checks; before, of a file, a copy beside it
                      (ledger.db.0001.bak)
    newer schema, another program's database, not a database      StorageError; nothing is changed

A change of the schema is made twice: in `schema.metadata`, which new ledgers are made from, and in a script in
``migrations/versions``, which changes existing ledgers. A script imports nothing of the program, so it still does the
same when the schema has moved on; a test compares a migrated ledger with a new one. Scripts from 0006 on run on both
databases, so they have no PRAGMA, and a text column is
``sa.Text().with_variant(sa.Text(collation="C"), "postgresql")``.
"""

from __future__ import annotations

import filecmp
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import quote

from sqlalchemy import Connection, inspect, text

from aftertune import __version__
from aftertune.errors import StorageError
from aftertune.ledger.address import StoredAt
from aftertune.ledger.faults import ADVICE, LOCK_TIMEOUT, storage_error
from aftertune.ledger.schema import HEAD, metadata

SCRIPTS = Path(__file__).parent / "migrations"
_SMALLEST = 512  # bytes of the smallest database


@dataclass(frozen=True)
class State:
    """What a file holds. revision: its schema, None for an empty or absent file."""

    revision: str | None


def inspect_file(path: Path, module: ModuleType, head: str = HEAD, *, timeout: float = LOCK_TIMEOUT) -> State:
    """Inspect a ledger without changing it. Raises StorageError if this program must not open it. timeout: seconds to
    wait for a lock of another process.

    SQLite alone opens the file: to open and close it by other means would drop the locks that another
    connection of this process holds (POSIX locks belong to the process).
    """
    if not path.exists() or path.stat().st_size == 0:
        return State(None)
    if path.stat().st_size < _SMALLEST:  # SQLite would take it for an empty database and write over it
        raise StorageError(f"{path}: {ADVICE['NOTADB']}")
    try:
        tables, revisions = _look(path, module, timeout)
    except (module.Error, UnicodeDecodeError) as error:
        raise storage_error(path, error) from None
    return known_state(path, tables, revisions, head)


def known_state(place: StoredAt, tables: set[str], revisions: list[str], head: str = HEAD) -> State:
    """The state of a database with these tables and these rows of alembic's version table. StorageError where it is
    another program's, or newer."""
    file = isinstance(place, Path)
    other = "another path" if file else "another database or schema"
    if not tables:
        return State(None)
    if "alembic_version" not in tables or not {"evaluation", "response"} <= tables:
        raise StorageError(f"{place}: a {'SQLite database' if file else 'schema'} of another program (its tables: "
                           f"{', '.join(sorted(tables)[:4])}); it was not changed: set AFTERTUNE_LEDGER to {other}")
    revision = revisions[0] if len(revisions) == 1 else "+".join(revisions) or "none"
    if revision not in known_revisions(head):
        raise StorageError(f"{place}: written by a newer aftertune: its schema is {revision}, but this version "
                           f"({__version__}) supports up to {head}; the {'file' if file else 'ledger'} was not "
                           f"changed: upgrade aftertune, or set AFTERTUNE_LEDGER to {other}")
    return State(revision)


def known_revisions(head: str = HEAD) -> list[str]:
    """Every revision up to ``head``: they are numbered 0001, 0002, …"""
    return [f"{n:04d}" for n in range(1, int(head) + 1)]


@dataclass(frozen=True)
class Target:
    """An open ledger to migrate. module: its DBAPI module; transaction: begins a write transaction without checks of
    references (`Database.migrate`)."""

    path: Path
    module: ModuleType
    transaction: Callable[[], AbstractContextManager[Connection]]


def migrate(target: Target, state: State, *, scripts: Path = SCRIPTS, head: str = HEAD) -> None:
    """Bring an open ledger from ``state`` to ``head``: completely or not at all."""
    if state.revision == head:
        return
    backup = _back_up(target, state.revision) if state.revision is not None else None
    try:
        with target.transaction() as connection:
            if upgrade(connection, scripts, head):
                _verify_references(connection)
    except Exception as error:
        if backup is None:
            raise
        raise StorageError(f"{target.path}: the migration from schema {state.revision} to {head} failed "
                           f"and was undone ({' '.join(str(error).split())[:200]}); the ledger is unchanged, "
                           f"with a backup in {backup}") from error


def upgrade(connection: Connection, scripts: Path = SCRIPTS, head: str = HEAD) -> bool:
    """Create the tables, or run the missing migrations, in a write transaction; False where another process was
    faster."""
    revision = _revision(connection)
    if revision == head:
        return False
    if revision is None:
        metadata.create_all(connection)
    _run(connection, scripts, head, stamp=revision is None)
    _verify(connection, head)
    return True


def _look(path: Path, module: ModuleType, timeout: float) -> tuple[set[str], list[str]]:
    """Names of the tables, and the rows of alembic's version table; nothing is written."""
    hot = path.with_name(path.name + "-journal")  # left by a kill: only a writer may roll it back
    mode = "rw" if hot.exists() and hot.stat().st_size else "ro"
    uri = f"file:{quote(str(path))}?mode={mode}"
    with closing(module.connect(uri, uri=True, timeout=timeout)) as raw:
        rows = raw.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        tables = {str(row[0]) for row in rows if not str(row[0]).startswith("sqlite_")}
        if "alembic_version" not in tables:
            return tables, []
        rows = raw.execute("SELECT version_num FROM alembic_version").fetchall()
        return tables, [str(row[0]) for row in rows]


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def _run(connection: Connection, scripts: Path, head: str, *, stamp: bool) -> None:
    """Run alembic's scripts up to ``head`` inside our transaction; stamp: only write that the file is at ``head``."""
    from alembic.config import Config
    from alembic.runtime.environment import EnvironmentContext
    from alembic.script import ScriptDirectory

    script = ScriptDirectory(str(scripts))

    def steps(revision: Any, _context: Any) -> Any:
        return script._stamp_revs(head, revision) if stamp else script._upgrade_revs(head, revision)

    with EnvironmentContext(Config(), script, fn=steps) as environment:
        environment.configure(connection=connection, target_metadata=metadata, render_as_batch=True)
        environment.run_migrations()


def _verify(connection: Connection, head: str) -> None:
    """The ledger says ``head`` and has every table of the schema."""
    missing = set(metadata.tables) - set(inspect(connection).get_table_names())
    revision = _revision(connection)
    if missing or revision != head:
        raise StorageError(f"after the migration the schema is {revision}, expected {head}; missing tables: "
                           f"{', '.join(sorted(missing)) or 'none'}")


def _verify_references(connection: Connection) -> None:
    """The file passes SQLite's own check."""
    problems = connection.exec_driver_sql("PRAGMA foreign_key_check").fetchmany(3)
    if problems:
        raise StorageError(f"after the migration references are broken: {[tuple(p) for p in problems]}")


def _back_up(target: Target, revision: str) -> Path:
    """A consistent copy beside the ledger, with what the write-ahead log holds; never over another file.

    It has its name once it is complete. A copy of the same content, which a migration that was killed has left, is used
    again.
    """
    from aftertune.sources.cache import remove_path, temporary_path

    first = target.path.with_name(f"{target.path.name}.{revision}.bak")
    temporary, module = temporary_path(first), target.module
    try:
        with closing(module.connect(str(target.path), timeout=LOCK_TIMEOUT)) as source, \
                closing(module.connect(str(temporary))) as opened:
            source.backup(opened)
        number, copy = 0, first
        while copy.exists():
            if filecmp.cmp(temporary, copy, shallow=False):
                return copy
            number += 1
            copy = target.path.with_name(f"{target.path.name}.{revision}.{number}.bak")
        temporary.rename(copy)
    except (module.Error, OSError) as error:
        raise StorageError(f"{first}: the backup before the migration failed ({error}); the ledger is "
                           "unchanged: free some space and run the command again") from None
    finally:
        for name in (temporary.name, f"{temporary.name}-journal"):
            remove_path(temporary.with_name(name))
    return copy
