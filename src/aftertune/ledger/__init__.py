"""Stores every result: models, tunings, items, evaluations, answers, scores, comparisons, drift, studies.

    with Ledger() as ledger:                # .aftertune/ledger.db, or the file or server of AFTERTUNE_LEDGER
        evaluation = ledger.open_evaluation(evaluation, items)
        ledger.save_batch(evaluation.id, 0, {0: Response(logprob=-3.2, greedy=False)})
        evaluation = ledger.finish_evaluation(evaluation, answers, positions)

Only this package uses a database. Every write is one transaction: when the call returns, it is on disk; when it raises,
nothing was changed. A failed write raises a StorageError with a one-line message.
"""

from __future__ import annotations

import os
from types import TracebackType
from typing import Self

from aftertune.ledger.address import DatabaseAddress, StoredAt, locate
from aftertune.ledger.check import findings
from aftertune.ledger.database import Database, LedgerFinding
from aftertune.ledger.finished import FinishedEvaluations
from aftertune.ledger.labels import EntryLabel, EntryLabels, Removal
from aftertune.ledger.listing import ARCHIVED, EntryPage, EntryQuery, EntryRow, Listing
from aftertune.ledger.questions import Questions
from aftertune.ledger.ranges import SharedEvaluations
from aftertune.ledger.records import Drifts, ReportedScores, StoredCell, StoredStudy, Studies
from aftertune.ledger.running import RunningEntry
from aftertune.ledger.searching import Entries, EntryKind, Search, title_of
from aftertune.ledger.sqlite import SqliteDatabase
from aftertune.ledger.staging import StagedRows, Staging

__all__ = [
    "ARCHIVED",
    "DatabaseAddress",
    "Entries",
    "EntryKind",
    "EntryLabel",
    "EntryPage",
    "EntryQuery",
    "EntryRow",
    "Ledger",
    "LedgerFinding",
    "Removal",
    "RunningEntry",
    "StagedRows",
    "Staging",
    "StoredAt",
    "StoredCell",
    "StoredStudy",
    "locate",
    "title_of",
]


class Ledger(Search, FinishedEvaluations, SharedEvaluations, Listing, Questions, Drifts, ReportedScores, Studies,
             EntryLabels):
    """An open ledger; a missing one is created, an older one is migrated. Threads and forked processes may share it.

    where: a path, or a URL ``sqlite:///PATH`` or ``postgresql+psycopg://USER@HOST/DATABASE``; None: AFTERTUNE_LEDGER,
    else ``.aftertune/ledger.db``. create: with False a missing ledger is an InputError. take_over: take evaluations
    from processes of other machines, which must have ended (only their leases' age says whether they run).

    Raises StorageError if it is not a ledger, is newer than this program, is locked or cannot be reached or written,
    InputError for an address that names neither a file nor a database, and ResourceError where a server is named and
    its driver is not installed.
    """

    def __init__(self, where: str | os.PathLike[str] | DatabaseAddress | None = None, *, create: bool = True,
                 take_over: bool = False, read_only: bool = False) -> None:
        super().__init__(open_database(where, create=create, read_only=read_only))
        self.take_over = take_over

    def check(self) -> list[LedgerFinding]:
        """Facts and problems of the ledger, for `aftertune doctor`; reads the whole file."""
        return findings(self.database)

    def close(self) -> None:
        """Close the connections; of a file, the last one merges the write-ahead log into it."""
        self.database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()


def open_database(where: str | os.PathLike[str] | DatabaseAddress | None, *, create: bool = True,
                  read_only: bool = False) -> Database:
    """The database of a ledger. Raises as `Ledger`."""
    place = locate(where)
    if isinstance(place, DatabaseAddress):
        from aftertune.ledger.postgres import PostgresDatabase

        return PostgresDatabase(place, create=create, read_only=read_only)
    return SqliteDatabase(place, create=create, read_only=read_only)
