"""Builds the row of the average over the tasks of a comparison: one question about all of them.

    rows, without_rows = all_rows(left, right, pairs, 0.02, name="average", lineage=True, forced=False)
    question = average_question(drafts, stopped, ended, name="average")
    question.draft(margin)                     the row before it has a verdict, where no task has interim analyses
    question.early_row(margin, lineage=True)   the row, where tasks were stopped early or have interim analyses

Six tasks with 600 items each can seldom show one by one that nothing was lost, but together they can. The average has
the tasks on which something can be lost: neither the target tasks of the fine-tune nor tasks at the floor, and only
shares. A group, such as MMLU, is one task. All have the same weight, whatever their number of items, so the average
means the same in every comparison of these tasks. Its error is stratified by task (`stats.evidence.average_evidence`).

The average is a question of its own, tested at 5 % and outside of the family of the tasks: it says nothing about any
one of them. A loss on one task can hide behind a gain on another.

**Early stopping.** A task that was stopped early stays in the average; leaving it out would be wrong, because it was
stopped for what it showed. Its score is biased away from 0, so it enters with an interval for the models that holds at
every look, at the error level alpha / K with K tasks. These intervals are added end to end (union bound). Tasks without
interim analyses enter with their mean and the rest of the level. If all items of all tasks were asked after interim
analyses, the mean of all items is used too, and both share the level as in `stats.sequential.after_looks`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

import numpy as np

from aftertune.catalog import FRACTIONS, MetricKey, Unit
from aftertune.comparison.clusters import average_clusters
from aftertune.comparison.early_rows import EarlyTest, early_tests, is_stopped, with_early_rows, without_row
from aftertune.comparison.margins import MARGIN, Margins, margin_of
from aftertune.comparison.pairing import MetricValues, Pair
from aftertune.comparison.rows import FORCED, RowDraft, TaskGroup, build_drafts, build_row, judge_drafts
from aftertune.stats.clustered import weights
from aftertune.stats.evidence import Evidence, average_evidence, average_interval
from aftertune.stats.paired import NO_EVIDENCE
from aftertune.stats.sequential import CLAIMS, LOOKS, interval_after_looks
from aftertune.stats.verdict import ALPHA, Case, Decision, first_claim
from aftertune.values import ComparisonRow, Difference, Evaluation, Verdict

#: The name of the row, unless a task has it.
AVERAGE = "average"
#: Its metric: the mean of the primary metrics of its tasks.
MEAN = MetricKey.of("mean")
#: The early row is also tested at this share of its error level, for corrections over several fine-tunes. Its p-value
#: is the lowest of the two levels that proves its claim, because its interval is for one level at a time.
_LOWER = 0.1


def average_name(names: Collection[str]) -> str:
    """The name of the row in a comparison with tasks and groups of these names."""
    return AVERAGE if AVERAGE not in names else "average of tasks"


def average_group(name: str, members: Sequence[TaskGroup]) -> TaskGroup:
    """The average over tasks and groups as one group, with equal weights and values of which more is better."""
    every = []
    for member in members:
        share = weights([v.base.size for _, v in member.members], member.weighting) / len(members)
        every += [(pair, _upward(values), float(w)) for (pair, values), w in zip(member.members, share, strict=True)]
    return TaskGroup(name, MEAN, tuple((pair, values) for pair, values, _ in every), None,
                     sizes=tuple(len(m.members) for m in members), weights=tuple(w for _, _, w in every))


def _upward(values: MetricValues) -> MetricValues:
    """Shares of which more is better."""
    if values.higher_is_better:
        return values
    return replace(values, base=1 - values.base, tuned=1 - values.tuned, higher_is_better=True)


def average_members(group: TaskGroup) -> list[TaskGroup]:
    """The tasks of each member of an average, in order."""
    return [replace(group, members=group.members[a:b], sizes=(), weights=group.weights[a:b])
            for a, b in pairwise(accumulate(group.sizes, initial=0))]


def average_note(names: Sequence[str], left_out: Sequence[tuple[str, str]]) -> str:
    """What a reader must know of an average: its tasks, and those that it leaves out. left_out: (name, why)."""
    without = "; ".join(f"{why}: {', '.join(n for n, w in left_out if w == why)}"
                        for why in dict.fromkeys(w for _, w in left_out))
    return (f"average over {len(names)} tasks, each with the same weight ({', '.join(names)})"
            + (f"; left out, {without}" if without else ""))


def hidden_losses(row: ComparisonRow, rows: Sequence[ComparisonRow]) -> str:
    """The tasks on which a loss is proven although the average shows none; "" for all other rows."""
    if not row.average_of or row.verdict in ("lower", "worse", "undecided"):
        return ""
    lost = [r.task for r in rows if r.primary and r.task in row.average_of and r.verdict in ("lower", "worse")]
    return f"a loss on {', '.join(lost)} is proven all the same" if lost else ""


def why_left_out(unit: Unit, shares: bool, case: Case) -> str:
    """Why a task is not in an average; "" if it is. shares: its values are in [0, 1]."""
    if unit not in FRACTIONS or not shares:
        return "no share"
    return {"target": "target task", "at floor": "at the floor"}.get(case.family, "")


@dataclass(frozen=True, slots=True, kw_only=True)
class AverageQuestion:
    """The average of a comparison.

    fixed: the tasks and groups of which all items were asked. tests: by name, the interim analyses of those that have
    them. left_out: (name, why) of the tasks that are not in the average.
    """

    name: str
    fixed: tuple[RowDraft, ...]
    tests: dict[str, EarlyTest]
    left_out: tuple[tuple[str, str], ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Its tasks and groups."""
        return tuple(dict.fromkeys([*(d.task for d in self.fixed), *self.tests]))

    @property
    def note(self) -> str:
        """What a reader must know: its tasks, and those that it leaves out."""
        return average_note(self.names, self.left_out)

    def draft(self, margin: float) -> RowDraft:
        """The row before it has a verdict. Only without interim analyses."""
        groups = [d.values for d in self.fixed if d.values is not None]
        return RowDraft(task=self.name, key=MEAN, evidence=_evidence(average_group(self.name, groups), margin),
                        margin=margin, primary=True, unit="mean of shares", note=self.note, average_of=self.names,
                        n_total=sum(d.n_total or d.evidence.n for d in self.fixed))

    def early_row(self, margin: float, *, lineage: bool, forced: bool = False, alpha: float = ALPHA) -> ComparisonRow:
        """The row where tasks have interim analyses. alpha: its error level."""
        low, high = self.interval(alpha)
        proven = _claims(low, high, margin)
        verdict = first_claim(proven)
        claims = dict.fromkeys(CLAIMS, 1.0) | dict.fromkeys(proven, alpha)
        if proven:
            claims |= dict.fromkeys(_claims(*self.interval(_LOWER * alpha), margin), _LOWER * alpha)
        p = claims.get(verdict, 1.0)
        stopped = [t for t in self.tests.values() if t.name not in {d.task for d in self.fixed}]
        parts = [*((d.evidence.base, d.evidence.tuned, d.evidence.n, _sign(d)) for d in self.fixed),
                 *((*t.means, t.columns[t.unit.key].base.size, 1 if t.columns[t.unit.key].higher_is_better else -1)
                   for t in stopped)]
        base, tuned = (float(np.mean([part[side] if part[3] > 0 else 1 - part[side] for part in parts]))
                       for side in (0, 1))
        n = sum(size for _, _, size, _ in parts)
        evidence = Evidence(n=n, base=base, tuned=tuned, delta=tuned - base, low=low, high=high, kind="real",
                            tests=NO_EVIDENCE, shares=True)
        draft = RowDraft(task=self.name, key=MEAN, evidence=evidence, margin=margin, primary=True,
                         unit="mean of shares", average_of=self.names, n_total=n if not stopped else None,
                         stopped_of=sum(d.evidence.n for d in self.fixed) + sum(t.unit.items for t in stopped)
                         if stopped else None)
        decision = Decision(verdict=verdict, p=p, p_adjusted=min(1.0, p * ALPHA / alpha), members=round(ALPHA / alpha),
                            claims={c: min(1.0, value * ALPHA / alpha) for c, value in claims.items()})
        return build_row(draft, decision, lineage=lineage, notes=[FORCED if forced else "", self.note, _EARLY])

    def interval(self, alpha: float) -> tuple[float, float]:
        """The interval of the average at the error level ``alpha``, valid at every look."""
        count = len(self.names)
        ends = np.array([t.interval(alpha / count) for t in self.tests.values()])
        low, high = ends.sum(axis=0) / count
        others = [d.values for d in self.fixed if d.values is not None and d.task not in self.tests]
        if others:
            level = LOOKS * alpha * len(others) / count
            more = _interval(average_group(self.name, others), 1 - level)
            low, high = low + more[0] * len(others) / count, high + more[1] * len(others) / count
        if len(self.fixed) == count:  # all items were asked
            groups = [d.values for d in self.fixed if d.values is not None]
            ended = _interval(average_group(self.name, groups), 1 - (1 - LOOKS) * alpha)
            low, high = interval_after_looks((low, high), ended)
        return float(low), float(high)


def _claims(low: float, high: float, margin: float) -> set[Verdict]:
    """What an interval proves."""
    found: dict[Verdict, bool] = {
        "lower": high < -margin, "higher": low > margin, "within": -margin < low and high < margin,
        "worse": high < 0, "better": low > 0, "no_loss": low > -margin}
    return {claim for claim, proven in found.items() if proven}


_EARLY = ("tasks with interim analyses enter with an interval that holds at every look, and these are added end to "
          "end, so the interval is wide")


def _sign(draft: RowDraft) -> int:
    """-1 where less is better."""
    return 1 if draft.values is None or draft.values.members[0][1].higher_is_better else -1


def _evidence(group: TaskGroup, margin: float) -> Evidence:
    """The evidence on an average of which all items were asked."""
    values = [v for _, v in group.members]
    return average_evidence([v.base for v in values], [v.tuned for v in values], group.weights, margin=margin,
                            clusters=average_clusters([m.pairs for m in average_members(group)]), members=group.sizes)


def _interval(group: TaskGroup, level: float) -> tuple[float, float]:
    """The interval of an average of which all items were asked, at another level."""
    values = [v for _, v in group.members]
    return average_interval([v.base for v in values], [v.tuned for v in values], group.weights, level=level,
                            clusters=average_clusters([m.pairs for m in average_members(group)]), members=group.sizes)


def average_question(drafts: Sequence[RowDraft], stopped: Sequence[EarlyTest], ended: Sequence[EarlyTest], *, name: str
                     ) -> AverageQuestion | None:
    """The average over the tasks and groups with a verdict; None for fewer than two that can be in it.

    drafts: of the tasks of which all items were asked. stopped: the tests of the other tasks; ended: those of tasks in
    ``drafts`` with interim analyses.
    """
    reasons = {d.task: why_left_out(d.unit, d.evidence.shares, d.case) for d in drafts if d.primary}
    reasons |= {t.name: "no share" if (column := t.columns.get(t.unit.key)) is None else
                why_left_out(column.unit, True, t.case) for t in stopped}
    fixed = tuple(d for d in drafts if d.primary and not reasons[d.task])
    tests = {t.name: t for t in stopped if not reasons[t.name]} | {
        t.name: t for t in ended if any(d.task == t.name and d.looks is not None for d in fixed)}
    question = AverageQuestion(name=name, fixed=fixed, tests=tests,
                               left_out=tuple((n, why) for n, why in reasons.items() if why))
    return question if len(question.names) > 1 else None


# --- All rows of a comparison ---

def all_rows(left: Evaluation, right: Evaluation, pairs: Sequence[Pair], margins: Margins, *, name: str,
             lineage: bool, forced: bool, tasks: Collection[str] = ()
             ) -> tuple[tuple[ComparisonRow, ...], tuple[Difference, ...]]:
    """The rows of a comparison, primary ones first and the average last of these; and the metrics that cannot have one.

    name: of the average. tasks: only these, and the average over all if it is among them; empty: all. Beside other
    tasks that were chosen, the average is a member of their family; of these, tasks that stopped early keep the level
    that they were stopped at (`level_beside`).
    """
    chosen = set(tasks) - {name}
    asked = [p for p in pairs if not tasks or chosen & {p.settings.task, *p.settings.groups}]
    drafts, without_rows, stopped, ended = _drafts(left, right, asked, margins)
    question, missing = None, without_row(left, right, asked, stopped)
    if not tasks:
        question = average_question(drafts, stopped, ended, name=name)
    elif name in tasks:
        every, _, early, complete = _drafts(left, right, pairs, margins)
        question = average_question(every, early, complete, name=name)
        missing = tuple(dict.fromkeys([*missing, *without_row(left, right, pairs, early)]))
    average: tuple[ComparisonRow, ...] = ()
    cases = [s.case for s in stopped]
    if missing:
        question = None  # without a task that was stopped for what it showed, the average would be wrong
    if question is not None:
        margin = margin_of(margins, "share", name) or MARGIN
        if question.tests:
            level = level_beside(question, [d.case for d in drafts if d.tested], stopped) if chosen else ALPHA
            average = (question.early_row(margin, lineage=lineage, forced=forced, alpha=level),)
            if chosen:
                cases.append(Case(tests=NO_EVIDENCE))  # it has its share of the error level already
        elif chosen:
            drafts.append(question.draft(margin))
        else:
            average = judge_drafts([question.draft(margin)], lineage=lineage, forced=forced)
    rows = judge_drafts(drafts, lineage=lineage, forced=forced, early=cases)
    rows = with_early_rows(rows, stopped, margins, lineage=lineage, forced=forced)
    rows = tuple(sorted((*rows, *average), key=lambda r: (not r.primary, bool(r.average_of))))
    return tuple(replace(r, note=f"{r.note}; {loss}") if (loss := hidden_losses(r, rows)) else r
                 for r in rows), (*without_rows, *missing)


def level_beside(question: AverageQuestion, fixed: Sequence[Case], stopped: Sequence[EarlyTest]) -> float:
    """The error level of an average of which tasks have interim analyses, beside chosen tasks: with it, all of them
    together hold 5 % for each question. fixed: the chosen tasks of which all items were asked; stopped: the others.

    The average is read from intervals of its tasks. As long as each has at most the error level alpha / m at which the
    task itself is tested (m is its ``share``), the average is false only where one of those intervals misses the truth,
    and that is in the error level of the task already. So beside stopped tasks alone it needs no level of its own. In
    full, with K tasks in the average of which T have interim analyses, K <= m, and S stopped and F fixed tasks chosen:

        claims of the S, and the average by the T      at most 0.9 alpha T / m (two sides of the looks' share 0.8 alpha;
                                                       for "within" one side of it and alpha / 2)
        claims of the F, by Holm with S + 1 others     at most alpha F / (F + S + 1)
        the average by its tasks without analyses      at most 0.8 (K - T) / K of its level

    For F = 0 at the level alpha, and for F > 0 at alpha / (F + S + 1), the sum is at most alpha: then a task with
    analyses that is not one of the S costs 0.8 / K of the average's level, as one without analyses does.
    """
    count, largest = len(question.names), max(t.share for t in question.tests.values())
    members = [sum(c.family == "forgetting" for c in cases) for cases in (fixed, [t.case for t in stopped])]
    return min(ALPHA / (1 + sum(members)) if members[0] else ALPHA, ALPHA * count / largest)


def _drafts(left: Evaluation, right: Evaluation, pairs: Sequence[Pair], margins: Margins
            ) -> tuple[list[RowDraft], tuple[Difference, ...], list[EarlyTest], list[EarlyTest]]:
    """The rows without verdicts, the metrics without a row, and the tests that stopped early and that did not."""
    stopped, ended = early_tests(left, right, pairs)
    complete = [p for p in pairs if not is_stopped(left, right, p.settings.task)]
    drafts, without_rows = build_drafts(left, right, complete, margins,
                                        looks={(e.unit.name, e.unit.key): looks for e in ended
                                               if (looks := e.looks(margins))})
    return drafts, without_rows, stopped, ended
