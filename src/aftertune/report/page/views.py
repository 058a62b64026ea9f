"""Turns evaluations, comparisons, fine-tunes and reported scores into the finished text that the templates show.

    comparison_view(comparison, results, flips, many=False).summary      "2 forgot, 1 kept"
    evaluation_view(evaluation, family, results).lines                   the rows of its table of scores
    tuning_view(tuning, many=False).loss                                 the chart of its training loss
    flips_views({"c-1f…": [flips of HellaSwag, flips of ARC]})           comparison id -> a view for each task
    reported_views(documents)                                            a view for each model of each document
    provenance_view(results).commands                                    the commands in the order they were run

Each dataclass is what one section of the page shows. Text from outside passes through `formatting.visible`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from aftertune.catalog import MetricKey
from aftertune.report import formatting as fmt
from aftertune.report.badges import NO_VERDICT, legend
from aftertune.report.changed_items import (
    ENDS,
    Changed,
    FormatLine,
    changed_items,
    forced_text,
    form_text,
    format_table,
    score_unit,
    shift_text,
)
from aftertune.report.changes import TITLE, ChangeTable, change_lines, change_tables, drift_line, missing_lines
from aftertune.report.charts import contrast_forest, forest, loss_curve, strength_chart, watch_chart, watched
from aftertune.report.checkpoints import checkpoint_table, tuning_checkpoints
from aftertune.report.columns import VerdictLine, verdict_lines, verdict_table
from aftertune.report.cures import confirmed_lines, cure_table, strength_points
from aftertune.report.facts import Facts, device_text, evaluation_facts, kind_text, method_text, run_facts, tuning_facts
from aftertune.report.headline import headline
from aftertune.report.names import metric_title, task_title
from aftertune.report.page.figures import ChartView, figure, position_views
from aftertune.report.reported import reported_observations
from aftertune.report.results import Family, Results, tuning_of
from aftertune.report.sentences import lineage_note, rules_note, watermark
from aftertune.report.table import ScoreLine, exploratory_text, few_shot_lines, held_out_line, part_text, score_table
from aftertune.values import (
    VERDICT_LABELS,
    Comparison,
    Contrast,
    Cure,
    Evaluation,
    Flip,
    Flips,
    FlipSide,
    ModelIdentity,
    TaskSettings,
    Tuning,
)
from aftertune.values.reported import Audited, AuditedDocument, identity_note, proven

if TYPE_CHECKING:
    from aftertune.ledger import StoredCell

# --- Comparisons, evaluations and fine-tunes ---

_FOREST = ("Mark: the difference. Line: its 95 % interval. Shaded: the margin; a difference within it counts as no "
           f"change. {legend()}, {NO_VERDICT.symbol} {NO_VERDICT.word}.")
_CONTRAST = ("Mark: the difference between the means over all seeds. Line: its 95 % interval over seeds and items. "
             f"Shaded: the margin. {legend()}.")
_WATCH_MARKS = legend({**VERDICT_LABELS, "lower": "forgot (proven)"})
_WATCH = ("Evaluated during training: the same part of each task for the base and for the model, with 95 % intervals. "
          f"{_WATCH_MARKS}. The 5 % error level covers all tasks and all of these evaluations together.")
_STRENGTH = ("The fine-tune at less strength against the base, with 95 % intervals, on the items that choose: 0 % is "
             "the base, 100 % the fine-tune. Each point is tested alone: nothing is claimed from these. Vertical line: "
             f"the chosen strength. {_WATCH_MARKS}.")
_HALVES = " The items are the half that chooses a checkpoint; the facts say how it does on the other half."


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonView:
    """One comparison.

    headline: its sentences, () for a forced one. summary: the number of rows of each label. margins, explored:
    sentences. held_out: a row of the loss table. others: (setting, in the base, in the tuned model) of settings that
    differ and do not block the comparison. forms: (task, form of the base's answers, of the tuned model's, effect on
    the score). changes: what changed beside right and wrong, None where it was not computed. changed: examples of
    changed texts, shown only if there are no flips.
    """

    id: str
    base: str
    tuned: str
    headline: tuple[str, ...]
    summary: str
    watermark: str
    lineage: str
    lines: list[VerdictLine]
    margins: str
    explored: list[str]
    figure: ChartView | None
    held_out: tuple[str, str, str, str, str] | None
    others: list[tuple[str, str, str]]
    forms: list[tuple[str, str, str, str]]
    changes: ChangesView | None
    flips: list[FlipsView]
    changed: list[Changed]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangesView:
    """What changed beside right and wrong. lines: always shown; tables, positions (task, chart), missing: folded."""

    title: str
    lines: list[str]
    tables: list[ChangeTable]
    positions: list[tuple[str, ChartView]]
    missing: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationView:
    """One evaluation. about: what kind of model it is; formats: the form of its generated answers, for each task."""

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
    """One fine-tune. about: method, examples and seed; watch: the chart of the forgetting watch; checkpoints: heading
    and cells of its table; made: it was made of another one without training."""

    id: str
    name: str
    about: str
    status: str
    loss: ChartView | None
    watch: ChartView | None
    checkpoints: tuple[list[str], list[list[str]]] | None
    held_out: tuple[str, str, str, str, str] | None
    facts: Facts
    made: bool = False
    cure: CureView | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CureView:
    """How a model was made from fine-tunes without training. chart: gain and loss against strength; table: heading and
    cells; lines: what is confirmed."""

    chart: ChartView | None
    table: tuple[list[str], list[list[str]]]
    lines: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ContrastView:
    """Two recipes. settings: what they differ in; lines: the column "base" is the left recipe, "tuned" the right."""

    id: str
    factor: str
    left: str
    right: str
    base: str
    seeds: str
    settings: str
    lines: list[VerdictLine]
    figure: ChartView | None


def comparison_view(comparison: Comparison, results: Results, flips: list[FlipsView], *, many: bool) -> ComparisonView:
    """The view of a comparison. many: the page has so many comparisons that each chart is drawn for one width only."""
    lines = verdict_table(comparison)
    labels = [line.label for line in lines if line.label]
    counts = [f"{labels.count(label)} {label}" for label in dict.fromkeys(labels)]
    return ComparisonView(
        id=comparison.id, base=fmt.visible(comparison.base_name), tuned=fmt.visible(comparison.tuned_name),
        headline=() if comparison.forced else headline(comparison).sentences,
        summary=", ".join(counts) or "no verdict", watermark=watermark(comparison),
        lineage=" ".join(filter(None, (lineage_note(comparison), rules_note(comparison)))), lines=lines,
        margins=_margins(lines), explored=[*few_shot_lines(comparison), *exploratory_text(comparison)],
        figure=figure(partial(forest, comparison), _FOREST, many=many),
        held_out=held_out_line(comparison.held_out) if comparison.held_out else None,
        others=[(fmt.visible(d.field), fmt.visible(d.left, 80), fmt.visible(d.right, 80))
                for d in comparison.differences if not d.blocking],
        forms=[(fmt.visible(task_title(f.task)), form_text(f.base), form_text(f.tuned), shift_text(f))
               for f in comparison.forms],
        changes=_changes_view(comparison, results, many=many), flips=flips,
        changed=[] if flips else changed_items(comparison, results.answers))


def _changes_view(comparison: Comparison, results: Results, *, many: bool) -> ChangesView | None:
    """many: the page has so many comparisons that no bars are drawn."""
    lines = [line for line in (*change_lines(comparison), drift_line(results.drift(comparison))) if line]
    if not lines:
        return None
    return ChangesView(title=TITLE, lines=lines, tables=change_tables(comparison),
                       positions=[] if many else position_views(comparison), missing=missing_lines(comparison))


def _margins(lines: list[VerdictLine]) -> str:
    """A sentence that states the margins of the primary rows."""
    margins = {line["task"]: line["margin"] for line in lines if line.row.primary}
    if not margins:
        return "No primary metric could be compared, so there is no verdict."
    if len(set(margins.values())) == 1:
        points = " points" if all(line.row.fraction for line in lines if line.row.primary) else ""
        return f"Margin: {next(iter(margins.values()))}{points}."
    return "Margins in points: " + ", ".join(f"{title} {margin}" for title, margin in margins.items()) + "."


def evaluation_view(evaluation: Evaluation, family: Family, results: Results) -> EvaluationView:
    """The view of an evaluation: its scores, the form of its answers and how it was run."""
    tuning = tuning_of(evaluation, results.tunings)
    return EvaluationView(
        id=evaluation.id, name=fmt.visible(evaluation.name), about=kind_text(evaluation, family, tuning),
        status=evaluation.status, lines=score_table(evaluation),
        formats=format_table(evaluation, results.generated(evaluation)),
        warnings=evaluation.warnings,
        facts=[(k, v) for k, v in evaluation_facts(evaluation, tuning) if k != "Warning"])


def tuning_view(tuning: Tuning, *, many: bool) -> TuningView:
    """The view of a fine-tune. many: the page has so many that each chart is drawn for one width only."""
    validated = any("validation_loss" in step for step in tuning.steps)
    held_out = "; ◆ held-out loss before and after" if tuning.held_out else ""
    caption = f"Training loss by step{'; ■ validation loss' if validated else ''}{held_out}."
    return TuningView(
        id=tuning.id, name=fmt.visible(tuning.name), status=tuning.status,
        about=f"{method_text(tuning)}, {fmt.count(tuning.examples)} examples, seed {tuning.seed}",
        loss=figure(partial(loss_curve, tuning), caption, many=many),
        checkpoints=checkpoint_table(rows) if (rows := tuning_checkpoints(tuning)) else None,
        watch=figure(partial(watch_chart, tuning), _watch_caption(tuning, validated=validated),
                     [task_title(t) for t in watched(tuning.watch)], marked=False, many=many),
        held_out=held_out_line(tuning.held_out) if tuning.held_out else None, facts=tuning_facts(tuning),
        made=bool(tuning.change) or tuning.cure is not None,
        cure=_cure_view(tuning, tuning.cure, many=many) if tuning.cure else None)


def _cure_view(tuning: Tuning, cure: Cure, *, many: bool) -> CureView:
    chart = figure(partial(strength_chart, tuning), _STRENGTH,
                   [task_title(t) for t in watched(strength_points(cure)[0])], marked=False, many=many)
    return CureView(chart=chart, table=cure_table(cure), lines=confirmed_lines(cure))


def _watch_caption(tuning: Tuning, *, validated: bool) -> str:
    """The caption of the forgetting watch, for the parts that its chart has."""
    loss = " ■ validation loss." if validated else ""
    final = "" if tuning.final_step is None else " Vertical line: the step whose weights are handed on."
    return f"{_WATCH}{loss}{final}{_HALVES if tuning.choice else ''}"


def contrast_view(contrast: Contrast) -> ContrastView:
    """The view of two recipes that are compared over several seeds."""
    settings = fmt.short_digests("; ".join(f"{name.replace('_', ' ')}: {left} against {right}"
                                           for name, left, right in contrast.settings))
    return ContrastView(
        id=contrast.id, factor=fmt.visible(contrast.factor), left=fmt.visible(contrast.left),
        right=fmt.visible(contrast.right), base=fmt.visible(contrast.base_name),
        seeds=", ".join(map(str, contrast.seeds)), settings=fmt.visible(settings),
        lines=verdict_lines(contrast.rows, lineage=False), figure=figure(partial(contrast_forest, contrast), _CONTRAST))


def cell_rows(cells: Sequence[StoredCell]) -> list[tuple[str, str, str]]:
    """(name, state, error) of each cell; the name starts with the study's if there are several studies."""
    several = len({cell.study for cell in cells}) > 1
    return [(fmt.visible(f"{cell.study}: {cell.name}" if several else cell.name), cell.status,
             fmt.visible(cell.error or "", 300)) for cell in cells]


# --- Flips: items that one of two models answers right and the other wrong ---

#: Comparison id -> its flips, one value for each task.
FlipsByComparison = Mapping[str, Sequence[Flips]]

_MAX_ITEMS = 240  # on the whole page
_MAX_PER_DIRECTION = 5  # lost items, and gained items, of one task of one comparison
_QUESTION, _CHOICE, _TEXT = 1200, 240, 1200  # characters that are shown


@dataclass(frozen=True, slots=True)
class ChoiceView:
    """One choice of an item. right: whether it is the right one; base, tuned: (its score, whether it was chosen)."""

    text: str
    right: bool
    base: tuple[str, bool]
    tuned: tuple[str, bool]


@dataclass(frozen=True, slots=True)
class AnswerView:
    """One generated answer. about: how it ended and which answer was extracted from it."""

    name: str
    right: bool
    about: str
    text: str


@dataclass(frozen=True, slots=True)
class ChangedItemView:
    """One item. It has either choices or generated answers; opening: the first characters of its question."""

    direction: str
    index: int
    question: str
    opening: str
    gold: str
    choices: list[ChoiceView]
    generated: list[AnswerView]


@dataclass(frozen=True, slots=True)
class FlipsView:
    """The lost and gained items of one task. counts: how many; unit: of the scores of the choices; more: how many
    items are not shown, "" for none."""

    title: str
    counts: str
    watermark: str
    unit: str
    names: tuple[str, str]
    items: list[ChangedItemView]
    more: str


def flips_views(flips: FlipsByComparison) -> dict[str, list[FlipsView]]:
    """The views of all flips, by comparison.

    Each task shows at most 5 lost and 5 gained items, and the page at most 240; more comparisons therefore show fewer
    items each. If not even one lost and one gained item of each task fit, the tasks with the largest loss show one lost
    item.
    """
    by_task = {(comparison, f.task): f for comparison, of_comparison in flips.items() for f in of_comparison
               if f.lost or f.gained}
    each = min(_MAX_PER_DIRECTION, _MAX_ITEMS // max(1, 2 * len(by_task)))
    worst = set(sorted(by_task, key=lambda key: -by_task[key].lost)[:_MAX_ITEMS])
    views: dict[str, list[FlipsView]] = {comparison: [] for comparison in flips}
    for key, task_flips in by_task.items():
        views[key[0]].append(_flips_view(task_flips, lost=max(each, key in worst), gained=each))
    return views


def _flips_view(flips: Flips, *, lost: int, gained: int) -> FlipsView:
    """lost, gained: the largest number of items to show."""
    key = MetricKey(flips.metric)
    names = fmt.visible(flips.base_name), fmt.visible(flips.tuned_name)
    items = [flip for direction, limit in (("lost", lost), ("gained", gained))
             for flip in [f for f in flips.flips if f.direction == direction][:limit]]
    rest = flips.lost + flips.gained - len(items)
    return FlipsView(
        title=fmt.visible(task_title(flips.task)), names=names, unit=score_unit(key.metric),
        counts=(f"{fmt.count(flips.lost)} lost and {fmt.count(flips.gained)} gained of {fmt.count(flips.n)} items, by "
                f"{fmt.visible(metric_title(key.metric, key.filter))}"),
        watermark=forced_text(flips.differences) if flips.differences else "",
        items=[_item_view(flip, names) for flip in items],
        more=fmt.count(rest) if rest else "")


def _item_view(flip: Flip, names: tuple[str, str]) -> ChangedItemView:
    question = fmt.visible(flip.question, _QUESTION) or "(no text)"
    opening = " ".join(question.split())
    scored = bool(flip.base.scores or flip.tuned.scores)
    sides = zip(names, (flip.base, flip.tuned), strict=True)
    return ChangedItemView(
        direction=flip.direction, index=flip.index, question=question,
        opening=opening if len(opening) <= 90 else f"{opening[:89]}…", gold=fmt.visible(flip.gold, _CHOICE),
        choices=_choices(flip) if scored else [],
        generated=[] if scored else [
            AnswerView(name, side.right, _about(side),
                       fmt.visible(side.chosen, _TEXT) if side.chosen.strip() else "(empty)") for name, side in sides])


def _choices(flip: Flip) -> list[ChoiceView]:
    best = [max(range(len(s.scores)), key=s.scores.__getitem__) if s.scores else -1 for s in (flip.base, flip.tuned)]
    choices = []
    for i in range(max(len(flip.base.scores), len(flip.tuned.scores))):
        text = flip.choices[i] if i < len(flip.choices) else f"choice {i + 1}"
        base, tuned = ((fmt.raw(s.scores[i], 3) if i < len(s.scores) else fmt.DASH, i == b)
                       for s, b in zip((flip.base, flip.tuned), best, strict=True))
        choices.append(ChoiceView(fmt.visible(text, _CHOICE), text == flip.gold, base, tuned))
    return choices


def _about(side: FlipSide) -> str:
    extracted = [f"{'' if name == 'none' else f'{name} '}{value.strip() or '(nothing)'}"
                 for name, value in side.extracted.items() if value.strip() != side.chosen.strip()]
    trace = "" if side.reasoning is None else f"reasoning, not judged: {side.reasoning.strip() or '(empty)'}"
    notes = [ENDS.get(side.finish or "", ""), f"extracted: {', '.join(extracted)}" if extracted else "", trace]
    return fmt.visible("; ".join(filter(None, notes)), 200)


# --- Scores that other documents report, with their audit ---


@dataclass(frozen=True, slots=True)
class ReportedLine:
    """One reported score as printed. mark: the result of the audit; text: its reason."""

    task: str
    metric: str
    value: str
    error: str
    n: str
    mark: str
    text: str


@dataclass(frozen=True, slots=True)
class ReportedView:
    """One model in one section of a document. planned: the command that would evaluate it ("" if the document names
    none), None if the document has scores of it."""

    source: str
    section: str
    model: str
    lines: list[ReportedLine]
    planned: str | None
    facts: Facts


def reported_views(documents: Sequence[AuditedDocument]) -> list[ReportedView]:
    """A view for each model of each section, in the order of the documents."""
    groups: dict[tuple[str, str, str], list[Audited]] = {}
    for row in (row for document in documents for row in document.rows):
        groups.setdefault((row[0].source, row[0].section, row[0].model), []).append(row)
    return [_reported_view(group) for group in groups.values()]


def _reported_view(rows: Sequence[Audited]) -> ReportedView:
    first = rows[0][0]
    lines = []
    for row, audit in rows:
        if row.planned is not None:
            continue
        mark, colon, reason = fmt.visible(audit, 400).partition(": ")
        lines.append(ReportedLine(
            task=fmt.visible(task_title(row.task), 200), metric=fmt.visible(metric_title(row.metric, row.filter), 200),
            value=fmt.visible(row.value_text, 40), error=f"±{fmt.visible(row.stderr_text, 40)}" if row.stderr_text
            else fmt.DASH, n=f"{fmt.count(row.n)} ({row.n_source})" if row.n else fmt.DASH,
            mark=mark if colon else "", text=reason if colon else mark))
    planned = next((fmt.visible(r.planned, 600) for r, _ in rows if r.planned is not None), None)
    return ReportedView(fmt.visible(first.source, 200), fmt.visible(first.section, 200), fmt.visible(first.model, 200),
                        lines, planned, [(fmt.visible(k, 200), fmt.visible(v, 600)) for k, v in first.facts.items()])


def audit_sentences(documents: Sequence[AuditedDocument]) -> list[str]:
    """What each document's summary shows about differences, then the other findings of the audit."""
    sentences: list[str] = []
    for document in documents:
        sentences += [observation.text for observation in reported_observations(document)]
        sentences += [f"{fmt.visible(where, 300)}: {fmt.visible(text, 600)}." for where, text in document.findings]
    return sentences


# --- Provenance, commands and costs ---


@dataclass(frozen=True, slots=True)
class Command:
    """One command line. runs: the fine-tunes and evaluations that it made, in order."""

    line: str
    started: str
    runs: list[str]

    @property
    def note(self) -> str:
        """When it was first run, and what it made."""
        runs = ", ".join(self.runs[:4]) + (f" and {len(self.runs) - 4} more" if len(self.runs) > 4 else "")
        return f"{self.started.replace('T', ' ')[:16]} UTC: {runs}"


@dataclass(frozen=True, slots=True)
class ProvenanceView:
    """environments: (runs, facts) of each combination of machine, versions and code; models, data, tasks: rows of
    text."""

    commands: list[Command]
    environments: list[tuple[str, list[tuple[str, str]]]]
    models: list[tuple[str, ...]]
    data: list[tuple[str, ...]]
    tasks: list[tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class CostView:
    """Peak memory and training time of a fine-tune, each as (estimated, measured, measured / estimated)."""

    name: str
    memory: tuple[str, str, str]
    seconds: tuple[str, str, str]


def provenance_view(results: Results) -> ProvenanceView:
    """Everything that is needed to reproduce the results."""
    return ProvenanceView(commands=_commands(results), environments=_environments(results), models=_models(results),
                          data=_data(results.tunings), tasks=_tasks(results.evaluations))


def costs(tunings: Sequence[Tuning]) -> list[CostView]:
    """The costs of the fine-tunes that have an estimate."""
    return [CostView(fmt.visible(tuning.name), _cost(tuning, "memory", lambda v: f"{v / 2**30:.2f} GiB"),
                     _cost(tuning, "seconds", fmt.duration))
            for tuning in tunings if any(f"estimated_{name}" in tuning.cost for name in ("memory", "seconds"))]


def _cost(tuning: Tuning, name: str, text: Callable[[float], str]) -> tuple[str, str, str]:
    estimated, measured = tuning.cost.get(f"estimated_{name}"), tuning.cost.get(name)
    share = f"{100 * measured / estimated:.0f} %" if measured is not None and estimated else fmt.DASH
    return (fmt.DASH if estimated is None else text(estimated), fmt.DASH if measured is None else text(measured), share)


def _commands(results: Results) -> list[Command]:
    """Command lines in the order in which they were first run."""
    runs = [(run.provenance.started, f"{kind} {fmt.visible(run.name)}", fmt.visible(run.provenance.command))
            for kind, runs_of_kind in (("fine-tune", results.tunings), ("evaluation", results.evaluations))
            for run in runs_of_kind if run.provenance is not None]
    commands: dict[str, Command] = {}
    for started, name, line in sorted(runs, key=lambda run: run[0]):
        commands.setdefault(line, Command(line, started, [])).runs.append(name)
    return list(commands.values())


def _environments(results: Results) -> list[tuple[str, list[tuple[str, str]]]]:
    """Each combination of machine, versions and code once, with the runs that had it."""
    names_by_facts: dict[tuple[tuple[str, str], ...], list[str]] = {}
    runs: list[Evaluation | Tuning] = [*results.tunings, *results.evaluations]
    for run in runs:
        if run.provenance is not None:
            device = run.device if isinstance(run, Evaluation) else str(run.settings.get("device") or "cpu")
            facts = [("Device", device_text(device, run.provenance)),
                     *(f for f in run_facts(run.provenance) if f[0] != "Duration")]
            names_by_facts.setdefault(tuple(facts), []).append(fmt.visible(run.name))
    total = sum(map(len, names_by_facts.values()))
    return [("all runs" if len(names) == total else f"{len(names)} of {total} runs: {', '.join(names[:6])}"
             + (" …" if len(names) > 6 else ""), [(k, fmt.visible(v)) for k, v in facts])
            for facts, names in names_by_facts.items()]


def _models(results: Results) -> list[tuple[str, ...]]:
    """Source and the fingerprints of weights, configuration, tokenizer and adapter of each model."""
    models: dict[tuple[str, str], ModelIdentity] = {}
    for model in (*(e.model for e in results.evaluations), *(t.base for t in results.tunings)):
        models.setdefault((model.fingerprint, model.tokenizer), model)
    return [(fmt.visible(m.adapter_source or m.source, 120),
             *((fmt.short(digest) if digest else fmt.DASH) if proven(m) else identity_note(m).partition(":")[0]
               for digest in (m.weights, m.config, m.tokenizer, m.adapter))) for m in models.values()]


def _data(tunings: Sequence[Tuning]) -> list[tuple[str, ...]]:
    """File, number of examples and fingerprint of each training data set."""
    rows = [(fmt.visible(t.data_source, 120), fmt.count(t.examples), fmt.short(t.data)) for t in tunings]
    return list(dict.fromkeys(rows))


def _tasks(evaluations: Sequence[Evaluation]) -> list[tuple[str, ...]]:
    """Version, data, items, prompt, and the fingerprints of items and prompts of each task."""
    rows = [(fmt.visible(task_title(t.task)), t.version, fmt.visible(f"{t.data}, {t.split}", 120),
             part_text(t) or f"all {fmt.count(t.n)}", f"{t.num_fewshot}-shot{_template(t)}", fmt.short(t.items),
             fmt.short(t.prompts)) for e in evaluations for t in e.tasks]
    return list(dict.fromkeys(rows))


def _template(task: TaskSettings) -> str:
    return ", chat template" if task.chat_template else ""
