"""Finds what changed between the answers of two models, beside right and wrong.

    changes = find_changes(left, right, pairs, rows, ledger)
    changes.identical, changes.answered      372, 400: items with the same answer
    changes.tasks[0].moves                   of the log-probabilities of the right choice and the right text
    changes.no_effect                        "zero adapter": every answer is the base's

A task, or a group that has one verdict, is one entry. The moves of all entries are one family for Holm's correction.
A task that was stopped early has figures, but its moves prove nothing: their tests need a fixed number of items.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from aftertune.catalog import MetricKey
from aftertune.comparison.answer_changes import chosen_position, position_table, text_lengths
from aftertune.comparison.clusters import question_clusters
from aftertune.comparison.early_rows import is_stopped
from aftertune.comparison.log_probability import (
    Differences,
    TaskValues,
    calibration_shift,
    choice_differences,
    task_values,
    text_differences,
)
from aftertune.comparison.no_effect import find_no_effect
from aftertune.comparison.pairing import Pair
from aftertune.comparison.rows import FORCED
from aftertune.stats.answer_format import is_empty, is_generated
from aftertune.stats.log_probability import adjusted_moves, log_probability_move
from aftertune.values import (
    Answer,
    Changes,
    ComparisonRow,
    Evaluation,
    LogProbabilityMove,
    PositionTable,
    TaskChange,
    TextForm,
    TextShift,
)

if TYPE_CHECKING:
    from aftertune.ledger import Ledger

STOPPED = "the task was stopped early"


def find_changes(left: Evaluation, right: Evaluation, pairs: Sequence[Pair], rows: Sequence[ComparisonRow],
                 ledger: Ledger, *, unequal: Sequence[Pair] = (), forced: bool = False) -> Changes:
    """What changed on all tasks of a comparison. rows: of the comparison; they say which groups have one verdict.
    unequal: the tasks whose items were drawn with unequal weights. Their figures would say nothing of the task, but
    one changed answer among them shows that the fine-tune had an effect. forced: compared in spite of settings that
    must agree, so nothing is proven.
    """
    doubt = FORCED if forced else "" if left.dtype == right.dtype else \
        f"computed in {left.dtype} and {right.dtype}"  # their rounding differs
    drafts: list[TaskChange] = []
    texts: list[Differences] = []
    for name, members in _units(pairs, rows):
        stopped = any(is_stopped(left, right, p.settings.task) for p in members)
        change, strata = _task_change(name, members, doubt or (STOPPED if stopped else ""))
        drafts.append(change)
        texts += [strata] if strata else []
    adjusted = iter(adjusted_moves([move for draft in drafts for move in draft.moves]))
    tasks = tuple(replace(draft, moves=tuple(next(adjusted) for _ in draft.moves)) for draft in drafts)
    identical, answered = sum(t.identical for t in tasks), sum(t.answered for t in tasks)
    every = [*pairs, *unequal]
    answers = [same for pair in every for same in _same_answers(pair) if same is not None]
    return Changes(identical=identical, answered=answered, text=_over_all(texts), tasks=tasks,
                   no_effect=find_no_effect(left, right, every, ledger, same_answers=bool(answers) and all(answers)))


def _units(pairs: Sequence[Pair], rows: Sequence[ComparisonRow]) -> Iterator[tuple[str, list[Pair]]]:
    """(name, its tasks) of each question: a task, or a group that has one verdict."""
    rest = {p.settings.task: p for p in pairs}
    for name in dict.fromkeys(row.task for row in rows if row.primary):
        if members := [p for p in rest.values() if name in (p.settings.task, *p.settings.groups)]:
            yield name, members
        rest = {task: p for task, p in rest.items() if p not in members}
    yield from ((task, [pair]) for task, pair in rest.items())  # without a verdict


def _task_change(name: str, members: Sequence[Pair], problem: str) -> tuple[TaskChange, Differences | None]:
    """The entry of a task or group, its moves not yet adjusted, and the differences of its right texts."""
    clusters = question_clusters(members)
    values = [task_values(pair, clusters[i] if clusters else None) for i, pair in enumerate(members)]
    choices, right_texts = choice_differences(values), text_differences(values)
    same = [s for pair in members for s in _same_answers(pair) if s is not None]
    n, texts = sum(len(pair.left) for pair in members), _text_shift(members)
    return TaskChange(
        task=name, n=n, identical=sum(same), answered=len(same),
        moves=(*([log_probability_move("choice", *choices, problem=problem)] if choices else []),
               *([log_probability_move("text", *right_texts, problem=problem)] if right_texts else [])),
        calibration=calibration_shift(values), positions=_positions(members), texts=texts,
        missing=tuple(_missing(values, n, texts))), right_texts


def _over_all(texts: Sequence[Differences]) -> LogProbabilityMove | None:
    """The move of the right texts of all entries together; None without any."""
    if not texts:
        return None
    strata = [numbers for part, _ in texts for numbers in part]
    labels: list[Sequence[Hashable]] = []
    for entry, (part, clusters) in enumerate(texts):  # an entry without clusters: each item is one
        labels += clusters or [[(entry, k, i) for i in range(numbers.size)] for k, numbers in enumerate(part)]
    clustered = any(clusters is not None for _, clusters in texts)
    return log_probability_move("text", strata, labels if clustered else None)


def _missing(values: Sequence[TaskValues], n: int, texts: TextShift | None) -> Iterator[str]:
    """What is not known of an entry, and why."""
    reasons: Counter[str] = Counter()
    for task in values:
        reasons += task.missing
    for reason, count in reasons.items():
        yield f"the log-probabilities{'' if count == n else f' of {count:,} of {n:,} items'}: {reason}"
    if texts is not None:
        for side, form in (("base", texts.base), ("tuned model", texts.tuned)):
            if form.unknown:
                yield f"how {form.unknown:,} of {texts.n:,} texts of the {side} ended: it is not stored"


# --- Answers: the same ones, positions and texts ---
def _same_answers(pair: Pair) -> Iterator[bool | None]:
    """Whether both models gave the same answer, for each item; None where that is not known."""
    metric = MetricKey(pair.settings.primary).metric
    for before, after in zip(pair.left, pair.right, strict=True):
        if is_generated(before) and is_generated(after):
            yield [r.text for r in before.responses] == [r.text for r in after.responses]
        elif pair.settings.output_type == "multiple_choice":
            chosen = [chosen_position(a, pair.questions.get(before.item), metric) for a in (before, after)]
            yield None if None in chosen else chosen[0] == chosen[1]
        else:
            yield _same_greedy(before, after)


def _same_greedy(before: Answer, after: Answer) -> bool | None:
    """Whether both models would write the right text; None where neither would, as other texts are not known."""
    if len(before.responses) != 1 or len(after.responses) != 1:
        return None
    greedy = (before.responses[0].greedy, after.responses[0].greedy)
    return None if None in greedy or greedy == (False, False) else greedy == (True, True)


def _positions(members: Sequence[Pair]) -> PositionTable | None:
    """The positions over the items of all tasks; None without any."""
    tables = [table for pair in members if (table := position_table(pair))]
    if not tables:
        return None
    size = max(len(table.pairs) for table in tables)
    right, pairs = [0] * size, [[0] * size for _ in range(size)]
    for table in tables:
        for i, row in enumerate(table.pairs):
            right[i] += table.right[i] if table.right else 0
            for j, count in enumerate(row):
                pairs[i][j] += count
    return PositionTable(n=sum(table.n for table in tables), pairs=tuple(map(tuple, pairs)),
                         right=tuple(right) if all(table.right for table in tables) else ())


def _text_shift(members: Sequence[Pair]) -> TextShift | None:
    """The generated texts of both models, over the items on which both have one; None without any."""
    both = [(a, b) for pair in members for a, b in zip(pair.left, pair.right, strict=True)
            if is_generated(a) and is_generated(b)]
    if not both:
        return None
    tokens = [known for pair in members if (known := text_lengths(pair))]
    in_tokens = sum(len(base) for base, _ in tokens) == len(both)
    forms: list[TextForm] = []
    for side in (0, 1):
        answers = [items[side] for items in both]
        lengths = [n for known in tokens for n in known[side]] if in_tokens else \
            [len(a.responses[0].text or "") for a in answers]
        forms.append(_text_form(answers, lengths))
    return TextShift(n=len(both), unit="tokens" if in_tokens else "characters", base=forms[0], tuned=forms[1])


def _text_form(answers: Sequence[Answer], lengths: Sequence[int]) -> TextForm:
    """The texts of one model; an answer with several texts counts by its first one."""
    ends = Counter(answer.responses[0].finish for answer in answers)
    return TextForm(median=float(np.median(lengths)), long=float(np.quantile(lengths, 0.9)), ended=ends["eos"],
                    cut_off=ends["length"], stopped=ends["stop"], unknown=ends[None],
                    empty=sum(map(is_empty, answers)))
