"""Recipes over several seeds, in words and tables.

    seeds_section(contrasts)            Markdown blocks: a table for each contrast
    seed_observations(contrasts)        sentences that stand on their verdicts
"""

from __future__ import annotations

from collections.abc import Sequence

from aftertune.catalog import is_fraction
from aftertune.report import format as fmt
from aftertune.report import markdown as md
from aftertune.report.columns import columns, margin_text, scale, verdict_lines
from aftertune.report.names import metric_title, task_title
from aftertune.report.observations import Observation
from aftertune.values import ComparisonRow, Contrast, Verdict

_LEADS = {"method": "Method", "data size": "Data Size", "replay": "Replay"}
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
        lead = f"{_LEADS.get(contrast.factor, 'Recipe')} (over {len(contrast.seeds)} seeds)"
        left, right = fmt.visible(contrast.left), fmt.visible(contrast.right)
        for verdict, words in _WORDS.items():
            rows = [_evidence(row) for row in contrast.rows if row.verdict == verdict]
            if rows:
                found.append(Observation(comparison=contrast.id, lead=lead, text=f"{right} {words} {left} on "
                                                                                 f"{'; '.join(rows)}."))
        rows = [_evidence(row) for row in contrast.rows if row.verdict == "undecided"]
        if rows:
            found.append(Observation(comparison=contrast.id, lead=lead, text=(
                f"Whether {right} differs from {left} beyond the margin is not decided on {'; '.join(rows)}.")))
    return found


def _evidence(row: ComparisonRow) -> str:
    unit = "points, " if is_fraction(row.metric) else ""
    return (f"{fmt.visible(task_title(row.task))}, {fmt.visible(metric_title(row.metric, row.filter))} "
            f"({fmt.points(row.delta, scale(row))} {unit}95 % interval "
            f"{fmt.points_interval(row.low, row.high, scale(row))}, margin {margin_text(row)}, n={row.n})")
