"""Digests of what is stored: written with the rows, in the same transaction, and checked before the rows are read.

    seal(connection, score, [seq])              after a change: the digest of the evaluation's scores
    check(connection, score, {seq: name})       before reading: StorageError that names the damaged evaluation
    forget(connection, score, [seq])            the rows were deleted

The rows of a table are divided by their *owner*, for most tables the row that they belong to, and some of them further
into numbered parts: responses by batch, so that a batch is sealed with one small query. A row of ``checksum`` holds the
SHA-256 of the rows of one owner and part. Rows without a digest, and a digest without its rows, are damage too.

The digest is computed from the values as the database returns them, as JSON, before anything is decoded: a changed type
and a row that is gone change it too. The document of an item has its own digest (`item.content`).
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby, islice
from typing import Any

from sqlalchemy import (
    Boolean,
    Column,
    ColumnElement,
    Connection,
    Integer,
    Select,
    Table,
    bindparam,
    cast,
    literal,
    select,
    type_coerce,
)
from sqlalchemy.exc import DBAPIError
from sqlalchemy.types import NullType

from aftertune.errors import StorageError
from aftertune.ledger.schema import (
    answer,
    cell,
    checksum,
    comparison,
    drift,
    evaluation,
    item,
    label,
    model,
    reported_score,
    response,
    schedule,
    score,
    step,
    study,
    task,
    tuning,
)

#: Table -> the columns of its owner, its part ("" for one part) and its order.
SEALED: dict[Table, tuple[str, str, str]] = {
    model: ("seq", "", "seq"), tuning: ("seq", "", "seq"), step: ("tuning", "step", "number"),
    evaluation: ("seq", "", "seq"), task: ("evaluation", "", "position"), score: ("evaluation", "", "position"),
    schedule: ("evaluation", "", "evaluation"), answer: ("evaluation", "", "position"),
    response: ("evaluation", "batch", "position"), comparison: ("seq", "", "seq"),
    drift: ("seq", "", "seq"), study: ("seq", "", "seq"), cell: ("study", "position", "position"),
    reported_score: ("source", "", "seq"), label: ("seq", "", "seq")}
#: The tables that are written together with an evaluation.
OF_EVALUATION = (evaluation, task, score, schedule, answer)
#: Rows that are encoded at once.
_ROWS = 1000
#: The most owners in one query, below every database's limit.
_OWNERS = 400

_STORED = select(checksum.c.owner, checksum.c.part, checksum.c.sha256).where(
    checksum.c.table == bindparam("table"), checksum.c.owner.in_(bindparam("owners", expanding=True)))

_to_json = json.JSONEncoder(separators=(",", ":"), default=repr).encode


def seal(connection: Connection, table: Table, owners: Sequence[Any], part: int | None = None) -> None:
    """Store the digests of the rows of ``owners``, or of one part; they replace those stored before."""
    forget(connection, table, owners, part)
    rows = [{"table": table.name, "owner": owner, "part": number, "sha256": sha}
            for (owner, number), sha in _digests(connection, table, owners, part)]
    if rows:
        connection.execute(checksum.insert(), rows)


def forget(connection: Connection, table: Table, owners: Iterable[Any], part: int | None = None) -> None:
    """Remove the digests of ``owners``, whose rows were deleted."""
    here = [] if part is None else [checksum.c.part == part]
    for some in _chunks(owners):
        connection.execute(checksum.delete().where(
            checksum.c.table == table.name, checksum.c.owner.in_(list(map(str, some))), *here))


def check(connection: Connection, table: Table, names: Mapping[Any, str]) -> None:
    """StorageError where the rows of an owner in ``table`` are not those that were stored.

    names: owner -> what it is called in the message, for example 3 -> "evaluation e-1".
    """
    for owners in _chunks(names):
        wrong = _damaged(connection, table, owners)
        if wrong is not None:
            owner, part = wrong
            entry = {str(key): name for key, name in names.items()}.get(owner, names[owners[0]])
            column = SEALED[table][1]
            rows = f"the rows of {column} {part} in" if column else "the rows in"
            raise StorageError(_damage(entry, rows, table))


def check_part(connection: Connection, table: Table, owner: Any, part: int, name: str) -> None:
    """As `check`, of one numbered part of an owner's rows, such as a batch. name: of the owner."""
    stored = connection.execute(select(checksum.c.sha256).where(
        checksum.c.table == table.name, checksum.c.owner == str(owner), checksum.c.part == part)).scalar()
    if dict(_digests(connection, table, [owner], part)).get((str(owner), part)) != stored:
        raise StorageError(_damage(name, f"the rows of {SEALED[table][1]} {part} in", table))


def _damage(entry: str, rows: str, table: Table) -> str:
    return (f"{entry} is damaged in the ledger: {rows} the table `{table.name}` are not what was stored; `aftertune "
            "doctor` lists what is damaged and says what to do")


def orphans(connection: Connection) -> Iterator[str]:
    """Tables and owners that have a digest but no rows any more."""
    for table, (owner, _, _) in SEALED.items():
        there = {str(o) for o in connection.execute(select(table.c[owner]).distinct()).scalars()}
        query = select(checksum.c.owner).distinct().where(checksum.c.table == table.name).order_by(checksum.c.owner)
        for lost in connection.execute(query).scalars():
            if lost not in there:
                yield f"the rows of {owner} {lost} are missing in the table `{table.name}`"


def _damaged(connection: Connection, table: Table, owners: Sequence[Any]) -> tuple[str, int] | None:
    """The first owner and part whose digest is not that of its rows, or None."""
    found = connection.execute(_STORED, {"table": table.name, "owners": [str(o) for o in owners]})
    stored = {(owner, part): sha for owner, part, sha in found}
    try:
        for key, sha in _digests(connection, table, owners):
            if stored.pop(key, None) != sha:
                return key
    except (DBAPIError, UnicodeDecodeError) as error:
        if "decode" not in str(error):  # a text that is not UTF-8
            raise
        if len(owners) > 1:
            return next(filter(None, (_damaged(connection, table, [o]) for o in owners)), None)
        return str(owners[0]), 0
    return next(iter(stored), None)


def without_index(column: Column[str]) -> ColumnElement[str]:
    """A text column in a condition, so that SQLite reads the rows themselves and not an index.

    What a damaged index says about a row is not what the row says. Rows are checked and read in the same way: by seq,
    or by the primary key in its order.
    """
    return column.concat("")


def _digests(connection: Connection, table: Table, owners: Sequence[Any],
             part: int | None = None) -> Iterator[tuple[tuple[str, int], str]]:
    """(owner, part) and digest of the rows of ``owners``; ``part``: of this one alone."""
    values = {"owners": list(owners), **({} if part is None else {"part": part})}
    rows = connection.execute(_rows_of(table, part is None, connection.dialect.name), values)
    digests: dict[tuple[str, int], Any] = {}
    for key, group in groupby(rows, key=lambda row: (str(row[0]), row[1])):
        digest = digests.setdefault(key, hashlib.sha256())
        while some := [tuple(row)[2:] for row in islice(group, _ROWS)]:
            digest.update(_to_json(some)[1:-1].encode() + b",")
    yield from ((key, digest.hexdigest()) for key, digest in digests.items())


@functools.cache
def _rows_of(table: Table, whole: bool, dialect: str) -> Select[Any]:
    """The query for the rows of ``owners``, or with ``whole`` False for those of one ``part``. It is built once: of a
    few rows, building it takes longer than reading them."""
    owner, part_column, order = SEALED[table]
    number = table.c[part_column] if part_column else literal(0)
    mine: Any = table.c[owner] if isinstance(table.c[owner].type, Integer) else without_index(table.c[owner])
    # as the database has them; SQLite has 0 and 1 for a boolean
    columns = [cast(c, Integer) if isinstance(c.type, Boolean) and dialect != "sqlite" else
               type_coerce(c, NullType()) for c in table.c]
    query = select(mine, number, *columns)
    if table is answer:  # what is asked belongs to the answer; a missing item changes the digest
        query = query.add_columns(item.c.hash, item.c.content).join_from(
            answer, item, item.c.seq == answer.c.item, isouter=True)
    query = query.where(mine.in_(bindparam("owners", expanding=True)))
    if whole:
        query = query.order_by(mine, table.c[order])
    else:  # + 0: SQLite finds a batch by its index, and does not read the whole evaluation in order
        query = query.where(table.c[part_column] == bindparam("part")).order_by(table.c[order] + 0)
    if table in (answer, response) and whole:  # of a server, some rows at a time
        query = query.execution_options(stream_results=True, max_row_buffer=_ROWS)
    return query


def _chunks(owners: Iterable[Any]) -> Iterator[list[Any]]:
    rest = iter(owners)
    while some := list(islice(rest, _OWNERS)):
        yield some
