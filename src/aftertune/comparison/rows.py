"""Builds the rows of a comparison and gives the primary ones their verdicts.

    drafts, without_rows = build_drafts(left, right, pairs, 0.02)
    rows = judge_drafts(drafts, lineage=True, forced=False)

There is one row for each metric of a task, and one for each metric of a group (mmlu) that has a score. The primary rows
are tested: they come first and get verdicts. Their families are those of `stats.verdict`. A group whose metric is the
primary metric of all its tasks replaces these tasks in the family, so that MMLU is one test and not 57. A target task
with slices is a member of its family beside each of them.

Every `ComparisonRow` is made by `build_row`: here, for the average over the tasks (`comparison.average`), for tasks
that stopped early (`comparison.early_rows`), and for recipes over several seeds (`comparison.across_seeds`). To add a
column, add a field to `ComparisonRow`, a line to `build_row`, and a line to the list in `report.columns`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from aftertune.catalog import EXPECTED_ACCURACY, FRACTIONS, MetricKey, Unit
from aftertune.comparison.clusters import question_clusters
from aftertune.comparison.margins import Margins, margin_of, missing_margin_note
from aftertune.comparison.pairing import MetricValues, Pair, metric_values, score_of
from aftertune.stats.clustered import Weighting, weights
from aftertune.stats.evidence import Evidence, group_evidence, interval_at, paired_evidence
from aftertune.stats.paired import NO_EVIDENCE, MarginTests
from aftertune.stats.planning import DecidingItems, items_above, items_to_decide
from aftertune.stats.sequential import END_LEVEL, after_looks, interval_after_looks, no_drop_after_looks
from aftertune.stats.verdict import (
    ALPHA,
    GENERATION_FLOOR,
    SETTLED,
    Case,
    Decision,
    at_floor,
    benjamini_hochberg,
    decide,
    label_of,
    proven_verdict,
)
from aftertune.values import Comparison, ComparisonRow, Difference, Evaluation, Score, TaskSettings, Verdict

FORCED = "forced: the evaluations differ in settings that must agree"


@dataclass(frozen=True, slots=True)
class Looks:
    """The interim analyses of a task of which all items were asked: their p-values, and their interval at `LOOKS` of
    5 %."""

    tests: MarginTests
    interval: tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class RowDraft:
    """A row before it has a verdict.

    key: ``metric,filter``. chance: expected score of a guess, None where answers cannot be guessed. n_total: items that
    the task has, None where the row does not show them. note: what a reader must know to read the figures. group: the
    group that replaces this task in the family. stopped_of: items of the full run, where the task stopped early. looks:
    its interim analyses, where all items were asked after them. unit: of the values. margin: None where
    none was given in this unit; then the row has no tests. values: the paired values, of each task of a group; None
    where the row is not made from them. average_of: the tasks and groups whose average the row is.
    """

    task: str
    key: str
    evidence: Evidence
    margin: float | None
    primary: bool
    unit: Unit
    looks: Looks | None = None
    chance: float | None = None
    n_total: int | None = None
    target: bool = False
    note: str = ""
    group: str = ""
    stopped_of: int | None = None
    values: TaskGroup | None = None
    average_of: tuple[str, ...] = ()

    @property
    def tested(self) -> bool:
        """True for a member of the family."""
        return self.primary and self.margin is not None

    @property
    def case(self) -> Case:
        """The row as a member of the family."""
        low = self.evidence.base_low if self.unit in FRACTIONS else None
        tests, clustered, bootstrap = (
            after_looks(self.looks.tests, fixed) if self.looks and fixed else fixed
            for fixed in (self.evidence.tests, self.evidence.clustered, self.evidence.bootstrap))
        assert tests is not None
        return Case(tests=tests, clustered=clustered, bootstrap=bootstrap,
                    at_floor=low is not None and at_floor(low, self.chance), target=self.target)

    @property
    def p_no_drop(self) -> float:
        """The largest one-sided p, of all kinds of test, against a drop beyond the margin."""
        fixed = max(t.no_drop for t in (self.evidence.tests, self.evidence.clustered, self.evidence.bootstrap) if t)
        return no_drop_after_looks(self.looks.tests, fixed) if self.looks else fixed

    def after(self, looks: Looks | None) -> RowDraft:
        """The row with interim analyses before it, which its interval then has a part of too."""
        if looks is None or self.values is None or not self.tested or self.unit not in FRACTIONS:
            return self
        values = [v for _, v in self.values.members]
        fixed = interval_at([v.base for v in values], [v.tuned for v in values], END_LEVEL,
                            higher_is_better=values[0].higher_is_better, weighting=self.values.weighting)
        low, high = interval_after_looks(looks.interval, fixed)
        return replace(self, looks=looks, evidence=replace(self.evidence, low=low, high=high))


@dataclass(frozen=True, slots=True)
class FullRun:
    """What the full run of a task that was stopped early would show.

    low, high: interval of its difference, positive is better. verdict: what is proven of it. base: the base's score on
    it, None where it is not known. sign: -1 where a lower score is better.
    """

    low: float
    high: float
    verdict: Verdict
    base: float | None
    sign: int = 1

    @property
    def tuned(self) -> tuple[float, float] | None:
        """The interval of the tuned model's score on the full run."""
        if self.base is None:
            return None
        ends = sorted(self.base + self.sign * end for end in (self.low, self.high))
        return max(0.0, ends[0]), min(1.0, ends[1])


def build_row(draft: RowDraft, decision: Decision | None, *, lineage: bool, notes: Sequence[str] = (),
              needed: DecidingItems | None = None, tests: MarginTests | None = None, q: float | None = None,
              full: FullRun | None = None) -> ComparisonRow:
    """Build a row. All rows are built here, whichever test they use.

    decision: None for a row that is not tested: a secondary one, or one without a margin in its unit. notes: sentences
    of the row's note; empty ones are skipped. needed: how many items would decide a row that is not settled. tests: the
    unadjusted p-values that the row shows, None for a row without them. full: what the full run would show, of a task
    that was stopped early. For the others see `ComparisonRow`.
    """
    ends = full.tuned if full else None
    e = draft.evidence
    key = MetricKey(draft.key)
    untested: Verdict | None = "undecided" if draft.primary else None
    return ComparisonRow(
        task=draft.task, metric=key.metric, filter=key.filter,
        n=e.n, n_total=draft.n_total, stopped_of=draft.stopped_of,
        base=e.base, tuned=e.tuned, delta=e.delta, low=e.low, high=e.high, kind=e.kind,
        margin=draft.margin, primary=draft.primary, target=draft.target, group=draft.group,
        average_of=draft.average_of,
        p=decision.p if decision else None,
        p_adjusted=decision.p_adjusted if decision else None,
        p_lower=tests.lower if tests else None,
        p_higher=tests.higher if tests else None,
        p_within=tests.within if tests else None,
        p_worse=tests.worse if tests else None,
        p_better=tests.better if tests else None,
        p_exact=e.p_exact, p_mid=e.p_mid, p_no_drop=draft.p_no_drop if tests and decision else None, q=q,
        gained=e.gained, lost=e.lost,
        verdict=decision.verdict if decision else untested,
        told=label_of(decision.verdict, lineage=lineage, at_floor=decision.at_floor) if decision else untested or "",
        at_floor=bool(decision and decision.at_floor),
        items_needed=needed.items if needed else None,
        items_needed_at=needed.at if needed and needed.items else None,
        items_needed_power=needed.power if needed and needed.items else None,
        family_size=decision.members if decision else None,
        p_claims=dict(decision.claims) if decision else {},
        note="; ".join(note for note in notes if note), details=e.details, unit=draft.unit,
        full_low=full.low if full else None, full_high=full.high if full else None,
        full_verdict=full.verdict if full else None, full_base=full.base if full else None,
        full_tuned_low=ends[0] if ends else None, full_tuned_high=ends[1] if ends else None)


@dataclass(frozen=True, slots=True)
class TaskGroup:
    """A group of tasks that has a score in both evaluations; or one task, or an average over tasks and groups.

    members: (task, its values of the metric). sizes, weights: of an average: how many tasks each of its members has,
    and the weight of each task.
    """

    name: str
    key: str
    members: tuple[tuple[Pair, MetricValues], ...]
    score: Score | None
    sizes: tuple[int, ...] = ()
    weights: tuple[float, ...] = ()

    @property
    def tasks(self) -> set[str]:
        return {pair.settings.task for pair, _ in self.members}

    @property
    def pairs(self) -> list[Pair]:
        """The paired answers of each task."""
        return [pair for pair, _ in self.members]

    @property
    def unit(self) -> Unit:
        """Of its mean: no share if the values of one task are none."""
        return next((v.unit for _, v in self.members if v.unit not in FRACTIONS), self.members[0][1].unit)

    @property
    def chance(self) -> float | None:
        """The expected score of a guess on the group's mean."""
        return group_chance([pair.settings for pair in self.pairs],
                            weights([v.base.size for _, v in self.members], self.weighting).tolist())

    @property
    def weighting(self) -> Weighting:
        """How its stored score weights its tasks: by items (lm-eval's default), unless only equal weights fit."""
        if self.weights:
            return np.array(self.weights)
        values = [v.base for _, v in self.members]
        micro, macro = float(np.concatenate(values).mean()), float(np.mean([v.mean() for v in values]))
        fits = self.score is not None and abs(self.score.value - macro) < 1e-9 < abs(self.score.value - micro)
        return "macro" if fits else "micro"

    @property
    def sliced(self) -> bool:
        """True for a target task with slices: the whole task and each of its slices have a verdict."""
        return all(pair.settings.target for pair in self.pairs)

    @property
    def replaces_tasks(self) -> bool:
        """True where its metric is the primary one of all its tasks."""
        return all(pair.settings.primary == self.key for pair, _ in self.members)


def build_drafts(left: Evaluation, right: Evaluation, pairs: Sequence[Pair], margins: Margins, *,
                 looks: Mapping[tuple[str, str], Looks] | None = None
                 ) -> tuple[list[RowDraft], tuple[Difference, ...]]:
    """The rows before they have verdicts, in task order; and the metrics that cannot have a row.

    looks: by (task or group, metric), interim analyses after which all items were asked. Raises InputError for a margin
    that is not allowed.
    """
    table = {p.settings.task: metric_values(left, right, p) for p in pairs}
    groups = paired_groups(left, right, pairs, table)
    replacing = replacing_groups(groups)
    replaced = {task: g for g in replacing if not g.sliced for task in g.tasks}
    drafts: list[RowDraft] = []
    for pair in pairs:
        drafts += [_group_draft(g, margins, primary=g in replacing) for g in groups if g.members[0][0] is pair]
        drafts += [_task_draft(pair, key, values, margins, group=replaced.get(pair.settings.task))
                   for key, values in table[pair.settings.task].items() if values is not None]
    drafts = [d.after((looks or {}).get((d.task, d.key))) for d in drafts]
    return drafts, tuple(_without_row(left, right, task, key) for task, metrics in table.items()
                         for key, values in metrics.items() if values is None)


def judge_drafts(drafts: Sequence[RowDraft], *, lineage: bool, forced: bool, early: Sequence[Case] = ()
                 ) -> tuple[ComparisonRow, ...]:
    """The rows, primary ones first and then the others, both in the order of ``drafts``.

    early: the primary metrics with a sequential verdict (`comparison.early_rows`). They are members of Holm's families
    for which nothing is proven, so that each whole family keeps its error level.
    """
    family = [d for d in drafts if d.tested]
    decisions = decide([*(d.case for d in family), *early])[:len(family)]
    rows = [_row(d, e, lineage=lineage, forced=forced) for d, e in zip(family, decisions, strict=True)]
    secondary = sorted((d for d in drafts if not d.tested), key=lambda d: not d.primary)
    rows += [_row(d, None, lineage=lineage, forced=forced, q=q)
             for d, q in zip(secondary, _q_values(secondary), strict=True)]
    return tuple(rows)


def _q_values(drafts: Sequence[RowDraft]) -> list[float | None]:
    """Benjamini and Hochberg's q for the tasks that a group replaces, for each metric, from the mid-p of "any
    difference". None for all others."""
    q_values: list[float | None] = [None] * len(drafts)
    for family in {(d.group, d.key) for d in drafts if d.group}:
        members = [(i, d.evidence.p_mid) for i, d in enumerate(drafts) if (d.group, d.key) == family]
        tests = [(i, p) for i, p in members if p is not None]
        for (i, _), q in zip(tests, benjamini_hochberg([p for _, p in tests]), strict=True):
            q_values[i] = q
    return q_values


def _without_row(left: Evaluation, right: Evaluation, task: str, key: str) -> Difference:
    """The scores of a metric that is not a mean over items, for the list of differences."""
    scores = [f"{s.value:.6g} (of the whole task)" if s else "no score"
              for s in (score_of(left, task, key), score_of(right, task, key))]
    return Difference(field=f"{task}.{key} is not a mean over items, so it has no row", left=scores[0],
                      right=scores[1], blocking=False)


def _task_draft(pair: Pair, key: str, values: MetricValues, margins: Margins, *, group: TaskGroup | None) -> RowDraft:
    """The draft of one metric of a task. group: the group that replaces the task in the family, if any."""
    settings = pair.settings
    margin = margin_of(margins, values.unit, settings.task, *settings.groups, primary=key == settings.primary)
    clusters = question_clusters([pair])
    evidence = paired_evidence(values.base, values.tuned, margin=margin or 1.0,
                               higher_is_better=values.higher_is_better,
                               clusters=clusters[0] if clusters else None, bounded=values.unit in FRACTIONS)
    return RowDraft(task=settings.task, key=key, evidence=evidence, margin=margin, note=values.note, unit=values.unit,
                    primary=group is None and key == settings.primary, chance=settings.chance, n_total=settings.n_total,
                    target=settings.target, group=group.name if group else "",
                    values=TaskGroup(settings.task, key, ((pair, values),), None))


def replacing_groups(groups: Sequence[TaskGroup]) -> list[TaskGroup]:
    """The groups that are tested in place of their tasks: the largest whose metric is primary in all their tasks."""
    return [g for g in groups if g.replaces_tasks and not any(o.replaces_tasks and g.tasks < o.tasks for o in groups)]


def paired_groups(left: Evaluation, right: Evaluation, pairs: Sequence[Pair],
                  table: Mapping[str, Mapping[str, MetricValues | None]]) -> list[TaskGroup]:
    """The groups whose mean can be paired: both evaluations have all their tasks, with values for each item."""
    groups = []
    for name in dict.fromkeys(g for p in pairs for g in p.settings.groups):
        group_pairs = [p for p in pairs if name in p.settings.groups]
        complete = all(sum(name in t.groups for t in e.tasks) == len(group_pairs) for e in (left, right))
        scores: dict[str, Score | None] = {s.key: s for s in left.scores if complete and s.group and s.task == name
                                           and score_of(right, name, s.key)}
        if scores:
            scores |= {MetricKey.of(EXPECTED_ACCURACY): None}  # no evaluation stores it
        for key, score in scores.items():
            members = tuple((p, values) for p in group_pairs
                            if (values := table[p.settings.task].get(key)) is not None)
            if len(members) == len(group_pairs):
                groups.append(TaskGroup(name, key, members, score))
    return groups


def _group_draft(group: TaskGroup, margins: Margins, *, primary: bool) -> RowDraft:
    """The draft of one metric of a group."""
    values = [v for _, v in group.members]
    margin = margin_of(margins, group.unit, group.name, primary=primary)
    weighting = group.weighting
    evidence = group_evidence([v.base for v in values], [v.tuned for v in values], margin=margin or 1.0,
                              higher_is_better=values[0].higher_is_better, weighting=weighting,
                              clusters=question_clusters(group.pairs), bounded=group.unit in FRACTIONS)
    return RowDraft(task=group.name, key=group.key, evidence=evidence, margin=margin, primary=primary, unit=group.unit,
                    chance=group.chance, n_total=sum(pair.settings.n_total for pair in group.pairs),
                    target=group.sliced, values=group,
                    note=(slices_note(len(values)) if primary else "") if group.sliced else
                    group_note(weighting, len(values)))


def slices_note(slices: int) -> str:
    """What the row of a target task with slices is."""
    return f"the whole task, with errors stratified by its {slices} slices"


def group_note(weighting: Weighting, tasks: int) -> str:
    """What the mean of a group is."""
    averaged = "items" if isinstance(weighting, str) and weighting == "micro" else "tasks"
    return f"mean over the {averaged} of {tasks} tasks, with errors stratified by task"


def group_chance(members: Sequence[TaskSettings], weight: Sequence[float]) -> float | None:
    """The expected score of a guess on a weighted mean over tasks; None where the answers of none can be guessed."""
    if all(m.chance is None for m in members):
        return None
    return sum(w * (m.chance or 0.0) for m, w in zip(members, weight, strict=True)) / sum(weight)


def _items_needed(draft: RowDraft, decision: Decision) -> tuple[DecidingItems | None, str]:
    """(how many items would decide a row that is not settled, the reason why there is no such number or "")."""
    e = draft.evidence
    total = e.n if draft.n_total is None else draft.n_total
    if decision.at_floor:
        return None, floor_note(e.base, draft.chance, total)
    if decision.verdict in SETTLED or NO_EVIDENCE in (e.tests, e.clustered) or not e.psi or not draft.margin:
        return None, ""
    needed = items_to_decide(e.psi, draft.margin, e.delta, includes_zero=e.low <= 0 <= e.high, seen=e.n, total=total,
                             alpha=ALPHA / decision.members, shares=e.shares)
    return needed, items_note(needed, total, draft.unit in FRACTIONS, undecided=decision.verdict == "undecided",
                              average=bool(draft.average_of))


def items_note(needed: DecidingItems, total: int, shares: bool, *, undecided: bool = True, average: bool = False
               ) -> str:
    """Why no number of items decides a row; "" if one does. total: items of the task; shares: shown in points.
    undecided: nothing is proven; else it is open only whether the difference is beyond the margin. average: over tasks.
    """
    if needed.items is not None:
        return ""
    unit = (f"{100 * needed.at:+.2f} points" if shares else f"{needed.at:+.4g}").replace("-", "\N{MINUS SIGN}")
    truth = f"if the true difference is {unit}" if needed.at else "if the models do not differ"
    if needed.needed is None:
        return f"the difference is close to the margin, and no number of items decides it {truth}"
    if needed.needed <= total:
        return f"as many items as this decide {needed.power:.0%} of such rows {truth}; more may not decide this one"
    what = "" if undecided else "whether it is beyond the margin "
    where = ("these tasks", "they have") if average else ("this task", "it has")
    reason = f"{what}cannot be decided with {where[0]} ({needed.needed:,} items needed {truth}, {where[1]} {total:,})"
    if not needed.near_margin:
        return reason
    equal = f"; if the models do not differ, about {needed.if_equal:,} items would" if needed.if_equal else ""
    return f"{reason}: the difference is close to the margin, so no affordable number of items decides it{equal}"


def floor_note(base: float, chance: float | None, total: int) -> str:
    """How many items would show that the base is above the floor, if its score stays the same. total: items of the
    task."""
    needed = items_above(base, GENERATION_FLOOR if chance is None else chance)
    if needed is None:
        return "the base scores at chance, so no number of items can show a loss"
    if needed > total:
        return f"this task has too few items to show that the base is above chance ({needed:,} needed, {total:,} exist)"
    return f"about {needed:,} items would show that the base is above chance, if its score stays the same"


def _row(draft: RowDraft, decision: Decision | None, *, lineage: bool, forced: bool, q: float | None = None
         ) -> ComparisonRow:
    e = draft.evidence
    notes = [FORCED if forced else "", draft.note, *e.notes]
    if draft.primary and draft.margin is None:
        notes.insert(0, missing_margin_note(draft.task))
    if decision is None:
        return build_row(draft, None, lineage=lineage, notes=notes, q=q)
    needed, reason = _items_needed(draft, decision)
    looked = "all items were asked after interim analyses, which share the error level with the test and have a part " \
        "in the interval" if draft.looks else ""
    return build_row(draft, decision, lineage=lineage, notes=[*notes, looked, decision.note, reason], needed=needed,
                     tests=draft.case.tests)


def over_fine_tunes(comparisons: Sequence[Comparison], count: int = 0) -> list[Comparison]:
    """The comparisons as one family: the error level of 5 % covers the verdicts of all of them together. count: how
    many fine-tunes there are, if these are only some of them.

    A comparison's adjusted p-values keep any level, so with T comparisons each of them is judged at 0.05 / T
    (Bonferroni): the adjusted p of every claim is multiplied by T, and the verdict is the first claim that is then
    still proven. Rows by version 3 of the rules or before have the p of their verdict alone, so they become undecided.
    """
    count = count or len(comparisons)
    return [replace(c, rows=tuple(_over_fine_tunes(r, count, c.lineage) for r in c.rows)) for c in comparisons]


def _over_fine_tunes(row: ComparisonRow, count: int, lineage: bool) -> ComparisonRow:
    if row.p_adjusted is None or count < 2:
        return row
    p = min(1.0, count * row.p_adjusted)
    family = None if row.family_size is None else count * row.family_size
    claims = {claim: min(1.0, count * value) for claim, value in row.p_claims.items()}
    if row.verdict in (None, "undecided") or p < ALPHA:
        return replace(row, p_adjusted=p, p_claims=claims, family_size=family)
    verdict = proven_verdict(claims)
    told = label_of(verdict, lineage=lineage)
    left = "nothing is proven" if verdict == "undecided" else f"only {told} is proven"
    note = f"{row.told} if this fine-tune is judged alone; over {count} fine-tunes {left}"
    return replace(row, verdict=verdict, told=told, p_adjusted=claims.get(verdict, p), p_claims=claims,
                   family_size=family, note="; ".join(n for n in (row.note, note) if n))
