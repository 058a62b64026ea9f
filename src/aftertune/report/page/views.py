"""What the page shows of one comparison, one evaluation and one fine-tune, as finished text and markup."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from aftertune.report import format as fmt
from aftertune.report.badges import NO_VERDICT, legend
from aftertune.report.charts import contrast_forest, forest, loss_curve, watch_chart, watched
from aftertune.report.columns import VerdictLine, verdict_lines, verdict_table
from aftertune.report.facts import Facts, evaluation_facts, kind_text, method_text, tuning_facts
from aftertune.report.families import Family, tuning_of
from aftertune.report.generated import Changed, FormatLine, changed_items, form_text, format_table, shift_text
from aftertune.report.names import task_title
from aftertune.report.observations import lineage_note, watermark
from aftertune.report.page.examples import FlipsView
from aftertune.report.page.figures import Figure, figure
from aftertune.report.results import Results
from aftertune.report.table import ScoreLine, explored_text, held_out_line, score_table
from aftertune.values import Comparison, Contrast, Evaluation, Tuning

if TYPE_CHECKING:
    from aftertune.ledger import Cell

_FOREST = ("Mark: difference; line: its 95 % interval; shaded: the margin within which a difference does not matter. "
           f"{legend()}, {NO_VERDICT.symbol} {NO_VERDICT.word}.")
_CONTRAST = ("Mark: difference of the means over all seeds; line: its 95 % interval, which counts the seeds as well as "
             f"the items; shaded: the margin. {legend()}.")
_MARKS = legend({"lower": "proven forgotten", "higher": "improved", "within": "kept", "undecided": "undecided"})
_WATCH = ("What was seen of tasks while the model was trained: a fixed part of each task, against the base on the same "
          f"items, with 95 % intervals. {_MARKS}, each at the level of all looks together.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonView:
    id: str
    base: str
    tuned: str
    summary: str
    watermark: str
    lineage: str
    lines: list[VerdictLine]
    margins: str
    explored: list[str]
    figure: Figure | None
    held_out: tuple[str, str, str, str, str] | None
    others: list[tuple[str, str, str]]
    forms: list[tuple[str, str, str, str]]
    flips: list[FlipsView]
    changed: list[Changed]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationView:
    id: str
    name: str
    about: str
    status: str
    lines: list[ScoreLine]
    formats: list[FormatLine]
    warnings: tuple[str, ...]
    facts: Facts


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningView:
    id: str
    name: str
    about: str
    status: str
    loss: Figure | None
    watch: Figure | None
    held_out: tuple[str, str, str, str, str] | None
    facts: Facts


@dataclass(frozen=True, slots=True, kw_only=True)
class ContrastView:
    """settings: what the two differ in; lines: left's mean is the base of each, right's the tuned one's."""

    id: str
    factor: str
    left: str
    right: str
    base: str
    seeds: str
    settings: str
    lines: list[VerdictLine]
    figure: Figure | None


def comparison_view(comparison: Comparison, results: Results, flips: list[FlipsView], *, many: bool) -> ComparisonView:
    """One comparison of many or few; changed texts stand in for its flips where there are none of these."""
    lines = verdict_table(comparison)
    words = [line.label for line in lines if line.label]
    counted = [f"{words.count(word)} {word}" for word in dict.fromkeys(words)]
    return ComparisonView(
        id=comparison.id, base=fmt.visible(comparison.base_name), tuned=fmt.visible(comparison.tuned_name),
        summary=", ".join(counted) or "no verdict", watermark=watermark(comparison),
        lineage=lineage_note(comparison), lines=lines, margins=_margins(lines), explored=explored_text(comparison),
        figure=figure(partial(forest, comparison), _FOREST, many=many),
        held_out=held_out_line(comparison.held_out) if comparison.held_out else None,
        others=[(fmt.visible(d.field), fmt.visible(d.left, 80), fmt.visible(d.right, 80))
                for d in comparison.differences if not d.blocking],
        forms=[(fmt.visible(task_title(f.task)), form_text(f.base), form_text(f.tuned), shift_text(f))
               for f in comparison.forms],
        flips=flips, changed=[] if flips else changed_items(comparison, results.answers))


def _margins(lines: list[VerdictLine]) -> str:
    """The margins of the primary rows in a sentence."""
    found = {line["task"]: line["margin"] for line in lines if line.row.primary}
    if not found:
        return "No primary metric could be compared, so there is no verdict."
    if len(set(found.values())) == 1:
        return f"Margin: {next(iter(found.values()))} points."
    return "Margins in points: " + ", ".join(f"{title} {margin}" for title, margin in found.items()) + "."


def evaluation_view(evaluation: Evaluation, home: Family, results: Results) -> EvaluationView:
    """One evaluation: its scores, the form of its answers, how it was run."""
    tuning = tuning_of(evaluation, results.tunings)
    return EvaluationView(
        id=evaluation.id, name=fmt.visible(evaluation.name), about=kind_text(evaluation, home, tuning),
        status=evaluation.status, lines=score_table(evaluation),
        formats=format_table(evaluation, results.answers.get(evaluation.id, ())),
        warnings=evaluation.warnings,
        facts=[(k, v) for k, v in evaluation_facts(evaluation, tuning) if k != "Warning"])


def contrast_view(contrast: Contrast) -> ContrastView:
    """Two recipes over several seeds."""
    settings = "; ".join(f"{name.replace('_', ' ')}: {left} against {right}" for name, left, right in contrast.settings)
    return ContrastView(
        id=contrast.id, factor=fmt.visible(contrast.factor), left=fmt.visible(contrast.left),
        right=fmt.visible(contrast.right), base=fmt.visible(contrast.base_name),
        seeds=", ".join(map(str, contrast.seeds)), settings=fmt.visible(settings),
        lines=verdict_lines(contrast.rows, lineage=False), figure=figure(partial(contrast_forest, contrast), _CONTRAST))


def cell_lines(cells: Sequence[Cell]) -> list[tuple[str, str, str]]:
    """(name, state, what went wrong) of each cell; of several studies, with the name of its own."""
    several = len({cell.study for cell in cells}) > 1
    return [(fmt.visible(f"{cell.study}: {cell.name}" if several else cell.name), cell.status,
             fmt.visible(cell.error or "", 300)) for cell in cells]


def tuning_view(tuning: Tuning, *, many: bool) -> TuningView:
    """One fine-tune of many or few: its loss, its watch, how it was trained."""
    validated = any("validation_loss" in step for step in tuning.steps)
    held = "; ◆ held-out loss before and after" if tuning.held_out else ""
    caption = f"Training loss by step{'; ■ validation loss' if validated else ''}{held}."
    return TuningView(
        id=tuning.id, name=fmt.visible(tuning.name), status=tuning.status,
        about=f"{method_text(tuning)}, {fmt.count(tuning.examples)} examples, seed {tuning.seed}",
        loss=figure(partial(loss_curve, tuning), caption, many=many),
        watch=figure(partial(watch_chart, tuning), _WATCH, [task_title(t) for t in watched(tuning)],
                     marked=False, many=many),
        held_out=held_out_line(tuning.held_out) if tuning.held_out else None, facts=tuning_facts(tuning))
