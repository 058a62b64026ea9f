"""Runs and plans a study: what `Study.run` and `Study.plan` do (`aftertune.study.running`)."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aftertune.actions import provide
from aftertune.api.objects import comparison_object, jsonable
from aftertune.api.parameters import LedgerPlace, opened, with_settings
from aftertune.api.progress import shown_progress
from aftertune.api.tables import ShownTable, provide_table
from aftertune.errors import InputError
from aftertune.study import Study
from aftertune.study.running import Runnable
from aftertune.values import Progress

if TYPE_CHECKING:
    from aftertune.pipeline import Result
    from aftertune.report import DataTable


#: Columns of a plan; sizes are in bytes.
_PLAN = ("cell", "status", "why", "seconds", "memory", "disk", "missing")


@with_settings()
def run_study(study: Study, out: str | Path | None = None, *, only: str | Sequence[str] = (), keep_going: bool = False,
              ledger: LedgerPlace = None, progress: Progress | bool | None = None,
              workers: int | None = None) -> Result:
    """Run a study, as `Study.run` says."""
    from aftertune.pipeline import CellChoice, Result, WorkerChoice
    from aftertune.pipeline import run as run_cells

    provide_table(Result, _result_shown)
    provide("to_dict", Result, result_object)
    choice = CellChoice((only,) if isinstance(only, str) else tuple(only), keep_going, "")
    from aftertune.engine.devices import caller_state

    with opened(ledger) as stored, shown_progress(progress) as update, caller_state():
        return run_cells(study, ledger=stored, out=Path(out or Path("runs") / study.study), choice=choice,
                         progress=update, workers=None if workers is None else WorkerChoice(workers))


@with_settings()
def plan_study(study: Study, out: str | Path | None = None, *, ledger: LedgerPlace = None) -> DataTable:
    """Plan a study, as `Study.plan` says."""
    from aftertune.pipeline import plan
    from aftertune.report import DataTable

    with contextlib.ExitStack() as stack:
        stored = None
        with contextlib.suppress(InputError):  # there is no ledger yet
            stored = stack.enter_context(opened(ledger, create=False))
        cells = plan(study, ledger=stored, file="", out=None if out is None else Path(out))
    rows = tuple((c.name, c.status, c.why, c.cost.seconds, c.cost.memory, c.cost.disk, tuple(c.missing)) for c in cells)
    return DataTable(f"{study.study}: {len(cells)} cells", _PLAN, rows)


def result_object(result: Result) -> dict[str, Any]:
    """The result of a study as ``run --json`` prints it."""
    found = result.results
    value: dict[str, Any] = jsonable({
        "headlines": result.headlines,
        "comparisons": [comparison_object(c, found.drift(c)) for c in result.comparisons],
        "contrasts": found.contrasts, "record": str(result.record), "report": str(result.page),
        "failed": [{"cell": name, "why": why} for name, why in result.failed]})
    return value


def _result_shown(result: Result) -> ShownTable:
    rows = [(name, f"failed: {why}") for name, why in result.failed]
    return ShownTable("study", (), [*((line,) for line in result.headlines), *rows, ("record", str(result.record)),
                                    ("page", str(result.page))])


provide("run", Runnable, run_study)
provide("plan", Runnable, plan_study)
