"""Finds signs of collapse: a tuned model that guesses, whose texts never end, or that always answers the same.

    find_signs(rows, pairs, left, right)
        (CollapseSign(kind="guessing", task="arc_easy", n=450, base=0.436, tuned=0.204, chance=0.25, below=True),)

The rules and their thresholds are in `aftertune.stats.collapse`. Each primary row is looked at: a task, or a group with
the answers of all its tasks. Of items that belong together, the tests of the answers count the first one. What is not
stored, as often in imported evaluations, gives no sign.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, compress

from aftertune.catalog import MetricKey
from aftertune.comparison.answer_changes import (
    cut_off_count,
    empty_count,
    most_frequent_answer,
    position_table,
    reference_share,
    repeated_count,
)
from aftertune.comparison.clusters import question_clusters
from aftertune.comparison.pairing import Pair
from aftertune.comparison.rows import group_chance
from aftertune.stats.collapse import LEVEL, RULES_OF_ANSWERS, VARIED, below_guess, change_p, guesses
from aftertune.stats.paired import wilson
from aftertune.stats.sequential import first_of_clusters
from aftertune.stats.verdict import ALPHA, at_floor
from aftertune.values import CollapseKind, CollapseSign, ComparisonRow, Evaluation, PairedCount

_LONGEST = 200  # characters of an answer that are stored


@dataclass(frozen=True, slots=True)
class _Row:
    """A primary row with the answers that it is made of.

    pooled: of all its tasks, as one pair. first: those of the first item of each cluster, which are independent.
    chance: expected score of a guess, None where there is none. looks: the number of the interim analysis at which the
    row was stopped, 0 where it was not.
    """

    row: ComparisonRow
    pooled: Pair
    first: Pair
    chance: float | None
    looks: int

    @property
    def count(self) -> int:
        """The independent observations."""
        return len(self.first.left)

    @property
    def higher_is_better(self) -> bool:
        better, key = self.pooled.settings.higher_is_better, MetricKey.of(self.row.metric, self.row.filter)
        return better.get(key, better.get(self.row.metric, True))

    @property
    def base_guesses(self) -> bool:
        """True where the base scores like a guess, so that it has no answers of its own to lose."""
        if self.chance is None or not self.row.fraction or not self.count:
            return False
        return at_floor(wilson(_share(self.row.base) * self.count, self.count)[0], self.chance)


@dataclass(frozen=True, slots=True)
class _Candidate:
    """One test of the answers of a row. all, first: counts over all items, and over the first one of each cluster.

    tests: how many tests it counts as. meaningful: False where right answers can look like this too. change: False
    where it would be no collapse although the base does not have it.
    """

    sign: CollapseSign
    all: PairedCount
    first: PairedCount
    looks: int
    tests: int = 1
    meaningful: bool = True
    change: bool = True


def find_signs(rows: Sequence[ComparisonRow], pairs: Sequence[Pair], left: Evaluation, right: Evaluation
               ) -> tuple[CollapseSign, ...]:
    """The signs of collapse of a comparison, by row. rows: of the comparison, with their verdicts."""
    looked_at = [made for row in rows if row.primary and (made := _row(row, pairs, left, right)) is not None]
    candidates = [c for made in looked_at for c in (*_choices(made), *_texts(made))]
    tests = sum(c.tests for c in candidates)
    return (*(sign for made in looked_at for sign in _guessing(made)),
            *(sign for c in candidates if (sign := _judged(c, tests)) is not None))


def _row(row: ComparisonRow, pairs: Sequence[Pair], left: Evaluation, right: Evaluation) -> _Row | None:
    members = [p for p in pairs if row.task in (p.settings.task, *p.settings.groups)]
    if not members:
        return None
    before, after = [a for p in members for a in p.left], [a for p in members for a in p.right]
    labels = question_clusters(members)
    counted = first_of_clusters(None if labels is None else [*chain.from_iterable(labels)], len(before))
    questions = {key: asked for p in members for key, asked in p.questions.items()}
    pooled = replace(members[0], left=before, right=after, questions=questions)
    first = replace(pooled, left=[*compress(before, counted)], right=[*compress(after, counted)])
    return _Row(row, pooled, first, looks=_looks(row, left, right),
                chance=group_chance([p.settings for p in members], [len(p.left) for p in members]))


def _looks(row: ComparisonRow, left: Evaluation, right: Evaluation) -> int:
    """The looks of the test that stopped its task or group; the row may have some tasks of the group alone."""
    if row.stopped_of is None:
        return 0
    plan = right.early or left.early
    tasks = {t.task for t in left.tasks if row.task in (t.task, *t.groups)}
    unit = next((u for u in plan.units if row.task == u.name or tasks <= {*u.tasks}), None) if plan else None
    if unit is None:
        return row.n
    n = row.n if row.stopped_of == unit.items else max(row.n, unit.used or 0)
    return math.ceil(n / max(1, unit.batch))


def _level(alpha: float, looks: int) -> float:
    """The error level of one look: those of all looks, alpha / (t (t + 1)), add up to less than alpha."""
    return alpha / (looks * (looks + 1)) if looks else alpha


def _share(score: float) -> float:
    return min(1.0, max(0.0, score))


def _guessing(made: _Row) -> Iterator[CollapseSign]:
    """The sign that the tuned model scores like a guess. It needs a proven loss."""
    row, n = made.row, made.count
    if row.verdict not in ("lower", "worse") or not row.fraction or not made.higher_is_better or not n:
        return
    base, tuned = _share(row.base), _share(row.tuned)
    alpha = _level(ALPHA, made.looks)
    if guesses(base, tuned, n, chance=made.chance, alpha=alpha):
        yield CollapseSign(kind="guessing", task=row.task, n=row.n, base=row.base, tuned=row.tuned, chance=made.chance,
                           below=below_guess(tuned, n, made.chance, alpha=alpha))


def _choices(made: _Row) -> Iterator[_Candidate]:
    """The test of whether one position is always chosen: the tuned model's most frequent one."""
    table, counted = position_table(made.pooled), position_table(made.first)
    if table is None or counted is None or not table.right:
        return
    position, base_position = (max(range(len(side)), key=side.__getitem__) for side in (table.tuned, table.base))
    taken = table.taken(position)
    sign = CollapseSign(kind="one_choice", task=made.row.task, n=table.n, base=max(table.base) / table.n,
                        tuned=taken.tuned / table.n, position=position, base_position=base_position)
    first = counted.taken(position) if position < len(counted.pairs) else PairedCount.of([], [])
    # the base must be far from any one choice, not only from this one
    yield _Candidate(sign, replace(taken, base=max(table.base)), first, made.looks, tests=len(table.pairs),
                     meaningful=max(table.right) <= VARIED * table.n, change=not made.base_guesses)


def _texts(made: _Row) -> Iterator[_Candidate]:
    """The tests of generated texts: without an end, empty, or always the same."""
    pooled, first = made.pooled, made.first
    references = reference_share(pooled)
    limit = pooled.settings.generation.get("max_gen_toks")
    # long texts are no fault of a model whose score is safe
    safe = made.row.verdict in ("higher", "better", "within", "no_loss")
    tests: tuple[tuple[CollapseKind, PairedCount | None, PairedCount | None, bool, bool], ...] = (
        ("endless", cut_off_count(pooled), cut_off_count(first), True, not safe),
        ("empty", empty_count(pooled), empty_count(first), True, True),
        ("one_answer", repeated_count(pooled), repeated_count(first),
         references is not None and references <= VARIED, not made.base_guesses))
    for kind, count, counted, meaningful, change in tests:
        if count is not None and counted is not None:
            sign = CollapseSign(
                kind=kind, task=made.row.task, n=count.n, base=count.base / count.n, tuned=count.tuned / count.n,
                limit=limit if kind == "endless" and isinstance(limit, int) else None,
                answer=most_frequent_answer(pooled, pooled.right)[:_LONGEST] if kind == "one_answer" else "")
            yield _Candidate(sign, count, counted, made.looks, meaningful=meaningful, change=change)


def _judged(candidate: _Candidate, tests: int) -> CollapseSign | None:
    """The sign, if the answers have it; as a change only where that is proven. tests: of the whole comparison."""
    rule, count = RULES_OF_ANSWERS[candidate.sign.kind], candidate.all
    if not candidate.meaningful or not rule.present(count.tuned, count.n):
        return None
    if rule.present(count.base, count.n):
        return replace(candidate.sign, base_too=True)
    p = change_p(candidate.sign.kind, count, candidate.first, tests, level=_level(LEVEL, candidate.looks))
    return replace(candidate.sign, p=p) if p is not None and candidate.change else None
