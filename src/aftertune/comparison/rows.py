"""The rows of a comparison: which rows carry a verdict, and the one builder of every row.

There is one row per metric of a task, and one per metric of a group (mmlu) that has its own score. The primary rows
form the family, come first, and get verdicts. A group whose metric is the primary one of its tasks replaces them in
the family, so that MMLU asks one question and not 57.

    rows, without_rows = build_rows(left, right, pairs, 0.02, lineage=True, forced=False)

Every `ComparisonRow` comes from `build_row`: here, for tasks that stopped early (`comparison.early`), and for recipes
over several seeds (`comparison.contrasts`). To add a column, add a field to `ComparisonRow`, a line to `build_row`, and
a line to the list in `report.columns`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from aftertune.catalog import MetricKey
from aftertune.comparison.pairing import MetricValues, Pair, columns, score_of
from aftertune.errors import InputError
from aftertune.stats.clustered import Weighting
from aftertune.stats.evidence import Evidence, group_evidence, paired_evidence
from aftertune.stats.paired import NO_EVIDENCE, Floats, MarginTests
from aftertune.stats.planning import items_above, settled_by
from aftertune.stats.verdict import GENERATION_FLOOR, Case, Decision, at_floor, benjamini_hochberg, decide, tell
from aftertune.values import ComparisonRow, Difference, Evaluation, Score

MARGIN = 0.02
FORCED = "forced: the two evaluations differ in what must agree"

Margins = Mapping[str, float] | float


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A row before its verdict: what is compared, and the figures.

    key: ``metric,filter``. chance: the score of guessing, None where answers cannot be guessed. n_total: items that the
    task has, None where the row does not show them. note: what the figures cannot be read without. group: the group
    that replaces this task in the family. stopped_of: items of the full run, where the task stopped early.
    """

    task: str
    key: str
    evidence: Evidence
    margin: float
    primary: bool
    chance: float | None = None
    n_total: int | None = None
    target: bool = False
    note: str = ""
    group: str = ""
    stopped_of: int | None = None

    @property
    def case(self) -> Case:
        low = self.evidence.base_low
        return Case(tests=self.evidence.tests, clustered=self.evidence.clustered, bootstrap=self.evidence.bootstrap,
                    at_floor=low is not None and at_floor(low, self.chance))


def build_row(draft: Draft, decision: Decision | None, *, lineage: bool, notes: Sequence[str] = (),
              items_needed: int | None = None, tests: MarginTests | None = None, p_no_drop: float | None = None,
              q: float | None = None) -> ComparisonRow:
    """The one builder of a row, whichever test it uses.

    decision: None for a row without a verdict. notes: sentences for the row's note; empty ones are left out. tests: the
    unadjusted p-values that the row shows, None for a row that has none. For the rest see `ComparisonRow`.
    """
    e = draft.evidence
    key = MetricKey(draft.key)
    return ComparisonRow(
        task=draft.task, metric=key.metric, filter=key.filter,
        n=e.n, n_total=draft.n_total, stopped_of=draft.stopped_of,
        base=e.base, tuned=e.tuned, delta=e.delta, low=e.low, high=e.high, kind=e.kind,
        margin=draft.margin, primary=draft.primary, target=draft.target, group=draft.group,
        p=decision.p if decision else None,
        p_adjusted=decision.p_adjusted if decision else None,
        p_lower=tests.lower if tests else None,
        p_higher=tests.higher if tests else None,
        p_within=tests.within if tests else None,
        p_exact=e.p_exact, p_mid=e.p_mid, p_no_drop=p_no_drop, q=q,
        gained=e.gained, lost=e.lost,
        verdict=decision.verdict if decision else None,
        told=tell(decision.verdict, lineage=lineage, at_floor=decision.at_floor) if decision else "",
        at_floor=bool(decision and decision.at_floor),
        items_needed=items_needed,
        note="; ".join(note for note in notes if note), details=e.details)


@dataclass(frozen=True, slots=True)
class _Group:
    """A task group with a score of its own on both sides. members: (task, its column of the metric)."""

    name: str
    key: str
    members: tuple[tuple[Pair, MetricValues], ...]
    score: Score | None

    @property
    def tasks(self) -> set[str]:
        return {pair.settings.task for pair, _ in self.members}

    @property
    def speaks(self) -> bool:
        """True where its metric is the primary one of all its tasks."""
        return all(pair.settings.primary == self.key for pair, _ in self.members)


def margin_of(margins: Margins, *names: str) -> float:
    """The margin of the first of ``names`` (a task, then its groups) that has one, else that of "*", else 0.02.

    Raises InputError unless it is a fraction above 0, up to 1.
    """
    found = margins
    if isinstance(margins, Mapping):
        found = next((margins[n] for n in (*names, "*") if n in margins), MARGIN)
    if not isinstance(found, int | float) or not 0 < found <= 1:
        raise InputError(f"margin of {names[0]} is {found!r}; allowed is a fraction above 0, up to 1 "
                         f"(0.02 is two points)")
    return float(found)


def build_rows(left: Evaluation, right: Evaluation, pairs: Sequence[Pair], margins: Margins, *, lineage: bool,
               forced: bool, early: int = 0) -> tuple[tuple[ComparisonRow, ...], tuple[Difference, ...]]:
    """Rows, primary ones first, each part in task order; and the metrics that can have no row.

    early: primary metrics of the family that have sequential verdicts of their own (`comparison.early`). They count in
    Holm's family as if nothing were known of them, so that the whole family keeps its level.
    Raises InputError for a margin outside (0, 1].
    """
    table = {p.settings.task: columns(left, right, p) for p in pairs}
    groups = _groups(left, right, pairs, table)
    speaking = [g for g in groups if g.speaks and not any(o.speaks and g.tasks < o.tasks for o in groups)]
    covered = {task: g for g in speaking for task in g.tasks}
    drafts: list[Draft] = []
    for pair in pairs:
        drafts += [_group_draft(g, margins, primary=g in speaking) for g in groups if g.members[0][0] is pair]
        drafts += [_task_draft(pair, key, column, margins, group=covered.get(pair.settings.task))
                   for key, column in table[pair.settings.task].items() if column is not None]
    family = [d for d in drafts if d.primary]
    decisions = decide([*(d.case for d in family), *[Case(tests=NO_EVIDENCE)] * early])[:len(family)]
    rows = [_row(d, e, lineage=lineage, forced=forced) for d, e in zip(family, decisions, strict=True)]
    others = [d for d in drafts if not d.primary]
    rows += [_row(d, None, lineage=lineage, forced=forced, q=q)
             for d, q in zip(others, _explored(others), strict=True)]
    return tuple(rows), tuple(_without_row(left, right, task, key) for task, found in table.items()
                              for key, column in found.items() if column is None)


def _explored(drafts: Sequence[Draft]) -> list[float | None]:
    """Benjamini-Hochberg over the tasks that a group speaks for, metric by metric, on the mid-p of "any difference"."""
    found: list[float | None] = [None] * len(drafts)
    for family in {(d.group, d.key) for d in drafts if d.group}:
        tests = [(at, d.evidence.p_mid) for at, d in enumerate(drafts) if (d.group, d.key) == family]
        known = [(at, p) for at, p in tests if p is not None]
        for (at, _), q in zip(known, benjamini_hochberg([p for _, p in known]), strict=True):
            found[at] = q
    return found


def _without_row(left: Evaluation, right: Evaluation, task: str, key: str) -> Difference:
    said = [f"{s.value:.6g} (of the whole task)" if s else "no score"
            for s in (score_of(left, task, key), score_of(right, task, key))]
    return Difference(field=f"{task}.{key} is no mean over items and has no row", left=said[0], right=said[1],
                      blocking=False)


def _task_draft(pair: Pair, key: str, column: MetricValues, margins: Margins, *, group: _Group | None) -> Draft:
    """group: the group that speaks for the task, if any."""
    settings = pair.settings
    clusters = [a.cluster for a in pair.left] if settings.cluster else []
    margin = margin_of(margins, settings.task, *settings.groups)
    evidence = paired_evidence(column.base, column.tuned, margin=margin,
                               higher_is_better=column.higher_is_better,
                               clusters=clusters if clusters and None not in clusters else None)
    return Draft(task=settings.task, key=key, evidence=evidence, margin=margin, note=column.note,
                  primary=group is None and key == settings.primary, chance=settings.chance, n_total=settings.n_total,
                  target=settings.target, group=group.name if group else "")


def _groups(left: Evaluation, right: Evaluation, pairs: Sequence[Pair],
            table: Mapping[str, Mapping[str, MetricValues | None]]) -> list[_Group]:
    """Groups whose mean can be paired: each of their tasks is here on both sides, with values per item."""
    found = []
    for name in dict.fromkeys(g for p in pairs for g in p.settings.groups):
        inside = [p for p in pairs if name in p.settings.groups]
        whole = all(sum(name in t.groups for t in e.tasks) == len(inside) for e in (left, right))
        for score in (s for s in left.scores if whole and s.group and s.task == name):
            parts = [(p, table[p.settings.task].get(score.key)) for p in inside]
            members = tuple((p, c) for p, c in parts if c is not None)
            if score_of(right, name, score.key) and len(members) == len(inside):
                found.append(_Group(name, score.key, members, score))
    return found


def _group_draft(group: _Group, margins: Margins, *, primary: bool) -> Draft:
    parts = [column for _, column in group.members]
    settings = [pair.settings for pair, _ in group.members]
    chances = [s.chance for s in settings if s.chance is not None]
    margin = margin_of(margins, group.name)
    weighting = _weighting(group.score, [p.base for p in parts])
    evidence = group_evidence([p.base for p in parts], [p.tuned for p in parts], margin=margin,
                              higher_is_better=parts[0].higher_is_better, weighting=weighting)
    how = "items" if weighting == "micro" else "tasks"
    return Draft(task=group.name, key=group.key, evidence=evidence, margin=margin, primary=primary,
                  chance=sum(chances) / len(chances) if len(chances) == len(settings) else None,
                  n_total=sum(s.n_total for s in settings),
                  note=f"mean over the {how} of {len(parts)} tasks, errors within each")


def _weighting(score: Score | None, values: Sequence[Floats]) -> Weighting:
    """How the group's stored score weighs its tasks: by items (lm-eval's way) unless only the other fits."""
    micro, macro = float(np.concatenate(list(values)).mean()), float(np.mean([v.mean() for v in values]))
    fits = score is not None and abs(score.value - macro) < 1e-9 < abs(score.value - micro)
    return "macro" if fits else "micro"


def _items_needed(draft: Draft, decision: Decision) -> tuple[int | None, str]:
    """Items that would decide an undecided row, or None with the reason why no number is given."""
    needed = draft.evidence.items_needed
    total = draft.evidence.n if draft.n_total is None else draft.n_total
    if decision.at_floor:
        return None, off_the_floor(draft.evidence.base, draft.chance, total)
    if decision.verdict != "undecided" or draft.evidence.tests == NO_EVIDENCE:
        return None, ""
    return settled_by(needed, draft.evidence.n, total)


def off_the_floor(base: float, chance: float | None, total: int) -> str:
    """How many items would show that the base is above the floor, where its score is. total: items of the task."""
    needed = items_above(base, GENERATION_FLOOR if chance is None else chance)
    if needed is None:
        return "no number of items decides it while the base scores there"
    if needed > total:
        return f"this task has too few items to show the base above it ({needed:,} needed, it has {total:,})"
    return f"about {needed:,} items would show the base above it, if its score stays"


def _row(draft: Draft, decision: Decision | None, *, lineage: bool, forced: bool, q: float | None = None
         ) -> ComparisonRow:
    e = draft.evidence
    notes = [FORCED if forced else "", draft.note, *e.notes]
    if decision is None:
        return build_row(draft, None, lineage=lineage, notes=notes, q=q)
    needed, reason = _items_needed(draft, decision)
    return build_row(draft, decision, lineage=lineage, notes=[*notes, decision.note, reason], items_needed=needed,
                     tests=e.tests, p_no_drop=_no_drop(e))


def _no_drop(evidence: Evidence) -> float:
    """The largest p, of all kinds of test, of "no drop beyond the margin is left"."""
    return max(t.no_drop for t in (evidence.tests, evidence.clustered, evidence.bootstrap) if t)
