"""Stores fine-tunes, comparisons, drift measurements, reported scores and studies.

    ledger.save_tuning(tuning)                               again with the same id: replaced
    ledger.save_step(tuning.id, 10, {"loss": 1.9})           one row of the training log
    ledger.save_comparison(comparison)                       again with the same id: replaced
    ledger.save_drift(drift)                                 again with the same id: replaced
    ledger.save_reported("record.md", [{"model": "Llama 3.2 1B", "task": "hellaswag", "metric": "acc",
                                        "value": 0.4523, "stderr": 0.005, "date": "2025-03-08"}])
    ledger.save_cell("orders", "evaluate careful", "done", ref=evaluation.id)
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from sqlalchemy import Connection, Row, func, select

from aftertune.errors import InputError, StorageError, nearest
from aftertune.ledger.database import hold, repeatable
from aftertune.ledger.digests import check, seal, without_index
from aftertune.ledger.schema import cell, comparison, drift, model, reported_score, step, study, tuning
from aftertune.ledger.store import (
    CHUNK,
    Store,
    all_rows,
    decode,
    encode,
    find_row,
    model_of,
    reading,
    store_model,
    upsert,
)
from aftertune.values import Comparison, Drift, Tuning

#: Fields of a tuning that have a column or table of their own.
_TUNING_ELSEWHERE = ("id", "name", "status", "result", "base", "steps")
_REPORTED = ("model", "task", "metric", "value", "stderr", "n")
#: The key that marks a row as a statement of a document instead of a score.
_REMARK = "remark"
STATES = ("planned", "running", "done", "failed")


@repeatable("save_tuning", "save_step", "find_tuning", "tunings")
class Tunings(Store):
    """Fine-tunes."""

    def save_tuning(self, value: Tuning) -> Tuning:
        """Insert a tuning, or replace the one with its id; returns what is stored.

        Its steps replace the stored log; without steps the log stays as it is.
        """
        with self.database.write() as connection:
            rest = {k: v for k, v in encode(value).items() if k not in _TUNING_ELSEWHERE}
            seq = upsert(connection, tuning, {"id": value.id}, {
                "name": value.name, "status": value.status, "result": value.result,
                "model": store_model(connection, value.base), "value": rest})
            if value.steps:
                connection.execute(step.delete().where(step.c.tuning == seq))
                connection.execute(step.insert(), [
                    {"tuning": seq, "number": n, "step": int(s.get("step", n)), "value": encode(s)}
                    for n, s in enumerate(value.steps)])
                seal(connection, step, [seq])
            return _load_tunings(connection, [find_row(connection, tuning, value.id)])[0]

    def save_step(self, tuning_id: str, number: int, metrics: Mapping[str, float]) -> None:
        """Add a row to the training log; a row of the same step (the run was resumed) is replaced.

        number: the optimizer's step, stored with the metrics under "step".
        """
        with self.database.write(within=True) as connection:
            seq = find_row(connection, tuning, tuning_id).seq
            hold(connection, tuning, seq)
            value = {"step": number, **encode(metrics)}
            here = (step.c.tuning == seq, step.c.step == number)
            if not connection.execute(step.update().where(*here).values(value=value)).rowcount:
                last = connection.execute(select(func.max(step.c.number)).where(step.c.tuning == seq)).scalar()
                connection.execute(step.insert().values(
                    tuning=seq, number=0 if last is None else last + 1, step=number, value=value))
            seal(connection, step, [seq], number)

    def find_tuning(self, word: str) -> Tuning:
        """The tuning with this id, this name, or this beginning of an id; else InputError or AmbiguousName."""
        with self.database.read() as connection:
            return _load_tunings(connection, [find_row(connection, tuning, word)])[0]

    def tunings(self) -> list[Tuning]:
        """All tunings, the newest last."""
        with self.database.read() as connection:
            return _load_tunings(connection, all_rows(connection, tuning))


def _load_tunings(connection: Connection, rows: Sequence[Row[Any]]) -> list[Tuning]:
    out: list[Tuning] = []
    for start in range(0, len(rows), CHUNK):
        part = rows[start:start + CHUNK]
        check(connection, model, {r.model: f"the base of tuning {r.id}" for r in part})
        check(connection, step, {r.seq: f"tuning {r.id}" for r in part})
        models = {r.seq: r.value for r in connection.execute(
            select(model).where(model.c.seq.in_({r.model for r in part})))}
        log = connection.execute(select(step).where(step.c.tuning.in_([r.seq for r in part]))
                                 .order_by(step.c.tuning, step.c.number))
        steps = {seq: [r.value for r in group] for seq, group in groupby(log, key=lambda r: r.tuning)}
        for r in part:
            with reading(f"tuning {r.id}"):
                out.append(decode(Tuning, {**r.value, "id": r.id, "name": r.name, "status": r.status,
                                           "result": r.result, "base": model_of(models, r.model),
                                           "steps": steps.get(r.seq, [])}))
    return out


@repeatable("save_comparison", "find_comparison", "comparisons")
class Comparisons(Store):
    """Comparisons of two evaluations."""

    def save_comparison(self, value: Comparison) -> Comparison:
        """Insert a comparison, or replace the one with its id; returns it."""
        with self.database.write() as connection:
            upsert(connection, comparison, {"id": value.id},
                   {"base": value.base, "tuned": value.tuned, "value": encode(value)})
        return value

    def find_comparison(self, word: str) -> Comparison:
        """The comparison with this id or this beginning of an id (4 characters up); else InputError."""
        with self.database.read() as connection:
            return _comparison(find_row(connection, comparison, word))

    def comparisons(self, *, base: str | None = None, tuned: str | None = None) -> list[Comparison]:
        """Comparisons of these evaluations (ids; None: any), the newest last."""
        given = ((comparison.c.base, base), (comparison.c.tuned, tuned))
        wanted = [without_index(column) == value for column, value in given if value is not None]
        with self.database.read() as connection:
            return [_comparison(row) for row in all_rows(connection, comparison, *wanted)]

    @staticmethod
    def comparison_of(row: Row[Any]) -> Comparison:
        """The comparison of a whole row, which was checked."""
        return _comparison(row)


def _comparison(row: Row[Any]) -> Comparison:
    with reading(f"comparison {row.id}"):
        return decode(Comparison, row.value)


@repeatable("save_drift", "find_drift", "drifts")
class Drifts(Store):
    """Measurements of how far a fine-tune moved a model."""

    def save_drift(self, value: Drift) -> Drift:
        """Insert a measurement, or replace the one with its id; returns it."""
        with self.database.write() as connection:
            upsert(connection, drift, {"id": value.id}, {
                "base": value.base.fingerprint, "tuned": value.tuned.fingerprint, "value": encode(value)})
        return value

    def find_drift(self, id_: str) -> Drift | None:
        """The measurement with this id, or None."""
        with self.database.read() as connection:
            return next((_drift(row) for row in all_rows(connection, drift, without_index(drift.c.id) == id_)), None)

    def drifts(self) -> list[Drift]:
        """All measurements, the newest last."""
        with self.database.read() as connection:
            return [_drift(row) for row in all_rows(connection, drift)]


def _drift(row: Row[Any]) -> Drift:
    with reading(f"drift {row.id}"):
        return decode(Drift, row.value)


@repeatable("save_reported")
class ReportedScores(Store):
    """Scores that were read from a document; without answers, so they cannot be compared item by item."""

    def save_reported(self, source: str, rows: Sequence[Mapping[str, Any]],
                      remarks: Sequence[Mapping[str, Any]] = ()) -> None:
        """Store the scores of one document; they replace those stored from it before.

        Each row has model, task and metric (StorageError without), perhaps value, stderr (fractions) and n,
        and whatever else the document says. remarks: its other statements, each with its "kind".
        """
        for number, row in enumerate(rows):
            missing = [k for k in _REPORTED[:3] if not isinstance(row.get(k), str)]
            if missing:
                raise StorageError(f"{source}: reported score {number} has no {', '.join(missing)}; each score "
                                   "needs model, task and metric")
        stored = [*rows, *({**dict.fromkeys(_REPORTED[:3], ""), **remark, _REMARK: True} for remark in remarks)]
        with self.database.write() as connection:
            connection.execute(reported_score.delete().where(reported_score.c.source == source))
            if stored:
                connection.execute(reported_score.insert(), [
                    {"source": source, **{k: row.get(k) for k in _REPORTED},
                     "extra": encode({k: v for k, v in row.items() if k not in _REPORTED})} for row in stored])
            seal(connection, reported_score, [source])

    def reported(self, source: str | None = None) -> list[dict[str, Any]]:
        """Reported scores of one document, or of all, in their order; each with its ``source``."""
        return [row for row in self._stored(source) if _REMARK not in row]

    def remarks(self, source: str | None = None) -> list[dict[str, Any]]:
        """The other statements of one document, or of all; each with its ``source``."""
        return [row for row in self._stored(source) if _REMARK in row]

    def _stored(self, source: str | None) -> list[dict[str, Any]]:
        stored_source = without_index(reported_score.c.source)
        query, sources = select(reported_score).order_by(reported_score.c.seq), select(stored_source).distinct()
        if source is not None:
            query, sources = query.where(stored_source == source), sources.where(stored_source == source)
        with self.database.read() as connection:
            check(connection, reported_score,
                  {s: f"the scores reported in {s}" for s in connection.execute(sources).scalars()})
            return [{"source": r.source, **{k: r._mapping[k] for k in _REPORTED}, **r.extra}
                    for r in connection.execute(query)]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredStudy:
    """A study as it was last run. hash: its canonical hash; yaml: the text of its file."""

    name: str
    hash: str
    yaml: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredCell:
    """One cell of a study. ref: id of the evaluation, tuning or comparison; error: why it failed."""

    study: str
    name: str
    status: str
    ref: str | None = None
    error: str | None = None


@repeatable("save_study", "studies", "save_cell", "cells")
class Studies(Store):
    """Studies and their cells."""

    def save_study(self, name: str, hash: str, yaml: str) -> None:
        """Insert a study, or replace the one with its name; its cells stay."""
        with self.database.write() as connection:
            upsert(connection, study, {"name": name}, {"hash": hash, "yaml": yaml})

    def plan_study(self, name: str, hash: str, yaml: str, cells: Sequence[str],
                   changed: Callable[[str | None], Collection[str]]) -> None:
        """Insert or replace a study; those of its cells that are new, or have changed, become planned. It is one
        transaction, because other processes may do the same now, or run cells already.

        cells: names, in their order; changed: the study as it was stored (None: it was not) -> names.
        """
        with self.database.write() as connection:
            before = connection.execute(select(study.c.yaml).where(study.c.name == name)).scalar()
            seq = upsert(connection, study, {"name": name}, {"hash": hash, "yaml": yaml})
            stored = set(connection.execute(select(cell.c.name).where(cell.c.study == seq)).scalars())
            stale = set(changed(before))
            for one in cells:
                if one in stale or one not in stored:
                    _set_cell(connection, seq, one, {"status": "planned", "ref": None, "error": None})

    def studies(self) -> list[StoredStudy]:
        """All studies, the newest last."""
        with self.database.read() as connection:
            names = connection.execute(select(study.c.seq, study.c.name).order_by(study.c.seq)).all()
            check(connection, study, {r.seq: f"study {r.name}" for r in names})
            return [StoredStudy(name=r.name, hash=r.hash, yaml=r.yaml)
                    for r in connection.execute(select(study).order_by(study.c.seq))]

    def save_cell(self, study_name: str, name: str, status: str, ref: str | None = None,
                  error: str | None = None) -> None:
        """Set the state of a cell; a new cell comes last. status: one of STATES, else StorageError."""
        if status not in STATES:
            raise StorageError(f"cell {name!r}: unknown state {status!r}; the states are {', '.join(STATES)}")
        with self.database.write() as connection:
            seq = _study_seq(connection, study_name)
            _set_cell(connection, seq, name, {"status": status, "ref": ref, "error": error})

    def cells(self, study_name: str) -> list[StoredCell]:
        """Cells of a study in the order in which they were first saved; InputError: unknown study."""
        with self.database.read() as connection:
            seq = _study_seq(connection, study_name)
            check(connection, cell, {seq: f"study {study_name}"})
            rows = connection.execute(select(cell).where(cell.c.study == seq).order_by(cell.c.position))
            return [StoredCell(study=study_name, name=r.name, status=r.status, ref=r.ref, error=r.error)
                    for r in rows]


def _set_cell(connection: Connection, seq: int, name: str, values: Mapping[str, Any]) -> None:
    """Set the state of a cell of a study; a new one comes last."""
    here = (cell.c.study == seq, cell.c.name == name)
    position = connection.execute(select(cell.c.position).where(*here)).scalar()
    if position is not None:
        connection.execute(cell.update().where(*here).values(**values))
    else:
        last = connection.execute(select(func.max(cell.c.position)).where(cell.c.study == seq)).scalar()
        position = 0 if last is None else last + 1
        connection.execute(cell.insert().values(study=seq, position=position, name=name, **values))
    seal(connection, cell, [seq], position)


def _study_seq(connection: Connection, name: str) -> int:
    """seq of a study; InputError with the nearest names where there is none."""
    seq = connection.execute(select(study.c.seq).where(study.c.name == name)).scalar()
    if seq is None:
        names = list(connection.execute(select(study.c.name).order_by(study.c.seq)).scalars())
        raise InputError(f"no study {name!r} in the ledger{nearest(name, names)}; run it first")
    return int(seq)
