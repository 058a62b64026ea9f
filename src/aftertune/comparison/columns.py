"""From answers to numbers: owns which metrics have one value per item that a paired test may use.

A metric qualifies if every answer has a finite number for it and the task's score is their mean. lm-eval's
`perplexity` is exp(-mean) of per-item log-likelihoods: it qualifies as their negative, in nats. Scores of the
whole task (corpus BLEU, F1 over all items, word perplexity) have no row.

    columns(left, right, pair)      {"acc,none": Column(base=[1., 0.], tuned=[1., 1.], …), "bleu,none": None}
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from aftertune.catalog import MetricKey
from aftertune.comparison.pairs import Pair
from aftertune.stats.paired import Floats
from aftertune.values import Answer, Evaluation, Score


@dataclass(frozen=True, slots=True)
class Column:
    """Paired values of one metric, float64 [n], and whether more is better."""

    base: Floats
    tuned: Floats
    higher_is_better: bool
    note: str = ""


def score_of(evaluation: Evaluation, task: str, key: str) -> Score | None:
    """The evaluation's score of ``metric,filter`` key on a task or group, or None."""
    return next((s for s in evaluation.scores if s.task == task and s.key == key), None)


def columns(left: Evaluation, right: Evaluation, pair: Pair) -> dict[str, Column | None]:
    """Every ``metric,filter`` key that both sides have, in the left's order; None where it has no row."""
    ours, theirs = (dict.fromkeys([*answers[0].metrics,
                                   *(s.key for s in e.scores if s.task == pair.settings.task)])
                    for e, answers in ((left, pair.all_left), (right, pair.all_right)))
    return {key: _column(left, right, pair, key) for key in ours if key in theirs}


def _column(left: Evaluation, right: Evaluation, pair: Pair, key: str) -> Column | None:
    sign = _sign(left, pair.settings.task, pair.all_left, key)
    if sign is None or sign != _sign(right, pair.settings.task, pair.all_right, key):
        return None
    metric = MetricKey(key).metric
    base, tuned = (sign * np.array([a.metrics[key] for a in side], dtype=np.float64)
                   for side in (pair.left, pair.right))
    better = pair.settings.higher_is_better
    note = "" if sign > 0 else f"negative log-likelihood per item, in nats; {metric} is exp of its mean"
    return Column(base, tuned, better.get(key, better.get(metric, True)), note)


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
