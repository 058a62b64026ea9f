"""What others reported, in a record of ours: its sections, its columns beside those that were measured, what its
differences show, and where our record departs from the document.

    reported_models(document, "TinyLlama (1.1B)", commands)      blocks, each figure with its audit mark
    departures(document, shown)                                  "### Departures from record.md", and a list

Nothing here was measured by this program, and every section says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from aftertune.report import documents as md
from aftertune.report import formatting as fmt
from aftertune.report.facts import CODE
from aftertune.report.names import metric_title, task_title
from aftertune.report.sentences import Observation
from aftertune.values.reported import Audited, AuditedDocument, Remark, ReportedDifference, ScoreName

#: The audit's word for a figure that cannot be k of n.
NOT_REPRODUCIBLE = "not reproducible"
#: Name of a model -> the command that would measure it, "" where no study has it.
Commands = Callable[[str], str]


def sections_of(document: AuditedDocument) -> dict[str, list[str]]:
    """Heading -> names of the models below it, in the document's order."""
    found: dict[str, list[str]] = {}
    for row, _ in document.rows:
        models = found.setdefault(row.section, [])
        if row.model not in models:
            models.append(row.model)
    return found


def reported_models(document: AuditedDocument, section: str, commands: Commands) -> list[str]:
    """Blocks for every model of a section: its table with marks and its metadata, or that it was not evaluated."""
    blocks = [f"*Reported in {_shown(document.source)}, not measured here.*"]
    for model in sections_of(document)[section]:
        blocks += _model([r for r in document.rows if (r[0].section, r[0].model) == (section, model)], commands(model))
    return blocks


def _model(rows: Sequence[Audited], command: str) -> list[str]:
    row = rows[0][0]
    name = _shown(row.model)
    facts = md.facts([(k, fmt.visible(v, 600)) for k, v in row.facts.items()], CODE)
    here = [f"*To be measured here with: {md.code(command)}*"] if command else []
    if row.planned is not None:
        planned = f", planned with: {md.code(fmt.visible(row.planned, 600))}" if row.planned else ""
        return [f"### {name} (reported, Not Evaluated)", f"*Not evaluated{planned}*", *here, *filter(None, [facts])]
    cells = [[_shown(task_title(r.task)), _shown(metric_title(r.metric, r.filter)), _shown(r.value_text, 40),
              f"±{_shown(r.stderr_text, 40)}" if r.stderr_text else fmt.DASH,
              f"{fmt.count(r.n)} ({r.n_source})" if r.n else fmt.DASH, _shown(text, 400)]
             for r, text in rows]
    table = md.table(["Task", "Metric", "Reported", "Error range", "n", "Audit"], cells)
    return [f"### {name} (reported)", table, *here, *([facts] if facts else [])]


def reported_sizes(document: AuditedDocument) -> list[list[str]]:
    """Rows of the table of sizes: model, parameters, trained parameters, training data, as the document has them."""
    rows = []
    for remark in document.remarks:
        if remark.kind == "size":
            facts = {key.lower(): value for key, value in remark.facts.items()}
            size = next((v for k, v in facts.items() if "param" in k), fmt.DASH)
            data = next((v for k, v in facts.items() if "data" in k or "train" in k), fmt.DASH)
            rows.append([f"{_shown(remark.model)} (reported)", _shown(size, 80), fmt.DASH, _shown(data, 80)])
    return rows


def reported_cells(document: AuditedDocument) -> dict[ScoreName, dict[str, str]]:
    """Cells of the table of performance by score and model; bold where the summary alone proves the best."""
    found: dict[ScoreName, dict[str, str]] = {}
    for row, said in document.scores:
        if row.model in document.columns:
            name = (row.task, row.metric, row.filter)
            cell = _shown(row.value_text, 40) + (f" ± {_shown(row.stderr_text, 40)}" if row.stderr_text else "")
            cell = f"**{cell}**" if document.best.get(name) == row.model else cell
            found.setdefault(name, {})[row.model] = cell + (" †" if said.startswith(NOT_REPRODUCIBLE) else "")
    return found


def reported_observations(document: AuditedDocument) -> list[Observation]:
    """A sentence for each pair of models: what the summary alone establishes of their differences, and what not."""
    found = []
    for base, tuned in dict.fromkeys((d.base, d.tuned) for d in document.differences):
        pair = [d for d in document.differences if (d.base, d.tuned) == (base, tuned)]
        by = {words: [d for d in pair if d.told == told] for told, words in _TOLD.items()}
        parts = [f"{words} {_list(rows)}" for words, rows in by.items() if rows]
        kind = "" if pair[0].family else " (a comparison of two models, never forgetting)"
        found.append(Observation(comparison=document.source, lead="Reported",
                                 text=f"{fmt.visible(tuned)} against {fmt.visible(base)}{kind}: {'; '.join(parts)}."))
    return found


_TOLD = {"established": "established by the summary alone:",
         "open": "not established, the paired answers would decide:", "not shown": "not established:",
         "cannot be checked": "not established, a figure fails the check:"}


def _list(rows: Sequence[ReportedDifference]) -> str:
    return ", ".join(f"{fmt.visible(_score(d.score))} ({fmt.points(d.points / 100)} points)" for d in rows)


def _score(name: ScoreName) -> str:
    return f"{task_title(name[0])}, {metric_title(name[1], name[2])}"


def departures(document: AuditedDocument) -> list[str]:
    """Where the record departs from the document, each with its line; nothing where it says nothing else."""
    lines = [*_figures(document), *_bold(document), *_words(document.remarks), *_also(document)]
    if not lines:
        return []
    return [f"### Departures from {_shown(document.source)}", "\n".join(f"- {md.text(line)}" for line in lines)]


def _figures(document: AuditedDocument) -> Iterator[str]:
    """Figures that are marked, and the columns of the tables."""
    for row, said in document.scores:
        if said.startswith(NOT_REPRODUCIBLE):
            name = _score((row.task, row.metric, row.filter))
            error = f" ±{row.stderr_text}" if row.stderr_text else ""
            yield (f"{_line(row.line)}{fmt.visible(row.model)}, {fmt.visible(name)}: {fmt.visible(row.value_text, 40)}"
                   f"{fmt.visible(error, 40)} stands as printed and is marked †: "
                   f"{fmt.visible(said.removeprefix(NOT_REPRODUCIBLE + ': '), 400)}.")
    if document.scores:
        yield ("Tables of a model: each score has its number of items and what the audit says of it; no name of a task "
               "is bold.")


def _bold(document: AuditedDocument) -> Iterator[str]:
    """Figures that the document sets in bold and we do not, because nothing proves them the best."""
    for remark in document.remarks:
        if remark.kind == "bold":
            row = next((r for r, _ in document.scores if remark.text.startswith(r.value_text) and
                        (r.model, r.metric, r.filter) == (remark.model, remark.metric, remark.filter)), None)
            name = (row.task, row.metric, row.filter) if row else (remark.task, remark.metric, remark.filter)
            if document.best.get(name) != remark.model:
                yield (f"{_line(remark.line)}{fmt.visible(_score(name))}: {fmt.visible(remark.text, 60)} of "
                       f"{fmt.visible(remark.model)} is not bold here; the summary does not prove it better than every "
                       "other column.")


def _words(remarks: Sequence[Remark]) -> Iterator[str]:
    for remark in remarks:
        if remark.kind == "column" and remark.lead != remark.model:
            yield f"The column {fmt.visible(remark.lead)!r} is named {fmt.visible(remark.model)!r}, as in its section."
        if remark.kind == "observation":
            yield (f"{_line(remark.line)}the observation {fmt.visible(remark.lead)!r} is replaced by what the figures "
                   "establish (Key Observations).")
        if remark.kind in ("description", "definition"):
            what = "description" if remark.kind == "description" else "definition"
            yield (f"{_line(remark.line)}the {what} of {fmt.visible(remark.lead)!r} is replaced by what lm-eval does "
                   "(Task Descriptions).")


def _also(document: AuditedDocument) -> Iterator[str]:
    for where, text in document.findings:
        yield f"{fmt.visible(where, 300)}: {fmt.visible(text, 600)}."


def open_points(document: AuditedDocument) -> Iterator[str]:
    """The document's own list of what is open."""
    for remark in document.remarks:
        if remark.kind == "future":
            yield f"- [ ] {_shown(remark.text, 300)} *(open in {_shown(document.source)}, line {remark.line})*"


def _line(number: int | None) -> str:
    return f"line {number}: " if number else ""


def _shown(text: str, limit: int = 200) -> str:
    return md.text(fmt.visible(text, limit))


def described(documents: Sequence[AuditedDocument]) -> Mapping[str, list[tuple[str, str]]]:
    """(metric, filter) of every reported score by task, in order of first appearance."""
    found: dict[str, list[tuple[str, str]]] = {}
    for document in documents:
        for row, _ in document.scores:
            keys = found.setdefault(row.task, [])
            if (row.metric, row.filter) not in keys:
                keys.append((row.metric, row.filter))
    return found
