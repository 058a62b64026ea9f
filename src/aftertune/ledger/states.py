"""Whether a process still works on an entry that says "running".

    evaluation_state(evaluation, ledger.held())       "done", "running", "interrupted" or "failed"
    tuning_state(tuning)                              the same
    check_free(ledger, entry)                         ResourceError where a process works on it

An evaluation has a lease in the ledger (`aftertune.ledger.lease`); a tuning has a lock in its output folder.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from aftertune.errors import ResourceError
from aftertune.values import Comparison, Evaluation, Tuning

if TYPE_CHECKING:
    from aftertune.ledger import Ledger


def evaluation_state(evaluation: Evaluation, held: Collection[str]) -> str:
    """Its status; "interrupted" where no process works on it any more. held: ids of those that are worked on."""
    return "interrupted" if evaluation.status == "running" and evaluation.id not in held else evaluation.status


def tuning_state(tuning: Tuning) -> str:
    """Its status; "interrupted" where no process of this machine trains it any more."""
    from aftertune.sources.folder_lock import try_folder_lock

    if tuning.status != "running":
        return tuning.status
    with try_folder_lock(Path(tuning.output)) as free:
        return "interrupted" if free else "running"


def check_free(ledger: Ledger, entry: Evaluation | Tuning | Comparison) -> None:
    """ResourceError where a process works on an entry: it would store the entry as it was, or miss it."""
    if isinstance(entry, Evaluation):
        ledger.check_free(entry.id)
    elif isinstance(entry, Tuning) and tuning_state(entry) == "running":
        raise ResourceError(f"tuning {entry.id} is being trained by another process; wait for it, or stop it")
