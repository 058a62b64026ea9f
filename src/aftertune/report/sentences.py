"""Looks at tasks while a model is trained, in words.

Observations in words: sentences that stand on verdicts, and on nothing else.

    observations([comparison])[0]
        Observation(comparison="c-1f…", lead="Forgetting",
                    text="Against smollm2, careless forgot on HellaSwag, Normalized Accuracy (−11.00 points, "
                         "95 % interval −16.10 to −6.20, margin ±5.00, n=300).")

Nothing is said from a row at floor, from a secondary metric, or from a forced comparison; an undecided row
gives a neutral sentence; without proven lineage no sentence speaks of forgetting.

Recipes over several seeds, in words and tables.

    seeds_section(contrasts)            Markdown blocks: a table for each contrast
    seed_observations(contrasts)        sentences that stand on their verdicts
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aftertune.catalog import is_fraction
from aftertune.report import documents as md
from aftertune.report import formatting as fmt
from aftertune.report.changed_items import forced_text
from aftertune.report.columns import columns, margin_text, scale, verdict_lines
from aftertune.report.names import metric_title, source_title, task_title
from aftertune.report.table import items_of, items_text
from aftertune.values import TOLD, Comparison, ComparisonRow, Contrast, Verdict, WatchPoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """One sentence with the comparison it stands on."""

    comparison: str
    lead: str
    text: str


_LEADS: dict[Verdict, tuple[str, str]] = {
    "lower": ("Forgetting", "Lower"), "higher": ("Improvement", "Higher"),
    "within": ("Kept", "No difference beyond the margin"), "undecided": ("Undecided", "Undecided"),
}


def observations(comparisons: Sequence[Comparison]) -> list[Observation]:
    """The sentences of all comparisons, in their order; lower, higher, within, undecided within each."""
    return [found for comparison in comparisons for found in _of(comparison)]


def _of(comparison: Comparison) -> list[Observation]:
    if comparison.forced:
        return [Observation(
            comparison=comparison.id, lead="No observation",
            text=f"{_pair(comparison)} were compared by force although they differ in "
                 f"{_blocking(comparison)}; nothing is concluded from it.")]
    found = []
    for verdict, leads in _LEADS.items():
        rows = [r for r in comparison.rows if r.primary and r.verdict == verdict and not _floored(r)]
        if rows:
            found.append(Observation(comparison=comparison.id, lead=leads[0 if comparison.lineage else 1],
                                     text=_sentence(comparison, verdict, rows)))
    return found


def _floored(row: ComparisonRow) -> bool:
    """True where a base at the floor had nothing to lose, so that "no loss" says nothing."""
    return row.at_floor and row.verdict in ("within", "undecided")


def _sentence(comparison: Comparison, verdict: Verdict, rows: list[ComparisonRow]) -> str:
    tuned, base = fmt.visible(comparison.tuned_name), fmt.visible(comparison.base_name)
    shown = "; ".join(_evidence(row) for row in rows)
    if verdict == "undecided":
        return f"Whether {tuned} differs from {base} beyond the margin is not decided on {shown}."
    if comparison.lineage:
        start = {"lower": "forgot", "higher": "improved", "within": "kept, within the margin,"}[verdict]
        return f"Against {base}, {tuned} {start} on {shown}."
    start = {"lower": f"{tuned} scores lower than {base}", "higher": f"{tuned} scores higher than {base}",
             "within": f"{tuned} and {base} score the same within the margin"}[verdict]
    return f"{start} (a model comparison, no proven lineage): {shown}."


def _evidence(row: ComparisonRow) -> str:
    unit = "points, " if is_fraction(row.metric) else ""
    early = "" if row.stopped_of is None else ", stopped early; the interval is for the full run"
    plan = f"; {items_text(row)}" if row.verdict == "undecided" and items_text(row) else ""
    return (f"{fmt.visible(task_title(row.task))}, {fmt.visible(metric_title(row.metric, row.filter))} "
            f"({fmt.points(row.delta, scale(row))} {unit}95 % interval "
            f"{fmt.points_interval(row.low, row.high, scale(row))}, margin {margin_text(row)}, n={items_of(row)}{early}"
            f"{plan})")


def _pair(comparison: Comparison) -> str:
    return f"{fmt.visible(comparison.base_name)} and {fmt.visible(comparison.tuned_name)}"


def _blocking(comparison: Comparison) -> str:
    fields = {fmt.visible(d.field) for d in comparison.differences if d.blocking}
    return ", ".join(sorted(fields)) or "what must agree"


def watermark(comparison: Comparison) -> str:
    """The line that a forced comparison carries wherever it is shown, or ""."""
    if not comparison.forced:
        return ""
    return forced_text([d for d in comparison.differences if d.blocking])


def lineage_note(comparison: Comparison) -> str:
    """What may be said about who was made from whom."""
    tuned, base = fmt.visible(comparison.tuned_name), fmt.visible(comparison.base_name)
    words = "differences are told as lower, higher and within, never as forgetting."
    if comparison.lineage:
        return f"{tuned} was made from {base}: differences are told as forgot, improved and kept."
    if comparison.relation == "siblings":
        return f"{base} and {tuned} were both made from {fmt.visible(source_title(comparison.origin))}: {words}"
    if comparison.relation == "same model":
        return f"{base} and {tuned} are the same model, evaluated twice: {words}"
    if comparison.relation == "reversed":
        return f"{base} was made from {tuned}, so the base stands second: {words}"
    return f"Model comparison: it is not proven that {tuned} was made from {base}, so {words}"


_SEED_LEADS = {"method": "Method", "data size": "Data Size", "replay": "Replay"}
_WORDS: dict[Verdict, str] = {"higher": "scores higher than", "lower": "scores lower than",
                              "within": "scores the same within the margin as"}


def contrast_title(contrast: Contrast) -> str:
    """Two recipes and what they differ in."""
    return f"{fmt.visible(contrast.right)} against {fmt.visible(contrast.left)} ({fmt.visible(contrast.factor)})"


def seeds_section(contrasts: Sequence[Contrast]) -> list[str]:
    """A heading, what is shown, and a table for each contrast; nothing without one."""
    if not contrasts:
        return []
    blocks = ["### Over Seeds", "Each recipe was trained with several seeds; the interval counts seeds and items as "
              "samples, so that it speaks of the recipe and not of one model. All are comparisons between fine-tunes."]
    for contrast in contrasts:
        heads = {"base": contrast.left, "tuned": contrast.right}
        shown = columns("seeds")
        rows = [[line[c.key] for c in shown] for line in verdict_lines(contrast.rows, lineage=False)]
        settings = "; ".join(f"{name.replace('_', ' ')} {left} → {right}" for name, left, right in contrast.settings)
        blocks += [f"#### {md.text(contrast_title(contrast))}",
                   md.table([heads.get(c.key, c.heading) for c in shown], rows),
                   md.text(f"Seeds {', '.join(map(str, contrast.seeds))}; {settings}.")]
    return blocks


def seed_observations(contrasts: Sequence[Contrast]) -> list[Observation]:
    """A sentence for each verdict of each contrast; undecided rows in one of their own."""
    found = []
    for contrast in contrasts:
        lead = f"{_SEED_LEADS.get(contrast.factor, 'Recipe')} (over {len(contrast.seeds)} seeds)"
        left, right = fmt.visible(contrast.left), fmt.visible(contrast.right)
        for verdict, words in _WORDS.items():
            rows = [_seed_evidence(row) for row in contrast.rows if row.verdict == verdict]
            if rows:
                found.append(Observation(comparison=contrast.id, lead=lead, text=f"{right} {words} {left} on "
                                                                                 f"{'; '.join(rows)}."))
        rows = [_seed_evidence(row) for row in contrast.rows if row.verdict == "undecided"]
        if rows:
            found.append(Observation(comparison=contrast.id, lead=lead, text=(
                f"Whether {right} differs from {left} beyond the margin is not decided on {'; '.join(rows)}.")))
    return found


def _seed_evidence(row: ComparisonRow) -> str:
    unit = "points, " if is_fraction(row.metric) else ""
    return (f"{fmt.visible(task_title(row.task))}, {fmt.visible(metric_title(row.metric, row.filter))} "
            f"({fmt.points(row.delta, scale(row))} {unit}95 % interval "
            f"{fmt.points_interval(row.low, row.high, scale(row))}, margin {margin_text(row)}, n={row.n})")


def watch_text(point: WatchPoint) -> str:
    """A look in one line; its model descends from the base, so the words of forgetting are right."""
    return (f"watch, step {point.step}: {point.task} {fmt.percent(point.base)} → {fmt.percent(point.tuned)}, "
            f"{fmt.points(point.delta)} points ({fmt.points_interval(point.low, point.high)}) on {point.n} items: "
            f"{TOLD[point.verdict]}")


def watch_facts(points: Sequence[WatchPoint]) -> list[tuple[str, str]]:
    """Of each task the last look, and where it was first proven to be forgotten."""
    facts = []
    for task in dict.fromkeys(point.task for point in points):
        own = [point for point in points if point.task == task]
        last, lost = own[-1], next((p.step for p in own if p.verdict == "lower"), None)
        first = "" if lost is None else f"; first proven forgotten at step {lost}"
        facts.append((f"Watch, {task}", f"{len(own)} looks; {watch_text(last).removeprefix('watch, ')}{first}"))
    return facts
