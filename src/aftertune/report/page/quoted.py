"""Scores that others reported, as the page shows them: as printed, each with what the audit says of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aftertune.report import format as fmt
from aftertune.report.facts import Facts
from aftertune.report.names import metric_title, task_title
from aftertune.report.reported import reported_observations
from aftertune.reported import Audited, Judged


@dataclass(frozen=True, slots=True)
class QuotedLine:
    """One figure. mark: the audit's word, text: its reason."""

    task: str
    metric: str
    value: str
    error: str
    n: str
    mark: str
    text: str


@dataclass(frozen=True, slots=True)
class Quoted:
    """A model of a section of a document. planned: the command that would evaluate it, None where it is."""

    source: str
    section: str
    model: str
    lines: list[QuotedLine]
    planned: str | None
    facts: Facts


def quoted(documents: Sequence[Judged]) -> list[Quoted]:
    """The models of all documents, in their order."""
    groups: dict[tuple[str, str, str], list[Audited]] = {}
    for row in (row for document in documents for row in document.rows):
        groups.setdefault((row[0].source, row[0].section, row[0].model), []).append(row)
    return [_model(group) for group in groups.values()]


def _model(rows: Sequence[Audited]) -> Quoted:
    first = rows[0][0]
    lines = []
    for row, said in rows:
        if row.planned is not None:
            continue
        mark, found, reason = fmt.visible(said, 400).partition(": ")
        lines.append(QuotedLine(
            task=fmt.visible(task_title(row.task), 200), metric=fmt.visible(metric_title(row.metric, row.filter), 200),
            value=fmt.visible(row.value_text, 40), error=f"±{fmt.visible(row.stderr_text, 40)}" if row.stderr_text
            else fmt.DASH, n=f"{fmt.count(row.n)} ({row.n_source})" if row.n else fmt.DASH,
            mark=mark if found else "", text=reason if found else mark))
    planned = next((fmt.visible(r.planned, 600) for r, _ in rows if r.planned is not None), None)
    return Quoted(fmt.visible(first.source, 200), fmt.visible(first.section, 200), fmt.visible(first.model, 200), lines,
                  planned, [(fmt.visible(k, 200), fmt.visible(v, 600)) for k, v in first.facts.items()])


def told(documents: Sequence[Judged]) -> list[str]:
    """What the documents' differences show by their summary alone, and what else the audit found."""
    lines: list[str] = []
    for document in documents:
        lines += [one.text for one in reported_observations(document)]
        lines += [f"{fmt.visible(where, 300)}: {fmt.visible(text, 600)}." for where, text in document.findings]
    return lines
