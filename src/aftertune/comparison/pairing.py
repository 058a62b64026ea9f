"""Pairs the answers of two evaluations by item, and turns them into paired values of each metric.

    pair = pair_answers(settings, base_answers, tuned_answers)
    pair.counts                           (300, 300, 300): left, right, shared
    metric_values(left, right, pair)      {"acc,none": MetricValues(base=[1., 0.], …), "bleu,none": None}
    next(form_shifts([pair])).cause       "format": most lost items have no answer to judge

Items are matched by their content, not by their index, so two evaluations of different samples can be paired on the
items that they share. Equal items of one task are paired in order: first with first, second with second.

A metric can be paired if every answer has a finite number for it and the score of the task is their mean. lm-eval's
`perplexity` is exp(-mean) of the log-likelihoods of the items, so their negative is used, in nats. Scores of a whole
task (corpus BLEU, F1 over all items, word perplexity) cannot be paired and have no row.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from aftertune.catalog import FRACTIONS, MetricKey, Unit, guessing_level, unit_of
from aftertune.stats.answer_format import cannot_be_judged, count_forms, end_is_unknown, is_generated, loss_cause
from aftertune.stats.paired import Floats
from aftertune.values import Answer, Asked, Evaluation, FormShift, Score, TaskSettings

#: The cluster of an item: (the field of its document, or "item", and the value of the field, or the item's hash).
Label = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Pair:
    """The answers of both evaluations to one task.

    settings: of the left evaluation. all_left, all_right: all answers. left, right: those to shared items, in the same
    order. clusters: of the shared items (`comparison.clusters`); None where no two items belong together. questions:
    item hash -> its choices and reference; without the items for which they are not stored. unequal: one side asked
    items that were drawn with unequal weights, so the shared items are no sample of the task
    (`comparison.weighted_draws`). whole: then all items of the left side, paired with themselves.
    """

    settings: TaskSettings
    all_left: Sequence[Answer]
    all_right: Sequence[Answer]
    left: Sequence[Answer]
    right: Sequence[Answer]
    clusters: Sequence[Label | None] | None = None
    questions: Mapping[str, Asked] = field(default_factory=dict)
    unequal: bool = False
    whole: Pair | None = None

    @property
    def counts(self) -> tuple[int, int, int]:
        """Number of items of the left, of the right, and of both."""
        return len(self.all_left), len(self.all_right), len(self.left)


def pair_answers(settings: TaskSettings, left: Sequence[Answer], right: Sequence[Answer]) -> Pair:
    """Pair the answers of one task, in the order of the left side."""
    settings = replace(settings, chance=_chance(settings, left))
    others = dict(_numbered(right))
    shared = [(a, others[key]) for key, a in _numbered(left) if key in others]
    return Pair(settings, left, right, [a for a, _ in shared], [b for _, b in shared])


def _chance(settings: TaskSettings, answers: Sequence[Answer]) -> float | None:
    """The expected score of a guess, read again from the answers where it was once taken from the first item alone.

    A metric that is not right or wrong on each item (the mean of probabilities of truthfulqa_mc2) has no such level.
    """
    if any(a.metrics.get(settings.primary, 0.0) not in (0, 1) for a in answers):
        return None
    counts = [len(a.responses) for a in answers]
    if settings.output_type != "multiple_choice" or not all(counts) or settings.chance != 1 / counts[0]:
        return guessing_level(settings.task, settings.chance)
    twice = any(MetricKey(key).metric == "acc_mutual_info" for key in answers[0].metrics)  # each choice is asked twice
    return guessing_level(settings.task, sum((2 if twice else 1) / count for count in counts) / len(counts))


def _numbered(answers: Iterable[Answer]) -> Iterator[tuple[tuple[str, int], Answer]]:
    """((item hash, number of equal items before it), answer) for each answer."""
    seen: Counter[str] = Counter()
    for answer in answers:
        yield (answer.item, seen[answer.item]), answer
        seen[answer.item] += 1


@dataclass(frozen=True, slots=True)
class MetricValues:
    """Paired values of one metric, float64 [n]. note: what a reader must know about them. unit: of the values."""

    base: Floats
    tuned: Floats
    higher_is_better: bool
    note: str = ""
    unit: Unit = "share"


def score_of(evaluation: Evaluation, task: str, key: str) -> Score | None:
    """The score ``key`` (``metric,filter``) of a task or group, or None."""
    return next((s for s in evaluation.scores if s.task == task and s.key == key), None)


def metric_values(left: Evaluation, right: Evaluation, pair: Pair) -> dict[str, MetricValues | None]:
    """``metric,filter`` -> paired values, for every key that both evaluations have; None where it cannot be paired."""
    ours, theirs = (dict.fromkeys([*answers[0].metrics,
                                   *(s.key for s in e.scores if s.task == pair.settings.task)])
                    for e, answers in ((left, pair.all_left), (right, pair.all_right)))
    return {key: _paired_values(left, right, pair, key) for key in ours if key in theirs}


def _paired_values(left: Evaluation, right: Evaluation, pair: Pair, key: str) -> MetricValues | None:
    sign = _sign(left, pair.settings.task, pair.all_left, key)
    if sign is None or sign != _sign(right, pair.settings.task, pair.all_right, key):
        return None
    metric = MetricKey(key).metric
    base, tuned = (sign * np.array([a.metrics[key] for a in side], dtype=np.float64)
                   for side in (pair.left, pair.right))
    better = pair.settings.higher_is_better
    note = "" if sign > 0 else f"negative log-likelihood per item, in nats; {metric} is exp of its mean"
    scores = [s for e in (left, right) if (s := score_of(e, pair.settings.task, key))]
    unit = _unit(scores, [*base, *tuned], task=pair.settings.task, metric=metric) if sign > 0 else "unbounded"
    return MetricValues(base, tuned, better.get(key, better.get(metric, True)), note, unit)


def _unit(scores: Sequence[Score], values: Sequence[float], *, task: str, metric: str) -> Unit:
    """The unit that the scores were stored with, else that of the metric; a value outside [0, 1] is no share."""
    stored = [s.unit for s in scores if s.unit]
    own = next((u for u in stored if u not in FRACTIONS), None)
    if own is not None:
        return own
    unit = unit_of("" if stored else metric, [*values, *(s.value for s in scores)], task=task)
    return stored[0] if stored and unit in FRACTIONS else unit


def _sign(evaluation: Evaluation, task: str, answers: Sequence[Answer], key: str) -> int | None:
    """1 if the score is the mean of the values of the items, -1 if it is exp(-mean), else None."""
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


def form_shifts(pairs: Sequence[Pair]) -> Iterator[FormShift]:
    """The form of the answers of each task with generated answers, over the items that both models answered."""
    for pair in pairs:
        if not all(is_generated(answer) for answer in (*pair.left, *pair.right)):
            continue
        key = MetricKey(pair.settings.primary)
        sign = 1 if pair.settings.higher_is_better.get(key.metric, True) else -1
        lost = [b for a, b in zip(pair.left, pair.right, strict=True)
                if sign * (a.metrics.get(key) or 0) > sign * (b.metrics.get(key) or 0)]
        judged = [answer for answer in lost if not cannot_be_judged(answer, key.filter)]
        by_form, unknown = len(lost) - len(judged), sum(map(end_is_unknown, judged))
        loss, low, high = loss_cause(len(lost), by_form, unknown)
        yield FormShift(task=pair.settings.task, base=count_forms(pair.left, key.filter),
                        tuned=count_forms(pair.right, key.filter), lost=len(lost), lost_by_form=by_form, low=low,
                        high=high, cause=loss, lost_unknown=unknown)
