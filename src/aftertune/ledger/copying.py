"""Copies entries from one ledger to another, in either direction between a file and a server.

    for entry in copy_entries(source, target, chosen_entries(source, studies=["orders"])):
        entry.state, entry.id            "copied", "e-1f…"

Rows are copied as they are stored, so an evaluation brings its items, answers and responses to the last bit, an
unfinished one too. Only numbers of rows differ between two ledgers: `entry_digest` leaves them out, so it is the same
in both. Each entry is one transaction of the target, which ends only when its digest there is that of the source; what
the target has already is left as it is. So a copy that was interrupted goes on when it is started again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Insert, Select, Table, bindparam, func, select, type_coerce

from aftertune.errors import AmbiguousName, InputError, StorageError, nearest
from aftertune.ledger.database import Database, repeating
from aftertune.ledger.digests import SEALED, check, forget, seal
from aftertune.ledger.evaluations import delete_rows, stored_documents
from aftertune.ledger.lease import live_leases
from aftertune.ledger.schema import (
    Json,
    Prose,
    answer,
    cell,
    comparison,
    drift,
    evaluation,
    item,
    label,
    model,
    reported_score,
    response,
    schedule,
    score,
    step,
    study,
    task,
    tuning,
)
from aftertune.ledger.store import find_key

#: Table of an entry -> the column that names it, and the tables of its parts.
_ENTRIES: Mapping[Table, tuple[str, tuple[Table, ...]]] = {
    tuning: ("id", (step,)), evaluation: ("id", (task, score, schedule, answer, response)), comparison: ("id", ()),
    drift: ("id", ()), study: ("name", (cell,)), label: ("entry", ())}
#: Rows that are written at once.
_ROWS = 500
#: Columns that a ledger numbers by itself.
_NUMBERS = ("seq", "evaluation", "tuning", "study", "model", "item")


@dataclass(frozen=True, slots=True)
class CopiedEntry:
    """What was done with an entry. kind: its table; id: or its name; sha256: `entry_digest`, in both ledgers.

    state: "copied"; "replaced" what the target had; "there" already; "in use" by a process of the source or the target,
    or "differs" from what the target has under this name, which was left as it is.
    """

    kind: str
    id: str
    state: str
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class ChosenEntries:
    """Which entries to copy: by table, their names; reported: sources of reported scores."""

    names: Mapping[str, tuple[str, ...]]
    reported: tuple[str, ...] = ()


def chosen_entries(database: Database, *, studies: Sequence[str] = (), runs: Sequence[str] = ()) -> ChosenEntries:
    """The entries that belong to studies and runs (ids or names); without both, all.

    An evaluation brings the tuning that it names, a comparison its evaluations, a study what its cells made; all bring
    the comparisons and drifts among them, and their labels. InputError for a name that is not there.
    """
    with database.read() as connection:
        if not studies and not runs:
            names = {t.name: _all(connection, t, key) for t, (key, _) in _ENTRIES.items()}
            return ChosenEntries(names, _sources(connection))
        known = _all(connection, study, "name")
        for name in studies:
            if name not in known:
                raise InputError(f"no study {name!r} in the ledger{nearest(name, list(known))}")
        refs = {str(ref) for ref in connection.execute(
            select(cell.c.ref).join(study, study.c.seq == cell.c.study).where(study.c.name.in_(studies))).scalars()
            if ref}
        refs |= {_id_of(connection, word) for word in runs}
        refs |= {str(side) for pair in connection.execute(
            select(comparison.c.base, comparison.c.tuned).where(comparison.c.id.in_(refs))) for side in pair}
        refs |= {str(id_) for id_ in connection.execute(
            select(evaluation.c.tuning).where(evaluation.c.id.in_(refs))).scalars() if id_}
        among = comparison.c.base.in_(refs) & comparison.c.tuned.in_(refs)
        refs |= set(connection.execute(select(comparison.c.id).where(among)).scalars())
        models = set(connection.execute(select(model.c.fingerprint).join(
            evaluation, evaluation.c.model == model.c.seq).where(evaluation.c.id.in_(refs))).scalars())
        measured = set(connection.execute(select(drift.c.id).where(
            drift.c.base.in_(models), drift.c.tuned.in_(models))).scalars())
        wanted = {tuning: refs, evaluation: refs, comparison: refs, label: refs, study: set(studies), drift: measured}
        return ChosenEntries({t.name: tuple(n for n in _all(connection, t, key) if n in wanted[t])
                              for t, (key, _) in _ENTRIES.items()})


def copy_entries(source: Database, target: Database, chosen: ChosenEntries, *, replace: bool = False
                 ) -> Iterator[CopiedEntry]:
    """Copy entries one after another. replace: also what the target has in another form.

    An unfinished evaluation or tuning of the target is replaced by one that is further, and a study by one with the
    same text in which everything is done that the target has done, without ``replace``. StorageError where a row of the
    source is damaged.
    """
    if source.place == target.place:
        raise InputError(f"{source.place}: both ledgers are the same; give another one to copy to")
    for table in _ENTRIES:
        for name in chosen.names.get(table.name, ()):
            yield repeating(_copy_entry)(source, target, table, name, replace)
    for name in chosen.reported:
        yield repeating(_copy_reported)(source, target, name, replace)


def entry_digest(connection: Connection, table: Table, seq: int) -> str:
    """SHA-256 of everything that is stored of an entry, without the numbers of its rows."""
    sha = hashlib.sha256()
    for part, query in _queries(table, seq):
        for row in connection.execute(query):
            sha.update(_line(part, tuple(row)))
    return sha.hexdigest()


def _copy_entry(source: Database, target: Database, table: Table, name: str, replace: bool) -> CopiedEntry:
    with source.read() as reader:
        seq = _seq_of(reader, table, name)
        if seq is None:  # removed meanwhile
            return CopiedEntry(table.name, name, "in use")
        for part in (table, *_ENTRIES[table][1]):
            check(reader, part, {seq: f"{table.name} {name}"})
        if table is evaluation and live_leases(reader, seq):
            return CopiedEntry(table.name, name, "in use")
        sha = entry_digest(reader, table, seq)
        with target.read() as looker:
            if _is_equal(looker, table, name, sha):
                return CopiedEntry(table.name, name, "there", sha)
        with target.write() as writer:
            there = _seq_of(writer, table, name)
            if there is not None:
                if _is_equal(writer, table, name, sha):  # another copy was faster
                    return CopiedEntry(table.name, name, "there", sha)
                if table is evaluation and live_leases(writer, there):
                    return CopiedEntry(table.name, name, "in use")
                if not replace and not _is_behind(reader, writer, table, (seq, there)):
                    return CopiedEntry(table.name, name, "differs")
                _delete(writer, table, there, name)
            new = _write(reader, writer, table, seq)
            if entry_digest(writer, table, new) != sha:
                raise StorageError(f"{table.name} {name}: the copy in {target.place} is not equal to what is in "
                                   f"{source.place}; it was undone")
    return CopiedEntry(table.name, name, "copied" if there is None else "replaced", sha)


def _is_equal(connection: Connection, table: Table, name: str, sha: str) -> bool:
    """Whether an entry is there with this digest."""
    seq = _seq_of(connection, table, name)
    return seq is not None and entry_digest(connection, table, seq) == sha


def _is_behind(reader: Connection, writer: Connection, table: Table, seqs: tuple[int, int]) -> bool:
    """Whether the target has an earlier state of the same work. seqs: of the row in the source and in the target."""
    if table is study:
        new, old = ((connection.execute(select(study.c.hash, study.c.yaml).where(study.c.seq == seq)).one(),
                     connection.execute(select(cell.c.name, cell.c.status, cell.c.ref).where(
                         cell.c.study == seq)).all())
                    for connection, seq in zip((reader, writer), seqs, strict=True))
        done = {tuple(row) for row in old[1] if row.status == "done"}
        return tuple(new[0]) == tuple(old[0]) and done <= {tuple(row) for row in new[1]}
    if table not in (evaluation, tuning):
        return False
    parts = response if table is evaluation else step
    before, after = (
        (connection.execute(select(table.c.status).where(table.c.seq == seq)).scalar() == "done",
         connection.execute(select(func.count()).select_from(parts).where(
             parts.c[table.name] == seq)).scalar_one()) for connection, seq in zip((writer, reader), reversed(seqs),
                                                                                     strict=True))
    return not before[0] and (after[0] or after[1] >= before[1])


def _delete(connection: Connection, table: Table, seq: int, name: str) -> None:
    """Delete what the target has of an entry."""
    if table is evaluation:
        delete_rows(connection, connection.execute(select(evaluation.c.seq, evaluation.c.id).where(
            evaluation.c.id == name)).one())
        return
    for part in _ENTRIES[table][1]:
        connection.execute(part.delete().where(part.c[table.name] == seq))
        forget(connection, part, [seq])
    connection.execute(table.delete().where(table.c.seq == seq))
    forget(connection, table, [seq])


def _write(reader: Connection, writer: Connection, table: Table, seq: int) -> int:
    """Copy the rows of an entry; returns its seq in the target."""
    new: int | None = None
    for part, query in _queries(table, seq):
        rows = reader.execute(query.execution_options(stream_results=True, max_row_buffer=_ROWS)).mappings()
        for some in rows.partitions(_ROWS):
            values = [dict(row) for row in some]
            if part is table:
                new = _insert_entry(reader, writer, table, values[0])
                continue
            if part is answer:
                values = _with_documents(reader, writer, values)
            writer.execute(_insert(part), [{f"{table.name}_": new, **_named(row)} for row in values])
    assert new is not None
    for part in (table, *_ENTRIES[table][1]):
        seal(writer, part, [new])
    return new


def _insert_entry(reader: Connection, writer: Connection, table: Table, row: dict[str, Any]) -> int:
    """Insert the row of an entry, and its model where the target has not got it; returns its seq."""
    key = row.pop("model_key", None)
    if key is not None:
        row["model"] = _model(reader, writer, key)
    writer.execute(_insert(table, [*row]), _named(row))
    name = _ENTRIES[table][0]
    return int(writer.execute(select(table.c.seq).where(table.c[name] == row[name])).scalar_one())


def _model(reader: Connection, writer: Connection, key: str) -> int:
    """seq of a model in the target; it is copied where it is missing."""
    query = select(model.c.seq).where(model.c.key == key)
    seq = writer.execute(query).scalar()
    if seq is None:
        columns = [c for c in model.c if c.name != "seq"]
        row = dict(reader.execute(select(*map(_raw, columns)).where(model.c.key == key)).mappings().one())
        writer.execute(_insert(model, [*row]), _named(row))
        seq = writer.execute(query).scalar_one()
        seal(writer, model, [seq])
    return int(seq)


def _with_documents(reader: Connection, writer: Connection, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of answers with the seq of their item in the target; documents that it has not got are copied."""
    keys = [(row.pop("item_hash"), row.pop("item_content")) for row in rows]
    wanted = list(dict.fromkeys(keys))
    there = stored_documents(writer, wanted)
    missing = {key for key in wanted if key not in there}
    if missing:
        query = select(item.c.hash, item.c.content, _raw(item.c.doc)).where(
            item.c.hash.in_({hash_ for hash_, _ in missing})).order_by(item.c.seq)
        documents = [_named(dict(row)) for row in reader.execute(query).mappings()
                     if (row["hash"], row["content"]) in missing]
        writer.execute(_insert(item, ["hash", "content", "doc"]), documents)
        there |= stored_documents(writer, list(missing))
    return [{**row, "item": there[key]} for row, key in zip(rows, keys, strict=True)]


def _copy_reported(source: Database, target: Database, name: str, replace: bool) -> CopiedEntry:
    """Copy the reported scores of one document."""
    kind = reported_score.name
    columns = [c for c in reported_score.c if c.name != "seq"]
    query = select(*map(_raw, columns)).where(reported_score.c.source == name).order_by(reported_score.c.seq)
    with source.read() as reader:
        check(reader, reported_score, {name: f"the scores reported in {name}"})
        rows = [dict(row) for row in reader.execute(query).mappings()]
    sha = hashlib.sha256(b"".join(_line(reported_score, tuple(row.values())) for row in rows)).hexdigest()
    with target.write() as writer:
        there = [dict(row) for row in writer.execute(query).mappings()]
        if there == rows:
            return CopiedEntry(kind, name, "there", sha)
        if there and not replace:
            return CopiedEntry(kind, name, "differs")
        writer.execute(reported_score.delete().where(reported_score.c.source == name))
        writer.execute(_insert(reported_score, [c.name for c in columns]), [_named(row) for row in rows])
        seal(writer, reported_score, [name])
    return CopiedEntry(kind, name, "replaced" if there else "copied", sha)


# --- Rows as they are stored ---

def _queries(table: Table, seq: int) -> Iterator[tuple[Table, Select[Any]]]:
    """The rows of an entry and its parts, each in its order, without numbers that a ledger gives."""
    own = [_raw(c) for c in table.c if c.name not in _NUMBERS or (table is evaluation and c.name == "tuning")]
    if "model" in table.c:
        yield table, select(*own, model.c.key.label("model_key")).join_from(
            table, model, model.c.seq == table.c.model).where(table.c.seq == seq)
    else:
        yield table, select(*own).where(table.c.seq == seq)
    for part in _ENTRIES[table][1]:
        columns = [_raw(c) for c in part.c if c.name not in _NUMBERS]
        query = select(*columns)
        if part is answer:
            query = query.add_columns(item.c.hash.label("item_hash"), item.c.content.label("item_content")).join_from(
                answer, item, item.c.seq == answer.c.item)
        yield part, query.where(part.c[table.name] == seq).order_by(part.c[SEALED[part][2]])


def _raw(column: Any) -> Any:
    """A column as text where it holds JSON, which is not read and written again."""
    return type_coerce(column, Prose()).label(column.name) if isinstance(column.type, Json) else column


def _insert(table: Table, names: Iterable[str] | None = None) -> Insert:
    """An INSERT whose parameters are the names of the columns with a "_" after them; JSON is given as text."""
    columns = [table.c[name] for name in names] if names is not None else [c for c in table.c if c.name != "seq"]
    return table.insert().values({c: bindparam(f"{c.name}_", type_=Prose() if isinstance(c.type, Json) else c.type)
                                  for c in columns})


def _named(row: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{name}_": value for name, value in row.items()}


def _line(table: Table, values: Sequence[Any]) -> bytes:
    return json.dumps([table.name, *values], separators=(",", ":"), default=repr).encode() + b"\n"


def _seq_of(connection: Connection, table: Table, name: str) -> int | None:
    found = connection.execute(select(table.c.seq).where(table.c[_ENTRIES[table][0]] == name)).scalar()
    return None if found is None else int(found)


def _all(connection: Connection, table: Table, key: str) -> tuple[str, ...]:
    return tuple(connection.execute(select(table.c[key]).order_by(table.c.seq)).scalars())


def _sources(connection: Connection) -> tuple[str, ...]:
    first = func.min(reported_score.c.seq)
    return tuple(connection.execute(select(reported_score.c.source).group_by(reported_score.c.source)
                                    .order_by(first)).scalars())


def _id_of(connection: Connection, word: str) -> str:
    """The id of an evaluation, a tuning or a comparison. InputError where there is none."""
    first: InputError | None = None
    for table in (evaluation, tuning, comparison):
        try:
            return str(find_key(connection, table, word).id)
        except AmbiguousName:
            raise
        except InputError as error:
            first = first or error
    assert first is not None
    raise first
