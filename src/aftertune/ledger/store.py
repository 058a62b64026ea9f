"""What all parts of the ledger share: values as JSON, finding a row by id or name, insert or update.

    class Studies(Store): …        a part of the ledger; ``Ledger`` combines all parts over one Database
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from typing import Any, TypeVar

from sqlalchemy import Connection, Row, Table, select

from aftertune.errors import AmbiguousName, InputError, StorageError, nearest
from aftertune.ledger.database import Database
from aftertune.ledger.digests import check, seal
from aftertune.ledger.schema import model
from aftertune.values import ModelIdentity, canonical, plain, restore

T = TypeVar("T")
#: The fewest characters of an id by which a row is found.
_MIN_PREFIX = 4
#: The most ids that a message lists.
_SHOWN = 6
#: The most values in an IN list, below every database's limit.
CHUNK = 500


class Store:
    """A part of the ledger over ``database``."""

    def __init__(self, database: Database) -> None:
        self.database = database
        #: Finished evaluations whose answers and responses were checked; they are checked once.
        self.checked: set[int] = set()


def encode(value: Any) -> Any:
    """``value`` as dicts, lists and scalars to store. StorageError for what JSON cannot hold."""
    try:
        return plain(value)
    except ValueError as error:
        raise StorageError(f"{error}; nothing was stored") from None


def decode(cls: type[T], data: Mapping[str, Any]) -> T:
    """The value of dataclass ``cls`` that ``encode`` made ``data`` from. StorageError where a field does not fit."""
    try:
        return restore(cls, data)
    except ValueError as error:
        raise StorageError(f"a stored value cannot be read: {error}; `aftertune doctor` checks the ledger") from None


@contextmanager
def reading(entry: str) -> Iterator[None]:
    """Around the code that makes a value from stored rows: StorageError that names ``entry`` where they do not fit."""
    try:
        yield
    except StorageError as error:
        raise StorageError(f"{entry}: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        detail = f"{error.args[0]} is missing" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise StorageError(f"{entry} is damaged in the ledger ({detail[:200]}); `aftertune doctor` says what to "
                           "do") from error


def model_of(models: Mapping[int, Any], seq: int) -> Any:
    """The stored value of a model. KeyError where its row is missing."""
    if seq not in models:
        raise KeyError(f"its row {seq} of the table `model`")
    return models[seq]


def upsert(connection: Connection, table: Table, key: Mapping[str, Any], values: Mapping[str, Any]) -> int:
    """Update the row that has ``key``, or insert it; returns its seq. Only inside a write transaction."""
    matches = [table.c[name] == value for name, value in key.items()]
    seq = connection.execute(select(table.c.seq).where(*matches)).scalar()
    if seq is None:
        primary_key = connection.execute(table.insert().values(**key, **values)).inserted_primary_key
        assert primary_key is not None
        seq = primary_key[0]
    else:
        connection.execute(table.update().where(table.c.seq == seq).values(**values))
    seal(connection, table, [seq])
    return int(seq)


def store_model(connection: Connection, identity: ModelIdentity) -> int:
    """seq of the model's row, inserted if it is missing."""
    value = encode(identity)
    key = sha256(canonical(value).encode("utf-8", "surrogatepass")).hexdigest()  # a path may be any bytes
    return upsert(connection, model, {"key": key},
                  {"fingerprint": identity.fingerprint, "source": identity.source, "value": value})


def find_row(connection: Connection, table: Table, word: str) -> Row[Any]:
    """The row of ``table`` with this id, this name, or an id that starts with ``word``.

    Raises AmbiguousName, with the ids, if several rows have this name; InputError, with the nearest ids and names, if
    there is none or several ids start with ``word``; StorageError if the row is damaged.
    """
    return row_at(connection, table, find_key(connection, table, word))


def row_at(connection: Connection, table: Table, key: Row[Any, Any]) -> Row[Any]:
    """The whole row of ``table`` with this seq and id. StorageError that names it if it is damaged."""
    entry = f"{table.name} {key.id}"
    check(connection, table, {key.seq: entry})
    with reading(entry):
        row = connection.execute(select(table).where(table.c.seq == key.seq)).one()
        if row.id != key.id:
            raise ValueError("the index of the ids does not agree with the rows")
        return row


def all_rows(connection: Connection, table: Table, *conditions: Any) -> list[Row[Any]]:
    """The rows of ``table`` with ids, the newest last. StorageError that names the first damaged one."""
    keys = connection.execute(select(table.c.seq, table.c.id).where(*conditions).order_by(table.c.seq)).all()
    check(connection, table, {k.seq: f"{table.name} {k.id}" for k in keys})
    return list(connection.execute(select(table).where(*conditions).order_by(table.c.seq)))


def find_key(connection: Connection, table: Table, word: str) -> Row[Any, Any]:
    """As `find_row`, but only seq and id: also of a row whose value is damaged."""
    query = select(table.c.seq, table.c.id)
    exact = connection.execute(query.where(table.c.id == word)).first()
    if exact is not None:
        return exact
    named = "name" in table.c
    if named:
        rows = connection.execute(query.where(table.c.name == word).order_by(table.c.seq.desc())).all()
        if len(rows) > 1:
            raise AmbiguousName(_ambiguous(connection, table, word, rows))
        if rows:
            return rows[0]
    if len(word) >= _MIN_PREFIX:
        rows = connection.execute(query.where(table.c.id.startswith(word, autoescape=True))
                                  .order_by(table.c.seq).limit(3)).all()
        if len(rows) == 1:
            return rows[0]
        if rows:
            raise InputError(f"several ids in the ledger's table `{table.name}` start with {word!r} "
                             f"({', '.join(r.id for r in rows)}); give more of the id")
    columns = [table.c.name, table.c.id] if named else [table.c.id]
    names = list(dict.fromkeys(v for r in connection.execute(select(*columns).order_by(table.c.seq.desc()))
                               for v in r))
    raise InputError(f"no {table.name} {word!r} in the ledger{nearest(word, names) or _some(names)}")


def _ambiguous(connection: Connection, table: Table, word: str, keys: Sequence[Row[Any, Any]]) -> str:
    """The message for a name that several rows have: their ids, the newest first, each with its model and time."""
    shown = []
    for row in (row_at(connection, table, key) for key in keys[:_SHOWN]):
        source = connection.execute(select(model.c.source).where(model.c.seq == row.model)).scalar()
        started = str((row.value.get("provenance") or {}).get("started") or "")[:16].replace("T", " ")
        facts = ", ".join(f for f in (source, started, row.status if row.status != "done" else "") if f)
        shown.append(f"{row.id} ({facts})")
    more = f" and {len(keys) - _SHOWN} more (`aftertune runs` lists them)" if len(keys) > _SHOWN else ""
    return f"{len(keys)} {table.name}s in the ledger are called {word!r}: {', '.join(shown)}{more}; give the id"


def _some(names: Sequence[str]) -> str:
    if not names:
        return ", which has none yet"
    return f"; it has {', '.join(names[:6])}{', …' if len(names) > 6 else ''}"
