"""Stores an evaluation that another program made, with all its items and answers, in one transaction.

    ledger.store_evaluation(evaluation, answered)      answered: (Item, Answer) of each document, one after another

The items and answers are taken one after another, some at a time, so their number has no bound. Until the transaction
ends, nobody sees anything of them, and an interruption leaves nothing. What is stored is the same as after
`open_evaluation`, `save_batch` with all responses as batch 0, and `finish_evaluation`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from sqlalchemy import Connection, select

from aftertune.ledger.digests import seal
from aftertune.ledger.evaluations import (
    columns_of,
    delete_rows,
    load_evaluation,
    response_row,
    seal_evaluation,
    store_documents,
    write_parts,
)
from aftertune.ledger.lease import Leases, check_lease
from aftertune.ledger.schema import answer, evaluation, response
from aftertune.ledger.store import CHUNK, encode
from aftertune.values import Answer, Evaluation, Item


class FinishedEvaluations(Leases):
    """Evaluations that are stored whole."""

    def store_evaluation(self, value: Evaluation, answered: Iterable[tuple[Item, Answer]]) -> Evaluation:
        """Store an evaluation with status "done", its items and answers; returns what is stored.

        One with this id that is done stays as it is; one that is not done is replaced. ResourceError where another
        process works on it. An error that ``answered`` raises leaves the ledger as it was.
        """
        with self.database.write() as connection:
            row = connection.execute(select(evaluation).where(evaluation.c.id == value.id)).first()
            if row is not None and row.status == "done":
                return load_evaluation(connection, value.id)
            if row is not None:
                check_lease(connection, row.seq, row.id, take_over=self.take_over)
                delete_rows(connection, row)
            done = replace(value, status="done")
            key = connection.execute(evaluation.insert().values(
                id=done.id, **columns_of(connection, done))).inserted_primary_key
            assert key is not None
            write_parts(connection, key[0], done)
            _insert(connection, key[0], answered)
            seal_evaluation(connection, key[0])
            seal(connection, response, [key[0]])  # in the order of the rows, so nothing is sorted in memory
            return load_evaluation(connection, value.id)


def _insert(connection: Connection, seq: int, answered: Iterable[tuple[Item, Answer]]) -> None:
    """Insert items, answers and responses."""
    position = request = 0
    for part in _chunks(answered):
        documents = store_documents(connection, [item for item, _ in part])
        answers: list[dict[str, Any]] = []
        responses: list[dict[str, Any]] = []
        for (item, given), document in zip(part, documents, strict=True):
            positions = range(request, request + len(given.responses))
            request = positions.stop
            answers.append({
                "evaluation": seq, "position": position, "task": item.task, "index": item.index,
                "item": document, "cluster": given.cluster,
                "metrics": encode(given.metrics), "extracted": encode(given.extracted),
                "responses": list(positions)})
            responses += ({"evaluation": seq, **response_row(0, at, r)}
                          for at, r in zip(positions, given.responses, strict=True))
            position += 1
        connection.execute(answer.insert(), answers)
        if responses:
            connection.execute(response.insert(), responses)


def _chunks(answered: Iterable[tuple[Item, Answer]]) -> Iterator[Sequence[tuple[Item, Answer]]]:
    rest = iter(answered)
    while some := list(islice(rest, CHUNK)):
        yield some
