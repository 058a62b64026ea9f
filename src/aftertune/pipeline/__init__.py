"""A study from file to findings: plan what each cell would cost, run what is missing, compare, write the record.

    study = Study.load("study.yaml")
    plan(study, ledger=ledger, file="study.yaml")        a PlannedCell for every cell; nothing is run or fetched
    result = run(study, ledger=ledger, out=Path("runs/orders"))
    result.record, result.page                           runs/orders/record.md, runs/orders/report.html

A plan loads none of what a run needs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aftertune.pipeline.cells import Cell, cells_of, chosen
from aftertune.pipeline.planning import PlannedCell, plan, unevaluated

if TYPE_CHECKING:
    from aftertune.pipeline.running import CellChoice, Result, run

__all__ = ["Cell", "CellChoice", "PlannedCell", "Result", "cells_of", "chosen", "plan", "run", "unevaluated"]


def __getattr__(name: str) -> Any:
    """What a run needs is imported on first use (PEP 562)."""
    if name in ("CellChoice", "Result", "run"):
        from aftertune.pipeline import running

        return getattr(running, name)
    raise AttributeError(f"module 'aftertune.pipeline' has no attribute {name!r}")
