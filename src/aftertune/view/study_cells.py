"""A study as the view shows it: the cells of each model with their state, what they cost so far, and what is left.

    view = study_view(ledger, "orders")
    view.rows[0].cells["evaluate"].state       "planned", "running", "done" or "failed"
    view.seconds, view.seconds_left            of the finished cells; of those to come, at their pace

It is made from what the ledger has, so it also works where the file of the study is elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from aftertune.errors import InputError
from aftertune.ledger import Ledger, RunningEntry, StoredCell
from aftertune.ledger.records import STATES
from aftertune.methods import method_title
from aftertune.pipeline.study_verdicts import over_studies
from aftertune.redaction import public_text
from aftertune.report.columns import VerdictLine, verdict_table
from aftertune.report.results import newest
from aftertune.values import Comparison
from aftertune.view.links import comparison_path, entry_path, stored_path, tuning_path

#: First word of a cell's name -> heading of its column.
KINDS = {"tune": "Fine-tune", "evaluate": "Evaluation"}


@dataclass(frozen=True, slots=True, kw_only=True)
class CellView:
    """One cell. path: of its result; reason: why it failed or waits; progress: where a process works on it; seen: a
    process that works on it was found, for a running cell; seconds: that it took."""

    kind: str
    state: str
    path: str = ""
    ref: str = ""
    reason: str = ""
    progress: RunningEntry | None = None
    seen: bool = True
    seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRow:
    """One base or fine-tune. about: its recipe; cells: by kind; path: of its comparison with its base, "" before it is
    made; verdicts: task -> (path, line)."""

    name: str
    base: str
    about: str
    cells: Mapping[str, CellView]
    path: str = ""
    verdicts: Mapping[str, tuple[str, VerdictLine]]


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyView:
    """One study. tasks: (key, title) of the columns of verdicts; counts: cells in each state; comparisons: the newest
    one of each fine-tune with its base; seconds_left: None where it is not known."""

    name: str
    rows: tuple[ModelRow, ...]
    tasks: tuple[tuple[str, str], ...]
    counts: Mapping[str, int]
    comparisons: tuple[Comparison, ...]
    seconds: float
    seconds_left: float | None
    running: bool

    @property
    def total(self) -> int:
        """Number of cells."""
        return sum(self.counts.values())


def study_view(ledger: Ledger, name: str, running: Sequence[RunningEntry] | None = None, *, verdicts: bool = True
               ) -> StudyView:
    """The study of this name; InputError if there is none. running: of the ledger, if it is known; verdicts: whether
    the comparisons are read."""
    stored = next((s for s in ledger.studies() if s.name == name), None)
    if stored is None:
        raise InputError(f"no study {name[:200]!r} in the ledger; `aftertune run` makes one")
    content = _content(stored.yaml)
    cells = ledger.cells(name)
    now = {(r.kind, r.name): r for r in (ledger.running() if running is None else running)}
    took = ledger.result_seconds([c.ref for c in cells if c.ref])
    by_model: dict[str, dict[str, CellView]] = {}
    for cell in cells:
        kind, _, model = cell.name.partition(" ")
        by_model.setdefault(model, {})[kind] = _cell(cell, kind, now.get((_entry_kind(kind), model)), took)
    tunings: Mapping[str, Any] = content.get("tunings") or {}
    rows = [ModelRow(name=model, base=str((tunings.get(model) or {}).get("base", "")),
                     about=_recipe(tunings.get(model)), cells=of_model, verdicts={}) for model, of_model in
            by_model.items()]
    comparisons = tuple(_comparisons(ledger, rows)) if verdicts else ()
    rows = [_with_verdicts(row, comparisons) for row in rows]
    every = [c for row in rows for c in row.cells.values()]
    counts = {state: sum(c.state == state for c in every) for state in STATES}
    titles = {key: line["task"] for row in rows for key, (_, line) in row.verdicts.items()}
    active = any(c.progress for c in every)
    return StudyView(name=name, rows=tuple(rows), tasks=tuple(titles.items()), counts=counts, comparisons=comparisons,
                     seconds=sum(c.seconds or 0 for c in every), running=active,
                     seconds_left=_seconds_left(every) if active else None)


def _content(text: str) -> Mapping[str, Any]:
    """The stored study; {} where this version cannot read it."""
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _entry_kind(kind: str) -> str:
    return "tuning" if kind == "tune" else "evaluation"


def _cell(cell: StoredCell, kind: str, progress: RunningEntry | None, took: Mapping[str, float]) -> CellView:
    """A cell with the process that works on it. A cell that another command computes is shown as running too."""
    state = "running" if progress is not None and cell.status != "done" else cell.status
    id_ = progress.id if state == "running" and progress is not None else cell.ref or ""
    path = "" if not id_ else tuning_path(id_) if kind == "tune" else entry_path("evaluation", id_)
    return CellView(kind=kind, state=state, path=path, ref=cell.ref or "", reason=public_text(cell.error or ""),
                    progress=progress if state == "running" else None, seconds=took.get(cell.ref or ""),
                    seen=state != "running" or progress is not None)


def _recipe(tuning: Mapping[str, Any] | None) -> str:
    """Method, examples, replay share and seed, as far as the study sets them."""
    if not tuning:
        return ""
    data, replay = tuning.get("data") or {}, tuning.get("replay") or {}
    parts = [method_title(str(tuning.get("method", "")))] if tuning.get("method") else []
    if isinstance(data, dict) and data.get("examples"):
        parts.append(f"{data['examples']:,} examples")
    if isinstance(replay, dict) and replay.get("share"):
        parts.append(f"replay {100 * replay['share']:g} %")
    if "seed" in tuning:
        parts.append(f"seed {tuning['seed']}")
    return ", ".join(parts)


def _comparisons(ledger: Ledger, rows: Sequence[ModelRow]) -> Iterator[Comparison]:
    """The newest comparison of each fine-tune with its base, judged as the study says."""
    refs = {row.name: row.cells["evaluate"].ref for row in rows if "evaluate" in row.cells}
    bases = dict.fromkeys(refs.get(row.base, "") for row in rows if row.base)
    tuned = {refs.get(row.name, "") for row in rows if row.base} - {""}
    found = [c for base in bases if base for c in ledger.comparisons(base=base) if c.tuned in tuned and not c.forced]
    try:
        yield from over_studies(newest(found), ledger)
    except ValueError:  # a study that this version cannot read
        yield from newest(found)


def _with_verdicts(row: ModelRow, comparisons: Sequence[Comparison]) -> ModelRow:
    """The row with its comparison, if it has been made."""
    ref = row.cells["evaluate"].ref if "evaluate" in row.cells else ""
    comparison = next((c for c in comparisons if ref and c.tuned == ref), None)
    if comparison is None:
        return row
    lines = [line for line in verdict_table(comparison) if line.row.primary and line.verdict]
    return replace(row, path=stored_path(comparison), verdicts={
        line.row.task: (comparison_path(comparison.base, comparison.tuned, id=comparison.id,
                                        task=None if line.row.average_of else line.row.task), line) for line in lines})


def _seconds_left(cells: Sequence[CellView]) -> float | None:
    """How long the cells take that are not done: the running ones as they go, the others as the finished ones of their
    kind; None where no cell of a kind has a time."""
    total = 0.0
    for kind in {c.kind for c in cells}:
        own = [c for c in cells if c.kind == kind]
        took = [c.seconds for c in own if c.seconds is not None]
        for cell in own:
            known = cell.progress.seconds_left if cell.progress else None
            if cell.state in ("planned", "running"):
                if known is None and not took:
                    return None
                total += fmean(took) if known is None else known
    return total
