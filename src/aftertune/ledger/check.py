"""Checks a ledger for `aftertune doctor`: file, SQLite library, journal mode, integrity, and every entry.

    for finding in ledger.check(): …       LedgerFinding(name="journal", value="wal on ext4", problem="", remedy="")
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Column, func, select

from aftertune.errors import AftertuneError, StorageError
from aftertune.ledger.database import Database, file_system, has_wal_reset_bug, on_network
from aftertune.ledger.digests import orphans
from aftertune.ledger.evaluations import Evaluations
from aftertune.ledger.labels import EntryLabels
from aftertune.ledger.records import Comparisons, Drifts, ReportedScores, Studies, Tunings
from aftertune.ledger.schema import HEAD, comparison, drift, evaluation, study, tuning

_LARGE = 4 << 30  # bytes
#: The most damaged entries that are named.
_NAMED = 20
#: What to do about an entry that cannot be read.
_REMEDY = ("restore a backup of the ledger; without one, remove a damaged entry with `aftertune rm ID` and run "
           "its command again, or begin a new ledger (AFTERTUNE_LEDGER)")


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
        *_entries(database),
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


def _entries(database: Database) -> list[LedgerFinding]:
    """Reads every entry as the other verbs do. One finding for each that is damaged, or one that all are whole."""
    damaged = list(_unreadable(database))
    if not damaged:
        return [LedgerFinding(name="entries", value="ok")]
    more = f"{len(damaged)} damaged entries; the first {_NAMED} are listed" if len(damaged) > _NAMED else "damaged"
    return [LedgerFinding(name="entries", value=more, problem=problem, remedy=_REMEDY) for problem in damaged[:_NAMED]]


def _unreadable(database: Database) -> Iterator[str]:
    """Each entry that cannot be read, and why."""
    evaluations = Evaluations(database)
    comparisons, tunings, studies = Comparisons(database), Tunings(database), Studies(database)
    readers: list[tuple[Column[Any], list[Callable[[str], object]]]] = [
        (evaluation.c.id, [evaluations.find_evaluation, evaluations.check_answers]),
        (tuning.c.id, [tunings.find_tuning]),
        (comparison.c.id, [comparisons.find_comparison]),
        (drift.c.id, [Drifts(database).find_drift]),
        (study.c.name, [studies.cells])]
    for column, functions in readers:
        try:
            keys = _keys(database, column)
        except StorageError as error:
            yield f"table {column.table.name}: {error}"
            continue
        for key in keys:
            for read in functions:
                try:
                    read(key)
                except AftertuneError as error:
                    name = f"{column.table.name} {key}"
                    yield str(error) if name in str(error) else f"{name}: {error}"
                    break
    try:
        with database.read() as connection:
            yield from orphans(connection)
    except AftertuneError as error:
        yield str(error)
    for name, read_all in (("reported scores", ReportedScores(database).reported), ("studies", studies.studies),
                           ("labels", EntryLabels(database).labels)):
        try:
            read_all()
        except AftertuneError as error:
            yield f"{name}: {error}"


def _keys(database: Database, column: Column[Any]) -> list[str]:
    """The values of a column of ids or names. StorageError where one of them is no text."""
    with database.read() as connection:
        keys = connection.execute(select(column).order_by(column)).scalars().all()
    if None in keys:
        raise StorageError(f"a row has no {column.name}")
    return list(keys)


def _count(database: Database) -> int:
    try:
        with database.read() as connection:
            return int(connection.execute(select(func.count()).select_from(evaluation)).scalar_one())
    except StorageError:
        return 0
