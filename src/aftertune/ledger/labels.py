"""Stores what users say about entries, and renames and removes them.

    ledger.save_label("e-1f…", EntryLabel(tags=("paper",), note="seed 0 of the table"))
    ledger.labels()["e-1f…"].tags                     ("paper",)
    ledger.rename("t-93…", "orders-v2")
    ledger.remove("t-93…")                            a Removal: what went with it

Tags and notes have a table of their own, so that they are no part of a value: no id and no export changes with them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, Table, or_, select

from aftertune.errors import AmbiguousName, InputError, shown
from aftertune.ledger.database import repeatable
from aftertune.ledger.digests import check, forget, seal
from aftertune.ledger.evaluations import delete_rows, drop_unused_models
from aftertune.ledger.lease import check_lease
from aftertune.ledger.schema import cell, comparison, evaluation, label, step, study, tuning
from aftertune.ledger.store import Store, find_key, row_at, upsert

_TABLES: tuple[Table, ...] = (evaluation, tuning, comparison)
_LONGEST_NOTE = 2000  # characters


@dataclass(frozen=True, slots=True, kw_only=True)
class EntryLabel:
    """What a user says about an entry."""

    tags: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """What goes with an entry. kind: "evaluation", "tuning" or "comparison"; comparisons: ids of those that use the
    evaluation; evaluations: ids of those whose model a tuning made, which stay; cells: of studies, which become planned
    again, as (study, cell)."""

    kind: str
    id: str
    comparisons: tuple[str, ...] = ()
    evaluations: tuple[str, ...] = ()
    cells: tuple[tuple[str, str], ...] = ()


@repeatable("labels", "save_label")
class EntryLabels(Store):
    """Tags and notes of entries; their names; their removal."""

    def labels(self) -> dict[str, EntryLabel]:
        """Id of an entry -> what a user said about it."""
        with self.database.read() as connection:
            rows = connection.execute(select(label.c.seq, label.c.entry).order_by(label.c.seq)).all()
            check(connection, label, {r.seq: f"the label of {r.entry}" for r in rows})
            return {r.entry: EntryLabel(tags=tuple(r.tags), note=r.note)
                    for r in connection.execute(select(label).order_by(label.c.seq))}

    def save_label(self, entry: str, value: EntryLabel) -> None:
        """Store tags and note of an entry; they replace those stored before. entry: its id."""
        with self.database.write() as connection:
            if value == EntryLabel():
                _unlabel(connection, entry)
            else:
                upsert(connection, label, {"entry": entry}, {"tags": list(value.tags), "note": value.note})

    def rename(self, entry: str, name: str) -> None:
        """Give an evaluation or a tuning another name, also in the comparisons that show it. entry: its id.

        InputError where another entry of its kind has the name, or any entry has it as its id. ResourceError where
        another process works on the evaluation: it stores the name that it was started with.
        """
        with self.database.write() as connection:
            table, key = _entry(connection, entry)
            if table is comparison:
                raise InputError(f"{entry} is a comparison, which has no name of its own; rename its evaluations")
            taken = connection.execute(select(table.c.id).where(table.c.name == name, table.c.id != key.id)
                                       .order_by(table.c.seq)).scalar()
            if taken is not None:
                raise InputError(f"{name!r} is the name of {table.name} {taken}; choose another one")
            if any(connection.execute(select(t.c.seq).where(t.c.id == name)).first() for t in _TABLES):
                raise InputError(f"{name!r} is an id in the ledger, which is looked for first; choose another name")
            if table is evaluation:
                check_lease(connection, key.seq, key.id)
            row_at(connection, table, key)
            connection.execute(table.update().where(table.c.seq == key.seq).values(name=name))
            seal(connection, table, [key.seq])
            for row in _comparisons_of(connection, key.id) if table is evaluation else ():
                value = dict(row_at(connection, comparison, row).value)
                value |= {f"{side}_name": name for side in ("base", "tuned") if value[side] == key.id}
                connection.execute(comparison.update().where(comparison.c.seq == row.seq).values(value=value))
                seal(connection, comparison, [row.seq])

    def key_of(self, word: str) -> tuple[str, str]:
        """Kind and id of the entry with this id or name, also where it is damaged. Raises InputError."""
        with self.database.read() as connection:
            for table in _TABLES:
                try:
                    return table.name, str(find_key(connection, table, word).id)
                except AmbiguousName:
                    raise
                except InputError:
                    continue
        raise InputError(f"no entry {word!r} in the ledger; `aftertune runs` lists them")

    def removal(self, entry: str) -> Removal:
        """What `remove` would remove, and what depends on it."""
        with self.database.read() as connection:
            table, key = _entry(connection, entry)
            return _removal(connection, table, key)

    def remove(self, entry: str) -> Removal:
        """Remove an evaluation with its answers and comparisons, a tuning with its log, or a comparison. entry: its id.

        Files of a tuning stay. ResourceError where another process works on the evaluation.
        """
        with self.database.write() as connection:
            table, key = _entry(connection, entry)
            removal = _removal(connection, table, key)
            if table is evaluation:
                check_lease(connection, key.seq, key.id)
                delete_rows(connection, key)
            else:
                if table is tuning:
                    connection.execute(step.delete().where(step.c.tuning == key.seq))
                    forget(connection, step, [key.seq])
                connection.execute(table.delete().where(table.c.seq == key.seq))
                forget(connection, table, [key.seq])
                drop_unused_models(connection)
            for row in connection.execute(_cells_of(key.id)).all():
                here = (cell.c.study == row.study, cell.c.position == row.position)
                connection.execute(cell.update().where(*here).values(status="planned", ref=None, error=None))
                seal(connection, cell, [row.study], row.position)
            for gone in (key.id, *removal.comparisons):
                _unlabel(connection, gone)
            return removal


def _entry(connection: Connection, entry: str) -> tuple[Table, Row[Any, Any]]:
    """The table and the key of the entry with this id. InputError if there is none."""
    for table in _TABLES:
        if connection.execute(select(table.c.seq).where(table.c.id == entry)).first() is not None:
            return table, find_key(connection, table, entry)
    raise InputError(f"no entry {entry!r} in the ledger; `aftertune runs` lists them")


def _comparisons_of(connection: Connection, id_: str) -> Sequence[Row[Any, Any]]:
    """seq and id of the comparisons of an evaluation."""
    return connection.execute(select(comparison.c.seq, comparison.c.id).where(
        or_(comparison.c.base == id_, comparison.c.tuned == id_)).order_by(comparison.c.seq)).all()


def _cells_of(id_: str) -> Any:
    """A query for the cells of studies whose result an entry is."""
    return select(cell.c.study, cell.c.position, cell.c.name).where(cell.c.ref == id_).order_by(
        cell.c.study, cell.c.position)


def _removal(connection: Connection, table: Table, key: Row[Any, Any]) -> Removal:
    used = [r.id for r in _comparisons_of(connection, key.id)] if table is evaluation else []
    made: Sequence[str] = connection.execute(
        select(evaluation.c.id).where(evaluation.c.tuning == key.id).order_by(evaluation.c.seq)
    ).scalars().all() if table is tuning else []
    studies = {row.seq: row.name for row in connection.execute(select(study.c.seq, study.c.name))}
    return Removal(kind=table.name, id=key.id, comparisons=tuple(used), evaluations=tuple(made),
                   cells=tuple((studies[r.study], r.name) for r in connection.execute(_cells_of(key.id))))


def _unlabel(connection: Connection, entry: str) -> None:
    """Remove tags and note of an entry."""
    seq = connection.execute(select(label.c.seq).where(label.c.entry == entry)).scalar()
    if seq is not None:
        connection.execute(label.delete().where(label.c.seq == seq))
        forget(connection, label, [seq])


def check_word(what: str, text: str) -> None:
    """InputError unless a text may be a name or a tag. what: "a name" or "a tag"."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.@+-]{0,199}", text, re.ASCII):
        raise InputError(f"{shown(text)}: {what} has letters, digits and . _ @ + -, the first a letter or digit")


def check_note(text: str) -> None:
    """InputError for a note that is too long."""
    if len(text) > _LONGEST_NOTE:
        raise InputError(f"the note has {len(text):,} characters; {_LONGEST_NOTE:,} at most are stored")
