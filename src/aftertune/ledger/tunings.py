"""Owns fine-tunes and their training logs.

    ledger.save_tuning(tuning)                      again with the same id: replaced
    ledger.save_step(tuning.id, 10, {"loss": 1.9})  one row of the log
    ledger.find_tuning("careful").steps             ({"step": 10, "loss": 1.9}, …)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from sqlalchemy import Connection, Row, func, select

from aftertune.ledger.schema import model, step, tuning
from aftertune.ledger.store import CHUNK, Store, decode, encode, find, store_model, upsert
from aftertune.values import Tuning

_ELSEWHERE = ("id", "name", "status", "result", "base", "steps")


class Tunings(Store):
    """Fine-tunes."""

    def save_tuning(self, value: Tuning) -> Tuning:
        """Insert a tuning, or replace the one with its id; returns what is stored.

        Its steps replace the stored log; without steps the log stays as it is.
        """
        with self.database.write() as connection:
            rest = {k: v for k, v in encode(value).items() if k not in _ELSEWHERE}
            seq = upsert(connection, tuning, {"id": value.id}, {
                "name": value.name, "status": value.status, "result": value.result,
                "model": store_model(connection, value.base), "value": rest})
            if value.steps:
                connection.execute(step.delete().where(step.c.tuning == seq))
                connection.execute(step.insert(), [
                    {"tuning": seq, "number": n, "step": int(s.get("step", n)), "value": encode(s)}
                    for n, s in enumerate(value.steps)])
            return _load(connection, [find(connection, tuning, value.id)])[0]

    def save_step(self, tuning_id: str, number: int, metrics: Mapping[str, float]) -> None:
        """Add a row to the training log; a row of the same step (the run was resumed) is replaced.

        number: the optimizer's step, stored with the metrics under "step".
        """
        with self.database.write() as connection:
            seq = find(connection, tuning, tuning_id).seq
            value = {"step": number, **encode(metrics)}
            here = (step.c.tuning == seq, step.c.step == number)
            if connection.execute(step.update().where(*here).values(value=value)).rowcount:
                return
            last = connection.execute(select(func.max(step.c.number)).where(step.c.tuning == seq)).scalar()
            connection.execute(step.insert().values(
                tuning=seq, number=0 if last is None else last + 1, step=number, value=value))

    def find_tuning(self, word: str) -> Tuning:
        """The tuning with this id, this name (the newest), or this beginning of an id; else InputError."""
        with self.database.read() as connection:
            return _load(connection, [find(connection, tuning, word)])[0]

    def tunings(self) -> list[Tuning]:
        """All tunings, the newest last."""
        with self.database.read() as connection:
            return _load(connection, connection.execute(select(tuning).order_by(tuning.c.seq)).all())


def _load(connection: Connection, rows: Sequence[Row[Any]]) -> list[Tuning]:
    out: list[Tuning] = []
    for start in range(0, len(rows), CHUNK):
        part = rows[start:start + CHUNK]
        models = {r.seq: r.value for r in connection.execute(
            select(model).where(model.c.seq.in_({r.model for r in part})))}
        log = connection.execute(select(step).where(step.c.tuning.in_([r.seq for r in part]))
                                 .order_by(step.c.tuning, step.c.number))
        steps = {seq: [r.value for r in group] for seq, group in groupby(log, key=lambda r: r.tuning)}
        out += [decode(Tuning, {**r.value, "id": r.id, "name": r.name, "status": r.status, "result": r.result,
                                "base": models[r.model], "steps": steps.get(r.seq, [])}) for r in part]
    return out
