"""Shows scores that other documents report in the record: with their audit, and apart from measured scores.

    reported_models(document, "TinyLlama (1.1B)", commands)      blocks, each figure with its audit result
    changes_from(document)                                       "### Changes from record.md", and a list

Nothing here was measured by aftertune, and every section says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from aftertune.report import documents as md
from aftertune.report import formatting as fmt
from aftertune.report.facts import CODE
from aftertune.report.names import metric_title, task_title
from aftertune.report.sentences import Observation
from aftertune.values.reported import Audited, AuditedDocument, Remark, ReportedDifference, ScoreName

#: How the audit marks a figure that no k of n items gives.
NOT_REPRODUCIBLE = "not reproducible"
#: Where a number of items comes from (`Reported.n_source`) -> in words.
N_SOURCES = {"known": "lm-eval's task, not stated"}
#: Name of a model -> the command that measures it, "" if no study has it.
Commands = Callable[[str], str]


def models_by_section(document: AuditedDocument) -> dict[str, list[str]]:
    """Heading -> names of the models below it, in the document's order."""
    sections: dict[str, list[str]] = {}
    for row, _ in document.rows:
        models = sections.setdefault(row.section, [])
        if row.model not in models:
            models.append(row.model)
    return sections


def reported_models(document: AuditedDocument, section: str, commands: Commands) -> list[str]:
    """The blocks of each model of a section: its table with the audit and its metadata, or that it is not evaluated."""
    blocks = [f"*Reported in {_escaped(document.source)}, not measured here.*"]
    for model in models_by_section(document)[section]:
        blocks += _model([r for r in document.rows if (r[0].section, r[0].model) == (section, model)], commands(model))
    return blocks


def _model(rows: Sequence[Audited], command: str) -> list[str]:
    row = rows[0][0]
    name = _escaped(row.model)
    facts = md.facts([(k, fmt.visible(v, 600)) for k, v in row.facts.items()], CODE)
    hint = [f"*Measure it here with: {md.code(command)}*"] if command else []
    if row.planned is not None:
        planned = f", planned with: {md.code(fmt.visible(row.planned, 600))}" if row.planned else ""
        return [f"### {name} (reported, Not Evaluated)", f"*Not evaluated{planned}*", *hint, *filter(None, [facts])]
    cells = [[_escaped(task_title(r.task)), _escaped(metric_title(r.metric, r.filter)), _escaped(r.value_text, 40),
              f"±{_escaped(r.stderr_text, 40)}" if r.stderr_text else fmt.DASH,
              f"{fmt.count(r.n)} ({N_SOURCES.get(r.n_source, r.n_source)})" if r.n else fmt.DASH, _escaped(text, 400)]
             for r, text in rows]
    table = md.table(["Task", "Metric", "Reported", "Error range", "n", "Audit"], cells)
    return [f"### {name} (reported)", table, *hint, *([facts] if facts else [])]


def reported_sizes(document: AuditedDocument) -> list[list[str]]:
    """Rows of the table of model sizes as the document states them: model, parameters, trained parameters, data."""
    rows = []
    for remark in document.remarks:
        if remark.kind == "size":
            facts = {key.lower(): value for key, value in remark.facts.items()}
            size = next((v for k, v in facts.items() if "param" in k), fmt.DASH)
            data = next((v for k, v in facts.items() if "data" in k or "train" in k), fmt.DASH)
            rows.append([f"{_escaped(remark.model)} (reported)", _escaped(size, 80), fmt.DASH, _escaped(data, 80)])
    return rows


def reported_cells(document: AuditedDocument) -> dict[ScoreName, dict[str, str]]:
    """Cells of the performance table by score and model. Bold: the figures alone prove that this model is the best."""
    cells: dict[ScoreName, dict[str, str]] = {}
    for row, audit in document.scores:
        if row.model in document.columns:
            name = (row.task, row.metric, row.filter)
            cell = _escaped(row.value_text, 40) + (f" ± {_escaped(row.stderr_text, 40)}" if row.stderr_text else "")
            cell = f"**{cell}**" if document.best.get(name) == row.model else cell
            cells.setdefault(name, {})[row.model] = cell + (" †" if audit.startswith(NOT_REPRODUCIBLE) else "")
    return cells


def reported_observations(document: AuditedDocument) -> list[Observation]:
    """A sentence for each pair of models: which of their differences the figures alone establish, and which not."""
    sentences = []
    for base, tuned in dict.fromkeys((d.base, d.tuned) for d in document.differences):
        pair = [d for d in document.differences if (d.base, d.tuned) == (base, tuned)]
        by_status = {words: [d for d in pair if d.told == status] for status, words in _STATUS_WORDS.items()}
        parts = [f"{words}: {_list(rows)}" for words, rows in by_status.items() if rows]
        kind = "" if pair[0].family else " (a comparison of two models, not forgetting)"
        sentences.append(Observation(comparison=document.source, lead="Reported",
                                 text=f"{fmt.visible(tuned)} against {fmt.visible(base)}{kind}: {'; '.join(parts)}."))
    return sentences


#: Status of a difference (`ReportedDifference.told`) -> in words.
_STATUS_WORDS = {"established": "established by the summary alone",
                 "open": "not established (the paired answers would decide)", "not shown": "not established",
                 "cannot be checked": "not established (a figure fails the audit)"}


def _list(rows: Sequence[ReportedDifference]) -> str:
    return ", ".join(f"{fmt.visible(_score(d.score))} ({fmt.points(d.points / 100)} points)" for d in rows)


def _score(name: ScoreName) -> str:
    return f"{task_title(name[0])}, {metric_title(name[1], name[2])}"


def changes_from(document: AuditedDocument) -> list[str]:
    """What the record shows differently from the document, with line numbers; [] if nothing."""
    lines = [*_figures(document), *_bold(document), *_texts(document.remarks), *_findings(document)]
    if not lines:
        return []
    return [f"### Changes from {_escaped(document.source)}", "\n".join(f"- {md.text(line)}" for line in lines)]


def _figures(document: AuditedDocument) -> Iterator[str]:
    """Figures that are marked, and the columns of the tables."""
    for row, audit in document.scores:
        if audit.startswith(NOT_REPRODUCIBLE):
            name = _score((row.task, row.metric, row.filter))
            error = f" ±{row.stderr_text}" if row.stderr_text else ""
            yield (f"{_line(row.line)}{fmt.visible(row.model)}, {fmt.visible(name)}: {fmt.visible(row.value_text, 40)}"
                   f"{fmt.visible(error, 40)} is shown as printed and marked †: "
                   f"{fmt.visible(audit.removeprefix(NOT_REPRODUCIBLE + ': '), 400)}.")
    if document.scores:
        yield ("The tables of models also have the number of items and the audit of each score. Task names are not "
               "bold.")


def _bold(document: AuditedDocument) -> Iterator[str]:
    """Figures that are bold in the document and not here, because nothing proves them the best."""
    for remark in document.remarks:
        if remark.kind == "bold":
            row = next((r for r, _ in document.scores if remark.text.startswith(r.value_text) and
                        (r.model, r.metric, r.filter) == (remark.model, remark.metric, remark.filter)), None)
            name = (row.task, row.metric, row.filter) if row else (remark.task, remark.metric, remark.filter)
            if document.best.get(name) != remark.model:
                yield (f"{_line(remark.line)}{fmt.visible(_score(name))}: {fmt.visible(remark.text, 60)} of "
                       f"{fmt.visible(remark.model)} is not bold here, because the summary does not prove it better "
                       "than every other column.")


def _texts(remarks: Sequence[Remark]) -> Iterator[str]:
    """Names of columns, observations and descriptions that are replaced."""
    for remark in remarks:
        if remark.kind == "column" and remark.lead != remark.model:
            yield (f"The column {fmt.visible(remark.lead)!r} is called {fmt.visible(remark.model)!r} here, as in its "
                   "section.")
        if remark.kind == "observation":
            yield (f"{_line(remark.line)}the observation {fmt.visible(remark.lead)!r} is replaced by what the figures "
                   "establish (see Key Observations).")
        if remark.kind in ("description", "definition"):
            what = "description" if remark.kind == "description" else "definition"
            yield (f"{_line(remark.line)}the {what} of {fmt.visible(remark.lead)!r} is replaced by what lm-eval "
                   "computes (see Task Descriptions).")


def _findings(document: AuditedDocument) -> Iterator[str]:
    for location, text in document.findings:
        yield f"{fmt.visible(location, 300)}: {fmt.visible(text, 600)}."


def open_points(document: AuditedDocument) -> Iterator[str]:
    """The open points that the document lists."""
    for remark in document.remarks:
        if remark.kind == "future":
            yield f"- [ ] {_escaped(remark.text, 300)} *(open in {_escaped(document.source)}, line {remark.line})*"


def _line(number: int | None) -> str:
    return f"line {number}: " if number else ""


def _escaped(text: str, limit: int = 200) -> str:
    """Text of the document, safe in Markdown."""
    return md.text(fmt.visible(text, limit))


def reported_metrics(documents: Sequence[AuditedDocument]) -> Mapping[str, list[tuple[str, str]]]:
    """(metric, filter) of every reported score by task, in order of first appearance."""
    metrics: dict[str, list[tuple[str, str]]] = {}
    for document in documents:
        for row, _ in document.scores:
            keys = metrics.setdefault(row.task, [])
            if (row.metric, row.filter) not in keys:
                keys.append((row.metric, row.filter))
    return metrics
