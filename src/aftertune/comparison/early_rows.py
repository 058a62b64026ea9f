"""Builds the rows of tasks that were stopped early.

    stopped, looks = early_tests(left, right, pairs)
    rows = with_early_rows(rows, stopped, 0.02, lineage=True, forced=False)

An evaluation that was stopped early asked its items in a random order that was fixed before the first one (`Early`).
The sequential tests are valid at every item, whatever the reason for stopping, so they can be repeated here with any
margin. The verdict and its interval are about the models, as those of all rows are. What the full run would show is
another statement with its own test. The row shows the early estimate and marks it as one.

Items that were drawn with unequal weights are read with these weights alone, and only beside an evaluation of the other
model that has all items: then the difference is a weighted estimate, and the row has no counts of changes. Otherwise
there is no row (`without_row`).

A task of which all items were asked after interim analyses has a usual row. Its p-values are those of the analyses and
of all items together (`stats.sequential.after_looks`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from aftertune.catalog import FRACTIONS, MetricKey, is_bounded
from aftertune.comparison.clusters import question_clusters
from aftertune.comparison.margins import MARGIN, Margins, margin_of
from aftertune.comparison.pairing import Label, MetricValues, Pair, metric_values
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
from aftertune.comparison.weighted_draws import DrawnItems
from aftertune.stats.evidence import Evidence
from aftertune.stats.paired import NO_EVIDENCE, Floats, wilson
from aftertune.stats.planning import DecidingItems, discordance_bound, items_to_decide
from aftertune.stats.sequential import (
    CLAIMS,
    AnytimeClaims,
    PairedSequential,
    first_of_clusters,
    has_whole_differences,
    random_order_key,
)
from aftertune.stats.verdict import ALPHA, SETTLED, Case, Decision, at_floor, first_claim, floored
from aftertune.stats.weighted_sequential import WeightedSequential
from aftertune.values import ComparisonRow, Difference, Early, EarlyUnit, Evaluation, Verdict, digest

#: Why a task has no row, after its name; `without_row` names the tasks.
UNEQUAL = ("has no row, because its items were drawn where a base was unsure: only a comparison of that base, with all "
           "its items, and the model that was stopped has an estimate")


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlyTest:
    """A sequential test of one of the evaluations, with the values of the shared items in random order.

    columns: ``metric,filter`` -> paired values. counted: which items the models' test counts (`first_of_clusters`).
    base: all known values of the base on the metric of the test. chance: expected score of a guess. groups: of its
    first task. share: number of tests that share alpha. drawn: of weighted drawing, else None. planned: the margin at
    which the run stopped, None where it is not known.
    """

    unit: EarlyUnit
    columns: dict[str, MetricValues]
    counted: NDArray[np.bool_]
    base: Floats
    chance: float | None
    groups: tuple[str, ...]
    share: int
    target: bool
    drawn: DrawnItems | None = None
    planned: float | None = None

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

    def of_models(self, key: str, margin: float) -> PairedSequential | WeightedSequential:
        """The test about the models, after all shared items."""
        if self.drawn is not None:
            return self.drawn.repeated_test(margin, alpha=ALPHA / self.share, models=True)
        test = PairedSequential(None, margin, alpha=ALPHA / self.share)
        test.update(differences_of(self.columns[key])[self.counted])
        return test

    def interval(self, alpha: float) -> tuple[float, float]:
        """The interval for the models at the error level ``alpha``, valid at every look."""
        if self.drawn is not None:
            return self.drawn.repeated_test(MARGIN, alpha=alpha, models=True).interval()
        if self.unit.draw == "weighted":
            return -1.0, 1.0  # they cannot be repeated with these evaluations
        test = PairedSequential(None, MARGIN, alpha=alpha)
        test.update(differences_of(self.columns[self.unit.key])[self.counted])
        return test.interval()

    @property
    def means(self) -> tuple[float, float]:
        """Early estimates of both scores: of items with equal chances their means, else the base's score on all items
        and that with the weighted estimate of the difference."""
        column = self.columns[self.unit.key]
        if self.drawn is None:
            return float(column.base.mean()), float(column.tuned.mean())
        full = self.drawn.repeated_test(MARGIN, alpha=ALPHA, models=False)
        base = float(self.base.mean())
        return base, min(max(base + full.estimate, 0.0), 1.0)

    def looks(self, margins: Margins) -> Looks | None:
        """The interim analyses of a task of which all items were asked; None for one without them."""
        if self.unit.batch >= self.unit.items or self.unit.key not in self.columns:
            return None
        if self.unit.draw == "weighted" and self.drawn is None:
            return Looks(NO_EVIDENCE, self.interval(ALPHA))  # they cannot be repeated, so they prove nothing
        return Looks(self.of_models(self.unit.key, self.margin(self.unit.key, margins)).tests, self.interval(ALPHA))


def differences_of(column: MetricValues) -> Floats:
    """The differences of paired values, with the sign turned so that positive is better."""
    return column.tuned - column.base if column.higher_is_better else column.base - column.tuned


def is_stopped(left: Evaluation, right: Evaluation, task: str) -> bool:
    """True where one of the evaluations was stopped before it had asked all items of the task."""
    return any(t is not None and t.used is not None for t in (left.task(task), right.task(task)))


def early_tests(left: Evaluation, right: Evaluation, pairs: Sequence[Pair]) -> tuple[list[EarlyTest], list[EarlyTest]]:
    """The tests that stopped early, and those of which all items were asked. Tests without shared items are skipped,
    and so are those that `without_row` lists."""
    plan = right.early or left.early
    if plan is None:
        return [], []
    stopped, ended = [], []
    for unit in plan.units:
        members = [p for p in pairs if p.settings.task in unit.tasks]
        of_stopped = [p for p in members if is_stopped(left, right, p.settings.task)]
        if any(p.unequal for p in of_stopped):
            drawn = drawn_items(left, right, unit, members)
            if drawn is not None:
                stopped.append(_weighted_test(unit, members, plan, drawn))
        elif of_stopped:
            stopped += [_early_test(left, right, part, own, plan) for part, own in _parts(unit, of_stopped, left, plan)]
        else:
            ended += [replace(_early_test(left, right, part, own, plan), drawn=drawn_items(left, right, part, own))
                      for part, own in _parts(unit, members, left, plan)]
    return stopped, ended


def _parts(unit: EarlyUnit, pairs: Sequence[Pair], left: Evaluation, plan: Early
           ) -> Iterator[tuple[EarlyUnit, list[Pair]]]:
    """The tests of these tasks of a unit: the unit itself where they are all of it, else a test of each smaller group
    that they complete, and of each other task, which share its error level.

    Their items came in a random order too. The mean over some tasks of a group is none of the group.
    """
    if len(pairs) == len(unit.tasks):
        yield unit, list(pairs)
        return
    rest = {p.settings.task: p for p in pairs}
    parts: list[tuple[str, list[Pair]]] = []
    for group in dict.fromkeys(g for p in pairs for g in sorted(p.settings.groups, key=_size(left), reverse=True)):
        tasks = [t.task for t in left.tasks if group in t.groups]
        if len(tasks) > 1 and all(t in rest for t in tasks):
            parts.append((group, [rest.pop(t) for t in tasks]))
    parts += [(task, [pair]) for task, pair in rest.items()]
    for name, own in parts:
        yield replace(unit, name=name, tasks=tuple(p.settings.task for p in own),
                      items=sum(p.settings.n for p in own), share=(unit.share or len(plan.units)) * len(parts)), own


def _size(evaluation: Evaluation) -> Callable[[str], int]:
    """Number of tasks of a group."""
    return lambda group: sum(group in t.groups for t in evaluation.tasks)


def without_row(left: Evaluation, right: Evaluation, pairs: Sequence[Pair], stopped: Sequence[EarlyTest]
                ) -> tuple[Difference, ...]:
    """The tasks whose items were drawn with unequal weights, where these evaluations have no estimate of the whole."""
    shown = {task for test in stopped for task in test.unit.tasks}
    return tuple(Difference(
        field=f"{p.settings.task} {UNEQUAL}", left=_asked(left, p.settings.task), right=_asked(right, p.settings.task),
        blocking=False)
        for p in pairs if p.unequal and p.settings.task not in shown)


def unequal_advice(left: Evaluation, right: Evaluation, tasks: Sequence[str]) -> str:
    """How tasks that `without_row` lists get a row."""
    first, second = ([t for t in tasks if e.drawn_unequally(t)] for e in (left, right))
    if not first:
        return (f"evaluate the model of {right.name} with --until-decided --against {left.name}, or with "
                "--draw uniform, or without --until-decided")
    names = " and ".join(e.name for e, drawn in ((left, first), (right, second)) if drawn)
    return f"evaluate the model{'s' if second else ''} of {names} with --draw uniform or without --until-decided"


def _asked(evaluation: Evaluation, task: str) -> str:
    settings = evaluation.task(task)
    if settings is None or settings.used is None:
        return "all items"
    how = "drawn with unequal weights" if evaluation.drawn_unequally(task) else "drawn with equal chances"
    return f"{settings.used} of {settings.n} items, {how}"


def drawn_items(left: Evaluation, right: Evaluation, unit: EarlyUnit, pairs: Sequence[Pair]) -> DrawnItems | None:
    """What a weighted test is repeated from. None unless ``right`` drew the items of ``unit`` with weights, and
    ``left`` has the answers to all of its items."""
    plan = right.early
    complete = len(pairs) == len(unit.tasks) and all(
        len(p.all_left) == p.settings.n and not left.drawn_unequally(p.settings.task) for p in pairs)
    if plan is None or unit not in plan.units or unit.draw != "weighted" or not complete:
        return None
    answers = [a for p in pairs for a in p.all_left]
    order = sorted(answers, key=lambda a: random_order_key(plan.seed, a.task, a.index, a.item))
    if digest([a.item for a in order]) != unit.order or any(unit.key not in a.metrics for a in order):
        return None
    base = np.array([a.metrics[unit.key] for a in order])
    at = {(a.task, a.index, a.item): i for i, a in enumerate(order)}
    tuned = {at[a.task, a.index, a.item]: a.metrics[unit.key] for p in pairs for a in p.all_right
             if (a.task, a.index, a.item) in at and unit.key in a.metrics}
    labels = _labels(pairs)
    by_place = {} if labels is None else dict(zip(((a.task, a.index) for a in answers), labels, strict=True))
    drawn = DrawnItems(unit=unit, base=base, tuned=tuned,
                       labels=None if labels is None else [by_place[a.task, a.index] for a in order])
    try:
        drawn.repeated_test(MARGIN, alpha=ALPHA, models=True)
    except ValueError:  # answers of another model than that of the strata, or without those of a batch
        return None
    return drawn


def _labels(pairs: Sequence[Pair]) -> list[Label | None] | None:
    """The clusters of all items of the left side, in the order of its answers; None where no two belong together."""
    labels = question_clusters([p.whole or p for p in pairs])
    return None if labels is None else [label for task in labels for label in task]


def _weighted_test(unit: EarlyUnit, pairs: Sequence[Pair], plan: Early, drawn: DrawnItems) -> EarlyTest:
    positions = sorted(drawn.tuned)
    values = MetricValues(drawn.base[positions], np.array([drawn.tuned[i] for i in positions]), higher_is_better=True)
    settings = [p.settings for p in pairs]
    return EarlyTest(
        unit=unit, columns={unit.key: values}, base=drawn.base, counted=np.ones(len(positions), dtype=bool),
        chance=group_chance(settings, [p.settings.n for p in pairs]), groups=settings[0].groups,
        share=unit.share or len(plan.units), target=settings[0].target, drawn=drawn,
        planned=plan.margins.get(unit.name))


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
    labels = question_clusters(pairs)
    flat = None if labels is None else [label for task in labels for label in task]
    return EarlyTest(
        unit=unit, columns=pooled, base=np.array([a.metrics[unit.key] for p in pairs for a in p.all_left]),
        counted=first_of_clusters(None if flat is None else [flat[i] for i in order], len(answers)),
        chance=group_chance(settings, [len(p.left) for p in pairs]),
        groups=settings[0].groups, share=unit.share or len(plan.units), target=settings[0].target,
        planned=plan.margins.get(unit.name))


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
    if primary and verdict not in SETTLED and not floor and stopped.drawn is None:
        needed = items_to_decide(discordance_bound(int((d != 0).sum()), d.size), margin, float(d.mean()),
                                 includes_zero=low <= 0 <= high, seen=d.size, total=unit.items,
                                 alpha=ALPHA / stopped.share)
        notes.append(items_note(needed, unit.items, shares=True, undecided=verdict == "undecided"))
    notes += [_planned_note(stopped, margin), _WITHIN if verdict == "within" and not -margin < low <= high < margin
              else ""] if primary else []
    nearest: Verdict = min(sorted(SETTLED), key=test.level_p) if verdict == "undecided" else verdict
    decision = Decision(verdict="undecided" if floor else verdict, p=test.p_of(nearest), at_floor=floor,
                        p_adjusted=min(1.0, test.level_p(nearest) * stopped.share),
                        members=stopped.share, claims=_adjusted_claims(test, stopped)) if primary else None
    full = _full_test(stopped, d, margin, whole)
    evidence = _evidence(column, d, (low, high), whole) if isinstance(full, PairedSequential) else \
        _weighted_evidence(stopped, full, (low, high))
    draft = RowDraft(task=unit.name, key=key, evidence=evidence, margin=margin,
                     unit=column.unit, primary=primary, target=stopped.target, stopped_of=unit.items)
    return build_row(draft, decision, lineage=lineage, notes=notes, needed=needed,
                     full=_full_run(stopped, column, full) if primary else None)


def _adjusted_claims(test: AnytimeClaims, stopped: EarlyTest) -> dict[Verdict, float]:
    """The adjusted p of each claim; 1 for those that mean nothing at the floor."""
    return {claim: 1.0 if floored(claim, stopped.at_floor) else min(1.0, test.level_p(claim) * stopped.share)
            for claim in CLAIMS}


def _full_test(stopped: EarlyTest, d: Floats, margin: float, whole: bool) -> PairedSequential | WeightedSequential:
    """The test about the full run, after the same items."""
    if stopped.drawn is not None:
        return stopped.drawn.repeated_test(margin, alpha=ALPHA / stopped.share, models=False)
    test = PairedSequential(stopped.unit.items, margin, alpha=ALPHA / stopped.share, whole=whole)
    test.update(d)
    return test


def _full_run(stopped: EarlyTest, column: MetricValues, test: PairedSequential | WeightedSequential) -> FullRun:
    """What asking all items would show. The base's score is known where all its answers are."""
    base = float(stopped.base.mean()) if stopped.base.size == stopped.unit.items else None
    return FullRun(*test.interval(), verdict=first_claim(test.claims), base=base,
                   sign=1 if column.higher_is_better else -1)


def _weighted_evidence(stopped: EarlyTest, full: WeightedSequential, interval: tuple[float, float]) -> Evidence:
    """The base's score on all items, and the weighted estimate of the difference; where it is outside the interval, the
    nearest end of it. Items that were drawn with weights cannot be counted, so no changes are."""
    base = float(stopped.base.mean())
    delta = min(max(full.estimate, interval[0], -base), interval[1], 1 - base)
    return Evidence(n=full.seen, base=base, tuned=base + delta, delta=delta, low=interval[0], high=interval[1],
                    kind="real", tests=NO_EVIDENCE)


def _evidence(column: MetricValues, d: Floats, interval: tuple[float, float], binary: bool) -> Evidence:
    """The early estimate of one metric, with the interval for the models. ``tests`` are those of a fixed number
    of items, so it is empty."""
    return Evidence(
        n=d.size, base=float(column.base.mean()), tuned=float(column.tuned.mean()), delta=float(d.mean()),
        low=interval[0], high=interval[1], kind="binary" if binary else "real", tests=NO_EVIDENCE,
        gained=int((d > 0).sum()) if binary else None, lost=int((d < 0).sum()) if binary else None)


#: Why the interval of a row may reach beyond the margin that the difference is proven to be within.
_WITHIN = "within the margin takes a test at 5 % on one side, so the 95 % interval may reach beyond the margin"


def _planned_note(stopped: EarlyTest, margin: float) -> str:
    """That the run stopped at another margin, where its verdict may be another one."""
    if stopped.planned is None or abs(stopped.planned - margin) < 1e-9:
        return ""
    points = f"{100 * stopped.planned:g}"
    return f"the run was stopped by a test with a margin of {points} points (--margin {points} shows its verdict)"


def _test_note(stopped: EarlyTest) -> str:
    """A note on the error level of the test, on its clusters, and on the pooled items of a group."""
    sentences = []
    if stopped.share > 1:
        sentences.append(f"tested at 1/{stopped.share} of the error level, which {stopped.share} primary metrics share")
    if stopped.drawn is not None:
        sentences.append("items were drawn where the base was unsure, so the base's score is that of all its items, "
                         "and the difference is a weighted estimate")
        if (labels := stopped.drawn.labels) is not None:
            sentences.append(f"of items that belong together, the test counts the first one ({len(set(labels)):,} "
                             f"clusters of {len(labels):,} items)")
    counted = int(stopped.counted.sum())
    if counted < stopped.counted.size:
        sentences.append(f"of items that belong together, the test counts the first one ({counted:,} of "
                         f"{stopped.counted.size:,})" if counted else
                         "which items belong together is not known, so nothing is proven about the models")
    if len(stopped.unit.tasks) > 1:
        sentences.append(f"mean over the items of {len(stopped.unit.tasks)} tasks, in one random order")
    return "; ".join(sentences)
