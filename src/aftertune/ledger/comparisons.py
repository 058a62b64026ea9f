"""Owns comparisons, and the scores that others reported.

    ledger.save_comparison(comparison)                       again with the same id: replaced
    ledger.comparisons(base="4f…")                           the newest last
    ledger.save_reported("record.md", [{"model": "Llama 3.2 1B", "task": "hellaswag", "metric": "acc",
                                        "value": 0.4523, "stderr": 0.005, "date": "2025-03-08"}])
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import select

from aftertune.errors import StorageError
from aftertune.ledger.schema import comparison, reported_score
from aftertune.ledger.store import Store, decode, encode, find, upsert
from aftertune.values import Comparison

_REPORTED = ("model", "task", "metric", "value", "stderr", "n")
_REMARK = "remark"  # marks a row that is no score


class Comparisons(Store):
    """Comparisons of two evaluations."""

    def save_comparison(self, value: Comparison) -> Comparison:
        """Insert a comparison, or replace the one with its id; returns it."""
        with self.database.write() as connection:
            upsert(connection, comparison, {"id": value.id},
                   {"base": value.base, "tuned": value.tuned, "value": encode(value)})
        return value

    def find_comparison(self, word: str) -> Comparison:
        """The comparison with this id or this beginning of an id (4 characters up); else InputError."""
        with self.database.read() as connection:
            return decode(Comparison, find(connection, comparison, word).value)

    def comparisons(self, *, base: str | None = None, tuned: str | None = None) -> list[Comparison]:
        """Comparisons of these evaluations (ids; None: any), the newest last."""
        query = select(comparison.c.value).order_by(comparison.c.seq)
        if base is not None:
            query = query.where(comparison.c.base == base)
        if tuned is not None:
            query = query.where(comparison.c.tuned == tuned)
        with self.database.read() as connection:
            return [decode(Comparison, v) for v in connection.execute(query).scalars()]


class ReportedScores(Store):
    """Scores that were read from a document: figures without answers, so without a paired comparison."""

    def save_reported(self, source: str, rows: Sequence[Mapping[str, Any]],
                      remarks: Sequence[Mapping[str, Any]] = ()) -> None:
        """Store the scores of one document in the place of those it gave before.

        Each row has model, task and metric (StorageError without), perhaps value, stderr (fractions) and n,
        and whatever else the document says. remarks: what it says beside its scores, each with its "kind".
        """
        for number, row in enumerate(rows):
            lacking = [k for k in _REPORTED[:3] if not isinstance(row.get(k), str)]
            if lacking:
                raise StorageError(f"{source}: reported score {number} has no {', '.join(lacking)}; each "
                                   "needs model, task and metric")
        stored = [*rows, *({**dict.fromkeys(_REPORTED[:3], ""), **remark, _REMARK: True} for remark in remarks)]
        with self.database.write() as connection:
            connection.execute(reported_score.delete().where(reported_score.c.source == source))
            if stored:
                connection.execute(reported_score.insert(), [
                    {"source": source, **{k: row.get(k) for k in _REPORTED},
                     "extra": encode({k: v for k, v in row.items() if k not in _REPORTED})} for row in stored])

    def reported(self, source: str | None = None) -> list[dict[str, Any]]:
        """Reported scores of one document, or of all, in their order; each with its ``source``."""
        return [row for row in self._stored(source) if _REMARK not in row]

    def remarks(self, source: str | None = None) -> list[dict[str, Any]]:
        """What a document, or all of them, say beside their scores; each with its ``source``."""
        return [row for row in self._stored(source) if _REMARK in row]

    def _stored(self, source: str | None) -> list[dict[str, Any]]:
        query = select(reported_score).order_by(reported_score.c.seq)
        if source is not None:
            query = query.where(reported_score.c.source == source)
        with self.database.read() as connection:
            return [{"source": r.source, **{k: r._mapping[k] for k in _REPORTED}, **r.extra}
                    for r in connection.execute(query)]
