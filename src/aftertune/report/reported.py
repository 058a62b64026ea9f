"""The sections of scores that others reported: as they stand in their document, each with its audit mark.

    reported_sections(3, [(row, "45.23% is k=4542 of 10,042; error 0.50% agrees"), …])

Nothing here was measured by this program, and every section says so.
"""

from __future__ import annotations

from collections.abc import Sequence

from aftertune.report import format as fmt
from aftertune.report import markdown as md
from aftertune.report.facts import CODE
from aftertune.report.names import metric_title, task_title
from aftertune.reported import Reported

#: A reported score and what the audit says of it.
Audited = tuple[Reported, str]


def reported_sections(first: int, rows: Sequence[Audited]) -> list[str]:
    """Blocks of Markdown: a numbered section per section of each document, from ``first`` on."""
    blocks: list[str] = []
    sections = dict.fromkeys((row.source, row.section) for row, _ in rows)
    for number, (source, section) in enumerate(sections, start=first):
        inside = [r for r in rows if (r[0].source, r[0].section) == (source, section)]
        blocks.append(f"## {number}. {md.text(fmt.visible(section or source, 200))} (reported)")
        blocks.append(f"*Reported in {md.text(fmt.visible(source, 200))}, not measured here.*")
        for model in dict.fromkeys(row.model for row, _ in inside):
            blocks += _model([r for r in inside if r[0].model == model])
    return blocks


def _model(rows: Sequence[Audited]) -> list[str]:
    row = rows[0][0]
    name = md.text(fmt.visible(row.model, 200))
    facts = md.facts([(k, fmt.visible(v, 600)) for k, v in row.facts.items()], CODE)
    if row.planned is not None:
        planned = f", planned with: {md.code(fmt.visible(row.planned, 600))}" if row.planned else ""
        return [f"### {name} (reported, Not Evaluated)", f"*Not evaluated{planned}*", *([facts] if facts else [])]
    cells = [[md.text(fmt.visible(task_title(r.task), 200)),
              md.text(fmt.visible(metric_title(r.metric, r.filter), 200)), md.text(fmt.visible(r.value_text, 40)),
              f"±{md.text(fmt.visible(r.stderr_text, 40))}" if r.stderr_text else fmt.DASH,
              f"{fmt.count(r.n)} ({r.n_source})" if r.n else fmt.DASH, md.text(fmt.visible(text, 400))]
             for r, text in rows]
    table = md.table(["Task", "Metric", "Reported", "Error range", "n", "Audit"], cells)
    return [f"### {name} (reported)", table, *([facts] if facts else [])]
