"""The page: one self-contained HTML file without scripts, to read, print and send.

    Path("report.html").write_text(write_page(evaluations, tunings, comparisons, title="Orders study"))

Everything foreign goes through Jinja2's autoescape; only the charts of this package are put in as markup.
A content security policy forbids scripts and every request. The same input gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from aftertune.report import format as fmt
from aftertune.report.charts import forest, loss_curve
from aftertune.report.facts import CODE, Facts, evaluation_facts, kind_text, method_text, tuning_facts
from aftertune.report.families import Family, families, tuning_of
from aftertune.report.generated import Answers, Changed, FormatLine, changed_items, form_text, format_table, shift_text
from aftertune.report.names import metric_description, metric_title, task_description, task_title
from aftertune.report.observations import lineage_note, observations, watermark
from aftertune.report.table import (
    ScoreLine,
    VerdictLine,
    held_out_line,
    metrics_by_task,
    score_table,
    verdict_table,
)
from aftertune.values import Comparison, Evaluation, Tuning

_WIDE, _NARROW = 760, 340  # px; the page shows the one that fits


@dataclass(frozen=True, slots=True, kw_only=True)
class _ComparisonView:
    id: str
    base: str
    tuned: str
    summary: str
    watermark: str
    lineage: str
    lines: list[VerdictLine]
    margins: str
    charts: list[tuple[str, Markup]]
    held_out: tuple[str, str, str, str, str] | None
    others: list[tuple[str, str, str]]
    forms: list[tuple[str, str, str, str]]
    changed: list[Changed]


@dataclass(frozen=True, slots=True, kw_only=True)
class _EvaluationView:
    id: str
    name: str
    about: str
    status: str
    lines: list[ScoreLine]
    formats: list[FormatLine]
    warnings: tuple[str, ...]
    facts: Facts


@dataclass(frozen=True, slots=True, kw_only=True)
class _TuningView:
    id: str
    name: str
    about: str
    status: str
    charts: list[tuple[str, Markup]]
    held_out: tuple[str, str, str, str, str] | None
    facts: Facts


def write_page(
    evaluations: Sequence[Evaluation],
    tunings: Sequence[Tuning],
    comparisons: Sequence[Comparison],
    *,
    title: str,
    answers: Answers | None = None,
) -> str:
    """The report as HTML. answers: evaluation id -> answers; with them the page also shows how generated
    answers failed in form, and a few changed texts side by side.
    """
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True,
                              undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["visible"] = fmt.visible
    texts = answers or {}
    homes = families(evaluations, tunings)
    return environment.get_template("page.html").render(
        title=fmt.visible(title), code=CODE,
        comparisons=[_comparison(c, texts) for c in comparisons],
        families=[(f.title, fmt.compact(f.model.parameters),
                   [_evaluation(e, f, tuning_of(e, tunings), texts) for e in f.evaluations]) for f in homes],
        tunings=[_tuning(t) for t in tunings], observations=observations(comparisons),
        descriptions=_descriptions(evaluations)) + "\n"


def _comparison(comparison: Comparison, answers: Answers) -> _ComparisonView:
    lines = verdict_table(comparison)
    words = [line.told for line in lines if line.told]
    counted = [f"{words.count(word)} {word}" for word in dict.fromkeys(words)]
    return _ComparisonView(
        id=comparison.id, base=fmt.visible(comparison.base_name), tuned=fmt.visible(comparison.tuned_name),
        summary=", ".join(counted) or "no verdict", watermark=watermark(comparison),
        lineage=lineage_note(comparison), lines=lines, margins=_margins(lines),
        charts=_charts([(css, forest(comparison, width)) for css, width in _SIZES]),
        held_out=held_out_line(comparison.held_out) if comparison.held_out else None,
        others=[(fmt.visible(d.field), fmt.visible(d.left, 80), fmt.visible(d.right, 80))
                for d in comparison.differences if not d.blocking],
        forms=[(fmt.visible(task_title(f.task)), form_text(f.base), form_text(f.tuned), shift_text(f))
               for f in comparison.forms],
        changed=changed_items(comparison, answers))


def _margins(lines: list[VerdictLine]) -> str:
    """The margins of the primary rows in a sentence."""
    found = {line.title: line.margin for line in lines if line.primary}
    if not found:
        return "No primary metric could be compared, so there is no verdict."
    if len(set(found.values())) == 1:
        return f"Margin: {next(iter(found.values()))} points."
    return "Margins in points: " + ", ".join(f"{title} {margin}" for title, margin in found.items()) + "."


_SIZES = (("wide", _WIDE), ("narrow", _NARROW))


def _charts(drawn: list[tuple[str, str]]) -> list[tuple[str, Markup]]:
    return [(css, Markup(svg)) for css, svg in drawn if svg]


def _evaluation(evaluation: Evaluation, home: Family, tuning: Tuning | None,
                answers: Answers) -> _EvaluationView:
    return _EvaluationView(
        id=evaluation.id, name=fmt.visible(evaluation.name), about=kind_text(evaluation, home, tuning),
        status=evaluation.status, lines=score_table(evaluation),
        formats=format_table(evaluation, answers.get(evaluation.id, ())),
        warnings=evaluation.warnings,
        facts=[(k, v) for k, v in evaluation_facts(evaluation, tuning) if k != "Warning"])


def _tuning(tuning: Tuning) -> _TuningView:
    return _TuningView(
        id=tuning.id, name=fmt.visible(tuning.name), status=tuning.status,
        about=f"{method_text(tuning)}, {fmt.count(tuning.examples)} examples, seed {tuning.seed}",
        charts=_charts([(css, loss_curve(tuning, width)) for css, width in _SIZES]),
        held_out=held_out_line(tuning.held_out) if tuning.held_out else None, facts=tuning_facts(tuning))


def _descriptions(evaluations: Sequence[Evaluation]) -> list[tuple[str, str, list[tuple[str, str]]]]:
    """(task, what it measures, [(metric, what it counts)]) for every task with a score."""
    targets = {t.task for e in evaluations for t in e.tasks if t.target}
    return [(fmt.visible(task_title(task)), task_description(task, target=task in targets),
             [(fmt.visible(metric_title(*key)), metric_description(*key)) for key in keys])
            for task, keys in metrics_by_task(evaluations).items()]
