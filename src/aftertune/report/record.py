"""The record: everything that was run and found, as one Markdown document.

    write_record([base, careful], [tuning], [comparison], title="Model Evaluation Results Record")

A numbered section per base model with a ``###`` per evaluation (its table, its metadata list), then
Comparative Analysis, Key Observations and Task Descriptions. The same input gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

from aftertune.report import format as fmt
from aftertune.report import markdown as md
from aftertune.report.blocks import comparison_blocks, score_blocks
from aftertune.report.facts import CODE, Facts, evaluation_facts, kind_text, tuning_facts
from aftertune.report.families import Family, families, tuning_of
from aftertune.report.generated import Answers, format_table
from aftertune.report.names import metric_description, metric_title, task_description, task_title
from aftertune.report.observations import observations
from aftertune.report.reported import Audited, reported_sections
from aftertune.report.seeds import seed_observations, seeds_section
from aftertune.report.table import (
    beyond_noise,
    early_text,
    error_text,
    metrics_by_task,
    performance,
    proven_best,
    value_text,
)
from aftertune.values import Comparison, Contrast, Evaluation, Tuning


def write_record(
    evaluations: Sequence[Evaluation],
    tunings: Sequence[Tuning],
    comparisons: Sequence[Comparison],
    *,
    title: str,
    answers: Answers | None = None,
    reported: Sequence[Audited] = (),
    contrasts: Sequence[Contrast] = (),
) -> str:
    """The record as Markdown. answers: evaluation id -> answers, for the format of generated answers; reported:
    scores of other documents with what the audit says of each; contrasts: recipes compared over seeds."""
    blocks = [f"# {md.text(title)}"]
    homes = families(evaluations, tunings)
    for number, home in enumerate(homes, start=1):
        blocks += _family(number, home, tunings, answers or {})
    blocks += reported_sections(len(homes) + 1, reported)
    if not homes and not reported:
        blocks.append("*Nothing has been evaluated yet.*")
    if evaluations:
        blocks += ["## Comparative Analysis", *_sizes(evaluations, tunings),
                   *_performance(evaluations, comparisons)]
        for comparison in comparisons:
            blocks += [f"### Comparison {md.text(comparison.id)}: {md.text(comparison.tuned_name)} against "
                       f"{md.text(comparison.base_name)}", *comparison_blocks(comparison)]
        blocks += [*seeds_section(contrasts), "### Key Observations", _observations(comparisons, contrasts)]
        blocks += ["---", "## Task Descriptions", _descriptions(evaluations)]
    return "\n\n".join(blocks) + "\n"


def _family(number: int, home: Family, tunings: Sequence[Tuning], answers: Answers) -> list[str]:
    size = f" ({fmt.compact(home.model.parameters)})" if home.model.parameters else ""
    blocks = [f"## {number}. {md.text(home.title)}{size}"]
    for evaluation in home.evaluations:
        blocks += _evaluation(evaluation, home, tuning_of(evaluation, tunings), answers)
    for tuning in home.pending:
        state = "Tuned, not yet evaluated." if tuning.status == "done" else f"Tuning {tuning.status}."
        blocks += [f"### {md.text(tuning.name)} (Not Evaluated)", f"*{state}*",
                   md.facts(tuning_facts(tuning), CODE)]
    return blocks


def _evaluation(evaluation: Evaluation, home: Family, tuning: Tuning | None, answers: Answers) -> list[str]:
    kind = kind_text(evaluation, home, tuning)
    blocks = [f"### {md.text(evaluation.name)}{f' ({md.text(kind)})' if kind else ''}"]
    if evaluation.status != "done":
        blocks.append(f"*Not finished (status: {md.text(evaluation.status)}).*")
    blocks += score_blocks(evaluation)
    for form in format_table(evaluation, answers.get(evaluation.id, ())):
        blocks.append(f"Format of the generated answers on {md.text(form.title)}: of {form.n}, "
                      f"{form.cut_off} cut off at the token limit, {form.no_answer} without an extractable "
                      f"answer, {form.other_form} with an answer in another form, {form.no_end} not ended by the "
                      f"model's own end token, {form.empty} empty.")
    facts: Facts = evaluation_facts(evaluation, tuning)
    if tuning is not None:
        facts += [(f"Fine-tune: {k}", v) for k, v in tuning_facts(tuning)
                  if k in ("Training Data", "Training Data Fingerprint", "Seed", "Settings",
                           "Trainable Parameters", "Held-out Loss", "Training Command", "Note")
                  or k.startswith("Data ")]
    return [*blocks, md.facts(facts, CODE)]


def _sizes(evaluations: Sequence[Evaluation], tunings: Sequence[Tuning]) -> list[str]:
    rows = []
    for evaluation in evaluations:
        tuning = tuning_of(evaluation, tunings)
        rows.append([md.text(_label(evaluation, evaluations)), fmt.compact(evaluation.model.parameters),
                     fmt.compact(tuning.trainable_parameters) if tuning else "N/A",
                     f"{fmt.count(tuning.examples)} examples" if tuning else "N/A"])
    return ["### Model Size Comparison",
            md.table(["Model", "Parameters", "Trained Parameters", "Training Data Size"], rows)]


def _label(evaluation: Evaluation, evaluations: Sequence[Evaluation]) -> str:
    """The name of an evaluation, with its id where another one has the same name."""
    several = sum(other.name == evaluation.name for other in evaluations) > 1
    return f"{evaluation.name} ({evaluation.id})" if several else evaluation.name


def _performance(evaluations: Sequence[Evaluation], comparisons: Sequence[Comparison]) -> list[str]:
    better = beyond_noise(comparisons)
    rows = []
    for key, cells in performance(evaluations).items():
        best = proven_best(key, cells, better)
        row = [f"**{md.text(task_title(key[0]))}**", md.text(metric_title(key[1], key[2]))]
        several = len({score.n for score in cells.values()}) > 1
        for evaluation in evaluations:
            score = cells.get(evaluation.id)
            if score is None:
                row.append(fmt.DASH)
                continue
            cell = value_text(key[1], score.value)
            early = evaluation.stopped(score.task)
            cell += f" {error_text(score).replace('±', '± ')}" if fmt.known(score.stderr) and not early else ""
            cell += f" ({early_text(*early)})" if early else f" (n={fmt.count(score.n)})" if several else ""
            row.append(f"**{cell}**" if best == evaluation.id else cell)
        rows.append(row)
    head = ["Task", "Metric", *(md.text(_label(e, evaluations)) for e in evaluations)]
    return ["### Performance Comparison Table", md.table(head, rows),
            "± is one standard error. Bold: better than every other column beyond the noise, by the verdicts "
            "below; a row without bold has no proven best."]


def _observations(comparisons: Sequence[Comparison], contrasts: Sequence[Contrast]) -> str:
    found = [*observations(comparisons), *seed_observations(contrasts)]
    if not found:
        return "*No comparison has a verdict yet.*"
    return "\n".join(f"{i}. **{o.lead}**: {md.text(o.text)} [{md.text(o.comparison)}]"
                     for i, o in enumerate(found, start=1))


def _descriptions(evaluations: Sequence[Evaluation]) -> str:
    targets = {t.task for e in evaluations for t in e.tasks if t.target}
    lines = []
    for number, (task, keys) in enumerate(metrics_by_task(evaluations).items(), start=1):
        about = task_description(task, target=task in targets)
        lines.append(f"{number}. **{md.text(task_title(task))}**{': ' + md.text(about) if about else ''}")
        for metric, filter_ in keys:
            about = metric_description(metric, filter_)
            name = md.code(metric_title(metric, filter_))
            lines.append(f"   - {name}{': ' + md.text(about) if about else ''}")
    return "\n".join(lines)
