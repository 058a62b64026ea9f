"""Owns what an audit makes of the documents in a ledger, for a record that shows them beside what was measured.

    for document in judged(ledger):
        document.best["gsm8k", "exact_match", "strict-match"]      "Base Llama 3.2 1B"
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from aftertune.catalog import is_share
from aftertune.exchange.audits import ALPHA, Audit, Check, audit_document
from aftertune.exchange.markdown import Document
from aftertune.ledger import Ledger
from aftertune.reported import Difference, Judged, Remark, Reported, ScoreName
from aftertune.stats.audit import unpaired
from aftertune.stats.multiplicity import holm


def judged(ledger: Ledger) -> list[Judged]:
    """Every imported document with its audit, in the order of import."""
    rows = [Reported.of(row) for row in ledger.reported()]
    return [judge(Document(source=source, rows=tuple(r for r in rows if r.source == source),
                           remarks=tuple(map(Remark.of, ledger.remarks(source)))))
            for source in dict.fromkeys(row.source for row in rows)]


def judge(document: Document) -> Judged:
    """One document with its audit."""
    found = audit_document(document)
    marks = {id(c.row): f"{c.mark}: {c.text}" for c in found.checks}
    models = tuple(dict.fromkeys(row.model for row in document.scores))
    shown = {remark.model for remark in document.remarks if remark.kind == "column"}
    columns = tuple(m for m in models if m in shown) or models
    return Judged(source=document.source, rows=tuple((row, marks.get(id(row), "")) for row in document.rows),
                  remarks=document.remarks, differences=tuple(_differences(found)),
                  findings=tuple((f.where, f.text) for f in found.findings), columns=columns,
                  best=dict(_best([c for c in found.checks if c.row.model in columns])))


def _differences(found: Audit) -> Iterator[Difference]:
    for claim in found.claims:
        yield Difference(base=claim.base, tuned=claim.tuned, score=(claim.task, claim.metric, claim.filter),
                         points=100 * claim.difference, family=claim.family, told=claim.status)


def _best(checks: Sequence[Check]) -> Iterator[tuple[ScoreName, str]]:
    """Of each score the model whose figure is better than every other one, unpaired, Holm over the others."""
    names = dict.fromkeys((c.row.task, c.row.metric, c.row.filter) for c in checks)
    for name in names:
        row = [c for c in checks if (c.row.task, c.row.metric, c.row.filter) == name]
        if len(row) < 2 or not is_share(name[1]) or not all(map(_usable, row)):
            continue
        first, *others = sorted(row, key=lambda c: -(c.row.value or 0))
        tests = [unpaired(_summary(first), _summary(other)) for other in others]
        if all(p < ALPHA for p in holm([t.p for t in tests])):
            yield name, first.row.model


def _usable(check: Check) -> bool:
    return check.ok and check.row.value is not None and check.row.stderr is not None


def _summary(check: Check) -> tuple[float, float]:
    return check.row.value or 0.0, check.row.stderr or 0.0
