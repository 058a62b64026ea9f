"""The score table as rows of finished text, and the words of a comparison row that every output shares.

    score_table(evaluation)[0]
        ScoreLine(title="HellaSwag", metric="Normalized Accuracy", result="41.00%", error="±2.84%",
                  interval="35.57% to 46.66%", n="300", primary=True, …)
    row_label(row, lineage=True)            "forgot"
    note_text(row)                          "about 752 items would decide it if the models do not differ"

The columns of the verdict table are in `report.columns`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

from aftertune.catalog import is_fraction
from aftertune.report import formatting as fmt
from aftertune.report.names import metric_title, task_title
from aftertune.stats.paired import wilson
from aftertune.values import (
    TOLD,
    Comparison,
    ComparisonRow,
    Evaluation,
    HeldOut,
    Score,
    TaskSettings,
    Verdict,
)
from aftertune.values.reported import ScoreName

_Z = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreLine:
    """One score as text. part says which items were used ("" for all of them); certain: its standard error is 0,
    because all items gave the same value, though the interval has a width."""

    task: str
    title: str
    metric: str
    result: str
    error: str
    interval: str
    n: str
    part: str
    primary: bool
    certain: bool


def score_interval(score: Score) -> tuple[float, float] | None:
    """95 % interval of a score: Wilson where the value is k/n, else value ± 1.96 SE, None without an SE.

    A mean of shares (field accuracy) may be k/n by chance; its SE is then not that of a proportion.
    """
    k, p = score.value * score.n, score.value
    if is_fraction(score.metric) and not score.group and 0 <= p <= 1 and score.n > 0:
        usual = math.sqrt(p * (1 - p) / max(1, score.n - 1))
        known = score.stderr if score.stderr is not None and math.isfinite(score.stderr) else usual
        if abs(k - round(k)) < 1e-6 * max(1, score.n) and math.isclose(known, usual, rel_tol=0.01, abs_tol=1e-9):
            return wilson(round(k), score.n)
    if score.stderr is None or not math.isfinite(score.stderr):
        return None
    low, high = score.value - _Z * score.stderr, score.value + _Z * score.stderr
    return (max(0.0, low), min(1.0, high)) if is_fraction(score.metric) else (low, high)


def value_text(metric: str, value: float | None) -> str:
    """A metric's value: percent for fractions, four decimals for perplexities and the like."""
    return fmt.percent(value) if is_fraction(metric) else fmt.raw(value)


def error_text(score: Score) -> str:
    """±1 standard error of a score, as lm-eval computes it, or a dash."""
    return f"±{value_text(score.metric, score.stderr)}" if fmt.known(score.stderr) else fmt.DASH


def part_text(task: TaskSettings | None) -> str:
    """Which items of a task were used: "random 300 of 10,042, seed 0", or "" for all of them."""
    if task is None:
        return ""
    if task.used is not None:
        return f"{early_text(task.used, task.n)} (random order, seed {task.draw_seed or 0})"
    if not task.partial:
        return ""
    of = f"{fmt.count(task.n)} of {fmt.count(task.n_total)}"
    if task.sample is not None:
        return f"random {of}, seed {task.sample_seed or 0}"
    return f"first {of}"


def score_part(evaluation: Evaluation, name: str) -> str:
    """Which items a score stands on, "" for all of them: those of a task, or of the tasks of a group."""
    task, early = evaluation.task(name), evaluation.stopped(name)
    if task is not None:
        return part_text(task)
    if early is not None:
        return early_text(*early)
    inside = [t for t in evaluation.tasks if name in t.groups]
    if not any(t.partial for t in inside):
        return ""
    of = f"{fmt.count(sum(t.n for t in inside))} of {fmt.count(sum(t.n_total for t in inside))}"
    return f"{of} over its {len(inside)} tasks"


def early_text(used: int, total: int) -> str:
    """What is said of a figure from a task or group that was stopped early."""
    return f"stopped early after {fmt.count(used)} of {fmt.count(total)}: an early estimate, not the score"


def score_table(evaluation: Evaluation) -> list[ScoreLine]:
    """The scores of an evaluation in their order: Task, Metric, Result, Error range, interval, n."""
    lines = []
    for score in evaluation.scores:
        early = evaluation.stopped(score.task)
        interval = None if early else score_interval(score)
        lines.append(ScoreLine(
            task=score.task, title=fmt.visible(task_title(score.task)),
            metric=fmt.visible(metric_title(score.metric, score.filter)),
            result=("about " if early else "") + value_text(score.metric, score.value),
            error=fmt.DASH if early else error_text(score),
            interval=" to ".join(value_text(score.metric, v) for v in interval) if interval else fmt.DASH,
            n=fmt.count(score.n), primary=score.primary,
            part=score_part(evaluation, score.task),
            certain=not early and score.stderr == 0 and interval is not None and interval[0] < interval[1]))
    return lines


def shown_verdict(row: ComparisonRow) -> Verdict | None:
    """The verdict that a report shows: at the floor there is nothing to keep, so "within" is undecided."""
    return "undecided" if row.at_floor and row.verdict == "within" else row.verdict


def row_label(row: ComparisonRow, lineage: bool) -> str:
    """The verdict in words: forgot, improved, kept only where the lineage is proven; "" for a row without a verdict."""
    verdict = shown_verdict(row)
    return "" if verdict is None else TOLD[verdict] if lineage else verdict


def note_text(row: ComparisonRow) -> str:
    """What stands beside the verdict: why it is undecided and how many items would decide it, then the note."""
    parts = []
    if shown_verdict(row) == "undecided":
        if row.at_floor:
            parts.append("at floor: nothing to forget")
        elif plan := items_text(row):
            parts.append(plan)
    if row.stopped_of is not None:
        parts.append(early_text(row.n, row.stopped_of) if row.primary else "an early estimate, not the score")
        parts += ["the interval is for the full run and holds at every look"] if row.primary else []
    if not is_fraction(row.metric):
        parts.append("in the metric's own unit, not points")
    return fmt.visible("; ".join([*parts, row.note] if row.note else parts))


def items_text(row: ComparisonRow) -> str:
    """How many items would decide an undecided row, and on what assumption; "" where no number is known."""
    if row.items_needed is None:
        return ""
    at = "at this difference" if row.low > 0 or row.high < 0 else "if the models do not differ"
    return f"about {fmt.count(row.items_needed)} items would decide it {at}"


def items_of(row: ComparisonRow) -> str:
    """The items of a row; where it was stopped early, of how many."""
    return fmt.count(row.n) + ("" if row.stopped_of is None else f" of {fmt.count(row.stopped_of)}")


def part_of(row: ComparisonRow) -> str:
    """The items of a row and those of its task, "" where they are the same."""
    return f"{fmt.count(row.n)} of {fmt.count(row.n_total)}" if row.n_total and row.n < row.n_total else ""


def row_details(row: ComparisonRow) -> tuple[str, ...]:
    """What stands behind a row: McNemar's p-values of "any difference", the task's q in its group, other intervals."""
    found = []
    if row.p_exact is not None:
        found.append(f"any difference: McNemar exact p {fmt.p_value(row.p_exact)}, mid-p {fmt.p_value(row.p_mid)}")
    if row.q is not None:
        found.append(f"q {fmt.p_value(row.q)} over the tasks of {row.group} (Benjamini-Hochberg, exploratory)")
    return tuple(map(fmt.visible, (*found, *row.details)))


def explored_text(comparison: Comparison) -> list[str]:
    """One line a group: which of the tasks that it speaks for stand out, by q below .05. Exploratory, no verdicts."""
    said = []
    for group in dict.fromkeys(r.group for r in comparison.rows if r.group):
        rows = [r for r in comparison.rows if r.group == group]
        tasks = {r.task for r in rows}
        lower, higher = ([task_title(r.task) for r in rows if r.q is not None and r.q < 0.05 and sign * r.delta > 0]
                         for sign in (-1, 1))
        found = "; ".join(f"{word} on {', '.join(names)}" for word, names in (("lower", lower), ("higher", higher))
                          if names)
        said.append(fmt.visible(f"{task_title(group)}: of its {len(tasks)} tasks {found or 'none stands out'} "
                                "(exploratory, Benjamini-Hochberg at 5 %)"))
    return said


def held_out_line(held_out: HeldOut) -> tuple[str, str, str, str, str]:
    """Examples, loss before, loss after, difference, 95 % interval (nats per token)."""
    return (fmt.count(held_out.n), fmt.raw(held_out.before, 3), fmt.raw(held_out.after, 3),
            fmt.change(held_out.after - held_out.before),
            f"{fmt.change(held_out.low)} to {fmt.change(held_out.high)}")


def performance(evaluations: Sequence[Evaluation]) -> dict[ScoreName, dict[str, Score]]:
    """Scores by (task, metric, filter) and evaluation id, in order of first appearance."""
    table: dict[ScoreName, dict[str, Score]] = {}
    for evaluation in evaluations:
        for score in evaluation.scores:
            table.setdefault((score.task, score.metric, score.filter), {})[evaluation.id] = score
    return table


def metrics_by_task(evaluations: Sequence[Evaluation]) -> dict[str, list[tuple[str, str]]]:
    """(metric, filter) of every score by task, in order of first appearance."""
    found: dict[str, list[tuple[str, str]]] = {}
    for task, metric, filter_ in performance(evaluations):
        found.setdefault(task, []).append((metric, filter_))
    return found


def beyond_noise(comparisons: Sequence[Comparison]) -> Mapping[ScoreName, set[tuple[str, str]]]:
    """Pairs (better, worse) of evaluation ids per score, by verdict, with what follows from them:
    a better than b and b better than c gives a better than c. Forced comparisons prove nothing.
    """
    better: dict[ScoreName, set[tuple[str, str]]] = {}
    for comparison in comparisons:
        for row in comparison.rows:
            if comparison.forced or row.verdict not in ("higher", "lower"):
                continue
            pair = (comparison.tuned, comparison.base)
            pairs = better.setdefault((row.task, row.metric, row.filter), set())
            pairs.add(pair if row.verdict == "higher" else pair[::-1])
    for pairs in better.values():
        while more := {(a, d) for a, b in pairs for c, d in pairs if b == c} - pairs:
            pairs |= more
    return better


def proven_best(key: ScoreName, cells: Mapping[str, Score],
                better: Mapping[ScoreName, set[tuple[str, str]]]) -> str | None:
    """The evaluation that is better than every other one in its row beyond the noise, or None."""
    pairs = better.get(key, set())
    for candidate in cells:
        others = [other for other in cells if other != candidate]
        if others and all((candidate, other) in pairs for other in others):
            return candidate
    return None
