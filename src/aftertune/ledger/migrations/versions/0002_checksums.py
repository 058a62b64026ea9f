"""Revision 0002: the table ``checksum``, with the digest of everything that the ledger holds.

A text that is not UTF-8, or not JSON where JSON belongs, was damaged before: it gets a digest that no rows have, so
that it is reported when it is read. `aftertune.ledger.digests` says how a digest is computed.
"""

from __future__ import annotations

import hashlib
import json
from itertools import groupby

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

#: Table -> owner, part, order, and the columns of JSON.
TABLES = {
    "model": ("seq", "0", "seq", ("value",)), "tuning": ("seq", "0", "seq", ("value",)),
    "step": ("tuning", "step", "number", ("value",)), "evaluation": ("seq", "0", "seq", ("value",)),
    "task": ("evaluation", "0", "position", ("value",)), "score": ("evaluation", "0", "position", ()),
    "schedule": ("evaluation", "0", "evaluation", ("value",)),
    "answer": ("evaluation", "0", "position", ("metrics", "extracted", "responses")),
    "response": ("evaluation", "batch", "position", ()), "comparison": ("seq", "0", "seq", ("value",)),
    "study": ("seq", "0", "seq", ()), "cell": ("study", "position", "position", ()),
    "reported_score": ("source", "0", "seq", ("extra",))}
DAMAGED = "damaged before revision 0002"


def upgrade() -> None:
    """Create the table and fill it."""
    op.create_table(
        "checksum",
        sa.Column("table", sa.Text(), primary_key=True, nullable=False),
        sa.Column("owner", sa.Text(), primary_key=True, nullable=False),
        sa.Column("part", sa.Integer(), primary_key=True, nullable=False, autoincrement=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("table", "owner", "part", name="pk_checksum"))
    connection = op.get_bind()
    for table, (owner, part, order, texts) in TABLES.items():
        columns = [row[1] for row in connection.exec_driver_sql(f"PRAGMA table_info('{table}')")]
        json_at = [columns.index(name) for name in texts]
        names = ", ".join(f'"{table}"."{name}"' for name in columns)
        source = f'"{table}"'
        if table == "answer":
            names += ", item.hash, item.content"
            source += " LEFT JOIN item ON item.seq = answer.item"
        number = part if part == "0" else f'"{table}"."{part}"'
        query = (f'SELECT {number}, {names} FROM {source} WHERE "{table}"."{owner}" = ? '
                 f'ORDER BY {number if part != "0" else "1"}, "{table}"."{order}"')
        for key in connection.exec_driver_sql(f'SELECT DISTINCT "{owner}" FROM "{table}"').scalars().all():
            for number_, sha in _digests(connection, query, key, json_at):
                connection.exec_driver_sql("INSERT OR REPLACE INTO checksum VALUES (?, ?, ?, ?)",
                                           (table, str(key), number_, sha))


def _digests(connection: sa.Connection, query: str, key: object, json_at: list[int]) -> list[tuple[int, str]]:
    """Part and digest of the rows of one owner; part 0 alone where a text is not UTF-8."""
    found = []
    try:
        rows = connection.exec_driver_sql(query, (key,))
        for part, group in groupby(rows, key=lambda row: row[0]):
            digest, whole = hashlib.sha256(), True
            for row in group:
                values = tuple(row)[1:]
                digest.update(json.dumps(values, separators=(",", ":"), default=repr).encode() + b",")
                whole = whole and all(map(_is_json, (values[i] for i in json_at)))
            found.append((part, digest.hexdigest() if whole else DAMAGED))
    except (sa.exc.DBAPIError, UnicodeDecodeError):
        return [(0, DAMAGED)]
    return found


def _is_json(text: str | None) -> bool:
    try:
        json.loads(text or "null", strict=False)  # as the ledger escapes lone surrogates
    except (TypeError, ValueError):
        return False
    return text != ""
