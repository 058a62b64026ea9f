"""Defines the tables of the ledger in SQLAlchemy Core, for SQLite and PostgreSQL.

    model ─< evaluation ─< task, answer >─ item        evaluation ─ schedule, lease; ─< response, score
    model ─< tuning ─< step                            study ─< cell        comparison, drift, label, checksum, …

Columns hold what is queried; ``value`` holds the rest of a value as JSON. ``seq`` counts insertions and gives
the order (not the clock, which can be set back). The document of an item is stored once, whatever the
number of models that answered it. A new ledger is made from ``metadata``; `aftertune.ledger.migration` says what else
a change needs. Constraints follow the columns, so that SQLite's own text of a table stays what it was.
"""

from __future__ import annotations

import json
import re
from typing import Any

from sqlalchemy import (
    DDL,
    Boolean,
    Column,
    ColumnElement,
    Double,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    event,
    literal,
    type_coerce,
)
from sqlalchemy.engine import Dialect
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import NullType, TypeEngine

from aftertune.errors import StorageError

#: The newest schema revision that this program knows; the id of the last file in migrations/versions.
HEAD = "0005"

#: PostgreSQL's function for `JsonField`: its casts raise errors on JSON that it cannot read, and 14 cannot ask before.
JSON_FUNCTION = "aftertune_json_field"
_JSON_FUNCTION = f"""
CREATE FUNCTION {JSON_FUNCTION}(value text, path text[]) RETURNS text LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
BEGIN RETURN value::json #>> path; EXCEPTION WHEN OTHERS THEN RETURN NULL; END $$"""

_ESCAPE = "\x1a"
_UNSAFE = re.compile("[\x00\x1a\ud800-\udfff]")
_ESCAPED = re.compile("\x1a([0-9a-f]{4})")


class Prose(TypeDecorator[str]):
    """Any Python string, also one with NUL or lone surrogates, which databases refuse: these are escaped. Compared byte
    by byte, as SQLite does by itself."""

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Text; on PostgreSQL with the collation "C"."""
        return Text(collation="C") if dialect.name == "postgresql" else super().load_dialect_impl(dialect)

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:  # noqa: ARG002
        return None if value is None else _UNSAFE.sub(lambda m: f"{_ESCAPE}{ord(m[0]):04x}", value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> str | None:  # noqa: ARG002
        if value is None:
            return None
        if not isinstance(value, str):
            raise StorageError(f"a stored text is damaged ({type(value).__name__} instead of text); `aftertune doctor` "
                               "names its entry and says what to do")
        if _ESCAPE not in value:
            return value
        return _ESCAPED.sub(lambda m: chr(int(m[1], 16)), value)


class Binary64(TypeDecorator[float]):
    """A float, bit for bit, without the sign of zero, which SQLite does not keep."""

    impl = Double
    cache_ok = True

    def process_bind_param(self, value: float | None, dialect: Dialect) -> float | None:  # noqa: ARG002
        return value + 0.0 if isinstance(value, float) else value


class Json(TypeDecorator[Any]):
    """Dicts, lists and scalars as JSON text. Floats come back bit for bit (repr), infinities and NaN too."""

    impl = Prose
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:  # noqa: ARG002
        return None if value is None else json.dumps(value, ensure_ascii=False, separators=(",", ":"))

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:  # noqa: ARG002
        return None if value is None else json.loads(value)


class JsonField(FunctionElement[Any]):
    """A field of a stored value, ``JsonField(column, "$.provenance.started")``; null where there is none, or where the
    database cannot read the JSON (NaN, or an escaped character in it). A list or an object is its JSON.

    A number comes back as a number from SQLite, and as its text from PostgreSQL: `as_number` reads both.
    """

    type = NullType()
    inherit_cache = True
    name = "json_field"

    def __init__(self, column: ColumnElement[Any], path: str) -> None:
        self.path = path
        super().__init__(type_coerce(column, Text()), literal(path))


@compiles(JsonField)
def _json_of_sqlite(element: JsonField, compiler: Any, **how: Any) -> str:
    text, path = (compiler.process(clause, **how) for clause in element.clauses)
    return f"CASE WHEN (json_valid({text}) = 1) THEN json_extract({text}, {path}) END"


@compiles(JsonField, "postgresql")
def _json_of_postgresql(element: JsonField, compiler: Any, **how: Any) -> str:
    text, path = (compiler.process(clause, **how) for clause in element.clauses)
    return f"{JSON_FUNCTION}({text}, string_to_array(substr({path}, 3), '.'))"


def as_number(value: Any) -> float | None:
    """A number that `JsonField` has read; None for anything else."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return None
    return value if isinstance(value, int | float) else None


metadata = MetaData(naming_convention={
    "ix": "ix_%(table_name)s_%(column_0_name)s", "uq": "uq_%(table_name)s_%(column_0_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s", "pk": "pk_%(table_name)s"})


def _seq() -> Column[int]:
    return Column("seq", Integer, primary_key=True, autoincrement=True)


def _of(parent: str) -> Column[int]:
    """The row of ``parent`` that a row belongs to; `_part_of` is its constraint."""
    return Column(parent, Integer, primary_key=True, nullable=False, autoincrement=False)


def _part_of(parent: str) -> ForeignKeyConstraint:
    """A row is deleted with its row of ``parent``."""
    return ForeignKeyConstraint([parent], [f"{parent}.seq"], ondelete="CASCADE")


def _refers_to(parent: str) -> ForeignKeyConstraint:
    return ForeignKeyConstraint([parent], [f"{parent}.seq"])


model = Table(
    "model", metadata, _seq(),
    Column("key", Prose, nullable=False, unique=True),  # digest of the whole identity
    Column("fingerprint", Prose, nullable=False, index=True),  # of the function: weights, config, adapter
    Column("source", Prose, nullable=False),
    Column("value", Json, nullable=False),
    sqlite_autoincrement=True)

tuning = Table(
    "tuning", metadata, _seq(),
    Column("id", Prose, nullable=False),
    Column("name", Prose, nullable=False, index=True),
    Column("status", Prose, nullable=False),
    Column("result", Prose, index=True),  # fingerprint of the fine-tuned model
    Column("model", Integer, nullable=False, index=True),
    Column("value", Json, nullable=False),
    _refers_to("model"), UniqueConstraint("id"),
    sqlite_autoincrement=True)

step = Table(
    "step", metadata, _of("tuning"),
    Column("number", Integer, primary_key=True, autoincrement=False),  # order in the log
    Column("step", Integer, nullable=False),
    Column("value", Json, nullable=False),
    _part_of("tuning"))

evaluation = Table(
    "evaluation", metadata, _seq(),
    Column("id", Prose, nullable=False),
    Column("name", Prose, nullable=False, index=True),
    Column("status", Prose, nullable=False),
    Column("tuning", Prose, index=True),  # id of the tuning; it may live in another ledger
    Column("model", Integer, nullable=False, index=True),
    Column("value", Json, nullable=False),
    _refers_to("model"), UniqueConstraint("id"),
    sqlite_autoincrement=True)

task = Table(
    "task", metadata, _of("evaluation"),
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("name", Prose, nullable=False, index=True),
    Column("value", Json, nullable=False),
    _part_of("evaluation"))

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
    Column("item", Integer, nullable=False, index=True),
    Column("cluster", Prose),
    Column("metrics", Json),  # null until the evaluation is finished
    Column("extracted", Json),
    Column("responses", Json),  # positions in the list of requests
    _refers_to("item"),
    _part_of("evaluation"),
    UniqueConstraint("evaluation", "task", "index"))

schedule = Table("schedule", metadata, _of("evaluation"), Column("value", Json, nullable=False),
                 _part_of("evaluation"))

response = Table(
    "response", metadata, _of("evaluation"),
    Column("position", Integer, primary_key=True, autoincrement=False),  # index in the list of requests
    Column("batch", Integer, nullable=False),
    Column("logprob", Binary64),  # nats, binary64
    Column("greedy", Boolean),
    Column("text", Prose),
    Column("tokens", Integer),
    Column("finish", Prose),
    Column("truncated", Integer, nullable=False),
    Index("ix_response_batch", "evaluation", "batch"),
    _part_of("evaluation"))

score = Table(
    "score", metadata, _of("evaluation"),
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("task", Prose, nullable=False, index=True),
    Column("metric", Prose, nullable=False),
    Column("filter", Prose, nullable=False),
    Column("value", Binary64, nullable=False),
    Column("stderr", Binary64),
    Column("n", Integer, nullable=False),
    Column("higher_is_better", Boolean, nullable=False),
    Column("primary", Boolean, nullable=False),
    Column("group", Boolean, nullable=False),
    _part_of("evaluation"))

lease = Table(
    "lease", metadata, _of("evaluation"),
    Column("number", Integer, primary_key=True, nullable=False, autoincrement=False, default=0),  # of the process
    Column("pid", Integer, nullable=False),
    Column("host", Prose, nullable=False),
    Column("boot", Prose, nullable=False),  # boot of the machine and process namespace
    Column("started", Prose, nullable=False),  # when the process began, in the kernel's own count
    Column("heartbeat", Binary64, nullable=False),  # seconds since 1970, UTC
    Column("shared", Boolean, nullable=False, default=False),  # others may join
    Column("start", Integer),  # batches that the process computes, from the one that it works on now …
    Column("stop", Integer),  # … up to the one before this; or a step of `aftertune.ledger.ranges`
    _part_of("evaluation"))

reported_score = Table(
    "reported_score", metadata, _seq(),
    Column("source", Prose, nullable=False, index=True),
    Column("model", Prose, nullable=False),
    Column("task", Prose, nullable=False),
    Column("metric", Prose, nullable=False),
    Column("value", Binary64),
    Column("stderr", Binary64),
    Column("n", Integer),
    Column("extra", Json, nullable=False),
    sqlite_autoincrement=True)

comparison = Table(
    "comparison", metadata, _seq(),
    Column("id", Prose, nullable=False),
    Column("base", Prose, nullable=False, index=True),
    Column("tuned", Prose, nullable=False, index=True),
    Column("value", Json, nullable=False),
    UniqueConstraint("id"),
    sqlite_autoincrement=True)

drift = Table(
    "drift", metadata, _seq(),
    Column("id", Prose, nullable=False),
    Column("base", Prose, nullable=False, index=True),  # fingerprints of the models
    Column("tuned", Prose, nullable=False, index=True),
    Column("value", Json, nullable=False),
    UniqueConstraint("id"),
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
    _part_of("study"),
    UniqueConstraint("study", "name"))

label = Table(
    "label", metadata, _seq(),
    Column("entry", Prose, nullable=False),  # id of an evaluation, a tuning or a comparison
    Column("tags", Json, nullable=False),
    Column("note", Prose, nullable=False),
    UniqueConstraint("entry"),
    sqlite_autoincrement=True)

checksum = Table(
    "checksum", metadata,
    Column("table", Prose, primary_key=True, nullable=False),
    Column("owner", Prose, primary_key=True, nullable=False),  # seq of the row that the rows belong to; or a source
    Column("part", Integer, primary_key=True, nullable=False, autoincrement=False),  # `digests.SEALED`
    Column("sha256", Prose, nullable=False))

event.listen(metadata, "after_create", DDL(_JSON_FUNCTION).execute_if(dialect="postgresql"))  # type: ignore[no-untyped-call]
