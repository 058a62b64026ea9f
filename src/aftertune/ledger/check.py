"""Checks a ledger for `aftertune doctor`: what its database says of itself, and every entry.

    for finding in ledger.check(): …       LedgerFinding(name="journal", value="wal on ext4", problem="", remedy="")
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from sqlalchemy import Column, func, select

from aftertune.errors import AftertuneError, StorageError
from aftertune.ledger.database import Database, LedgerFinding
from aftertune.ledger.digests import orphans
from aftertune.ledger.evaluations import Evaluations
from aftertune.ledger.labels import EntryLabels
from aftertune.ledger.records import Comparisons, Drifts, ReportedScores, Studies, Tunings
from aftertune.ledger.schema import HEAD, comparison, drift, evaluation, study, tuning

#: The most damaged entries that are named.
_NAMED = 20
#: What to do about an entry that cannot be read.
_REMEDY = ("restore a backup of the ledger; without one, remove a damaged entry with `aftertune rm ID` and run "
           "its command again, or begin a new ledger (AFTERTUNE_LEDGER)")


def findings(database: Database) -> list[LedgerFinding]:
    """What the database says of itself; the schema, damaged entries, and the number of evaluations."""
    return [
        *database.findings(),
        LedgerFinding(name="schema", value=HEAD),
        *_entries(database),
        LedgerFinding(name="evaluations", value=str(_count(database))),
    ]


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
