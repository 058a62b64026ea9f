"""Stores every result: models, tunings, items, evaluations, answers, scores, comparisons, drift, studies.

    with Ledger() as ledger:                                    # .aftertune/ledger.db, or AFTERTUNE_LEDGER
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

from aftertune.ledger.check import LedgerFinding, findings
from aftertune.ledger.database import Database, locate
from aftertune.ledger.finished import FinishedEvaluations
from aftertune.ledger.labels import EntryLabel, EntryLabels, Removal
from aftertune.ledger.listing import ARCHIVED, EntryPage, EntryQuery, EntryRow, Listing
from aftertune.ledger.questions import Questions
from aftertune.ledger.ranges import SharedEvaluations
from aftertune.ledger.records import Drifts, ReportedScores, StoredCell, StoredStudy, Studies
from aftertune.ledger.running import RunningEntry
from aftertune.ledger.searching import Entries, EntryKind, Search, title_of
from aftertune.ledger.staging import StagedRows, Staging

__all__ = ["ARCHIVED", "Entries", "EntryKind", "EntryLabel", "EntryPage", "EntryQuery", "EntryRow", "Ledger",
           "LedgerFinding", "Removal", "RunningEntry", "StagedRows", "Staging", "StoredCell", "StoredStudy", "locate",
           "title_of"]


class Ledger(Search, FinishedEvaluations, SharedEvaluations, Listing, Questions, Drifts, ReportedScores, Studies,
             EntryLabels):
    """An open ledger; a missing one is created, an older one is migrated. Threads and forked processes may share it.

    where: a path or a ``sqlite:///PATH`` URL; None: AFTERTUNE_LEDGER, else ``.aftertune/ledger.db``. create: with False
    a missing file is an InputError. take_over: take evaluations from processes of other machines, which must have ended
    (only their leases' age says whether they run).

    Raises StorageError if the file is not a ledger, is newer than this program, is locked or cannot be written, and
    InputError for an address that does not name a SQLite file.
    """

    def __init__(self, where: str | os.PathLike[str] | None = None, *, create: bool = True,
                 take_over: bool = False, read_only: bool = False) -> None:
        super().__init__(Database(where, create=create, read_only=read_only))
        self.take_over = take_over

    def check(self) -> list[LedgerFinding]:
        """Facts and problems of the ledger, for `aftertune doctor`; reads the whole file."""
        return findings(self.database)

    def close(self) -> None:
        """Close the file; the last connection merges the write-ahead log into it."""
        self.database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()
