"""Owns a running evaluation: its schedule and the responses of the batches that are finished.

    ledger.save_schedule(id, {"budget": 4096, "rows": …})
    ledger.save_batch(id, 0, {0: Response(logprob=-3.2, greedy=False), 1: …})      one transaction
    ledger.done_positions(id)                                                      {0, 1}

A position is the index of a request in the evaluation's ordered list of requests.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import Connection, Row, or_, select

from aftertune.errors import StorageError
from aftertune.ledger.lease import beat
from aftertune.ledger.schema import evaluation, response, schedule
from aftertune.ledger.store import CHUNK, Store, encode, find
from aftertune.values import Response

_FIELDS = ("logprob", "greedy", "text", "tokens", "finish", "truncated")


class Responses(Store):
    """Schedules and responses of evaluations."""

    def save_schedule(self, evaluation_id: str, value: Mapping[str, Any]) -> None:
        """Store how the requests are cut into batches; a later one (a batch was halved) replaces it."""
        with self.database.write() as connection:
            row = find(connection, evaluation, evaluation_id)
            beat(connection, row.seq, row.id)
            store_schedule(connection, row.seq, value)

    def schedule(self, evaluation_id: str) -> dict[str, Any] | None:
        """The stored schedule, or None where there is none yet."""
        with self.database.read() as connection:
            seq = find(connection, evaluation, evaluation_id).seq
            value: dict[str, Any] | None = connection.execute(
                select(schedule.c.value).where(schedule.c.evaluation == seq)).scalar()
            return value

    def save_batch(self, evaluation_id: str, batch: int, responses: Mapping[int, Response]) -> None:
        """Store one finished batch: position -> response; when this returns, it is on disk.

        The same batch with the same content again is nothing; with other content, or at a position that
        another batch has filled, it is a StorageError. ResourceError where another process has the lease.
        """
        rows = [_row(batch, position, value) for position, value in sorted(responses.items())]
        with self.database.write() as connection:
            found = find(connection, evaluation, evaluation_id)
            beat(connection, found.seq, found.id)
            stored = {r.position: r for r in _stored(connection, found.seq, batch, responses)}
            if not stored:
                if rows:
                    connection.execute(response.insert(), [{"evaluation": found.seq, **r} for r in rows])
                return
            if [_content(r) for _, r in sorted(stored.items())] != [tuple(r.values()) for r in rows]:
                raise StorageError(f"batch {batch} of evaluation {found.id} is stored with other content "
                                   f"({_first_difference(stored, rows)}); the run is not the one that was "
                                   "begun: start anew with --fork")

    def done_positions(self, evaluation_id: str) -> set[int]:
        """Positions whose response is stored."""
        with self.database.read() as connection:
            return positions_of(connection, find(connection, evaluation, evaluation_id).seq)

    def responses(self, evaluation_id: str) -> dict[int, Response]:
        """Position -> response, for every stored one, in order of position."""
        with self.database.read() as connection:
            return load_responses(connection, find(connection, evaluation, evaluation_id).seq)


def store_schedule(connection: Connection, seq: int, value: Mapping[str, Any]) -> None:
    """Put ``value`` in the place of the evaluation's schedule."""
    connection.execute(schedule.delete().where(schedule.c.evaluation == seq))
    connection.execute(schedule.insert().values(evaluation=seq, value=encode(value)))


def positions_of(connection: Connection, seq: int) -> set[int]:
    """Positions that are stored."""
    return set(connection.execute(select(response.c.position).where(response.c.evaluation == seq)).scalars())


def load_responses(connection: Connection, seq: int, low: int | None = None,
                   high: int | None = None) -> dict[int, Response]:
    """Responses at positions from ``low`` to ``high``, both included; None is no bound."""
    query = select(response.c.position, *(response.c[f] for f in _FIELDS)).where(response.c.evaluation == seq)
    if low is not None:
        query = query.where(response.c.position >= low)
    if high is not None:
        query = query.where(response.c.position <= high)
    rows = connection.execute(query.order_by(response.c.position))
    return {row[0]: Response(**dict(zip(_FIELDS, row[1:], strict=True))) for row in rows}


def refuse_nan(value: float | None, what: str) -> float | None:
    """``value``; StorageError where it is not a number (a database takes it for NULL)."""
    if value is not None and math.isnan(value):
        raise StorageError(f"{what} is not a number (NaN) and cannot be stored; the model's outputs are "
                           "broken: try --dtype float32")
    return value


def _row(batch: int, position: int, value: Response) -> dict[str, Any]:
    logprob = refuse_nan(value.logprob, f"the log-probability of request {position}")
    return {"batch": batch, "position": position, "logprob": None if logprob is None else float(logprob),
            **{name: getattr(value, name) for name in _FIELDS[1:]}}


def _stored(connection: Connection, seq: int, batch: int, positions: Iterable[int]) -> list[Row[Any]]:
    """What is stored of this batch, and at these positions by any batch."""
    wanted, found = sorted(positions), {}
    for start in range(0, max(1, len(wanted)), CHUNK):
        part = wanted[start:start + CHUNK]
        query = select(response).where(response.c.evaluation == seq,
                                       or_(response.c.batch == batch, response.c.position.in_(part)))
        found.update({r.position: r for r in connection.execute(query)})
    return list(found.values())


def _content(row: Row[Any]) -> tuple[Any, ...]:
    return (row.batch, row.position, *(getattr(row, name) for name in _FIELDS))


def _first_difference(stored: Mapping[int, Row[Any]], rows: list[dict[str, Any]]) -> str:
    """The first position at which the stored and the new batch differ, in words."""
    new = {r["position"]: tuple(r.values()) for r in rows}
    for position in sorted({*stored, *new}):
        if position not in new:
            return f"position {position} is stored and not in the new one"
        if position not in stored:
            return f"position {position} is new"
        if stored[position].batch != new[position][0]:
            return f"position {position} belongs to batch {stored[position].batch}"
        if _content(stored[position]) != new[position]:
            return f"position {position} differs"
    return "the same positions"
