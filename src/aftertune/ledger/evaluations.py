"""Owns evaluations from their opening to their scores.

    stored = ledger.open_evaluation(evaluation, items)         new, running, or already done
    ledger.finish_evaluation(evaluation, answers, positions)   answers, scores and status in one transaction
    ledger.find_evaluation("base")                             by id, name, or the beginning of an id
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

from sqlalchemy import Connection, Row, or_, select

from aftertune.errors import StorageError
from aftertune.ledger.answers import ask, fill, same_items
from aftertune.ledger.lease import check_lease
from aftertune.ledger.responses import refuse_nan, store_schedule
from aftertune.ledger.schema import (
    answer,
    comparison,
    evaluation,
    item,
    lease,
    model,
    response,
    schedule,
    score,
    task,
    tuning,
)
from aftertune.ledger.store import CHUNK, Store, decode, encode, find, store_model
from aftertune.values import Answer, Evaluation, Item

_ELSEWHERE = ("id", "name", "status", "tuning", "model", "tasks", "scores", "schedule")
_SCORE = ("task", "metric", "filter", "value", "stderr", "n", "higher_is_better", "primary", "group")


class Evaluations(Store):
    """Evaluations with their tasks and scores."""

    def open_evaluation(self, value: Evaluation, items: Sequence[Item]) -> Evaluation:
        """Store an evaluation and its items if its id is new; returns what is stored, perhaps "done".

        StorageError where the id is stored with other items.
        """
        with self.database.write() as connection:
            row = connection.execute(select(evaluation).where(evaluation.c.id == value.id)).first()
            if row is None:
                made = connection.execute(evaluation.insert().values(
                    id=value.id, **_columns(connection, value))).inserted_primary_key
                assert made is not None
                _write_parts(connection, made[0], value)
                ask(connection, made[0], items)
            elif not same_items(connection, row.seq, items):
                raise StorageError(f"evaluation {value.id} is stored with other items; its id must cover "
                                   "them: start anew with --fork")
            return _load_one(connection, value.id)

    def finish_evaluation(self, value: Evaluation, answers: Sequence[Answer],
                          positions: Sequence[Sequence[int]]) -> Evaluation:
        """Store answers, scores and the status "done", in one transaction; returns what is stored.

        positions[k]: the requests (save_batch) that answers[k] was made of. Of a task that was stopped early only the
        used items have answers. Finishing again with the same
        scores changes nothing; with others it is a StorageError. The lease is given back.
        """
        with self.database.write() as connection:
            row = find(connection, evaluation, value.id)
            if row.status == "done":
                stored = _load_one(connection, row.id)
                if stored.scores != value.scores:
                    raise StorageError(f"evaluation {row.id} is done, with other scores; nothing was "
                                       "changed: start anew with --fork")
                return stored
            check_lease(connection, row.seq, row.id)
            done = replace(value, status="done")
            connection.execute(evaluation.update().where(evaluation.c.seq == row.seq)
                               .values(**_columns(connection, done)))
            _write_parts(connection, row.seq, done)
            fill(connection, row.seq, answers, positions, {t.task: t.used for t in value.tasks if t.used is not None})
            connection.execute(lease.delete().where(lease.c.evaluation == row.seq))
            return _load_one(connection, row.id)

    def find_evaluation(self, word: str) -> Evaluation:
        """The evaluation with this id, this name (the newest), or this beginning of an id (4 characters up).

        InputError with the nearest ids and names where there is none.
        """
        with self.database.read() as connection:
            return _load(connection, [find(connection, evaluation, word)])[0]

    def evaluations(self) -> list[Evaluation]:
        """All evaluations, the newest last."""
        with self.database.read() as connection:
            return _load(connection, connection.execute(select(evaluation).order_by(evaluation.c.seq)).all())

    def delete_evaluation(self, evaluation_id: str) -> None:
        """Remove an evaluation with its answers and scores, and the comparisons that stand on it.

        ResourceError where another live process works on it.
        """
        with self.database.write() as connection:
            row = find(connection, evaluation, evaluation_id)
            check_lease(connection, row.seq, row.id)
            connection.execute(comparison.delete().where(
                or_(comparison.c.base == row.id, comparison.c.tuned == row.id)))
            for part in (response, answer, score, task, schedule, lease):
                connection.execute(part.delete().where(part.c.evaluation == row.seq))
            connection.execute(evaluation.delete().where(evaluation.c.seq == row.seq))
            connection.execute(item.delete().where(
                ~select(answer.c.item).where(answer.c.item == item.c.seq).exists()))
            used = [~select(t.c.model).where(t.c.model == model.c.seq).exists() for t in (evaluation, tuning)]
            connection.execute(model.delete().where(*used))


def _columns(connection: Connection, value: Evaluation) -> dict[str, Any]:
    """The row of an evaluation, less its id."""
    rest = {k: v for k, v in encode(value).items() if k not in _ELSEWHERE}
    return {"name": value.name, "status": value.status, "tuning": value.tuning,
            "model": store_model(connection, value.model), "value": rest}


def _write_parts(connection: Connection, seq: int, value: Evaluation) -> None:
    """Tasks, scores and (if it has one) schedule, in the place of what was there."""
    for table in (task, score):
        connection.execute(table.delete().where(table.c.evaluation == seq))
    if value.tasks:
        connection.execute(task.insert(), [
            {"evaluation": seq, "position": p, "name": t.task, "value": encode(t)}
            for p, t in enumerate(value.tasks)])
    for s in value.scores:
        refuse_nan(s.value, f"the score {s.task} {s.key}")
        refuse_nan(s.stderr, f"the standard error of {s.task} {s.key}")
    if value.scores:
        connection.execute(score.insert(), [
            {"evaluation": seq, "position": p, **{f: getattr(s, f) for f in _SCORE}}
            for p, s in enumerate(value.scores)])
    if value.schedule:
        store_schedule(connection, seq, value.schedule)


def _load_one(connection: Connection, evaluation_id: str) -> Evaluation:
    return _load(connection, [find(connection, evaluation, evaluation_id)])[0]


def _load(connection: Connection, rows: Sequence[Row[Any]]) -> list[Evaluation]:
    """Evaluations from their rows, with one query a table and chunk."""
    out: list[Evaluation] = []
    for start in range(0, len(rows), CHUNK):
        part = rows[start:start + CHUNK]
        seqs = [r.seq for r in part]
        models = {r.seq: r.value for r in connection.execute(
            select(model).where(model.c.seq.in_({r.model for r in part})))}
        schedules = {r.evaluation: r.value for r in connection.execute(
            select(schedule).where(schedule.c.evaluation.in_(seqs)))}
        tasks = _by_evaluation(connection, task, seqs)
        scores = _by_evaluation(connection, score, seqs)
        out += [decode(Evaluation, {
            **r.value, "id": r.id, "name": r.name, "status": r.status, "tuning": r.tuning,
            "model": models[r.model], "schedule": schedules.get(r.seq, {}),
            "tasks": [t.value for t in tasks.get(r.seq, [])],
            "scores": [{f: s._mapping[f] for f in _SCORE} for s in scores.get(r.seq, [])]}) for r in part]
    return out


def _by_evaluation(connection: Connection, table: Any, seqs: list[int]) -> dict[int, list[Row[Any]]]:
    rows = connection.execute(select(table).where(table.c.evaluation.in_(seqs))
                              .order_by(table.c.evaluation, table.c.position))
    return {seq: list(group) for seq, group in groupby(rows, key=lambda r: r.evaluation)}

