"""Stores every result: models, tunings, items, evaluations, answers, scores, comparisons, studies.

    with Ledger() as ledger:                                    # .aftertune/ledger.db, or AFTERTUNE_LEDGER
        evaluation = ledger.open_evaluation(evaluation, items)
        ledger.save_batch(evaluation.id, 0, {0: Response(logprob=-3.2, greedy=False)})
        evaluation = ledger.finish_evaluation(evaluation, answers, positions)

Only this package uses a database. Every write is one transaction: when the call returns it is on disk, and when it
raises nothing was changed. A failed write is a StorageError in one line.
"""

from __future__ import annotations

import os
from types import TracebackType
from typing import Self

from aftertune.ledger.check import LedgerProblem, findings
from aftertune.ledger.database import Database, locate
from aftertune.ledger.evaluations import Evaluations
from aftertune.ledger.lease import Leases
from aftertune.ledger.records import Comparisons, ReportedScores, StoredCell, StoredStudy, Studies, Tunings

__all__ = ["Ledger", "LedgerProblem", "StoredCell", "StoredStudy", "locate"]


class Ledger(Evaluations, Leases, Tunings, Comparisons, ReportedScores, Studies):
    """An open ledger; a missing one is created, an older one is migrated.

    where: a path or a ``sqlite:///PATH`` URL; None takes AFTERTUNE_LEDGER, else ``.aftertune/ledger.db``.
    create: False makes a missing file an InputError. Threads and forked processes may share it.

    Raises StorageError where the file is not a ledger, is newer than this program, is locked or cannot be
    written, and InputError for an address that names no SQLite file.
    """

    def __init__(self, where: str | os.PathLike[str] | None = None, *, create: bool = True) -> None:
        super().__init__(Database(where, create=create))

    def check(self) -> list[LedgerProblem]:
        """What the ledger is and what is wrong with it (`aftertune doctor`); reads the whole file."""
        return findings(self.database)

    def close(self) -> None:
        """Close the file; with the last connection the write-ahead log is folded into it."""
        self.database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()
