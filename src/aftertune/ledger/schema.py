"""Owns the tables of the ledger, in SQLAlchemy Core, for SQLite today and PostgreSQL later.

    model ─< evaluation ─< task, answer >─ item        evaluation ─ schedule, lease; ─< response, score
    model ─< tuning ─< step                            study ─< cell        comparison, reported_score

Columns hold what is queried; ``value`` holds the rest of a value as JSON. ``seq`` counts insertions and gives
the order (never the clock, which may be moved back). The document of an item is stored once, whatever the
number of models that answered it. The migrations in ``migrations/versions`` make the same tables, and a test
compares the two.
"""

from __future__ import annotations

import json
import re
from typing import Any

from sqlalchemy import (
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
)
from sqlalchemy.engine import Dialect

#: The newest schema revision that this program knows; the id of the last file in migrations/versions.
HEAD = "0001"

_ESCAPE = "\x1a"
_UNSAFE = re.compile("[\x00\x1a\ud800-\udfff]")
_ESCAPED = re.compile("\x1a([0-9a-f]{4})")


class Prose(TypeDecorator[str]):
    """Any Python string, also one with NUL or lone surrogates, which databases refuse: these are escaped."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:  # noqa: ARG002
        return None if value is None else _UNSAFE.sub(lambda m: f"{_ESCAPE}{ord(m[0]):04x}", value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> str | None:  # noqa: ARG002
        if value is None or _ESCAPE not in value:
            return value
        return _ESCAPED.sub(lambda m: chr(int(m[1], 16)), value)


class Json(TypeDecorator[Any]):
    """Dicts, lists and scalars as JSON text. Floats come back bit for bit (repr), infinities and NaN too."""

    impl = Prose
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:  # noqa: ARG002
        return None if value is None else json.dumps(value, ensure_ascii=False, separators=(",", ":"))

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:  # noqa: ARG002
        return None if value is None else json.loads(value)


metadata = MetaData(naming_convention={
    "ix": "ix_%(table_name)s_%(column_0_name)s", "uq": "uq_%(table_name)s_%(column_0_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s", "pk": "pk_%(table_name)s"})


def _seq() -> Column[int]:
    return Column("seq", Integer, primary_key=True, autoincrement=True)


def _of(parent: str) -> Column[int]:
    """The row of ``parent`` that a row belongs to, and goes with when it is deleted."""
    return Column(parent, ForeignKey(f"{parent}.seq", ondelete="CASCADE"), primary_key=True, nullable=False,
                  autoincrement=False)


model = Table(
    "model", metadata, _seq(),
    Column("key", Prose, nullable=False, unique=True),  # digest of the whole identity
    Column("fingerprint", Prose, nullable=False, index=True),  # of the function: weights, config, adapter
    Column("source", Prose, nullable=False),
    Column("value", Json, nullable=False),
    sqlite_autoincrement=True)

tuning = Table(
    "tuning", metadata, _seq(),
    Column("id", Prose, nullable=False, unique=True),
    Column("name", Prose, nullable=False, index=True),
    Column("status", Prose, nullable=False),
    Column("result", Prose, index=True),  # fingerprint of the model that came out
    Column("model", ForeignKey("model.seq"), nullable=False, index=True),
    Column("value", Json, nullable=False),
    sqlite_autoincrement=True)

step = Table(
    "step", metadata, _of("tuning"),
    Column("number", Integer, primary_key=True, autoincrement=False),  # order in the log
    Column("step", Integer, nullable=False),
    Column("value", Json, nullable=False))

evaluation = Table(
    "evaluation", metadata, _seq(),
    Column("id", Prose, nullable=False, unique=True),
    Column("name", Prose, nullable=False, index=True),
    Column("status", Prose, nullable=False),
    Column("tuning", Prose, index=True),  # id of the tuning; it may live in another ledger
    Column("model", ForeignKey("model.seq"), nullable=False, index=True),
    Column("value", Json, nullable=False),
    sqlite_autoincrement=True)

task = Table(
    "task", metadata, _of("evaluation"),
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("name", Prose, nullable=False, index=True),
    Column("value", Json, nullable=False))

item = Table(
    "item", metadata, _seq(),
    Column("hash", Prose, nullable=False),  # as the task room computed it
    Column("content", Prose, nullable=False),  # sha256 of the stored document
    Column("doc", Json, nullable=False),
    UniqueConstraint("hash", "content"),
    sqlite_autoincrement=True)

answer = Table(
    "answer", metadata, _of("evaluation"),
    Column("position", Integer, primary_key=True, autoincrement=False),  # order of the items
    Column("task", Prose, nullable=False),
    Column("index", Integer, nullable=False),
    Column("item", ForeignKey("item.seq"), nullable=False, index=True),
    Column("cluster", Prose),
    Column("metrics", Json),  # null until the evaluation is finished
    Column("extracted", Json),
    Column("responses", Json),  # positions in the list of requests
    UniqueConstraint("evaluation", "task", "index"))

schedule = Table("schedule", metadata, _of("evaluation"), Column("value", Json, nullable=False))

response = Table(
    "response", metadata, _of("evaluation"),
    Column("position", Integer, primary_key=True, autoincrement=False),  # index in the list of requests
    Column("batch", Integer, nullable=False),
    Column("logprob", Double),  # nats, binary64
    Column("greedy", Boolean),
    Column("text", Prose),
    Column("tokens", Integer),
    Column("finish", Prose),
    Column("truncated", Integer, nullable=False),
    Index("ix_response_batch", "evaluation", "batch"))

score = Table(
    "score", metadata, _of("evaluation"),
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("task", Prose, nullable=False, index=True),
    Column("metric", Prose, nullable=False),
    Column("filter", Prose, nullable=False),
    Column("value", Double, nullable=False),
    Column("stderr", Double),
    Column("n", Integer, nullable=False),
    Column("higher_is_better", Boolean, nullable=False),
    Column("primary", Boolean, nullable=False),
    Column("group", Boolean, nullable=False))

lease = Table(
    "lease", metadata, _of("evaluation"),
    Column("pid", Integer, nullable=False),
    Column("host", Prose, nullable=False),
    Column("boot", Prose, nullable=False),  # boot of the machine and process namespace
    Column("started", Prose, nullable=False),  # when the process began, in the kernel's own count
    Column("heartbeat", Double, nullable=False))  # seconds since 1970, UTC

reported_score = Table(
    "reported_score", metadata, _seq(),
    Column("source", Prose, nullable=False, index=True),
    Column("model", Prose, nullable=False),
    Column("task", Prose, nullable=False),
    Column("metric", Prose, nullable=False),
    Column("value", Double),
    Column("stderr", Double),
    Column("n", Integer),
    Column("extra", Json, nullable=False),
    sqlite_autoincrement=True)

comparison = Table(
    "comparison", metadata, _seq(),
    Column("id", Prose, nullable=False, unique=True),
    Column("base", Prose, nullable=False, index=True),
    Column("tuned", Prose, nullable=False, index=True),
    Column("value", Json, nullable=False),
    sqlite_autoincrement=True)

study = Table(
    "study", metadata, _seq(),
    Column("name", Prose, nullable=False, unique=True),
    Column("hash", Prose, nullable=False),
    Column("yaml", Prose, nullable=False),
    sqlite_autoincrement=True)

cell = Table(
    "cell", metadata, _of("study"),
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("name", Prose, nullable=False),
    Column("status", Prose, nullable=False),
    Column("ref", Prose),
    Column("error", Prose),
    UniqueConstraint("study", "name"))
