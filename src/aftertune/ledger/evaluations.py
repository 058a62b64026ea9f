"""Stores evaluations from their opening to their scores: items, responses batch by batch, answers, scores.

    stored = ledger.open_evaluation(evaluation, items)         new, running, or already done
    ledger.save_batch(id, 0, {0: Response(logprob=-3.2, greedy=False), 1: …})      one transaction
    ledger.finish_evaluation(evaluation, answers, positions)   answers, scores and status in one transaction
    ledger.find_evaluation("base")                             by id, name, or the beginning of an id
    ledger.answers(id, "arc_easy")                             [Answer, …], each with its responses

A position is the index of a request in the evaluation's ordered list of requests. A row of ``answer`` is inserted with
the items when the evaluation is opened, and filled when it is finished. The document of an item is stored once for all
evaluations. Responses are stored once, by batch; an answer holds their positions.
"""

from __future__ import annotations

import hashlib
import json
import math
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, groupby, repeat
from typing import Any

from sqlalchemy import Connection, Row, RowMapping, bindparam, or_, select, type_coerce

from aftertune.errors import InputError, SourceError, StorageError, nearest
from aftertune.ledger.database import repeatable
from aftertune.ledger.digests import OF_EVALUATION, check, forget, seal, without_index
from aftertune.ledger.lease import beat, check_lease
from aftertune.ledger.schema import (
    Prose,
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
from aftertune.ledger.store import (
    CHUNK,
    Store,
    all_rows,
    decode,
    encode,
    find_key,
    find_row,
    model_of,
    reading,
    store_model,
)
from aftertune.values import Answer, Asked, Evaluation, Item, Response

#: Fields of an evaluation that have a column or table of their own.
_ELSEWHERE = ("id", "name", "status", "tuning", "model", "tasks", "scores", "schedule")
_SCORE = ("task", "metric", "filter", "value", "stderr", "n", "higher_is_better", "primary", "group")
_RESPONSE = ("logprob", "greedy", "text", "tokens", "finish", "truncated")
#: A stored number of truncated tokens that stands for None: the column takes no null.
_UNKNOWN = -1
#: The key of a stored evaluation for the units of its scores, in their order. Older ones do not have it.
_UNITS = "units"
#: The key of a stored document for the question text.
_ASKED = "aftertune:asked"


@repeatable("open_evaluation", "finish_evaluation", "find_evaluation", "evaluations", "items", "answers",
            "save_schedule", "schedule", "save_batch", "done_positions", "responses")
class Evaluations(Store):
    """Evaluations with their tasks, items, schedule, responses, answers and scores."""

    def open_evaluation(self, value: Evaluation, items: Sequence[Item]) -> Evaluation:
        """Store an evaluation and its items if its id is new; returns what is stored, perhaps "done".

        StorageError where the id is stored with other items.
        """
        with self.database.write() as connection:
            row = connection.execute(select(evaluation).where(evaluation.c.id == value.id)).first()
            if row is None:
                primary_key = connection.execute(evaluation.insert().values(
                    id=value.id, **columns_of(connection, value))).inserted_primary_key
                assert primary_key is not None
                write_parts(connection, primary_key[0], value)
                _insert_items(connection, primary_key[0], items)
                seal_evaluation(connection, primary_key[0])
            elif not _same_items(connection, row.seq, items):
                raise StorageError(f"evaluation {value.id} is stored with other items; start a new run with "
                                   "--fork")
            return load_evaluation(connection, value.id)

    def finish_evaluation(self, value: Evaluation, answers: Sequence[Answer],
                          positions: Sequence[Sequence[int]]) -> Evaluation:
        """Store answers, scores and the status "done", in one transaction; returns what is stored.

        positions[k]: the requests (save_batch) that answers[k] was made of. In a task that was stopped early only the
        used items have answers. Finishing again with the same scores changes nothing; with others it is a
        StorageError. The lease is released.
        """
        with self.database.write() as connection:
            row = find_row(connection, evaluation, value.id)
            if row.status == "done":
                stored = load_evaluation(connection, row.id)
                if stored.scores != value.scores:
                    raise StorageError(f"evaluation {row.id} is already done with other scores; nothing was "
                                       "changed: start a new run with --fork")
                return stored
            beat(connection, row.seq, row.id)
            check(connection, answer, {row.seq: f"evaluation {row.id}"})
            done = replace(value, status="done")
            connection.execute(evaluation.update().where(evaluation.c.seq == row.seq)
                               .values(**columns_of(connection, done)))
            write_parts(connection, row.seq, done)
            used = {t.task: t.used for t in value.tasks if t.used is not None}
            _store_answers(connection, row.seq, answers, positions, used)
            seal_evaluation(connection, row.seq)
            connection.execute(lease.delete().where(lease.c.evaluation == row.seq))
            return load_evaluation(connection, row.id)

    def find_evaluation(self, word: str) -> Evaluation:
        """The evaluation with this id, this name, or this beginning of an id (4 characters up).

        AmbiguousName with the ids where several have this name; InputError with the nearest ids and names where there
        is none.
        """
        with self.database.read() as connection:
            return _load(connection, [find_row(connection, evaluation, word)])[0]

    def word_for(self, value: Evaluation) -> str:
        """How a command line names this evaluation: by its name if no other one has it, else by its id."""
        with self.database.read() as connection:
            ids = set(connection.execute(select(evaluation.c.id).where(evaluation.c.name == value.name)).scalars())
        return value.id if ids - {value.id} else shlex.quote(value.name)

    def names_of_others(self, fingerprint: str) -> set[str]:
        """The names of the evaluations of models that do not have this fingerprint."""
        with self.database.read() as connection:
            return set(connection.execute(
                select(evaluation.c.name).join(model, model.c.seq == evaluation.c.model)
                .where(model.c.fingerprint != fingerprint)).scalars())

    def evaluations(self) -> list[Evaluation]:
        """All evaluations, the newest last."""
        with self.database.read() as connection:
            return _load(connection, all_rows(connection, evaluation))

    def delete_evaluation(self, evaluation_id: str) -> None:
        """Remove an evaluation with its answers and scores, and the comparisons that use it.

        ResourceError where another live process works on it.
        """
        with self.database.write() as connection:
            row = find_key(connection, evaluation, evaluation_id)
            check_lease(connection, row.seq, row.id)
            delete_rows(connection, row)

    def items(self, evaluation_id: str, task: str | None = None) -> list[Item]:
        """Items of one task, or of all, in the order in which they were asked; InputError: unknown task."""
        return list(self.each_item(evaluation_id, task))

    def each_item(self, evaluation_id: str, task: str | None = None, *, beside: str | None = None) -> Iterator[Item]:
        """As `items`, one after another; the ledger is read until the last one was taken. beside: only those whose
        documents this other evaluation does not have."""
        with self.database.read() as connection:
            row = find_row(connection, evaluation, evaluation_id)
            self._check_answers(connection, row)
            other = None if beside is None else select(answer.c.item).where(
                answer.c.evaluation == find_row(connection, evaluation, beside).seq)
            text = type_coerce(item.c.doc, Prose())
            query = (select(answer.c.task, answer.c.index, item.c.hash, item.c.content, text, answer.c.cluster)
                     .join(item, item.c.seq == answer.c.item, isouter=True)
                     .where(answer.c.evaluation == row.seq, *_of_task(connection, row.seq, task),
                            *([] if other is None else [answer.c.item.not_in(other)]))
                     .order_by(answer.c.position))
            with reading(f"evaluation {row.id}, its items"):
                for name, index, hash_, content, doc, cluster in connection.execute(query):
                    yield Item(task=name, index=index, hash=hash_, cluster=cluster, **item_fields(content, doc))

    def answers(self, evaluation_id: str, task: str | None = None) -> list[Answer]:
        """Answers to one task, or to all, in the order of the items; none before the evaluation is done."""
        return list(self.each_answer(evaluation_id, task))

    def each_answer(self, evaluation_id: str, task: str | None = None) -> Iterator[Answer]:
        """As `answers`, one after another. The ledger is read until the last one was taken."""
        with self.database.read() as connection:
            row = find_row(connection, evaluation, evaluation_id)
            self._check_answers(connection, row)
            query = (select(answer, item.c.hash).join(item, item.c.seq == answer.c.item, isouter=True)
                     .where(answer.c.evaluation == row.seq, answer.c.metrics.is_not(None),
                            *_of_task(connection, row.seq, task))
                     .order_by(answer.c.position))
            with reading(f"evaluation {row.id}, its answers"):
                for rows in connection.execute(query).mappings().partitions(CHUNK):
                    used = sorted(set(chain.from_iterable(r["responses"] for r in rows)))
                    responses = load_responses(connection, row.seq, used)
                    yield from (answer_of(r, responses) for r in rows)

    def _check_answers(self, connection: Connection, row: Row[Any]) -> None:
        """StorageError where answers or responses are damaged; those of a finished evaluation are checked once."""
        if row.seq not in self.checked:
            for table in (answer, response):
                check(connection, table, {row.seq: f"evaluation {row.id}"})
        if row.status == "done":
            self.checked.add(row.seq)

    def save_schedule(self, evaluation_id: str, value: Mapping[str, Any]) -> None:
        """Store how the requests are cut into batches; a later one (a batch was split) replaces it."""
        with self.database.write(within=True) as connection:
            row = find_row(connection, evaluation, evaluation_id)
            beat(connection, row.seq, row.id)
            store_schedule(connection, row.seq, value)

    def schedule(self, evaluation_id: str) -> dict[str, Any] | None:
        """The stored schedule, or None where there is none yet."""
        with self.database.read() as connection:
            row = find_row(connection, evaluation, evaluation_id)
            check(connection, schedule, {row.seq: f"evaluation {row.id}"})
            value: dict[str, Any] | None = connection.execute(
                select(schedule.c.value).where(schedule.c.evaluation == row.seq)).scalar()
            return value

    def save_batch(self, evaluation_id: str, batch: int, responses: Mapping[int, Response]) -> None:
        """Store one finished batch: position -> response; when this returns, it is on disk.

        Saving the same batch with the same content again changes nothing; with other content, or at a position that
        another batch has filled, it is a StorageError. ResourceError where another process has the lease.
        """
        rows = [response_row(batch, position, value) for position, value in sorted(responses.items())]
        with self.database.write(within=True) as connection:
            row = find_row(connection, evaluation, evaluation_id)
            beat(connection, row.seq, row.id, saved=batch)
            stored = {r.position: r for r in _stored_batch(connection, row.seq, batch, responses)}
            if not stored:
                if rows:
                    connection.execute(response.insert(), [{"evaluation": row.seq, **r} for r in rows])
                    seal(connection, response, [row.seq], batch)
                return
            if [_row_content(r) for _, r in sorted(stored.items())] != [tuple(r.values()) for r in rows]:
                raise StorageError(f"batch {batch} of evaluation {row.id} is stored with other content "
                                   f"({_first_difference(stored, rows)}); this is not the run that was started: "
                                   "start a new one with --fork")

    def done_positions(self, evaluation_id: str) -> set[int]:
        """Positions whose response is stored."""
        with self.database.read() as connection:
            return _positions_of(connection, find_row(connection, evaluation, evaluation_id).seq)

    def responses(self, evaluation_id: str) -> dict[int, Response]:
        """Position -> response, for every stored one, in order of position."""
        with self.database.read() as connection:
            row = find_row(connection, evaluation, evaluation_id)
            self._check_answers(connection, row)
            return load_responses(connection, row.seq)

    def check_answers(self, evaluation_id: str) -> None:
        """Read every item, answer and response of an evaluation, some at a time. StorageError where one is damaged."""
        for each in (self.each_item, self.each_answer):
            for _ in each(evaluation_id):
                pass
        with self.database.read() as connection:
            row = find_row(connection, evaluation, evaluation_id)
            if row.status != "done":
                load_responses(connection, row.seq)


def delete_rows(connection: Connection, row: Row[Any, Any]) -> None:
    """Delete an evaluation with everything that belongs to it alone, and the comparisons that use it."""
    with_it = or_(comparison.c.base == row.id, comparison.c.tuned == row.id)
    forget(connection, comparison, connection.execute(select(comparison.c.seq).where(with_it)).scalars().all())
    connection.execute(comparison.delete().where(with_it))
    for part in (response, answer, score, task, schedule, lease):
        connection.execute(part.delete().where(part.c.evaluation == row.seq))
    for table in (*OF_EVALUATION, response):
        forget(connection, table, [row.seq])
    connection.execute(evaluation.delete().where(evaluation.c.seq == row.seq))
    connection.execute(item.delete().where(
        ~select(answer.c.item).where(answer.c.item == item.c.seq).exists()))
    drop_unused_models(connection)


def drop_unused_models(connection: Connection) -> None:
    """Delete the models that no evaluation and no tuning has."""
    used = [~select(t.c.model).where(t.c.model == model.c.seq).exists() for t in (evaluation, tuning)]
    forget(connection, model, connection.execute(select(model.c.seq).where(*used)).scalars().all())
    connection.execute(model.delete().where(*used))


def seal_evaluation(connection: Connection, seq: int) -> None:
    """Store the digests of everything of an evaluation but its responses, which have theirs by batch."""
    for table in OF_EVALUATION:
        seal(connection, table, [seq])


def columns_of(connection: Connection, value: Evaluation) -> dict[str, Any]:
    """The row of an evaluation, less its id."""
    rest = {k: v for k, v in encode(value).items() if k not in _ELSEWHERE}
    if any(s.unit for s in value.scores):
        rest[_UNITS] = [s.unit for s in value.scores]
    return {"name": value.name, "status": value.status, "tuning": value.tuning,
            "model": store_model(connection, value.model), "value": rest}


def write_parts(connection: Connection, seq: int, value: Evaluation) -> None:
    """Replace the stored tasks, scores and (if it has one) schedule."""
    for table in (task, score):
        connection.execute(table.delete().where(table.c.evaluation == seq))
    if value.tasks:
        connection.execute(task.insert(), [
            {"evaluation": seq, "position": p, "name": t.task, "value": encode(t)}
            for p, t in enumerate(value.tasks)])
    for s in value.scores:
        _refuse_nan(s.value, f"the score {s.task} {s.key}")
        _refuse_nan(s.stderr, f"the standard error of {s.task} {s.key}")
    if value.scores:
        connection.execute(score.insert(), [
            {"evaluation": seq, "position": p, **{f: getattr(s, f) for f in _SCORE}}
            for p, s in enumerate(value.scores)])
    if value.schedule:
        store_schedule(connection, seq, value.schedule)


def load_evaluation(connection: Connection, evaluation_id: str) -> Evaluation:
    return _load(connection, [find_row(connection, evaluation, evaluation_id)])[0]


def _load(connection: Connection, rows: Sequence[Row[Any]]) -> list[Evaluation]:
    """Evaluations from their rows, with one query a table and chunk."""
    out: list[Evaluation] = []
    for start in range(0, len(rows), CHUNK):
        part = rows[start:start + CHUNK]
        seqs = [r.seq for r in part]
        names = {r.seq: f"evaluation {r.id}" for r in part}
        for table in (task, score, schedule):
            check(connection, table, names)
        check(connection, model, {r.model: f"the model of evaluation {r.id}" for r in part})
        models = {r.seq: r.value for r in connection.execute(
            select(model).where(model.c.seq.in_({r.model for r in part})))}
        schedules = {r.evaluation: r.value for r in connection.execute(
            select(schedule).where(schedule.c.evaluation.in_(seqs)))}
        tasks = _by_evaluation(connection, task, seqs)
        scores = _by_evaluation(connection, score, seqs)
        for r in part:
            with reading(f"evaluation {r.id}"):
                out.append(decode(Evaluation, {
                    **{k: v for k, v in r.value.items() if k != _UNITS}, "id": r.id, "name": r.name,
                    "status": r.status, "tuning": r.tuning, "model": model_of(models, r.model),
                    "schedule": schedules.get(r.seq, {}), "tasks": [t.value for t in tasks.get(r.seq, [])],
                    "scores": _scores(scores.get(r.seq, []), r.value.get(_UNITS))}))
    return out


def _scores(rows: Sequence[Row[Any]], units: Sequence[str] | None) -> list[dict[str, Any]]:
    """The scores with their units; "" where none are stored."""
    return [{f: row._mapping[f] for f in _SCORE} | {"unit": unit}
            for row, unit in zip(rows, units or repeat(""), strict=False)]


def _by_evaluation(connection: Connection, table: Any, seqs: list[int]) -> dict[int, list[Row[Any]]]:
    rows = connection.execute(select(table).where(table.c.evaluation.in_(seqs))
                              .order_by(table.c.evaluation, table.c.position))
    return {seq: list(group) for seq, group in groupby(rows, key=lambda r: r.evaluation)}


def _insert_items(connection: Connection, seq: int, items: Sequence[Item]) -> None:
    """Insert the empty answers of a new evaluation, and the documents that are not stored yet."""
    documents = store_documents(connection, items)
    rows = [{"evaluation": seq, "position": position, "task": i.task, "index": i.index,
             "item": document, "cluster": i.cluster}
            for position, (i, document) in enumerate(zip(items, documents, strict=True))]
    repeated = len(rows) - len({(i.task, i.index) for i in items})
    if repeated:
        raise StorageError(f"{repeated} items have the same task and index as another item; an index must name one "
                           "document of a task")
    if rows:
        connection.execute(answer.insert(), rows)


def _same_items(connection: Connection, seq: int, items: Sequence[Item]) -> bool:
    """True where the evaluation was opened with these items in this order."""
    rows = connection.execute(select(answer.c.task, answer.c.index, item.c.hash)
                              .join(item, item.c.seq == answer.c.item)
                              .where(answer.c.evaluation == seq).order_by(answer.c.position))
    return [tuple(r) for r in rows] == [(i.task, i.index, i.hash) for i in items]


def _store_answers(connection: Connection, seq: int, answers: Sequence[Answer], positions: Sequence[Sequence[int]],
                   used: Mapping[str, int]) -> None:
    """Store the answers; positions[k] are the requests of answers[k].

    used: tasks that were stopped early, with the number of their items that were asked; the others stay unanswered.
    StorageError where an answer has no item, an item no answer, or a request no stored response.
    """
    if len(answers) != len(positions):
        raise StorageError(f"{len(answers)} answers, but {len(positions)} lists of positions; each answer needs "
                           "one list")
    asked = {(task, index): (position, hash_) for task, index, position, hash_ in connection.execute(
        select(answer.c.task, answer.c.index, answer.c.position, item.c.hash)
        .join(item, item.c.seq == answer.c.item).where(answer.c.evaluation == seq))}
    stray = next((a for a in answers if asked.get((a.task, a.index), (0, ""))[1] != a.item), None)
    if stray is not None:
        raise StorageError(f"the answer to {stray.task} {stray.index} (item {stray.item[:12]}) does not belong to an "
                           "item of the evaluation; nothing was stored")
    expected = sum(task not in used for task, _ in asked) + sum(used.values())
    if len({(a.task, a.index) for a in answers}) != expected or len(answers) != expected:
        raise StorageError(f"{len(answers)} answers for {expected} items; every item needs one answer; nothing "
                           "was stored")
    missing = set(chain.from_iterable(positions)) - _positions_of(connection, seq)
    if missing:
        raise StorageError(f"{len(missing)} requests have no stored response (first: {min(missing)}); nothing stored")
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
    names = sorted(connection.execute(query).scalars())
    if task not in names:
        raise InputError(f"the evaluation has no task {task!r}{nearest(task, names)}; its tasks: "
                         f"{', '.join(names) or 'none'}")
    return [without_index(answer.c.task) == task]


def answer_of(row: RowMapping, responses: Mapping[int, Response]) -> Answer:
    """An answer from its row. KeyError where the row of its item or of a response is missing."""
    if row["hash"] is None:
        raise KeyError(f"the row {row['item']} of the table `item`")
    return Answer(task=row["task"], index=row["index"], item=row["hash"], metrics=row["metrics"],
                  extracted=row["extracted"], cluster=row["cluster"],
                  responses=tuple(_at(responses, p) for p in row["responses"]))


def _at(responses: Mapping[int, Response], position: int) -> Response:
    if position not in responses:
        raise KeyError(f"the response at position {position}")
    return responses[position]


def _document(value: Item) -> dict[str, Any]:
    """A document as it is stored, with the question text under a key of our own."""
    doc: dict[str, Any] = encode(value.doc)
    return doc if value.asked is None else {**doc, _ASKED: encode(value.asked)}


def item_fields(content: str | None, text: str | None) -> dict[str, Any]:
    """The fields ``doc`` and ``asked`` of an item from its stored document; older ones have no ``asked``.

    content: the digest of the document; ValueError where it is that of another text.
    """
    if text is None:
        raise KeyError("the row of an item")
    if _sha256(text) != content:
        raise ValueError("a document in the table `item` is not what was stored")
    doc = json.loads(text)
    own = {k: v for k, v in doc.items() if k != _ASKED}
    return {"doc": own, "asked": decode(Asked, doc[_ASKED]) if _ASKED in doc else None}


def _text(value: Item) -> str:
    return json.dumps(_document(value), ensure_ascii=False, separators=(",", ":"))


def _document_hash(value: Item) -> str:
    return _sha256(_text(value))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def store_documents(connection: Connection, items: Sequence[Item]) -> list[int]:
    """seq of the document of each item; the missing ones are inserted."""
    keys = [(i.hash, _document_hash(i)) for i in items]
    documents: dict[tuple[str, str], Item] = dict(zip(keys, items, strict=True))
    stored = stored_documents(connection, list(documents))
    rows = [{"hash": hash_, "content": content, "doc": _document(i)}
            for (hash_, content), i in documents.items() if (hash_, content) not in stored]
    if rows:
        connection.execute(item.insert(), rows)
        stored |= stored_documents(connection, [key for key in documents if key not in stored])
    return [stored[key] for key in keys]


def stored_documents(connection: Connection, keys: Sequence[tuple[str, str]]) -> dict[tuple[str, str], int]:
    seqs: dict[tuple[str, str], int] = {}
    for start in range(0, len(keys), CHUNK):
        part = set(keys[start:start + CHUNK])  # a list of pairs would have no index on PostgreSQL
        query = select(item.c.hash, item.c.content, item.c.seq).where(item.c.hash.in_({hash_ for hash_, _ in part}))
        seqs.update({key: r.seq for r in connection.execute(query) if (key := (r.hash, r.content)) in part})
    return seqs


def store_schedule(connection: Connection, seq: int, value: Mapping[str, Any]) -> None:
    """Replace the evaluation's schedule by ``value``."""
    connection.execute(schedule.delete().where(schedule.c.evaluation == seq))
    connection.execute(schedule.insert().values(evaluation=seq, value=encode(value)))
    seal(connection, schedule, [seq])


def _positions_of(connection: Connection, seq: int) -> set[int]:
    """Positions that are stored."""
    return set(connection.execute(select(response.c.position).where(response.c.evaluation == seq)).scalars())


def load_responses(connection: Connection, seq: int, positions: Sequence[int] | None = None) -> dict[int, Response]:
    """Responses at these positions, which are in order; None: at all."""
    query = select(response.c.position, *(response.c[f] for f in _RESPONSE)).where(response.c.evaluation == seq)
    rows: Iterable[Row[Any]] = ()
    if positions is None:
        rows = connection.execute(query.order_by(response.c.position))
    elif positions and positions[-1] - positions[0] < 2 * len(positions):  # they follow one another
        within = response.c.position.between(positions[0], positions[-1])
        rows = connection.execute(query.where(within).order_by(response.c.position))
    elif positions:
        rows = chain.from_iterable(
            connection.execute(query.where(response.c.position.in_(positions[start:start + CHUNK]))
                               .order_by(response.c.position)) for start in range(0, len(positions), CHUNK))
    return {row[0]: _response(dict(zip(_RESPONSE, row[1:], strict=True))) for row in rows}


#: Begins a stored text with a reasoning trace before it: the mark, the length of the trace, a colon, trace and text.
_TRACE = "\x1a\x1a"


def _with_trace(value: Response) -> str | None:
    """The text of a response as it is stored: as it is, or after its reasoning trace."""
    text, trace = value.text, value.reasoning
    if text is None or (trace is None and not text.startswith(_TRACE)):
        return text
    return f"{_TRACE}{'' if trace is None else len(trace)}:{trace or ''}{text}"


def _response(fields: dict[str, Any]) -> Response:
    """A response from its columns."""
    text, fields = fields["text"], {**fields, "truncated": _known(fields["truncated"])}
    if text is None or not text.startswith(_TRACE):
        return Response(**fields)
    length, _, rest = text.removeprefix(_TRACE).partition(":")
    cut = int(length or 0)
    return Response(**{**fields, "text": rest[cut:], "reasoning": rest[:cut] if length else None})


def _known(count: int) -> int | None:
    return None if count == _UNKNOWN else count


def _refuse_nan(value: float | None, what: str) -> float | None:
    """``value``; SourceError where it is not a number (a database takes it for NULL)."""
    if value is not None and math.isnan(value):
        raise SourceError(f"{what} is not a number (NaN) and cannot be stored; the model's outputs are broken: check "
                          "its weights (a fine-tune may have diverged), or try --dtype float32")
    return value


def response_row(batch: int, position: int, value: Response) -> dict[str, Any]:
    logprob = _refuse_nan(value.logprob, f"the log-probability of request {position}")
    return {"batch": batch, "position": position, "logprob": None if logprob is None else float(logprob),
            **{name: getattr(value, name) for name in _RESPONSE[1:-1]}, "text": _with_trace(value),
            "truncated": _UNKNOWN if value.truncated is None else value.truncated}


def _stored_batch(connection: Connection, seq: int, batch: int, positions: Iterable[int]) -> list[Row[Any]]:
    """What is stored of this batch, and at these positions by any batch."""
    ordered, rows = sorted(positions), {}
    for start in range(0, max(1, len(ordered)), CHUNK):
        part = ordered[start:start + CHUNK]
        query = select(response).where(response.c.evaluation == seq,
                                       or_(response.c.batch == batch, response.c.position.in_(part)))
        rows.update({r.position: r for r in connection.execute(query)})
    return list(rows.values())


def _row_content(row: Row[Any]) -> tuple[Any, ...]:
    return (row.batch, row.position, *(getattr(row, name) for name in _RESPONSE))


def _first_difference(stored: Mapping[int, Row[Any]], rows: list[dict[str, Any]]) -> str:
    """The first position at which the stored and the new batch differ, in words."""
    new = {r["position"]: tuple(r.values()) for r in rows}
    for position in sorted({*stored, *new}):
        if position not in new:
            return f"position {position} is stored but not in the new batch"
        if position not in stored:
            return f"position {position} is new"
        if stored[position].batch != new[position][0]:
            return f"position {position} belongs to batch {stored[position].batch}"
        if _row_content(stored[position]) != new[position]:
            return f"position {position} differs"
    return "the same positions"
