"""Checks a ledger for `aftertune doctor`: file, SQLite library, journal mode and integrity.

    for finding in ledger.check(): …       LedgerFinding(name="journal", value="wal on ext4", problem="", remedy="")
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import func, select

from aftertune.errors import StorageError
from aftertune.ledger.database import Database, file_system, has_wal_reset_bug, on_network
from aftertune.ledger.schema import HEAD, evaluation

_LARGE = 4 << 30  # bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerFinding:
    """One fact about the ledger. problem: what is wrong, or ""; remedy: what to do about it, or ""."""

    name: str
    value: str
    problem: str = ""
    remedy: str = ""


def findings(database: Database) -> list[LedgerFinding]:
    """Path, size, SQLite library, journal mode, file system, schema, integrity, number of evaluations."""
    size = database.path.stat().st_size
    return [
        LedgerFinding(name="path", value=str(database.path)),
        LedgerFinding(name="size", value=f"{size / 2**20:.1f} MiB",
                      problem=f"larger than {_LARGE >> 30} GiB" if size > _LARGE else "",
                      remedy="delete evaluations that are no longer needed" if size > _LARGE else ""),
        _library(database),
        _journal(database),
        LedgerFinding(name="schema", value=HEAD),
        _integrity(database),
        LedgerFinding(name="evaluations", value=str(_count(database))),
    ]


def _library(database: Database) -> LedgerFinding:
    version = f"{'.'.join(map(str, database.library))} ({database.module.__name__.partition('.')[0]})"
    if not has_wal_reset_bug(database.library):
        return LedgerFinding(name="sqlite", value=version)
    return LedgerFinding(name="sqlite", value=version, remedy="pip install 'pysqlite3>=0.6.1'",
                         problem="this version can corrupt a database in WAL mode; the slower rollback journal is used "
                                 "instead")


def _journal(database: Database) -> LedgerFinding:
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


def _integrity(database: Database) -> LedgerFinding:
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


def _count(database: Database) -> int:
    try:
        with database.read() as connection:
            return int(connection.execute(select(func.count()).select_from(evaluation)).scalar_one())
    except StorageError:
        return 0
