"""The first tables. Revision 0001; `aftertune.ledger.schema` says what each column means.

A migration stands as it was released: it names plain types and imports nothing of the program.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make every table."""
    _named_tables()
    _studies()
    _parts_of_evaluations()
    _results()


def _text(name: str, *, null: bool = False) -> sa.Column[Any]:
    return sa.Column(name, sa.Text(), nullable=null)


def _integer(name: str, *, null: bool = False) -> sa.Column[Any]:
    return sa.Column(name, sa.Integer(), autoincrement=False, nullable=null)


def _table(name: str, *parts: Any, unique: tuple[str, ...] = (), index: tuple[str, ...] = ()) -> None:
    """A table with its own running number ``seq``."""
    op.create_table(name, sa.Column("seq", sa.Integer(), autoincrement=True, nullable=False), *parts,
                    sa.PrimaryKeyConstraint("seq", name=f"pk_{name}"), *_unique(name, unique),
                    sqlite_autoincrement=True)
    _indexes(name, index)


def _part(name: str, parent: str, *parts: Any, key: str | None = "position", unique: tuple[str, ...] = (),
          index: tuple[str, ...] = ()) -> None:
    """A table whose rows belong to a row of ``parent`` and go with it."""
    keys = [parent] if key is None else [parent, key]
    op.create_table(name, *(_integer(k) for k in keys), *parts,
                    sa.ForeignKeyConstraint([parent], [f"{parent}.seq"], name=f"fk_{name}_{parent}",
                                            ondelete="CASCADE"),
                    sa.PrimaryKeyConstraint(*keys, name=f"pk_{name}"), *_unique(name, unique))
    _indexes(name, index)


def _unique(name: str, columns: tuple[str, ...]) -> list[sa.UniqueConstraint]:
    return [sa.UniqueConstraint(*columns, name=f"uq_{name}_{columns[0]}")] if columns else []


def _indexes(name: str, columns: tuple[str, ...]) -> None:
    for column in columns:
        op.create_index(f"ix_{name}_{column}", name, [column])


def _model_key(name: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(["model"], ["model.seq"], name=f"fk_{name}_model")


def _named_tables() -> None:
    _table("model", _text("key"), _text("fingerprint"), _text("source"), _text("value"),
           unique=("key",), index=("fingerprint",))
    _table("tuning", _text("id"), _text("name"), _text("status"), _text("result", null=True),
           _integer("model"), _text("value"), _model_key("tuning"),
           unique=("id",), index=("name", "result", "model"))
    _part("step", "tuning", _integer("step"), _text("value"), key="number")
    _table("evaluation", _text("id"), _text("name"), _text("status"), _text("tuning", null=True),
           _integer("model"), _text("value"), _model_key("evaluation"),
           unique=("id",), index=("name", "tuning", "model"))
    _table("item", _text("hash"), _text("content"), _text("doc"), unique=("hash", "content"))


def _studies() -> None:
    _table("study", _text("name"), _text("hash"), _text("yaml"), unique=("name",))
    _part("cell", "study", _text("name"), _text("status"), _text("ref", null=True), _text("error", null=True),
          unique=("study", "name"))


def _parts_of_evaluations() -> None:
    _part("task", "evaluation", _text("name"), _text("value"), index=("name",))
    _part("answer", "evaluation", _text("task"), _integer("index"), _integer("item"),
          *(_text(name, null=True) for name in ("cluster", "metrics", "extracted", "responses")),
          sa.ForeignKeyConstraint(["item"], ["item.seq"], name="fk_answer_item"),
          unique=("evaluation", "task", "index"), index=("item",))
    _part("schedule", "evaluation", _text("value"), key=None)
    _part("response", "evaluation", _integer("batch"), sa.Column("logprob", sa.Double()),
          sa.Column("greedy", sa.Boolean()), _text("text", null=True), _integer("tokens", null=True),
          _text("finish", null=True), _integer("truncated"))
    op.create_index("ix_response_batch", "response", ["evaluation", "batch"])
    _part("score", "evaluation", _text("task"), _text("metric"), _text("filter"),
          sa.Column("value", sa.Double(), nullable=False), sa.Column("stderr", sa.Double()), _integer("n"),
          *(sa.Column(name, sa.Boolean(), nullable=False)
            for name in ("higher_is_better", "primary", "group")),
          index=("task",))
    _part("lease", "evaluation", _integer("pid"), _text("host"), _text("boot"), _text("started"),
          sa.Column("heartbeat", sa.Double(), nullable=False), key=None)


def _results() -> None:
    _table("comparison", _text("id"), _text("base"), _text("tuned"), _text("value"),
           unique=("id",), index=("base", "tuned"))
    _table("reported_score", _text("source"), _text("model"), _text("task"), _text("metric"),
           sa.Column("value", sa.Double()), sa.Column("stderr", sa.Double()), _integer("n", null=True),
           _text("extra"), index=("source",))
