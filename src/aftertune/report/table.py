"""Builds the score table of an evaluation, and the texts of a comparison row that all outputs share.

    score_table(evaluation)[0]
        ScoreLine(title="HellaSwag", name="acc_norm", metric="Normalized Accuracy", result="41.00%",
                  error="±2.84%", interval="35.57% to 46.66%", n="300", primary=True, …)
    row_title(row)                          "HellaSwag"
    row_label(row, lineage=True)            "forgot"
    note_text(row)                          "about 752 items would decide it if the models do not differ"

The columns of the verdict table are in `report.columns`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

from aftertune.report import formatting as fmt
from aftertune.report.names import metric_name, metric_title, task_title
from aftertune.stats.paired import wilson
from aftertune.values import (
    Comparison,
    ComparisonRow,
    Evaluation,
    HeldOut,
    Score,
    TaskSettings,
    Verdict,
    verdict_label,
)
from aftertune.values.reported import ScoreName

_Z = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreLine:
    """One score as text.

    name: of the metric; metric: its title. part: which items were used, "" for all of them. certain: the standard
    error is 0 because all items have the same value, but the 95 % interval has a width.
    """

    task: str
    title: str
    name: str
    metric: str
    result: str
    error: str
    interval: str
    n: str
    part: str
    primary: bool
    certain: bool


def score_interval(score: Score) -> tuple[float, float] | None:
    """The 95 % interval of a score: Wilson's if the value is k/n, else value ± 1.96 SE; None without an SE.

    A mean of fractions (field accuracy) can be k/n by chance. Its SE is then not that of a proportion, so it gets the
    second interval.
    """
    k, p = score.value * score.n, score.value
    if score.fraction and not score.group and 0 <= p <= 1 and score.n > 0:
        binomial = math.sqrt(p * (1 - p) / max(1, score.n - 1))
        stderr = score.stderr if score.stderr is not None and math.isfinite(score.stderr) else binomial
        if abs(k - round(k)) < 1e-6 * max(1, score.n) and math.isclose(stderr, binomial, rel_tol=0.01, abs_tol=1e-9):
            return wilson(round(k), score.n)
    if score.stderr is None or not math.isfinite(score.stderr):
        return None
    low, high = score.value - _Z * score.stderr, score.value + _Z * score.stderr
    return (max(0.0, low), min(1.0, high)) if score.fraction else (low, high)


def score_text(score: Score, value: float | None) -> str:
    """The value of a score, or an error of it: percent for shares, else in the metric's own unit."""
    return fmt.percent(value) if score.fraction else fmt.raw(value, fmt.own_digits(score.value))


def error_text(score: Score) -> str:
    """±1 standard error of a score as lm-eval computes it, or a dash if there is none."""
    return f"±{score_text(score, score.stderr)}" if fmt.is_finite(score.stderr) else fmt.DASH


def value_text(row: ComparisonRow, value: float | None) -> str:
    """A score of a row: percent for shares, else in the metric's own unit."""
    return fmt.percent(value) if row.fraction else fmt.raw(value, fmt.own_digits(row.base, row.tuned))


def difference_text(row: ComparisonRow, value: float | None) -> str:
    """A difference of a row, with its sign: in percentage points for shares, else in the metric's own unit."""
    return fmt.points(value) if row.fraction else fmt.points(value, 1, fmt.own_digits(row.base, row.tuned))


def interval_text(row: ComparisonRow, low: float | None = None, high: float | None = None) -> str:
    """The 95 % interval of the difference of a row: "−15.00 to −7.00". low, high: of another difference of the row."""
    low, high = (row.low, row.high) if low is None or high is None else (low, high)
    if not (fmt.is_finite(low) and fmt.is_finite(high)):
        return fmt.DASH
    return f"{difference_text(row, low)} to {difference_text(row, high)}"


def margin_text(row: ComparisonRow) -> str:
    """The margin of a row: "±5.00"."""
    if row.margin is None:
        return "none in its unit"
    return f"±{difference_text(row, row.margin).lstrip('+')}{'' if row.fraction else ' in its unit'}"


def part_text(task: TaskSettings | None) -> str:
    """Which items of a task were used: "random 300 of 10,042, seed 0"; "" for all of them."""
    if task is None:
        return ""
    if task.used is not None:
        return f"{early_text(task.used, task.n)} (random draws, seed {task.draw_seed or 0})"
    if not task.partial:
        return ""
    of = f"{fmt.count(task.n)} of {fmt.count(task.n_total)}"
    if task.part:
        return f"{of}, the part that {task.part}s"
    if task.sample is not None:
        return f"random {of}, seed {task.sample_seed or 0}"
    if task.limit is None:
        return f"{of}, not known how they were chosen"
    return f"first {of}" if task.n < task.n_total else f"first {fmt.count(task.n)} of a number that is not stated"


def score_part(evaluation: Evaluation, name: str) -> str:
    """Which items of its task, or of the tasks of its group, a score is computed from; "" for all of them."""
    task, early = evaluation.task(name), evaluation.stopped(name)
    if evaluation.drawn_unequally(name):
        return weighted_text(evaluation, name)
    if task is not None:
        return part_text(task)
    if early is not None:
        return early_text(*early)
    members = [t for t in evaluation.tasks if name in t.groups]
    if not any(t.partial for t in members):
        return ""
    of = f"{fmt.count(sum(t.n for t in members))} of {fmt.count(sum(t.n_total for t in members))}"
    return f"{of} over its {len(members)} tasks"


def early_text(used: int, total: int) -> str:
    """The note on a score of a task or group that was stopped early."""
    return f"stopped early after {fmt.count(used)} of {fmt.count(total)}: an early estimate, not the score"


def weighted_text(evaluation: Evaluation, name: str) -> str:
    """Why a task or group has no score whose items were drawn with unequal weights; "" for any other."""
    if not evaluation.drawn_unequally(name):
        return ""
    used, total = evaluation.stopped(name) or (0, 0)
    asked = f"stopped early after {fmt.count(used)} of {fmt.count(total)} items, which" if total else "its items"
    return f"no score: {asked} were drawn with weights; the comparison with its base has a weighted estimate"


def score_table(evaluation: Evaluation) -> list[ScoreLine]:
    """The scores of an evaluation, in order."""
    lines = []
    for score in evaluation.scores:
        early = evaluation.stopped(score.task)
        interval = None if early else score_interval(score)
        lines.append(ScoreLine(
            task=score.task, title=fmt.visible(task_title(score.task)),
            name=fmt.visible(metric_name(score.metric, score.filter)),
            metric=fmt.visible(metric_title(score.metric, score.filter)),
            result=("about " if early else "") + score_text(score, score.value),
            error=fmt.DASH if early else error_text(score),
            interval=" to ".join(score_text(score, v) for v in interval) if interval else fmt.DASH,
            n=fmt.count(score.n), primary=score.primary,
            part=score_part(evaluation, score.task),
            certain=not early and score.stderr == 0 and interval is not None and interval[0] < interval[1]))
    return lines


def shown_verdict(row: ComparisonRow) -> Verdict | None:
    """The verdict that a report shows: "within" at the floor is undecided, because there was nothing to keep."""
    return "undecided" if row.at_floor and row.verdict == "within" else row.verdict


def row_title(row: ComparisonRow) -> str:
    """The title of the task of a row; that of an average says over how many tasks it is."""
    return f"Average of {len(row.average_of)} Tasks" if row.average_of else task_title(row.task)


def row_metric(row: ComparisonRow) -> str:
    """The title of the metric of a row."""
    return "Primary Metrics" if row.average_of else metric_title(row.metric, row.filter)


def row_name(row: ComparisonRow) -> str:
    """The name of the metric of a row."""
    return row_metric(row) if row.average_of else metric_name(row.metric, row.filter)


def row_label(row: ComparisonRow, lineage: bool) -> str:
    """The label of the verdict: forgot, improved, kept and no loss only with proven lineage; "" without a verdict."""
    verdict = shown_verdict(row)
    return "" if verdict is None else verdict_label(verdict, lineage=lineage)


def note_text(row: ComparisonRow) -> str:
    """The note beside the verdict: why it is undecided, how many items would decide it, and the row's own note."""
    parts = []
    if shown_verdict(row) == "undecided" and row.at_floor:
        parts.append("at floor: nothing to forget")
    elif needed := items_needed_text(row):
        parts.append(needed)
    if row.stopped_of is not None:
        parts.append(early_text(row.n, row.stopped_of) if row.primary else "an early estimate, not the score")
        if row.primary:
            parts.append(f"the interval is for {stopped_target(row)} and valid at every look")
    if not row.fraction:
        parts.append("in the metric's own unit, not points")
    return fmt.visible("; ".join([*parts, row.note] if row.note else parts))


def stopped_target(row: ComparisonRow) -> str:
    """What the interval and the verdict of a row that was stopped early are about. Rows by version 2 of the rules and
    before were about the full run."""
    return "the full run" if row.full_low is None and not row.average_of else "the models"


#: What is proven of the full run, with the margin in place of {}.
_FULL_RUN: dict[Verdict, str] = {
    "lower": "below the base's by more than {}", "higher": "above the base's by more than {}",
    "within": "within {} of the base's", "worse": "below the base's", "better": "above the base's",
    "no_loss": "not below the base's by more than {}"}


def full_run_text(row: ComparisonRow) -> str:
    """What the full run would show: "40.1 to 42.3 %, not below the base's by more than 2 points"; "" if all was asked.

    Without the base's score on the full run it is the difference: "−0.4 to +1.8 points against the base's, …".
    """
    if row.full_low is None:
        return ""
    if row.full_tuned_low is None or row.full_tuned_high is None:
        ends = f"{interval_text(row, row.full_low, row.full_high)} points against the base's"
    else:
        ends = f"{fmt.raw(100 * row.full_tuned_low, 1)} to {fmt.raw(100 * row.full_tuned_high, 1)} %"
    proven = _FULL_RUN.get(row.full_verdict or "undecided", "").format(f"{100 * (row.margin or 0):g} points")
    return f"{ends}, {proven}" if proven else ends


def items_needed_text(row: ComparisonRow) -> str:
    """How many items would decide a row, and under which assumption; "" if it is settled or no number is known."""
    if row.items_needed is None:
        return ""
    decide = "it" if row.verdict == "undecided" else "whether it is beyond the margin"
    in_all = " in all" if row.average_of else ""
    needed = f"about {fmt.count(row.items_needed)} items{in_all} would decide {decide}"
    if row.items_needed_at is None or row.items_needed_power is None:  # stored by version 1 of the rules
        return f"{needed} {'at this difference' if row.low > 0 or row.high < 0 else 'if the models do not differ'}"
    truth = "if the models do not differ" if row.items_needed_at == 0 else \
        f"if the true difference is {difference_text(row, row.items_needed_at)}{' points' if row.fraction else ''}"
    return f"{needed} with power {fmt.raw(100 * row.items_needed_power, 0)} % {truth}"


def items_text(row: ComparisonRow) -> str:
    """The number of items of a row; with the number of the full run if it was stopped early."""
    return fmt.count(row.n) + ("" if row.stopped_of is None else f" of {fmt.count(row.stopped_of)}")


def partial_text(row: ComparisonRow) -> str:
    """The number of items of a row and of its task; "" if the row has all of them."""
    return f"{fmt.count(row.n)} of {fmt.count(row.n_total)}" if row.n_total and row.n < row.n_total else ""


def row_details(row: ComparisonRow) -> tuple[str, ...]:
    """The details of a row: McNemar's p-values of "any difference", the task's q in its group, and other intervals."""
    details = []
    if row.p_exact is not None:
        details.append(f"any difference: McNemar exact p {fmt.p_value(row.p_exact)}, mid-p {fmt.p_value(row.p_mid)}")
    if row.q is not None:
        details.append(f"q {fmt.p_value(row.q)} over the tasks of {row.group} (Benjamini-Hochberg, exploratory)")
    return tuple(map(fmt.visible, (*details, *row.details)))


def exploratory_text(comparison: Comparison) -> list[str]:
    """One line for each group: the tasks in it that differ, by q below 0.05. These are not verdicts."""
    lines = []
    for group in dict.fromkeys(r.group for r in comparison.rows if r.group):
        rows = [r for r in comparison.rows if r.group == group]
        tasks = {r.task for r in rows}
        lower, higher = ([task_title(r.task) for r in rows if r.q is not None and r.q < 0.05 and sign * r.delta > 0]
                         for sign in (-1, 1))
        differing = "; ".join(f"{direction} on {', '.join(names)}"
                              for direction, names in (("lower", lower), ("higher", higher)) if names)
        lines.append(fmt.visible(f"{task_title(group)} ({len(tasks)} tasks): {differing or 'no task differs'} "
                                 "(exploratory, Benjamini-Hochberg at 5 %)"))
    return lines


def few_shot_lines(comparison: Comparison) -> list[str]:
    """One line for each task that the base was also asked with examples: what it scores then, and both models without.
    """
    lines = []
    for shot in comparison.few_shot:
        key = shot.task, shot.metric, shot.filter
        row = next((r for r in comparison.rows if (r.task, r.metric, r.filter) == key), None)
        if row is not None:
            value = fmt.percent if shot.fraction else fmt.raw
            lines.append(fmt.visible(
                f"{task_title(shot.task)}: with {shot.shots} examples in the prompt {comparison.base_name} scores "
                f"{value(shot.value)} (n={fmt.count(shot.n)}), without them {value(row.base)}; "
                f"{comparison.tuned_name} without them {value(row.tuned)}"))
    return lines


def held_out_line(held_out: HeldOut) -> tuple[str, str, str, str, str]:
    """The examples, loss before, loss after, difference and 95 % interval, in nats per token."""
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
    metrics: dict[str, list[tuple[str, str]]] = {}
    for task, metric, filter_ in performance(evaluations):
        metrics.setdefault(task, []).append((metric, filter_))
    return metrics


def beyond_noise(comparisons: Sequence[Comparison]) -> Mapping[ScoreName, set[tuple[str, str]]]:
    """Pairs (better, worse) of evaluation ids for each score, by verdict and transitively.

    If a is better than b and b better than c, then a is better than c. Forced comparisons are left out.
    """
    better: dict[ScoreName, set[tuple[str, str]]] = {}
    for comparison in comparisons:
        for row in comparison.rows:
            if comparison.forced or row.verdict not in ("higher", "better", "lower", "worse"):
                continue
            pair = (comparison.tuned, comparison.base)
            pairs = better.setdefault((row.task, row.metric, row.filter), set())
            pairs.add(pair if row.verdict in ("higher", "better") else pair[::-1])
    for pairs in better.values():
        while implied := {(a, d) for a, b in pairs for c, d in pairs if b == c} - pairs:
            pairs |= implied
    return better


def proven_best(key: ScoreName, cells: Mapping[str, Score],
                better: Mapping[ScoreName, set[tuple[str, str]]]) -> str | None:
    """The evaluation that is proven better than every other one with this score, or None."""
    pairs = better.get(key, set())
    for candidate in cells:
        others = [other for other in cells if other != candidate]
        if others and all((candidate, other) in pairs for other in others):
            return candidate
    return None
