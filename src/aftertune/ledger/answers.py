"""Owns the items that an evaluation asks and the answers to them.

    ledger.items(id, "arc_easy")           [Item, …]        in the order in which they were asked
    ledger.answers(id, "arc_easy")         [Answer, …]      each with its responses

A row of ``answer`` is made with the items, when the evaluation is opened, and filled when it is finished. The
document is stored once for all evaluations; responses stay where their batch put them, and an answer names
their positions.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from sqlalchemy import Connection, RowMapping, bindparam, select, tuple_

from aftertune.errors import InputError, StorageError, nearest
from aftertune.ledger.responses import load_responses, positions_of
from aftertune.ledger.schema import answer, evaluation, item
from aftertune.ledger.store import CHUNK, Store, decode, encode, find
from aftertune.values import Answer, Asked, Item, Response

#: The key under which what was asked is kept in a stored document.
_ASKED = "aftertune:asked"


class Answers(Store):
    """Items and answers of evaluations."""

    def items(self, evaluation_id: str, task: str | None = None) -> list[Item]:
        """Items of one task, or of all, in the order in which they were asked; InputError: unknown task."""
        with self.database.read() as connection:
            seq = find(connection, evaluation, evaluation_id).seq
            rows = connection.execute(
                select(answer.c.task, answer.c.index, item.c.hash, item.c.doc, answer.c.cluster)
                .join(item, item.c.seq == answer.c.item)
                .where(answer.c.evaluation == seq, *_of_task(connection, seq, task))
                .order_by(answer.c.position))
            return [Item(task=name, index=index, hash=hash_, cluster=cluster, **_loaded(doc))
                    for name, index, hash_, doc, cluster in rows]

    def answers(self, evaluation_id: str, task: str | None = None) -> list[Answer]:
        """Answers to one task, or to all, in the order of the items; none before the evaluation is done."""
        with self.database.read() as connection:
            seq = find(connection, evaluation, evaluation_id).seq
            rows = connection.execute(
                select(answer, item.c.hash).join(item, item.c.seq == answer.c.item)
                .where(answer.c.evaluation == seq, answer.c.metrics.is_not(None),
                       *_of_task(connection, seq, task))
                .order_by(answer.c.position)).mappings().all()
            used = list(chain.from_iterable(r["responses"] for r in rows))
            known = load_responses(connection, seq, min(used), max(used)) if used else {}
            return [_answer(row, known) for row in rows]


def ask(connection: Connection, seq: int, items: Sequence[Item]) -> None:
    """Make the empty answers of a new evaluation; documents that are not yet known are stored."""
    known = _store_documents(connection, items)
    rows = [{"evaluation": seq, "position": position, "task": i.task, "index": i.index,
             "item": known[i.hash, _content(i)], "cluster": i.cluster} for position, i in enumerate(items)]
    twice = len(rows) - len({(i.task, i.index) for i in items})
    if twice:
        raise StorageError(f"{twice} items have the task and index of another; an index names one document "
                           "of a task")
    if rows:
        connection.execute(answer.insert(), rows)


def same_items(connection: Connection, seq: int, items: Sequence[Item]) -> bool:
    """True where the evaluation was opened with these items in this order."""
    rows = connection.execute(select(answer.c.task, answer.c.index, item.c.hash)
                              .join(item, item.c.seq == answer.c.item)
                              .where(answer.c.evaluation == seq).order_by(answer.c.position))
    return [tuple(r) for r in rows] == [(i.task, i.index, i.hash) for i in items]


def fill(connection: Connection, seq: int, answers: Sequence[Answer], positions: Sequence[Sequence[int]],
         used: Mapping[str, int]) -> None:
    """Write what was answered; positions[k] are the requests of answers[k].

    used: tasks that were stopped early, with the number of their items that were asked; the others stay unanswered.
    StorageError where an answer has no item, an item no answer, or a request no stored response.
    """
    if len(answers) != len(positions):
        raise StorageError(f"{len(answers)} answers came with {len(positions)} lists of positions; each "
                           "answer has one")
    asked = {(task, index): (position, hash_) for task, index, position, hash_ in connection.execute(
        select(answer.c.task, answer.c.index, answer.c.position, item.c.hash)
        .join(item, item.c.seq == answer.c.item).where(answer.c.evaluation == seq))}
    stray = next((a for a in answers if asked.get((a.task, a.index), (0, ""))[1] != a.item), None)
    if stray is not None:
        raise StorageError(f"the answer to {stray.task} {stray.index} (item {stray.item[:12]}) fits no item "
                           "of the evaluation; nothing was stored")
    expected = sum(task not in used for task, _ in asked) + sum(used.values())
    if len({(a.task, a.index) for a in answers}) != expected or len(answers) != expected:
        raise StorageError(f"{len(answers)} answers for {expected} items; every item has one answer, and "
                           "nothing was stored")
    missing = set(chain.from_iterable(positions)) - positions_of(connection, seq)
    if missing:
        raise StorageError(f"{len(missing)} requests have no stored response (the first: {min(missing)}); "
                           "nothing was stored")
    rows = [{"at": asked[a.task, a.index][0], "new_metrics": encode(a.metrics),
             "new_extracted": encode(a.extracted), "new_responses": list(p), "new_cluster": a.cluster}
            for a, p in zip(answers, positions, strict=True)]
    if rows:
        connection.execute(
            answer.update().where(answer.c.evaluation == seq, answer.c.position == bindparam("at"))
            .values(metrics=bindparam("new_metrics"), extracted=bindparam("new_extracted"),
                    responses=bindparam("new_responses"), cluster=bindparam("new_cluster")), rows)


def _of_task(connection: Connection, seq: int, task: str | None) -> list[Any]:
    """The condition "this task"; InputError with the nearest names where the evaluation has no such task."""
    if task is None:
        return []
    query = select(answer.c.task).where(answer.c.evaluation == seq).distinct()
    known = sorted(connection.execute(query).scalars())
    if task not in known:
        raise InputError(f"the evaluation has no task {task!r}{nearest(task, known)}; its tasks: "
                         f"{', '.join(known) or 'none'}")
    return [answer.c.task == task]


def _answer(row: RowMapping, known: Mapping[int, Response]) -> Answer:
    return Answer(task=row["task"], index=row["index"], item=row["hash"], metrics=row["metrics"],
                  extracted=row["extracted"], cluster=row["cluster"],
                  responses=tuple(known[p] for p in row["responses"]))


def _stored(value: Item) -> dict[str, Any]:
    """A document as it is stored: with what was asked of it, under a key of our own."""
    doc: dict[str, Any] = encode(value.doc)
    return doc if value.asked is None else {**doc, _ASKED: encode(value.asked)}


def _loaded(doc: Mapping[str, Any]) -> dict[str, Any]:
    """The fields ``doc`` and ``asked`` of an item from its stored document; older ones have no ``asked``."""
    own = {k: v for k, v in doc.items() if k != _ASKED}
    return {"doc": own, "asked": decode(Asked, doc[_ASKED]) if _ASKED in doc else None}


def _text(value: Item) -> str:
    return json.dumps(_stored(value), ensure_ascii=False, separators=(",", ":"))


def _content(value: Item) -> str:
    return hashlib.sha256(_text(value).encode("utf-8", "surrogatepass")).hexdigest()


def _store_documents(connection: Connection, items: Sequence[Item]) -> dict[tuple[str, str], int]:
    """(hash, content) -> seq of every item's document; the missing ones are inserted."""
    documents = {(i.hash, _content(i)): i for i in items}
    known = _known_documents(connection, list(documents))
    rows = [{"hash": hash_, "content": content, "doc": _stored(i)}
            for (hash_, content), i in documents.items() if (hash_, content) not in known]
    if not rows:
        return known
    connection.execute(item.insert(), rows)
    return _known_documents(connection, list(documents))


def _known_documents(connection: Connection, keys: Sequence[tuple[str, str]]) -> dict[tuple[str, str], int]:
    found: dict[tuple[str, str], int] = {}
    for start in range(0, len(keys), CHUNK):
        query = select(item.c.hash, item.c.content, item.c.seq).where(
            tuple_(item.c.hash, item.c.content).in_(keys[start:start + CHUNK]))
        found.update({(r.hash, r.content): r.seq for r in connection.execute(query)})
    return found
