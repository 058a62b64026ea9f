"""Owns studies and the state of their cells.

    ledger.save_study("orders", study.hash, text)
    ledger.save_cell("orders", "evaluate careful", "done", ref=evaluation.id)
    ledger.cells("orders")          [Cell(study="orders", name="evaluate careful", status="done", …)]
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, func, select

from aftertune.errors import InputError, StorageError, nearest
from aftertune.ledger.schema import cell, study
from aftertune.ledger.store import Store, upsert

STATES = ("planned", "running", "done", "failed")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredStudy:
    """A study as it was last run. hash: its canonical hash; yaml: the text of its file."""

    name: str
    hash: str
    yaml: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One cell of a study. ref: id of the evaluation, tuning or comparison; error: why it failed."""

    study: str
    name: str
    status: str
    ref: str | None = None
    error: str | None = None


class Studies(Store):
    """Studies and their cells."""

    def save_study(self, name: str, hash: str, yaml: str) -> None:
        """Insert a study, or put a changed one in the place of the one with its name; its cells stay."""
        with self.database.write() as connection:
            upsert(connection, study, {"name": name}, {"hash": hash, "yaml": yaml})

    def studies(self) -> list[StoredStudy]:
        """All studies, the newest last."""
        with self.database.read() as connection:
            return [StoredStudy(name=r.name, hash=r.hash, yaml=r.yaml)
                    for r in connection.execute(select(study).order_by(study.c.seq))]

    def save_cell(self, study_name: str, name: str, status: str, ref: str | None = None,
                  error: str | None = None) -> None:
        """Set the state of a cell; a new cell comes last. status: one of STATES, else StorageError."""
        if status not in STATES:
            raise StorageError(f"cell {name!r} cannot be {status!r}; a cell is {', '.join(STATES)}")
        with self.database.write() as connection:
            seq = _seq(connection, study_name)
            values = {"status": status, "ref": ref, "error": error}
            here = (cell.c.study == seq, cell.c.name == name)
            if connection.execute(cell.update().where(*here).values(**values)).rowcount:
                return
            last = connection.execute(select(func.max(cell.c.position)).where(cell.c.study == seq)).scalar()
            connection.execute(cell.insert().values(
                study=seq, position=0 if last is None else last + 1, name=name, **values))

    def cells(self, study_name: str) -> list[Cell]:
        """Cells of a study in the order in which they were first saved; InputError: unknown study."""
        with self.database.read() as connection:
            seq = _seq(connection, study_name)
            rows = connection.execute(select(cell).where(cell.c.study == seq).order_by(cell.c.position))
            return [Cell(study=study_name, name=r.name, status=r.status, ref=r.ref, error=r.error)
                    for r in rows]


def _seq(connection: Connection, name: str) -> int:
    """seq of a study; InputError with the nearest names where there is none."""
    seq = connection.execute(select(study.c.seq).where(study.c.name == name)).scalar()
    if seq is None:
        known = list(connection.execute(select(study.c.name)).scalars())
        raise InputError(f"no study {name!r} in the ledger{nearest(name, known)}; save it first")
    return int(seq)
