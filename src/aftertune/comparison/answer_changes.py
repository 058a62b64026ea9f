"""Counts what the answers of both models look like: chosen positions, ends, empty and repeated texts, and lengths.

    position_table(pair).tuned          (0, 100, 0, 0): always the second choice
    cut_off_count(pair)                 PairedCount(n=80, base=3, tuned=78, gained=75, lost=0)
    empty_count(pair), repeated_count(pair), text_lengths(pair)

All functions are pure: they read the stored answers of a pair and the questions in ``pair.questions``. What is not
stored, as often in imported evaluations, is not counted, and a function returns None if nothing can be counted.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from aftertune.catalog import EXPECTED_ACCURACY, METRICS, MetricKey
from aftertune.comparison.pairing import Pair
from aftertune.stats.answer_format import end_is_unknown, has_no_answer, is_cut_off, is_empty, is_generated
from aftertune.values import Answer, Asked, PairedCount, PositionTable


# --- Multiple-choice answers ---
def choice_scores(metric: str, choices: Sequence[str], logprobs: Sequence[float | None]) -> tuple[float, ...]:
    """The scores that a metric compares, one for each choice: log-likelihoods, divided by the lengths of the choices
    where the metric does so. () where they are not known.

    choices: their texts; empty where they are not stored, then only a metric without lengths has scores.
    """
    values = [p for p in logprobs if p is not None]
    if len(values) != len(logprobs) or not values:
        return ()
    unit = METRICS[metric].length if metric in METRICS else ""
    if not unit:
        return tuple(values[:len(choices)] if choices else values)
    lengths = [len(c if unit == "character" else c.encode()) for c in choices]
    return tuple(p / n for p, n in zip(values, lengths, strict=False)) if all(lengths) else ()


def chosen_position(answer: Answer, asked: Asked | None, metric: str) -> int | None:
    """The index of the choice that a metric counts as the answer, from 0; the first one if several have the best score.

    None where that is not known, and for answers that are not a choice.
    """
    metrics = {MetricKey(key).metric for key in answer.metrics}
    if metric == EXPECTED_ACCURACY:  # it compares as the accuracy of the task does
        metric = "acc_norm" if "acc_norm" in metrics else "acc"
    if asked is None and "acc_mutual_info" in metrics:  # each choice was asked twice, so their number is not known
        return None
    if is_generated(answer) or (asked is not None and len(answer.responses) < len(asked.choices)):
        return None
    scores = choice_scores(metric, asked.choices if asked else (), [r.logprob for r in answer.responses])
    if len(scores) < 2 or any(map(math.isnan, scores)):
        return None
    return max(range(len(scores)), key=scores.__getitem__)


def position_table(pair: Pair) -> PositionTable | None:
    """The positions that both models took, by the primary metric; None for a task that is not multiple choice."""
    if pair.settings.output_type != "multiple_choice":
        return None
    metric = MetricKey(pair.settings.primary).metric
    known: list[tuple[int, int, Asked | None]] = []
    for before, after in zip(pair.left, pair.right, strict=True):
        asked = pair.questions.get(before.item)
        first, second = chosen_position(before, asked, metric), chosen_position(after, asked, metric)
        if first is not None and second is not None:
            known.append((first, second, asked))
    if not known:
        return None
    size = 1 + max(max(first, second, *(asked.gold if asked else ())) for first, second, asked in known)
    table = [[0] * size for _ in range(size)]
    right = [0] * size
    for first, second, asked in known:
        table[first][second] += 1
        for position in asked.gold if asked else ():
            right[position] += 1
    complete = all(asked is not None and asked.gold for _, _, asked in known)
    return PositionTable(n=len(known), right=tuple(right) if complete else (), pairs=tuple(map(tuple, table)))


# --- Generated answers ---
def _texts(pair: Pair) -> list[tuple[Answer, Answer]]:
    """The answers of both models where both are generated texts."""
    return [(a, b) for a, b in zip(pair.left, pair.right, strict=True) if is_generated(a) and is_generated(b)]


def cut_off_count(pair: Pair) -> PairedCount | None:
    """Texts that ended at the token limit, over the items of which both ends are known."""
    known = [(a, b) for a, b in _texts(pair) if not end_is_unknown(a) and not end_is_unknown(b)]
    return PairedCount.of([is_cut_off(a) for a, _ in known], [is_cut_off(b) for _, b in known]) if known else None


def empty_count(pair: Pair) -> PairedCount | None:
    """Texts without a visible character."""
    texts = _texts(pair)
    return PairedCount.of([is_empty(a) for a, _ in texts], [is_empty(b) for _, b in texts]) if texts else None


def repeated_count(pair: Pair) -> PairedCount | None:
    """Answers that equal the most frequent answer of the same model. Empty texts are not counted as equal.

    An answer is what the filter of the primary metric extracted, else the text.
    """
    texts = _texts(pair)
    if not texts:
        return None
    sides = []
    for side in zip(*texts, strict=True):
        top = most_frequent_answer(pair, side)
        sides.append([_given(answer, pair) == top != "" for answer in side])
    return PairedCount.of(*sides)


def most_frequent_answer(pair: Pair, side: Sequence[Answer]) -> str:
    """The most frequent answer of one model that is not empty; "" if there is none. side: its generated answers."""
    return _most_frequent([_given(answer, pair) for answer in side])[0]


def _given(answer: Answer, pair: Pair) -> str:
    """What the filter of the primary metric extracted from an answer, else its text; "" for an empty one."""
    filter_name = MetricKey(pair.settings.primary).filter
    if not has_no_answer(answer, filter_name) and filter_name in answer.extracted:
        return answer.extracted[filter_name].strip()
    return next((r.text.strip() for r in answer.responses if r.text), "")


def _most_frequent(answers: Sequence[str]) -> tuple[str, int]:
    """The most frequent text that is not empty, with its number; ("", 0) if there is none."""
    return next(iter(Counter(filter(None, answers)).most_common(1)), ("", 0))


def reference_share(pair: Pair) -> float | None:
    """The largest share of the items that have the same reference answer; None unless every item has a known one."""
    references = [_reference(pair.questions, answer) for answer, _ in _texts(pair)]
    if not references or "" in references:
        return None
    return _most_frequent(references)[1] / len(references)


def _reference(questions: Mapping[str, Asked], answer: Answer) -> str:
    asked = questions.get(answer.item)
    return asked.reference.strip() if asked else ""


def text_lengths(pair: Pair) -> tuple[list[int], list[int]] | None:
    """The tokens of each generated text, of the base and of the tuned model, over the items of which both are known."""
    known = [(a.responses[0].tokens, b.responses[0].tokens) for a, b in _texts(pair)]
    pairs = [(a, b) for a, b in known if a is not None and b is not None]
    return ([a for a, _ in pairs], [b for _, b in pairs]) if pairs else None
