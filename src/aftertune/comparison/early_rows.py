"""Builds the rows of tasks that were stopped early.

    stopped, looks = early_tests(left, right, pairs)
    rows = with_early_rows(rows, stopped, 0.02, lineage=True, forced=False)

An evaluation that was stopped early asked its items in a random order that was fixed before the first one (`Early`).
The sequential tests are valid at every item, whatever the reason for stopping, so they can be repeated here with any
margin. The verdict and its interval are about the models, as those of all rows are. What the full run would show is
another statement with its own test. The row shows the early estimate and marks it as one.

A task of which all items were asked after interim analyses has a usual row. Its p-values are those of the analyses and
of all items together (`stats.sequential.after_looks`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aftertune.catalog import FRACTIONS, MetricKey, is_bounded
from aftertune.comparison.clusters import group_clusters, task_clusters
from aftertune.comparison.margins import MARGIN, Margins, margin_of
from aftertune.comparison.pairing import MetricValues, Pair, metric_values
from aftertune.comparison.rows import (
    FORCED,
    FullRun,
    Looks,
    RowDraft,
    build_row,
    floor_note,
    group_chance,
    items_note,
)
from aftertune.stats.evidence import Evidence
from aftertune.stats.paired import NO_EVIDENCE, Floats, wilson
from aftertune.stats.planning import DecidingItems, discordance_bound, items_to_decide
from aftertune.stats.sequential import (
    CLAIMS,
    PairedSequential,
    first_of_clusters,
    has_whole_differences,
    random_order_key,
)
from aftertune.stats.verdict import ALPHA, SETTLED, Case, Decision, at_floor, first_claim, floored
from aftertune.values import ComparisonRow, Early, EarlyUnit, Evaluation, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlyTest:
    """A sequential test of one of the evaluations, with the values of the shared items in random order.

    columns: ``metric,filter`` -> paired values. counted: which items the models' test counts (`first_of_clusters`).
    base: all known values of the base on the metric of the test. chance: expected score of a guess. groups: of its
    first task. share: number of tests that share alpha.
    """

    unit: EarlyUnit
    columns: dict[str, MetricValues]
    counted: NDArray[np.bool_]
    base: Floats
    chance: float | None
    groups: tuple[str, ...]
    share: int
    target: bool

    @property
    def name(self) -> str:
        """Its task or group."""
        return self.unit.name

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

    def margin(self, key: str, margins: Margins) -> float:
        """The margin of a metric; the usual one where none is given."""
        names = (self.unit.name, *self.groups)
        return margin_of(margins, self.columns[key].unit, *names, primary=key == self.unit.key) or MARGIN

    def of_models(self, key: str, margin: float) -> PairedSequential:
        """The test about the models, after all shared items."""
        test = PairedSequential(None, margin, alpha=ALPHA / self.share)
        test.update(differences_of(self.columns[key])[self.counted])
        return test

    def interval(self, alpha: float) -> tuple[float, float]:
        """The interval for the models at the error level ``alpha``, valid at every look."""
        test = PairedSequential(None, MARGIN, alpha=alpha)
        test.update(differences_of(self.columns[self.unit.key])[self.counted])
        return test.interval()

    def looks(self, margins: Margins) -> Looks | None:
        """The interim analyses of a task of which all items were asked; None for one without them."""
        if self.unit.batch >= self.unit.items or self.unit.key not in self.columns:
            return None
        return Looks(self.of_models(self.unit.key, self.margin(self.unit.key, margins)).tests, self.interval(ALPHA))


def differences_of(column: MetricValues) -> Floats:
    """The differences of paired values, with the sign turned so that positive is better."""
    return column.tuned - column.base if column.higher_is_better else column.base - column.tuned


def is_stopped(left: Evaluation, right: Evaluation, task: str) -> bool:
    """True where one of the evaluations was stopped before it had asked all items of the task."""
    return any(t is not None and t.used is not None for t in (left.task(task), right.task(task)))


def early_tests(left: Evaluation, right: Evaluation, pairs: Sequence[Pair]) -> tuple[list[EarlyTest], list[EarlyTest]]:
    """The tests that stopped early, and those of which all items were asked. Tests without shared items are skipped."""
    plan = right.early or left.early
    if plan is None:
        return [], []
    stopped, ended = [], []
    for unit in plan.units:
        members = [p for p in pairs if p.settings.task in unit.tasks]
        of_stopped = [p for p in members if is_stopped(left, right, p.settings.task)]
        if of_stopped:
            stopped.append(_early_test(left, right, unit, of_stopped, plan))
        elif len(members) == len(unit.tasks):
            ended.append(_early_test(left, right, unit, members, plan))
    return stopped, ended


def _early_test(left: Evaluation, right: Evaluation, unit: EarlyUnit, pairs: Sequence[Pair], plan: Early
                ) -> EarlyTest:
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
    labels = group_clusters(pairs) if len(unit.tasks) > 1 else \
        None if (own := task_clusters(pairs[0])) is None else [own]
    flat = None if labels is None else [label for task in labels for label in task]
    return EarlyTest(
        unit=unit, columns=pooled, base=np.array([a.metrics[unit.key] for p in pairs for a in p.all_left]),
        counted=first_of_clusters(None if flat is None else [flat[i] for i in order], len(answers)),
        chance=group_chance(settings, [len(p.left) for p in pairs]),
        groups=settings[0].groups, share=unit.share or len(plan.units), target=settings[0].target)


def with_early_rows(rows: Sequence[ComparisonRow], stopped: Sequence[EarlyTest], margins: Margins, *,
                    lineage: bool, forced: bool) -> tuple[ComparisonRow, ...]:
    """``rows`` together with those of the tests that stopped early, primary ones first."""
    early = [_row(test, key, test.margin(key, margins), lineage=lineage, forced=forced)
             for test in stopped for key in test.columns]
    return tuple(sorted((*rows, *early), key=lambda r: not r.primary))


def _row(stopped: EarlyTest, key: str, margin: float, *, lineage: bool, forced: bool) -> ComparisonRow:
    unit, primary, column = stopped.unit, key == stopped.unit.key, stopped.columns[key]
    d = differences_of(column)
    whole = has_whole_differences(MetricKey(key).metric, d)
    test = stopped.of_models(key, margin)
    verdict = first_claim(test.claims)
    low, high = test.interval()
    floor = primary and floored(verdict, stopped.at_floor)
    needed: DecidingItems | None = None
    notes = [FORCED if forced else "", _test_note(stopped) if primary else ""]
    if floor:
        notes.append(floor_note(float(stopped.base.mean()), stopped.chance, unit.items))
    if primary and verdict not in SETTLED and not floor:
        needed = items_to_decide(discordance_bound(int((d != 0).sum()), d.size), margin, float(d.mean()),
                                 includes_zero=low <= 0 <= high, seen=d.size, total=unit.items,
                                 alpha=ALPHA / stopped.share)
        notes.append(items_note(needed, unit.items, shares=True, undecided=verdict == "undecided"))
    nearest: Verdict = min(sorted(SETTLED), key=test.level_p) if verdict == "undecided" else verdict
    decision = Decision(verdict="undecided" if floor else verdict, p=test.p_of(nearest), at_floor=floor,
                        p_adjusted=min(1.0, test.level_p(nearest) * stopped.share),
                        members=stopped.share, claims=_adjusted_claims(test, stopped)) if primary else None
    draft = RowDraft(task=unit.name, key=key, evidence=_evidence(column, d, (low, high), whole), margin=margin,
                     unit=column.unit, primary=primary, target=stopped.target, stopped_of=unit.items)
    return build_row(draft, decision, lineage=lineage, notes=notes, needed=needed,
                     full=_full_run(stopped, column, d, margin, whole) if primary else None)


def _adjusted_claims(test: PairedSequential, stopped: EarlyTest) -> dict[Verdict, float]:
    """The adjusted p of each claim; 1 for those that mean nothing at the floor."""
    return {claim: 1.0 if floored(claim, stopped.at_floor) else min(1.0, test.level_p(claim) * stopped.share)
            for claim in CLAIMS}


def _full_run(stopped: EarlyTest, column: MetricValues, d: Floats, margin: float, whole: bool) -> FullRun:
    """What asking all items would show. The base's score is known where all its answers are."""
    unit = stopped.unit
    test = PairedSequential(unit.items, margin, alpha=ALPHA / stopped.share, whole=whole)
    test.update(d)
    base = float(stopped.base.mean()) if stopped.base.size == unit.items else None
    return FullRun(*test.interval(), verdict=first_claim(test.claims), base=base,
                   sign=1 if column.higher_is_better else -1)


def _evidence(column: MetricValues, d: Floats, interval: tuple[float, float], binary: bool) -> Evidence:
    """The early estimate of one metric, with the interval for the models. ``tests`` are those of a fixed number
    of items, so it is empty."""
    return Evidence(
        n=d.size, base=float(column.base.mean()), tuned=float(column.tuned.mean()), delta=float(d.mean()),
        low=interval[0], high=interval[1], kind="binary" if binary else "real", tests=NO_EVIDENCE,
        gained=int((d > 0).sum()) if binary else None, lost=int((d < 0).sum()) if binary else None)


def _test_note(stopped: EarlyTest) -> str:
    """A note on the error level of the test, on its clusters, and on the pooled items of a group."""
    sentences = []
    if stopped.share > 1:
        sentences.append(f"tested at 1/{stopped.share} of the error level, which {stopped.share} primary metrics share")
    counted = int(stopped.counted.sum())
    if counted < stopped.counted.size:
        sentences.append(f"of items that belong together, the test counts the first one ({counted:,} of "
                         f"{stopped.counted.size:,})" if counted else
                         "which items belong together is not known, so nothing is proven about the models")
    if len(stopped.unit.tasks) > 1:
        sentences.append(f"mean over the items of {len(stopped.unit.tasks)} tasks, in one random order")
    return "; ".join(sentences)
