"""Finds one question in all evaluations: how each model answered it.

    for row in ledger.answers_to("hellaswag", item.hash):
        row.name, row.answer.metrics            "careful", {"acc,none": 1.0, "acc_norm,none": 0.0}

The document of an item is stored once, so its index leads to every answer to it.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, RowMapping, select, type_coerce

from aftertune.errors import InputError
from aftertune.ledger.evaluations import Evaluations, answer_of, item_fields, load_responses
from aftertune.ledger.schema import Prose, answer, evaluation, item
from aftertune.ledger.store import reading
from aftertune.values import Answer, Item

#: The most evaluations of which the answers to one question are read.
MOST_ANSWERS = 500


@dataclass(frozen=True, slots=True)
class QuestionAnswer:
    """The answer of one evaluation. evaluation: its id."""

    evaluation: str
    name: str
    answer: Answer


class Questions(Evaluations):
    """Questions across evaluations."""

    def find_item(self, task: str, hash: str) -> Item:
        """An item by its task and its hash. InputError where the ledger has none."""
        text = type_coerce(item.c.doc, Prose())
        query = (select(answer.c.index, answer.c.cluster, item.c.content, text)
                 .join(item, item.c.seq == answer.c.item).where(item.c.hash == hash, answer.c.task == task)
                 .order_by(answer.c.evaluation, answer.c.position).limit(1))
        with self.database.read() as connection, reading(f"the item {hash[:12]}"):
            row = connection.execute(query).first()
            if row is None:
                raise InputError(f"no evaluation in the ledger asked the item {hash[:12]!r} of {task!r}")
            index, cluster, content, doc = row
            return Item(task=task, index=index, hash=hash, cluster=cluster, **item_fields(content, doc))

    def answers_to(self, task: str, hash: str) -> list[QuestionAnswer]:
        """The answers of the finished evaluations to one item, in the order of the ledger, `MOST_ANSWERS` at most."""
        query = (select(answer, item.c.hash, evaluation.c.id.label("id"), evaluation.c.name.label("name"))
                 .join(item, item.c.seq == answer.c.item).join(evaluation, evaluation.c.seq == answer.c.evaluation)
                 .where(item.c.hash == hash, answer.c.task == task, answer.c.metrics.is_not(None),
                        evaluation.c.status == "done")
                 .order_by(evaluation.c.seq, answer.c.position).limit(MOST_ANSWERS))
        with self.database.read() as connection, reading(f"the answers to the item {hash[:12]}"):
            rows = connection.execute(query).mappings().all()
            return [_question_answer(connection, row) for row in rows]


def _question_answer(connection: Connection, row: RowMapping) -> QuestionAnswer:
    responses = load_responses(connection, row["evaluation"], row["responses"])
    return QuestionAnswer(row["id"], row["name"], answer_of(row, responses))
