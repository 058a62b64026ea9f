"""What the page shows of one comparison, one evaluation and one fine-tune, as finished text and markup.

Scores that others reported, as the page shows them: as printed, each with what the audit says of it.

Questions that changed hands: what was lost and gained, with the choices and both answers, as the page shows them.

    examples({"c-1f…": [flips of HellaSwag, flips of ARC]})     comparison id -> a view for each task

A page holds so many of them in all; the more comparisons there are, the fewer each of them shows.

Where the figures come from: the commands in their order, what ran them, what each thing was by content, and what
a fine-tune cost against what was expected of it.
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
from aftertune.report.charts import contrast_forest, forest, loss_curve, watch_chart, watched
from aftertune.report.columns import VerdictLine, verdict_lines, verdict_table
from aftertune.report.facts import Facts, device_text, evaluation_facts, kind_text, method_text, run_facts, tuning_facts
from aftertune.report.names import metric_title, task_title
from aftertune.report.page.figures import ChartView, figure
from aftertune.report.reported import reported_observations
from aftertune.report.results import Family, Results, tuning_of
from aftertune.report.sentences import lineage_note, watermark
from aftertune.report.table import ScoreLine, explored_text, held_out_line, part_text, score_table
from aftertune.values import (
    Comparison,
    Contrast,
    Evaluation,
    Flip,
    Flips,
    FlipSide,
    ModelIdentity,
    TaskSettings,
    Tuning,
)
from aftertune.values.reported import Audited, AuditedDocument, proven

if TYPE_CHECKING:
    from aftertune.ledger import StoredCell


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


def quoted(documents: Sequence[AuditedDocument]) -> list[Quoted]:
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


def told(documents: Sequence[AuditedDocument]) -> list[str]:
    """What the documents' differences show by their summary alone, and what else the audit found."""
    lines: list[str] = []
    for document in documents:
        lines += [one.text for one in reported_observations(document)]
        lines += [f"{fmt.visible(where, 300)}: {fmt.visible(text, 600)}." for where, text in document.findings]
    return lines


#: Comparison id -> the items that changed, a value for each task.
Flipped = Mapping[str, Sequence[Flips]]

_MOST, _EACH = 240, 5  # on a page, and of one direction of one task
_QUESTION, _CHOICE, _TEXT = 1200, 240, 1200  # characters that are shown


@dataclass(frozen=True, slots=True)
class ChoiceView:
    """One choice. right: it is the right one; base, tuned: (what the metric compared, it was taken)."""

    text: str
    right: bool
    base: tuple[str, bool]
    tuned: tuple[str, bool]


@dataclass(frozen=True, slots=True)
class AnswerView:
    """One generated answer. about: how it ended and what was taken from it."""

    name: str
    right: bool
    about: str
    text: str


@dataclass(frozen=True, slots=True)
class ChangedItemView:
    """One item, with either its choices or both texts."""

    direction: str
    index: int
    question: str
    opening: str
    gold: str
    choices: list[ChoiceView]
    written: list[AnswerView]


@dataclass(frozen=True, slots=True)
class FlipsView:
    """The items of one task that changed. told: how many; unit: of the choices' figures; more: how many are not
    shown."""

    title: str
    told: str
    watermark: str
    unit: str
    names: tuple[str, str]
    examples: list[ChangedItemView]
    more: str


def examples(flips: Flipped) -> dict[str, list[FlipsView]]:
    """Views of what was handed in, as many items of each as the page has room for.

    Where there is no room for two of each, one lost item of those tasks is shown on which the most was lost.
    """
    lists = {(comparison, f.task): f for comparison, found in flips.items() for f in found if f.lost or f.gained}
    each = min(_EACH, _MOST // max(1, 2 * len(lists)))
    worst = set(sorted(lists, key=lambda key: -lists[key].lost)[:_MOST])
    views: dict[str, list[FlipsView]] = {comparison: [] for comparison in flips}
    for key, found in lists.items():
        views[key[0]].append(_view(found, lost=max(each, key in worst), gained=each))
    return views


def _view(found: Flips, *, lost: int, gained: int) -> FlipsView:
    key = MetricKey(found.metric)
    names = fmt.visible(found.base_name), fmt.visible(found.tuned_name)
    shown = [f for way, room in (("lost", lost), ("gained", gained))
             for f in [g for g in found.flips if g.direction == way][:room]]
    rest = found.lost + found.gained - len(shown)
    return FlipsView(
        title=fmt.visible(task_title(found.task)), names=names, unit=score_unit(key.metric),
        told=(f"of {fmt.count(found.n)} items, by {fmt.visible(metric_title(key.metric, key.filter))}, "
              f"{fmt.count(found.lost)} lost and {fmt.count(found.gained)} gained"),
        watermark=forced_text(found.differences) if found.differences else "",
        examples=[_example(f, names) for f in shown],
        more=fmt.count(rest) if rest else "")


def _example(flip: Flip, names: tuple[str, str]) -> ChangedItemView:
    question = fmt.visible(flip.question, _QUESTION) or "(no text)"
    opening = " ".join(question.split())
    scored = bool(flip.base.scores or flip.tuned.scores)
    sides = zip(names, (flip.base, flip.tuned), strict=True)
    return ChangedItemView(
        direction=flip.direction, index=flip.index, question=question,
        opening=opening if len(opening) <= 90 else f"{opening[:89]}…", gold=fmt.visible(flip.gold, _CHOICE),
        choices=_choices(flip) if scored else [],
        written=[] if scored else [AnswerView(name, side.right, _about(side),
                                           fmt.visible(side.chosen, _TEXT) if side.chosen.strip() else "(empty)")
                                   for name, side in sides])


def _choices(flip: Flip) -> list[ChoiceView]:
    best = [max(range(len(s.scores)), key=s.scores.__getitem__) if s.scores else -1 for s in (flip.base, flip.tuned)]
    rows = []
    for at in range(max(len(flip.base.scores), len(flip.tuned.scores))):
        text = flip.choices[at] if at < len(flip.choices) else f"choice {at + 1}"
        base, tuned = ((fmt.raw(s.scores[at], 3) if at < len(s.scores) else fmt.DASH, at == b)
                       for s, b in zip((flip.base, flip.tuned), best, strict=True))
        rows.append(ChoiceView(fmt.visible(text, _CHOICE), text == flip.gold, base, tuned))
    return rows


def _about(side: FlipSide) -> str:
    taken = [f"{'' if name == 'none' else f'{name} '}{value.strip() or '(nothing)'}"
             for name, value in side.extracted.items() if value.strip() != side.chosen.strip()]
    parts = [ENDS.get(side.finish or "", ""), f"extracted: {', '.join(taken)}" if taken else ""]
    return fmt.visible("; ".join(filter(None, parts)), 200)


@dataclass(frozen=True, slots=True)
class Command:
    """One command line; runs: what it made, in order."""

    line: str
    started: str
    runs: list[str]

    @property
    def note(self) -> str:
        shown = ", ".join(self.runs[:4]) + (f" and {len(self.runs) - 4} more" if len(self.runs) > 4 else "")
        return f"{self.started.replace('T', ' ')[:16]} UTC: {shown}"


@dataclass(frozen=True, slots=True)
class Origins:
    """commands: of a terminal; settings: (runs, facts) of each combination of machine, versions and code; models,
    data, tasks: rows of text."""

    commands: list[Command]
    settings: list[tuple[str, list[tuple[str, str]]]]
    models: list[tuple[str, ...]]
    data: list[tuple[str, ...]]
    tasks: list[tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class CostView:
    """A fine-tune's peak memory and time: expected, real, and real as a share of expected."""

    name: str
    memory: tuple[str, str, str]
    seconds: tuple[str, str, str]


def origins(results: Results) -> Origins:
    """Everything that is needed to do it again."""
    return Origins(commands=_commands(results), settings=_settings(results), models=_models(results),
                   data=_data(results.tunings), tasks=_tasks(results.evaluations))


def costs(tunings: Sequence[Tuning]) -> list[CostView]:
    """Of the fine-tunes that were estimated beforehand."""
    found = []
    for tuning in tunings:
        if any(f"estimated_{name}" in tuning.cost for name in ("memory", "seconds")):
            memory = _against(tuning, "memory", lambda v: f"{v / 2**30:.2f} GiB")
            found.append(CostView(fmt.visible(tuning.name), memory, _against(tuning, "seconds", fmt.duration)))
    return found


def _against(tuning: Tuning, name: str, told: Callable[[float], str]) -> tuple[str, str, str]:
    expected, real = tuning.cost.get(f"estimated_{name}"), tuning.cost.get(name)
    share = f"{100 * real / expected:.0f} %" if real is not None and expected else fmt.DASH
    return (fmt.DASH if expected is None else told(expected), fmt.DASH if real is None else told(real), share)


def _commands(results: Results) -> list[Command]:
    """Command lines by the time they were first given."""
    runs = [(r.provenance.started, f"{kind} {fmt.visible(r.name)}", fmt.visible(r.provenance.command))
            for kind, made in (("fine-tune", results.tunings), ("evaluation", results.evaluations)) for r in made
            if r.provenance is not None]
    found: dict[str, Command] = {}
    for started, name, line in sorted(runs, key=lambda run: run[0]):
        found.setdefault(line, Command(line, started, [])).runs.append(name)
    return list(found.values())


def _settings(results: Results) -> list[tuple[str, list[tuple[str, str]]]]:
    """What the runs had in common: machine, versions and code, each combination once."""
    found: dict[tuple[tuple[str, str], ...], list[str]] = {}
    runs: list[Evaluation | Tuning] = [*results.tunings, *results.evaluations]
    for run in runs:
        if run.provenance is not None:
            device = run.device if isinstance(run, Evaluation) else str(run.settings.get("device") or "cpu")
            facts = [("Device", device_text(device, run.provenance)),
                     *(f for f in run_facts(run.provenance) if f[0] != "Duration")]
            found.setdefault(tuple(facts), []).append(fmt.visible(run.name))
    total = sum(map(len, found.values()))
    return [("all runs" if len(names) == total else f"{len(names)} of {total} runs: {', '.join(names[:6])}"
             + (" …" if len(names) > 6 else ""), [(k, fmt.visible(v)) for k, v in facts])
            for facts, names in found.items()]


def _models(results: Results) -> list[tuple[str, ...]]:
    """Source, weights, configuration, tokenizer and adapter of each model, by content."""
    models: dict[tuple[str, str], ModelIdentity] = {}
    for model in (*(e.model for e in results.evaluations), *(t.base for t in results.tunings)):
        models.setdefault((model.fingerprint, model.tokenizer), model)
    return [(fmt.visible(m.adapter_source or m.source, 120),
             *((fmt.short(part) if part else fmt.DASH) if proven(m) else "not proven"
               for part in (m.weights, m.config, m.tokenizer, m.adapter))) for m in models.values()]


def _data(tunings: Sequence[Tuning]) -> list[tuple[str, ...]]:
    """Training data of each fine-tune: file, examples, fingerprint."""
    rows = [(fmt.visible(t.data_source, 120), fmt.count(t.examples), fmt.short(t.data)) for t in tunings]
    return list(dict.fromkeys(rows))


def _tasks(evaluations: Sequence[Evaluation]) -> list[tuple[str, ...]]:
    """Each task as it was asked: version, data, items, and the fingerprints of items and prompts."""
    rows = [(fmt.visible(task_title(t.task)), t.version, fmt.visible(f"{t.data}, {t.split}", 120),
             part_text(t) or f"all {fmt.count(t.n)}", f"{t.num_fewshot}-shot{_template(t)}", fmt.short(t.items),
             fmt.short(t.prompts)) for e in evaluations for t in e.tasks]
    return list(dict.fromkeys(rows))


def _template(task: TaskSettings) -> str:
    return ", chat template" if task.chat_template else ""


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
    figure: ChartView | None
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
    loss: ChartView | None
    watch: ChartView | None
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
    figure: ChartView | None


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


def cell_lines(cells: Sequence[StoredCell]) -> list[tuple[str, str, str]]:
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
