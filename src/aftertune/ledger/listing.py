"""Lists entries page by page, for a reader who looks at one page of many: sorted, filtered and cut by SQLite.

    page = ledger.entry_page(EntryQuery(words="orders", status="done", sort="name", limit=50))
    page.rows[0].name, page.total                 "careful", 1234
    ledger.newest_comparisons(20, offset=40)      comparisons 41 to 60 from the newest
    ledger.tags()                                 {"paper": 12}

A page reads the columns that it shows and no answers, so its time depends on the number of entries, not on what they
hold. Digests are checked where an entry is opened, not where it is listed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from sqlalchemy import (
    Connection,
    RowMapping,
    Subquery,
    and_,
    case,
    func,
    literal,
    null,
    or_,
    select,
    type_coerce,
    union_all,
)

from aftertune.ledger.records import Comparisons
from aftertune.ledger.running import STARTED, RunningEntries, json_field
from aftertune.ledger.schema import Prose, as_number, comparison, evaluation, label, model, task, tuning
from aftertune.ledger.store import row_at
from aftertune.values import Comparison, Evaluation

EntrySort = Literal["started", "name", "kind", "status"]
#: The tag of entries that lists leave out until they are asked for.
ARCHIVED = "archived"


@dataclass(frozen=True, slots=True, kw_only=True)
class EntryQuery:
    """Which entries, in which order. words: each must be in the id, name, model, tasks, tags or note. base: a part of
    the model's source. made_by: only evaluations of the model of this tuning (id). archived: also those with the tag
    `ARCHIVED`."""

    words: str = ""
    kind: str = ""
    status: str = ""
    task: str = ""
    tag: str = ""
    base: str = ""
    made_by: str = ""
    archived: bool = False
    sort: EntrySort = "started"
    descending: bool = True
    limit: int = 50
    offset: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class EntryRow:
    """One line of a page. kind: "evaluation", "tuning" or "comparison"; status: also "interrupted"; started: UTC, as in
    the provenance; source: of the model; of a comparison, base and tuned are the ids of its evaluations. tasks: (name,
    what about it): of an evaluation how many items were asked where not all were, of a comparison the label; method: of
    a tuning, with its number of examples."""

    id: str
    kind: str
    name: str
    status: str
    started: str
    source: str
    tuning: str = ""
    base: str = ""
    tuned: str = ""
    method: str = ""
    tasks: tuple[tuple[str, str], ...] = ()
    tags: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class EntryPage:
    """The rows of one page. total: of all pages."""

    rows: tuple[EntryRow, ...]
    total: int


class Listing(RunningEntries, Comparisons):
    """Pages of entries."""

    def entry_page(self, query: EntryQuery) -> EntryPage:
        """One page of evaluations, tunings and comparisons."""
        interrupted = self.interrupted()
        with self.database.read() as connection:
            entries = _entries(interrupted)
            conditions = _conditions(entries, query)
            total = connection.execute(select(func.count()).select_from(entries).where(*conditions)).scalar_one()
            column: Any = entries.c[query.sort if query.sort != "name" else "sorted_name"]
            column = func.coalesce(column, "")  # databases do not agree where nulls belong
            order = [column.desc() if query.descending else column, entries.c.seq.desc(), entries.c.kind]
            rows = connection.execute(select(entries).where(*conditions).order_by(*order).limit(query.limit)
                                      .offset(query.offset)).mappings().all()
            return EntryPage(tuple(_with_parts(connection, [_row(r) for r in rows], [r["seq"] for r in rows])), total)

    def newest_comparisons(self, limit: int, offset: int = 0) -> tuple[list[Comparison], int]:
        """A page of the comparisons, the newest first, and how many there are."""
        with self.database.read() as connection:
            total = connection.execute(select(func.count()).select_from(comparison)).scalar_one()
            keys = connection.execute(select(comparison.c.seq, comparison.c.id).order_by(comparison.c.seq.desc())
                                      .limit(limit).offset(offset)).all()
            return [self.comparison_of(row_at(connection, comparison, key)) for key in keys], total

    def tunings_of(self, value: Evaluation) -> list[str]:
        """Ids of the tunings that may have made the model of an evaluation: the one that it names, and those whose
        result is this model."""
        with self.database.read() as connection:
            return list(connection.execute(select(tuning.c.id).where(or_(
                tuning.c.id == value.tuning, tuning.c.result == value.model.fingerprint))
                .order_by(tuning.c.seq)).scalars())

    def tags(self) -> dict[str, int]:
        """Tag -> how many entries have it, by name."""
        counts: dict[str, int] = {}
        with self.database.read() as connection:
            for tags in connection.execute(select(label.c.tags).order_by(label.c.seq)).scalars():
                for tag in tags:
                    counts[tag] = counts.get(tag, 0) + 1
        return dict(sorted(counts.items()))

    def task_names(self) -> list[str]:
        """The tasks of all evaluations, by name."""
        with self.database.read() as connection:
            return list(connection.execute(select(task.c.name).distinct().order_by(task.c.name)).scalars())


def _entries(interrupted: set[str]) -> Subquery:
    """All entries with the columns that lists are sorted and filtered by. interrupted: ids of `Listing.interrupted`."""
    def status(table: Any) -> Any:
        return case((table.c.id.in_(interrupted), "interrupted"), else_=table.c.status) if interrupted else \
            table.c.status

    none = null()
    of_evaluations = select(
        literal("evaluation").label("kind"), evaluation.c.seq, evaluation.c.id, evaluation.c.name,
        status(evaluation).label("status"), json_field(evaluation, STARTED).label("started"),
        model.c.source, evaluation.c.tuning, none.label("base"), none.label("tuned"), none.label("method")
    ).join(model, model.c.seq == evaluation.c.model)
    of_tunings = select(
        literal("tuning"), tuning.c.seq, tuning.c.id, tuning.c.name, status(tuning), json_field(tuning, STARTED),
        model.c.source, none, none, none, json_field(tuning, "$.method")).join(model, model.c.seq == tuning.c.model)
    base, tuned = evaluation.alias("base_side"), evaluation.alias("tuned_side")
    of_comparisons = select(
        literal("comparison"), comparison.c.seq, comparison.c.id,
        func.coalesce(tuned.c.name, comparison.c.tuned).concat(" against ").concat(
            func.coalesce(base.c.name, comparison.c.base)),
        literal("done"), json_field(tuned, STARTED), model.c.source, none, comparison.c.base, comparison.c.tuned, none
    ).join_from(comparison, base, base.c.id == comparison.c.base, isouter=True).join(
        tuned, tuned.c.id == comparison.c.tuned, isouter=True).join(
        model, model.c.seq == base.c.model, isouter=True)
    united = union_all(of_evaluations, of_tunings, of_comparisons).subquery()
    return select(united, func.lower(united.c.name).label("sorted_name"), label.c.tags, label.c.note).join(
        label, label.c.entry == united.c.id, isouter=True).subquery()


def _conditions(entries: Subquery, query: EntryQuery) -> list[Any]:
    """The filters of a query."""
    c = entries.c
    tags = type_coerce(c.tags, Prose())
    found: list[Any] = [] if query.archived else [or_(tags.is_(None), ~tags.contains(json.dumps(ARCHIVED)))]
    for column, value in ((c.kind, query.kind), (c.status, query.status), (c.tuning, query.made_by)):
        if value:
            found.append(column == value)
    if query.tag:
        found.append(tags.contains(json.dumps(query.tag, ensure_ascii=False), autoescape=True))
    if query.base:
        found.append(c.source.icontains(query.base, autoescape=True))
    if query.task:
        found.append(_has_task(c, task.c.name == query.task))
    for word in query.words.split():
        texts = (c.id, c.name, c.source, c.note, tags)
        found.append(or_(*(t.icontains(word, autoescape=True) for t in texts),
                         _has_task(c, task.c.name.icontains(word, autoescape=True))))
    return found


def _has_task(columns: Any, condition: Any) -> Any:
    """Whether an evaluation, or the tuned side of a comparison, has a task."""
    own = select(task.c.name).where(task.c.evaluation == columns.seq, condition).exists()
    side = select(task.c.name).join(evaluation, evaluation.c.seq == task.c.evaluation).where(
        evaluation.c.id == columns.tuned, condition).exists()
    return or_(and_(columns.kind == "evaluation", own), and_(columns.kind == "comparison", side))


def _row(row: RowMapping) -> EntryRow:
    return EntryRow(id=row["id"], kind=row["kind"], name=row["name"], status=row["status"],
                    started=row["started"] or "", source=row["source"] or "", tuning=row["tuning"] or "",
                    base=row["base"] or "", tuned=row["tuned"] or "", method=row["method"] or "",
                    tags=tuple(row["tags"] or ()), note=row["note"] or "")


def _with_parts(connection: Connection, rows: Sequence[EntryRow], seqs: Sequence[int]) -> list[EntryRow]:
    """The rows of one page with their tasks, and the number of examples of a tuning."""
    of = {kind: [s for r, s in zip(rows, seqs, strict=True) if r.kind == kind]
          for kind in ("evaluation", "tuning", "comparison")}
    tasks: dict[tuple[str, int], list[tuple[str, str]]] = {}
    for owner, name, value in connection.execute(
            select(task.c.evaluation, task.c.name, task.c.value)
            .where(task.c.evaluation.in_(of["evaluation"])).order_by(task.c.evaluation, task.c.position)):
        tasks.setdefault(("evaluation", owner), []).append((name, _part_text(value)))
    rows_json = json_field(comparison, "$.rows")
    for owner, text in connection.execute(select(comparison.c.seq, rows_json).where(
            comparison.c.seq.in_(of["comparison"]))):
        tasks["comparison", owner] = [(r["task"], str(r.get("told") or "").partition(" (")[0])
                                      for r in json.loads(text or "[]") if r.get("primary") and not r.get("average_of")]
    examples = {row[0]: row[1] for row in connection.execute(
        select(tuning.c.seq, json_field(tuning, "$.examples")).where(tuning.c.seq.in_(of["tuning"])))}
    return [replace(r, tasks=tuple(tasks.get((r.kind, s), ())),
                    method=_method(r, examples.get(s)) if r.kind == "tuning" else "")
            for r, s in zip(rows, seqs, strict=True)]


def _method(row: EntryRow, examples: Any) -> str:
    return f"{row.method}, {int(as_number(examples) or 0):,} examples"


def _part_text(value: Mapping[str, Any]) -> str:
    """How many items of a task were asked, where not all were."""
    used = value["n"] if value.get("used") is None else value["used"]
    return f"{used:,} of {value['n_total']:,}" if used < value["n_total"] else ""
