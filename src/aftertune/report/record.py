"""Writes the record: one Markdown document with all evaluations, comparisons and verdicts.

    write_record(results, title="Model Evaluation Results Record")
    score_blocks(evaluation)             [a pipe table], or [] without scores; for model cards too
    comparison_blocks(comparison)        watermark, lineage, verdicts, held-out loss, answers' format; for cards too

Each base model has a numbered section with a ``###`` for each evaluation (its table and metadata list), and with the
reported and planned models of its family. Comparative Analysis, Key Observations, Task Descriptions and Future Work
follow. The same input gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from aftertune.report import documents as md
from aftertune.report import formatting as fmt
from aftertune.report.changed_items import form_text, format_table, shift_text
from aftertune.report.changes import TITLE, change_lines, change_tables, drift_line, missing_lines
from aftertune.report.checkpoints import checkpoint_table, tuning_checkpoints
from aftertune.report.columns import columns, verdict_table
from aftertune.report.cures import cure_table
from aftertune.report.facts import CODE, Facts, evaluation_facts, kind_text, tuning_facts
from aftertune.report.headline import FEW, headline, study_lines
from aftertune.report.names import metric_description, metric_name, metric_title, task_description, task_title
from aftertune.report.reported import (
    changes_from,
    models_by_section,
    open_points,
    reported_cells,
    reported_metrics,
    reported_models,
    reported_observations,
    reported_sizes,
)
from aftertune.report.results import Family, Results, families, newest, tuning_of
from aftertune.report.sections import Sections, add_planned, open_cells
from aftertune.report.sentences import (
    lineage_note,
    observations,
    rules_note,
    seed_observations,
    seeds_section,
    watermark,
)
from aftertune.report.table import (
    beyond_noise,
    early_text,
    error_text,
    few_shot_lines,
    held_out_line,
    metrics_by_task,
    performance,
    proven_best,
    score_table,
    score_text,
)
from aftertune.values import Comparison, Drift, Evaluation, Score, Tuning
from aftertune.values.reported import ScoreName, plain_name


# --- Blocks that the record and a model card share ---
def headline_blocks(results: Results) -> list[str]:
    """The newest headline of each pair; of many, one line for each fine-tune or recipe. [] without comparisons."""
    comparisons = newest(results.comparisons)
    if not comparisons:
        return []
    texts = study_lines(results) if len(comparisons) > FEW else [" ".join(headline(c).sentences) for c in comparisons]
    return ["\n".join(f"- {md.text(text)}" for text in texts)]


def score_blocks(evaluation: Evaluation) -> list[str]:
    """The scores as a table, with primary metrics in bold."""
    rows = []
    for line in score_table(evaluation):
        cells = [line.metric, line.result, line.error, line.interval,
                 f"{line.n} ({line.part})" if line.part else line.n]
        first = md.text(line.title)
        bold = [f"**{first}**", md.text(cells[0]), f"**{cells[1]}**", *map(md.text, cells[2:])]
        rows.append(bold if line.primary else [first, *map(md.text, cells)])
    head = ["Task", "Metric", "Result", "Error range (±1 SE)", "95 % interval", "n"]
    return [md.table(head, rows)] if rows else []


def comparison_blocks(comparison: Comparison, drift: Drift | None = None, *, tables: bool = True) -> list[str]:
    """The content of a comparison; the caller writes the heading.

    drift: of its models, where it was measured. tables: also those of what changed beside right and wrong.
    """
    blocks = []
    if mark := watermark(comparison):
        blocks.append(f"> **{md.text(mark)}**")
    else:
        blocks.append(f"**{md.text(headline(comparison).line)}**")
    notes = " ".join(filter(None, (lineage_note(comparison), rules_note(comparison))))
    blocks += [md.text(notes), _verdicts(comparison), *(md.text(f"{line}.") for line in few_shot_lines(comparison))]
    if comparison.held_out is not None:
        blocks.append(md.table(["Held-out examples", "Loss before", "Loss after",
                                "Difference (nats per token)", "95 % interval"],
                               [list(held_out_line(comparison.held_out))]))
    for shift in comparison.forms:
        blocks.append(f"Format of the answers on {md.text(task_title(shift.task))}: {md.text(comparison.base_name)}: "
                      f"{form_text(shift.base)}; {md.text(comparison.tuned_name)}: {form_text(shift.tuned)}"
                      f"{'; ' + shift_text(shift) if shift.lost else ''}.")
    blocks += [*change_blocks(comparison, tables=tables), *([md.text(drift_line(drift))] if drift else [])]
    minor = [d for d in comparison.differences if not d.blocking]
    if minor:
        blocks.append("Also different: " + "; ".join(
            f"{md.text(d.field)} ({md.text(comparison.base_name)}: {md.text(fmt.visible(d.left, 80))}, "
            f"{md.text(comparison.tuned_name)}: {md.text(fmt.visible(d.right, 80))})" for d in minor) + ".")
    return blocks


def change_blocks(comparison: Comparison, *, tables: bool = True) -> list[str]:
    """What changed beside right and wrong: a line, and its tables; [] where it was not computed."""
    lines = change_lines(comparison)
    if not lines:
        return []
    blocks = [f"**{TITLE}.** {md.text(' '.join(lines))}"]
    if not tables:
        return blocks
    for table in change_tables(comparison):
        blocks += [f"*{table.title}*", md.table([md.text(h) for h in table.heads],
                                                [[md.text(cell) for cell in row] for row in table.rows]),
                   md.text(table.note)]
    return [*blocks, *map(md.text, missing_lines(comparison))]


def _verdicts(comparison: Comparison) -> str:
    """The verdict table; the label and its note share a cell."""
    lines = verdict_table(comparison)
    table_columns = columns("markdown", lines)
    rows = []
    for line in lines:
        cells = {c.key: md.text(line[c.key]) if c.name else line[c.key] or fmt.DASH for c in table_columns}
        cells["task"] = f"**{cells['task']}**" if line.row.primary else cells["task"]
        cells["label"] = f"**{line.label}**" if line.label else fmt.DASH
        cells["label"] += f" ({md.text(line.note)})" if line.note else ""
        rows.append(list(cells.values()))
    return md.table([c.heading for c in table_columns], rows)


# --- The record ---
def write_record(results: Results, *, title: str) -> str:
    """The record as Markdown."""
    blocks = [f"# {md.text(title)}", *headline_blocks(results)]
    sections = Sections()
    for family in families(results):
        names = [e.name for e in family.evaluations] + [t.name for t in family.pending]
        sections.add(family.title + _parameters(family), names, _family(family, results))
    _add_reported_and_planned(sections, results)
    blocks += sections.blocks()
    if not sections.sections:
        blocks.append("*Nothing has been evaluated yet.*")
    reported = results.reported
    if results.evaluations or reported:
        blocks += ["## Comparative Analysis", *_sizes(results), *_performance(results)]
        for comparison in results.comparisons:
            blocks += [f"### Comparison {md.text(comparison.id)}: {md.text(comparison.tuned_name)} against "
                       f"{md.text(comparison.base_name)}",
                       *comparison_blocks(comparison, results.drift(comparison))]
        blocks += [*seeds_section(results.contrasts), "### Key Observations", _observations(results)]
        blocks += [block for document in reported for block in changes_from(document)]
        blocks += ["---", "## Task Descriptions", _descriptions(results)]
    future = [*open_cells(results.planned), *(line for document in reported for line in open_points(document))]
    if future:
        blocks += ["---", "## Future Work", "\n".join(future)]
    return "\n\n".join(blocks) + "\n"


def _add_reported_and_planned(sections: Sections, results: Results) -> None:
    """Adds reported and planned models, each to the section of its family."""
    commands = {plain_name(p.name): p.command for p in results.planned}
    shown: set[str] = set()
    for document in results.reported:
        for section, models in models_by_section(document).items():
            blocks = reported_models(document, section, lambda model: commands.get(plain_name(model), ""))
            sections.add(section or document.source, models, blocks, note=" (reported)")
            shown |= set(map(plain_name, models))
    add_planned(sections, results.planned, shown)


def _parameters(family: Family) -> str:
    return f" ({fmt.compact(family.model.parameters)})" if family.model.parameters else ""


def _family(family: Family, results: Results) -> list[str]:
    blocks: list[str] = []
    for evaluation in family.evaluations:
        blocks += _evaluation(evaluation, family, results)
    for tuning in family.pending:
        made = "Tuned, not yet evaluated." if tuning.cure is None or tuning.result else "Tried; no model was made."
        state = made if tuning.status == "done" else f"Tuning {tuning.status}."
        blocks += [f"### {md.text(tuning.name)} (Not Evaluated)", f"*{state}*", *checkpoint_blocks(tuning),
                   *cure_blocks(tuning),
                   md.facts(tuning_facts(tuning), CODE)]
    return blocks


def _evaluation(evaluation: Evaluation, family: Family, results: Results) -> list[str]:
    tuning = tuning_of(evaluation, results.tunings)
    kind = kind_text(evaluation, family, tuning)
    blocks = [f"### {md.text(evaluation.name)}{f' ({md.text(kind)})' if kind else ''}"]
    if evaluation.status != "done":
        blocks.append(f"*Not finished (status: {md.text(evaluation.status)}).*")
    blocks += score_blocks(evaluation)
    for form in format_table(evaluation, results.generated(evaluation)):
        blocks.append(f"Format of the generated answers on {md.text(form.title)}: {md.text(form.text)}.")
    facts: Facts = evaluation_facts(evaluation, tuning)
    if tuning is not None:
        facts += [(f"Fine-tune: {k}", v) for k, v in tuning_facts(tuning)
                  if k in ("Training Data", "Training Data Fingerprint", "Seed", "Settings",
                           "Trainable Parameters", "Held-out Loss", "Training Command", "Note", "Checkpoint Choice",
                           "Cure", "Final Weights")
                  or k.startswith("Data ")]
        blocks += [*checkpoint_blocks(tuning), *cure_blocks(tuning)]
    return [*blocks, md.facts(facts, CODE)]


def cure_blocks(tuning: Tuning) -> list[str]:
    """The models that a cure tried, as a table; [] for a fine-tune that was trained."""
    if tuning.cure is None:
        return []
    head, cells = cure_table(tuning.cure)
    return [f"Models that were tried for {md.text(tuning.name)} (changes against the base in points, with 95 % "
            "intervals, on the items that choose; nothing is claimed from these):",
            md.table([md.text(h) or "choice" for h in head], [[md.text(c) for c in row] for row in cells])]


def checkpoint_blocks(tuning: Tuning) -> list[str]:
    """What was learned and forgotten at each step of a fine-tune, as a table; [] if nothing was measured there."""
    rows = tuning_checkpoints(tuning)
    if not rows:
        return []
    head, cells = checkpoint_table(rows)
    return [f"Checkpoints of the fine-tune {md.text(tuning.name)} (points, with 95 % intervals"
            f"{', on the half of the items that chooses' if tuning.choice else ''}):",
            md.table([md.text(h) for h in head], [[md.text(c) for c in row] for row in cells])]


def _sizes(results: Results) -> list[str]:
    rows = []
    for evaluation in results.evaluations:
        tuning = tuning_of(evaluation, results.tunings)
        rows.append([md.text(_name(evaluation, results.evaluations)), fmt.compact(evaluation.model.parameters),
                     fmt.compact(tuning.trainable_parameters) if tuning else "N/A",
                     f"{fmt.count(tuning.examples)} examples" if tuning else "N/A"])
    rows += [row for document in results.reported for row in reported_sizes(document)]
    if not rows:
        return []
    return ["### Model Size Comparison",
            md.table(["Model", "Parameters", "Trained Parameters", "Training Data Size"], rows)]


def _name(evaluation: Evaluation, evaluations: Sequence[Evaluation]) -> str:
    """The name of an evaluation, with its id if another one has the same name."""
    ambiguous = sum(e.name == evaluation.name for e in evaluations) > 1
    return f"{evaluation.name} ({evaluation.id})" if ambiguous else evaluation.name


def _performance(results: Results) -> list[str]:
    """The table of all scores: a column for each evaluation, then one for each reported model."""
    evaluations = results.evaluations
    measured = performance(evaluations)
    reported = [(document, reported_cells(document)) for document in results.reported]
    better = beyond_noise(newest(results.comparisons))
    rows = []
    for key in dict.fromkeys([*measured, *(key for _, cells in reported for key in cells)]):
        scores = measured.get(key, {})
        parts = {e.id: _part(e, key[0], scores[e.id].n) for e in evaluations if e.id in scores}
        same_part = len(set(parts.values())) == 1 and not reported and not any(e.stopped(key[0]) for e in evaluations)
        shared_part = next(iter(parts.values())) if same_part else ""
        row = [f"**{md.text(fmt.visible(task_title(key[0]), 200))}**",
               md.text(fmt.visible(metric_title(key[1], key[2]), 200)) + shared_part]
        row += _measured(evaluations, key, scores, better, {} if shared_part else parts)
        row += [cells.get(key, {}).get(model, fmt.DASH) for document, cells in reported for model in document.columns]
        rows.append(row)
    head = ["Task", "Metric", *(md.text(_name(e, evaluations)) for e in evaluations),
            *(f"{md.text(fmt.visible(m, 200))} (reported)" for document, _ in reported for m in document.columns)]
    note = ("± is one standard error. Bold: proven better than every other column by the verdicts below. A row without "
            "bold has no proven best.")
    if reported:
        note = ("± is one standard error. Bold: the proven best, among the measured columns by the verdicts below, and "
                "among the reported columns by the figures of their document alone. A row without bold has no proven "
                "best. †: no k of the stated number of items gives this figure.")
    return ["### Performance Comparison Table", md.table(head, rows), note]


def _measured(evaluations: Sequence[Evaluation], key: ScoreName, scores: Mapping[str, Score],
              better: Mapping[ScoreName, set[tuple[str, str]]], parts: Mapping[str, str]) -> list[str]:
    """The cells of one score, one for each evaluation. parts: evaluation id -> the items that were used."""
    best = proven_best(key, scores, better)
    row = []
    for evaluation in evaluations:
        score = scores.get(evaluation.id)
        if score is None:
            row.append("no score (items drawn with weights)" if evaluation.drawn_unequally(key[0]) else fmt.DASH)
            continue
        cell = score_text(score, score.value)
        early = evaluation.stopped(score.task)
        cell += f" {error_text(score).replace('±', '± ')}" if fmt.is_finite(score.stderr) and not early else ""
        cell += parts.get(evaluation.id, "")
        row.append(f"**{cell}**" if best == evaluation.id else cell)
    return row


def _part(evaluation: Evaluation, task: str, n: int) -> str:
    """The items that a score is computed from, "" for all of the task."""
    early, total = evaluation.stopped(task), evaluation.total(task) or n
    if early:
        return f" ({early_text(*early)})"
    return f" (n={fmt.count(n)} of {fmt.count(total)})" if n < total else ""


def _observations(results: Results) -> str:
    sentences = [*observations(newest(results.comparisons)), *seed_observations(results.contrasts),
                 *(o for document in results.reported for o in reported_observations(document))]
    if not sentences:
        return "*No comparison has a verdict yet.*"
    return "\n".join(f"{i}. **{o.lead}**: {md.text(o.text)} [{md.text(fmt.visible(o.comparison))}]"
                     for i, o in enumerate(sentences, start=1))


def _descriptions(results: Results) -> str:
    targets = {t.task for e in results.evaluations for t in e.tasks if t.target}
    lines = []
    tasks = {**reported_metrics(results.reported), **metrics_by_task(results.evaluations)}
    for number, (task, keys) in enumerate(tasks.items(), start=1):
        about = task_description(task, target=task in targets)
        title = md.text(fmt.visible(task_title(task), 200))
        lines.append(f"{number}. **{title}**{': ' + md.text(about) if about else ''}")
        for metric, filter_ in keys:
            about = metric_description(metric, filter_)
            name = f"{md.code(metric_name(metric, filter_))} ({md.text(metric_title(metric, filter_))})"
            lines.append(f"   - {name}{': ' + md.text(about) if about else ''}")
    return "\n".join(lines)
