"""Turns verdicts into sentences: observations on comparisons, on recipes over several seeds and on forgetting watches.

    observations([comparison])[0]
        Observation(comparison="c-1f…", lead="Forgetting",
                    text="Compared with smollm2, careless forgot on HellaSwag, Normalized Accuracy (−11.00 points, "
                         "95 % interval −16.10 to −6.20, margin ±5.00, n=300).")
    seeds_section(contrasts)            Markdown blocks: a table for each contrast
    seed_observations(contrasts)        a sentence for each verdict of the contrasts
    watch_text(point)                   "watch, step 40: hellaswag 41.00% → 38.00%, …"

Every sentence follows from a verdict, or says that the fine-tune had no effect. Rows at the floor, secondary metrics
and forced comparisons give none, an undecided row gives a neutral one, and without proven lineage no sentence mentions
forgetting.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aftertune.report import documents as md
from aftertune.report import formatting as fmt
from aftertune.report.changed_items import forced_text
from aftertune.report.changes import no_effect_text
from aftertune.report.columns import columns, verdict_lines
from aftertune.report.names import metric_title, source_title, task_title
from aftertune.report.table import (
    difference_text,
    full_run_text,
    interval_text,
    items_needed_text,
    items_text,
    margin_text,
    stopped_target,
)
from aftertune.stats.verdict import floored
from aftertune.values import RULES, VERDICT_LABELS, Comparison, ComparisonRow, Contrast, Verdict, WatchPoint


# --- Comparisons ---
@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """One sentence with the comparison that it is based on."""

    comparison: str
    lead: str
    text: str


_LEADS: dict[Verdict, tuple[str, str]] = {
    "lower": ("Forgetting", "Lower"), "higher": ("Improvement", "Higher"),
    "within": ("Kept", "No difference beyond the margin"), "worse": ("Worse", "Worse"), "better": ("Better", "Better"),
    "no_loss": ("No loss", "Not lower"), "undecided": ("Undecided", "Undecided"),
}


def observations(comparisons: Sequence[Comparison]) -> list[Observation]:
    """The sentences of all comparisons in order; those of each comparison in the order of the verdicts of _LEADS."""
    return [observation for comparison in comparisons for observation in _observations_of(comparison)]


def _observations_of(comparison: Comparison) -> list[Observation]:
    if comparison.forced:
        return [Observation(
            comparison=comparison.id, lead="No observation",
            text=f"{_pair(comparison)} were compared with --force although they differ in "
                 f"{_blocking(comparison)}. This comparison supports no conclusion.")]
    effect = no_effect_text(comparison)
    sentences = [Observation(comparison=comparison.id, lead="No effect", text=effect)] if effect else []
    for verdict, leads in _LEADS.items():
        rows = [r for r in comparison.rows if r.primary and r.verdict == verdict and not _floored(r)]
        if rows:
            sentences.append(Observation(comparison=comparison.id, lead=leads[0 if comparison.lineage else 1],
                                         text=_sentence(comparison, verdict, rows)))
    return sentences


def _floored(row: ComparisonRow) -> bool:
    """True if the base is at the floor and has nothing to lose, so that "no loss" means nothing."""
    return floored(row.verdict, row.at_floor) if row.verdict else False


#: What a verdict says of a tuned model and its base.
_TUNED: dict[Verdict, str] = {
    "lower": "forgot", "higher": "improved", "within": "kept its score, within the margin,",
    "worse": "is worse (not proven beyond the margin)", "better": "is better (not proven beyond the margin)",
    "no_loss": "lost no more than the margin"}
#: What a verdict says of two models or recipes.
_WORDS: dict[Verdict, str] = {
    "higher": "scores higher than", "lower": "scores lower than", "within": "scores the same within the margin as",
    "worse": "scores worse (not proven beyond the margin) than",
    "better": "scores better (not proven beyond the margin) than",
    "no_loss": "does not score more than the margin below"}


def _sentence(comparison: Comparison, verdict: Verdict, rows: list[ComparisonRow]) -> str:
    tuned, base = fmt.visible(comparison.tuned_name), fmt.visible(comparison.base_name)
    evidence = "; ".join(_evidence(row) for row in rows)
    if verdict == "undecided":
        return f"It is undecided whether {tuned} differs from {base} beyond the margin on {evidence}."
    if comparison.lineage:
        return f"Compared with {base}, {tuned} {_TUNED[verdict]} on {evidence}."
    result = f"{tuned} and {base} score the same within the margin" if verdict == "within" else \
        f"{tuned} {_WORDS[verdict]} {base}"
    return f"{result} (a model comparison without proven lineage): {evidence}."


def _evidence(row: ComparisonRow) -> str:
    early = "" if row.stopped_of is None else f", stopped early; the interval is for {stopped_target(row)}"
    early += f"; full run: {full}" if (full := full_run_text(row)) else ""
    needed = f"; {items_needed_text(row)}" if items_needed_text(row) else ""
    return f"{_question(row)} ({_figures(row)}, n={items_text(row)}{early}{needed})"


def _question(row: ComparisonRow) -> str:
    """What a row is about: a metric of a task, or the average."""
    if row.average_of:
        return f"the average of {len(row.average_of)} tasks"
    return f"{fmt.visible(task_title(row.task))}, {fmt.visible(metric_title(row.metric, row.filter))}"


def _figures(row: ComparisonRow) -> str:
    """Difference, interval and margin of a row."""
    unit = " points" if row.fraction else " in its own unit"
    return (f"{difference_text(row, row.delta)}{unit}, 95 % interval {interval_text(row)}, margin {margin_text(row)}")


def _pair(comparison: Comparison) -> str:
    return f"{fmt.visible(comparison.base_name)} and {fmt.visible(comparison.tuned_name)}"


def _blocking(comparison: Comparison) -> str:
    fields = {fmt.visible(d.field) for d in comparison.differences if d.blocking}
    return ", ".join(sorted(fields)) or "what must agree"


def watermark(comparison: Comparison) -> str:
    """The warning above a forced comparison wherever it is shown; "" for any other one."""
    if not comparison.forced:
        return ""
    return forced_text([d for d in comparison.differences if d.blocking])


def lineage_note(comparison: Comparison) -> str:
    """The lineage of the two models, and which labels the verdicts therefore have."""
    tuned, base = fmt.visible(comparison.tuned_name), fmt.visible(comparison.base_name)
    labels = "no difference is called forgetting: the verdicts say lower, higher, within and not lower."
    if comparison.lineage:
        return f"{tuned} was made from {base}, so a proven loss is called forgetting."
    if comparison.relation == "siblings":
        return f"{base} and {tuned} were both made from {fmt.visible(source_title(comparison.origin))}, so {labels}"
    if comparison.relation == "same model":
        return f"{base} and {tuned} are the same model, evaluated twice, so {labels}"
    if comparison.relation == "reversed":
        return f"{base} was made from {tuned} (the base is the second one here), so {labels}"
    return f"Model comparison: it is not proven that {tuned} was made from {base}, so {labels}"


def rules_note(comparison: Comparison) -> str:
    """By which rules the verdicts were made, where they are not the current ones; "" where they are."""
    if comparison.rules >= RULES:
        return ""
    return f"Judged by version {comparison.rules} of the rules for verdicts; the current version is {RULES}."


# --- Recipes over several seeds ---
_SEED_LEADS = {"method": "Method", "data size": "Data Size", "replay": "Replay"}


def contrast_title(contrast: Contrast) -> str:
    """The title of a contrast: two recipes and the setting in which they differ."""
    return f"{fmt.visible(contrast.right)} against {fmt.visible(contrast.left)} ({fmt.visible(contrast.factor)})"


def seeds_section(contrasts: Sequence[Contrast]) -> list[str]:
    """A heading, an explanation and a table for each contrast; [] without contrasts."""
    if not contrasts:
        return []
    blocks = ["### Over Seeds", "Each recipe was trained with several seeds. The intervals treat seeds and items as "
              "samples, so they apply to the recipe and not to a single model. All comparisons are between fine-tunes."]
    for contrast in contrasts:
        headings = {"base": contrast.left, "tuned": contrast.right}
        seed_columns = columns("seeds")
        rows = [[line[c.key] for c in seed_columns] for line in verdict_lines(contrast.rows, lineage=False)]
        settings = fmt.short_digests("; ".join(f"{name.replace('_', ' ')} {left} → {right}"
                                               for name, left, right in contrast.settings))
        blocks += [f"#### {md.text(contrast_title(contrast))}",
                   md.table([headings.get(c.key, c.heading) for c in seed_columns], rows),
                   md.text(f"Seeds {', '.join(map(str, contrast.seeds))}; {settings}.")]
    return blocks


def seed_observations(contrasts: Sequence[Contrast]) -> list[Observation]:
    """A sentence for each verdict of each contrast, and one for its undecided rows."""
    sentences = []
    for contrast in contrasts:
        lead = f"{_SEED_LEADS.get(contrast.factor, 'Recipe')} (over {len(contrast.seeds)} seeds)"
        left, right = fmt.visible(contrast.left), fmt.visible(contrast.right)
        for verdict, words in _WORDS.items():
            rows = [_seed_evidence(row) for row in contrast.rows if row.verdict == verdict]
            if rows:
                sentences.append(Observation(comparison=contrast.id, lead=lead,
                                             text=f"{right} {words} {left} on {'; '.join(rows)}."))
        rows = [_seed_evidence(row) for row in contrast.rows if row.verdict == "undecided"]
        if rows:
            sentences.append(Observation(comparison=contrast.id, lead=lead, text=(
                f"It is undecided whether {right} differs from {left} beyond the margin on {'; '.join(rows)}.")))
    return sentences


def _seed_evidence(row: ComparisonRow) -> str:
    return f"{_question(row)} ({_figures(row)}, n={row.n})"


# --- Forgetting watch ---
def watch_text(point: WatchPoint) -> str:
    """One look in one line. Its model is made from the base, so a proven loss is called forgetting."""
    if not point.fraction:
        digits = fmt.own_digits(point.base, point.tuned)
        low, delta, high = (fmt.points(v, 1, digits) for v in (point.low, point.delta, point.high))
        return (f"watch, step {point.step}: {point.task} {fmt.raw(point.base, digits)} → "
                f"{fmt.raw(point.tuned, digits)}, {delta} in its own unit ({low} to {high}) on {point.n} items: not "
                "tested, because a margin in points means nothing there")
    return (f"watch, step {point.step}: {point.task} {fmt.percent(point.base)} → {fmt.percent(point.tuned)}, "
            f"{fmt.points(point.delta)} points ({fmt.points_interval(point.low, point.high)}) on {point.n} items: "
            f"{VERDICT_LABELS[point.verdict]}")


def watch_facts(points: Sequence[WatchPoint]) -> list[tuple[str, str]]:
    """For each task the last look, and the step at which forgetting was first proven."""
    facts = []
    for task in dict.fromkeys(point.task for point in points):
        own = [point for point in points if point.task == task]
        last, lost = own[-1], next((p.step for p in own if p.verdict == "lower"), None)
        first = "" if lost is None else f"; forgetting first proven at step {lost}"
        looks = f"{len(own)} look{'s' * (len(own) != 1)}"
        facts.append((f"Watch, {task}", f"{looks}; {watch_text(last).removeprefix('watch, ')}{first}"))
    return facts
