"""Builds the rows of tasks that were stopped early.

    stopped = stopped_tests(left, right, pairs)
    rows = with_early_rows(rows, stopped, 0.02, lineage=True, forced=False)

An evaluation that was stopped early asked its items in a random order that was fixed before the first one (`Early`).
The sequential test is valid at every item, whatever the reason for stopping, so it can be repeated here with any
margin. Its verdict is about the difference of the full run. The row shows the early estimate and marks it as one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from aftertune.catalog import FRACTIONS, MetricKey, is_bounded
from aftertune.comparison.margins import MARGIN, Margins, margin_of
from aftertune.comparison.pairing import MetricValues, Pair, metric_values
from aftertune.comparison.rows import (
    FORCED,
    RowDraft,
    build_row,
    floor_note,
    group_chance,
    items_note,
)
from aftertune.stats.evidence import Evidence
from aftertune.stats.paired import NO_EVIDENCE, Floats, wilson
from aftertune.stats.planning import DecidingItems, discordance_bound, items_to_decide
from aftertune.stats.sequential import PairedSequential, has_whole_differences, random_order_key
from aftertune.stats.verdict import ALPHA, Case, Decision, at_floor
from aftertune.values import ComparisonRow, Early, EarlyUnit, Evaluation


@dataclass(frozen=True, slots=True, kw_only=True)
class StoppedTest:
    """A sequential test that stopped early in one of the evaluations.

    columns: ``metric,filter`` -> paired values in random order. base: all known values of the base on the metric of the
    test. chance: expected score of a guess. groups: of its first task. share: number of tests that share alpha.
    """

    unit: EarlyUnit
    columns: dict[str, MetricValues]
    base: Floats
    chance: float | None
    groups: tuple[str, ...]
    share: int
    target: bool

    @property
    def at_floor(self) -> bool:
        """True where the base has nothing to lose on the metric of the test."""
        column = self.columns.get(self.unit.key)
        return column is not None and column.higher_is_better and at_floor(
            wilson(float(self.base.clip(0, 1).sum()), self.base.size)[0], self.chance)

    @property
    def case(self) -> Case:
        """The test as a member of Holm's family: one for which nothing is proven at a fixed number of items."""
        return Case(tests=NO_EVIDENCE, target=self.target, at_floor=self.at_floor)


def is_stopped(left: Evaluation, right: Evaluation, task: str) -> bool:
    """True where one of the evaluations was stopped before it had asked all items of the task."""
    return any(t is not None and t.used is not None for t in (left.task(task), right.task(task)))


def stopped_tests(left: Evaluation, right: Evaluation, pairs: Sequence[Pair]) -> list[StoppedTest]:
    """The tests that stopped early, with the values of the shared items. Tests without shared items are skipped."""
    plan = right.early or left.early
    if plan is None:
        return []
    stopped = []
    for unit in plan.units:
        unit_pairs = [p for p in pairs if p.settings.task in unit.tasks and is_stopped(left, right, p.settings.task)]
        if unit_pairs:
            stopped.append(_stopped_test(left, right, unit, unit_pairs, plan))
    return stopped


def _stopped_test(left: Evaluation, right: Evaluation, unit: EarlyUnit, pairs: Sequence[Pair], plan: Early
                  ) -> StoppedTest:
    tables = [metric_values(left, right, p) for p in pairs]
    answers = [a for p in pairs for a in p.right]
    order = sorted(range(len(answers)), key=lambda i: random_order_key(plan.seed, answers[i].task, answers[i].index,
                                                               answers[i].item))
    keys = list(tables[0]) if len(unit.tasks) == 1 else [unit.key]
    pooled = {}
    for key in keys:
        values = [v for t in tables if (v := t.get(key)) is not None]
        bounded = is_bounded(MetricKey(key).metric, unit.tasks[0]) and all(v.unit in FRACTIONS for v in values)
        if bounded and len(values) == len(tables):
            base, tuned = (np.concatenate([getattr(v, side) for v in values])[order] for side in ("base", "tuned"))
            pooled[key] = MetricValues(base, tuned, values[0].higher_is_better, values[0].note, values[0].unit)
    settings = [p.settings for p in pairs]
    return StoppedTest(
        unit=unit, columns=pooled, base=np.array([a.metrics[unit.key] for p in pairs for a in p.all_left]),
        chance=group_chance(settings, [len(p.left) for p in pairs]),
        groups=settings[0].groups, share=unit.share or len(plan.units), target=settings[0].target)


def with_early_rows(rows: Sequence[ComparisonRow], stopped: Sequence[StoppedTest], margins: Margins, *,
                    lineage: bool, forced: bool) -> tuple[ComparisonRow, ...]:
    """``rows`` together with those of the tests that stopped early, primary ones first."""
    early = []
    for u in stopped:
        for key, column in u.columns.items():
            margin = margin_of(margins, column.unit, u.unit.name, *u.groups, primary=key == u.unit.key)
            early.append(_row(u, key, column, margin or MARGIN, lineage=lineage, forced=forced))
    return tuple(sorted((*rows, *early), key=lambda r: not r.primary))


def _row(stopped: StoppedTest, key: str, column: MetricValues, margin: float, *, lineage: bool,
         forced: bool) -> ComparisonRow:
    unit, primary = stopped.unit, key == stopped.unit.key
    metric = MetricKey(key).metric
    d = column.tuned - column.base if column.higher_is_better else column.base - column.tuned
    whole = has_whole_differences(metric, d)
    test = PairedSequential(unit.items, margin, alpha=ALPHA / stopped.share, whole=whole)
    verdict = test.update(d) or "undecided"
    low, high = test.interval()
    floor = primary and verdict in ("within", "undecided") and stopped.at_floor
    needed: DecidingItems | None = None
    notes = [FORCED if forced else "", _test_note(stopped) if primary else ""]
    if floor:
        notes.append(floor_note(float(stopped.base.mean()), stopped.chance, unit.items))
    if primary and verdict == "undecided" and not floor:
        needed = items_to_decide(discordance_bound(int((d != 0).sum()), d.size), margin, float(d.mean()),
                                 includes_zero=low <= 0 <= high, seen=d.size, total=unit.items,
                                 alpha=ALPHA / stopped.share)
        notes.append(items_note(needed, unit.items, shares=True))
    decision = Decision(verdict="undecided" if floor else verdict, p=test.p, at_floor=floor,
                        p_adjusted=min(1.0, test.p * stopped.share), members=stopped.share) if primary else None
    draft = RowDraft(task=unit.name, key=key, evidence=_evidence(column, d, (low, high), whole), margin=margin,
                     unit=column.unit, primary=primary, target=stopped.target, stopped_of=unit.items)
    return build_row(draft, decision, lineage=lineage, notes=notes, needed=needed)


def _evidence(column: MetricValues, d: Floats, interval: tuple[float, float], binary: bool) -> Evidence:
    """The early estimate of one metric, with the interval for the full run. A sequential test has no p-values for
    "lower", "higher" and "within", so ``tests`` is empty."""
    return Evidence(
        n=d.size, base=float(column.base.mean()), tuned=float(column.tuned.mean()), delta=float(d.mean()),
        low=interval[0], high=interval[1], kind="binary" if binary else "real", tests=NO_EVIDENCE,
        gained=int((d > 0).sum()) if binary else None, lost=int((d < 0).sum()) if binary else None)


def _test_note(stopped: StoppedTest) -> str:
    """A note on the error level of the test, and on the pooled items of a group."""
    sentences = []
    if stopped.share > 1:
        sentences.append(f"tested at 1/{stopped.share} of the error level, which {stopped.share} primary metrics share")
    if len(stopped.unit.tasks) > 1:
        sentences.append(f"mean over the items of {len(stopped.unit.tasks)} tasks, in one random order")
    return "; ".join(sentences)
