"""Plans and runs studies: what each cell costs and needs, the cells that are missing, and the record of the results.

    study = Study.load("study.yaml")
    plan(study, ledger=ledger, file="study.yaml")        a PlannedCell for each cell; nothing is run or downloaded
    result = run(study, ledger=ledger, out=Path("runs/orders"))
    result.record, result.page                           runs/orders/record.md, runs/orders/report.html

`plan` does not import what only `run` needs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aftertune.pipeline.cells import Cell, cells_of, select_cells
from aftertune.pipeline.planning import PlannedCell, plan, unevaluated

if TYPE_CHECKING:
    from aftertune.pipeline.running import CellChoice, Result, run, run_cell
    from aftertune.pipeline.worker_choice import WorkerChoice

__all__ = ["Cell", "CellChoice", "PlannedCell", "Result", "WorkerChoice", "cells_of", "plan", "run",
           "run_cell", "select_cells", "unevaluated"]


def __getattr__(name: str) -> Any:
    """Imports what only `run` needs on first use (PEP 562)."""
    if name in ("CellChoice", "Result", "run", "run_cell"):
        from aftertune.pipeline import running

        return getattr(running, name)
    if name == "WorkerChoice":
        from aftertune.pipeline import worker_choice

        return worker_choice.WorkerChoice
    raise AttributeError(f"module 'aftertune.pipeline' has no attribute {name!r}")
