"""Format failure against skill loss: owns the form of generated answers on both sides of a comparison.

    shifts([pair])[0].cause      "format": most lost items have no answer to judge (`aftertune.stats.answer_format`)

Which answers belong together: owns the pairing of two sides by item hash.

An item is found by its content, not by its place, so that two runs over differing samples share what they
share. Equal items within one task are paired in order: first with first, second with second.

    pair_up(settings, base_answers, tuned_answers).counts      (300, 300, 300): left, right, shared

From answers to numbers: owns which metrics have one value per item that a paired test may use.

A metric qualifies if every answer has a finite number for it and the task's score is their mean. lm-eval's
`perplexity` is exp(-mean) of per-item log-likelihoods: it qualifies as their negative, in nats. Scores of the
whole task (corpus BLEU, F1 over all items, word perplexity) have no row.

    columns(left, right, pair)      {"acc,none": Column(base=[1., 0.], tuned=[1., 1.], …), "bleu,none": None}
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from aftertune.catalog import MetricKey
from aftertune.stats.answer_format import cause, count_forms, generated, unjudged
from aftertune.stats.paired import Floats
from aftertune.values import Answer, Evaluation, FormShift, Score, TaskSettings


@dataclass(frozen=True, slots=True)
class Pair:
    """One task on both sides: all answers, and those to shared items in one order (left, right).

    settings: of the left side.
    """

    settings: TaskSettings
    all_left: Sequence[Answer]
    all_right: Sequence[Answer]
    left: Sequence[Answer]
    right: Sequence[Answer]

    @property
    def counts(self) -> tuple[int, int, int]:
        """How many items the left, the right, and both have."""
        return len(self.all_left), len(self.all_right), len(self.left)


def pair_up(settings: TaskSettings, left: Sequence[Answer], right: Sequence[Answer]) -> Pair:
    """Pair the answers of one task, in the order of the left side."""
    others = dict(_numbered(right))
    shared = [(a, others[key]) for key, a in _numbered(left) if key in others]
    return Pair(settings, left, right, [a for a, _ in shared], [b for _, b in shared])


def _numbered(answers: Iterable[Answer]) -> Iterator[tuple[tuple[str, int], Answer]]:
    """Answers by (item hash, how many equal items came before)."""
    seen: Counter[str] = Counter()
    for answer in answers:
        yield (answer.item, seen[answer.item]), answer
        seen[answer.item] += 1


@dataclass(frozen=True, slots=True)
class MetricValues:
    """Paired values of one metric, float64 [n], and whether more is better."""

    base: Floats
    tuned: Floats
    higher_is_better: bool
    note: str = ""


def score_of(evaluation: Evaluation, task: str, key: str) -> Score | None:
    """The evaluation's score of ``metric,filter`` key on a task or group, or None."""
    return next((s for s in evaluation.scores if s.task == task and s.key == key), None)


def columns(left: Evaluation, right: Evaluation, pair: Pair) -> dict[str, MetricValues | None]:
    """Every ``metric,filter`` key that both sides have, in the left's order; None where it has no row."""
    ours, theirs = (dict.fromkeys([*answers[0].metrics,
                                   *(s.key for s in e.scores if s.task == pair.settings.task)])
                    for e, answers in ((left, pair.all_left), (right, pair.all_right)))
    return {key: _column(left, right, pair, key) for key in ours if key in theirs}


def _column(left: Evaluation, right: Evaluation, pair: Pair, key: str) -> MetricValues | None:
    sign = _sign(left, pair.settings.task, pair.all_left, key)
    if sign is None or sign != _sign(right, pair.settings.task, pair.all_right, key):
        return None
    metric = MetricKey(key).metric
    base, tuned = (sign * np.array([a.metrics[key] for a in side], dtype=np.float64)
                   for side in (pair.left, pair.right))
    better = pair.settings.higher_is_better
    note = "" if sign > 0 else f"negative log-likelihood per item, in nats; {metric} is exp of its mean"
    return MetricValues(base, tuned, better.get(key, better.get(metric, True)), note)


def _sign(evaluation: Evaluation, task: str, answers: Sequence[Answer], key: str) -> int | None:
    """1 where the score is the mean of the items' values, -1 where it is exp(-mean), None where neither."""
    values: list[float] = []
    for answer in answers:
        value = answer.metrics.get(key)
        if not isinstance(value, int | float) or not math.isfinite(value):
            return None
        values.append(float(value))
    mean = math.fsum(values) / len(values)
    score = score_of(evaluation, task, key)
    if score is None or math.isclose(score.value, mean, rel_tol=1e-6, abs_tol=1e-9):
        return 1
    if score.value > 0 and math.isclose(math.log(score.value), -mean, rel_tol=1e-6):
        return -1
    return None


def shifts(pairs: Sequence[Pair]) -> Iterator[FormShift]:
    """One a task with generated answers, over the items that both sides answered."""
    for pair in pairs:
        if not all(generated(answer) for answer in (*pair.left, *pair.right)):
            continue
        key = MetricKey(pair.settings.primary)
        sign = 1 if pair.settings.higher_is_better.get(key.metric, True) else -1
        lost = [b for a, b in zip(pair.left, pair.right, strict=True)
                if sign * (a.metrics.get(key) or 0) > sign * (b.metrics.get(key) or 0)]
        by_form = sum(unjudged(answer, key.filter) for answer in lost)
        found, low, high = cause(len(lost), by_form)
        yield FormShift(task=pair.settings.task, base=count_forms(pair.left, key.filter),
                        tuned=count_forms(pair.right, key.filter), lost=len(lost), lost_by_form=by_form, low=low,
                        high=high, cause=found)
