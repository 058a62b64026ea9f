"""Measures how far the log-probabilities of the right answers moved, and how well calibrated both models are.

    values = [task_values(pair, labels) for pair in pairs]         of one task, or of the tasks of a group
    text_differences(values)             of the log-probabilities of the right texts, for `stats.log_probability`
    calibration_shift(values)            mean probability of the chosen answer and accuracy, Brier score, ECE

For multiple choice, a model's probabilities are the softmax over the log-likelihoods of the choices, as in expected
accuracy (`tasks.scoring.choice_log_shares`). The log-probability of the right choice is their logarithm; that of the
right text is its own log-likelihood, in nats per text. Tasks that score one text for each item have only the second.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from aftertune.catalog import EXPECTED_ACCURACY, MetricKey
from aftertune.comparison.answer_changes import chosen_position
from aftertune.comparison.pairing import Label, Pair
from aftertune.stats.calibration import brier_score, calibration_error
from aftertune.stats.item_errors import Clusters
from aftertune.stats.log_probability import mean_change
from aftertune.stats.paired import Floats
from aftertune.tasks.scoring import choice_log_shares
from aftertune.values import Answer, Asked, Calibration, CalibrationShift, MeanChange

NOT_FINITE = "a log-likelihood is not finite"
NO_CHOICES = "the choices and the right one are not stored, as in imported evaluations"
NO_NUMBERS = "the log-likelihoods of all choices are not stored"


@dataclass(frozen=True, slots=True)
class ChoiceSide:
    """What one model made of the choices of an item.

    choice, text: log-probability of the right choice and of the right text, in nats. confidence: probability of the
    chosen answer. right: whether it is right. brier: Brier score, None where several choices are right.
    """

    choice: float
    text: float
    confidence: float
    right: bool
    brier: float | None


@dataclass(frozen=True, slots=True)
class TaskValues:
    """The values of one task.

    choices: (base, tuned) of each item that has them, with the cluster of the item. texts: (base, tuned, cluster) of
    each item of a task that scores one text. missing: why other items have none, with their number. n: of all items.
    """

    n: int
    clustered: bool
    choices: list[tuple[ChoiceSide, ChoiceSide, Label | None]] = field(default_factory=list)
    texts: list[tuple[float, float, Label | None]] = field(default_factory=list)
    missing: Counter[str] = field(default_factory=Counter)


def task_values(pair: Pair, labels: Sequence[Label | None] | None) -> TaskValues:
    """The values of one task. labels: the clusters of its items, None where no two items belong together."""
    values = TaskValues(len(pair.left), labels is not None)
    for before, after, label in zip(pair.left, pair.right, labels or [None] * len(pair.left), strict=True):
        if pair.settings.output_type == "multiple_choice":
            _add_choice(values, pair.questions.get(before.item), (before, after), label)
        elif len(before.responses) == len(after.responses) == 1:
            left, right = before.responses[0].logprob, after.responses[0].logprob
            if left is not None and right is not None and math.isfinite(left) and math.isfinite(right):
                values.texts.append((left, right, label))
            elif left is not None and right is not None:
                values.missing[NOT_FINITE] += 1
    return values


def _add_choice(values: TaskValues, asked: Asked | None, answers: tuple[Answer, Answer], label: Label | None) -> None:
    """Add one item of a multiple-choice task, or the reason why it has no values."""
    if asked is None or not asked.gold or not all(0 <= g < len(asked.choices) for g in asked.gold):
        values.missing[NO_CHOICES] += 1
        return
    base, tuned = (_choice_side(answer, asked) for answer in answers)
    if base is None or tuned is None:
        values.missing[NO_NUMBERS] += 1
    elif all(map(math.isfinite, (base.choice, tuned.choice, base.text, tuned.text))):
        values.choices.append((base, tuned, label))
    else:
        values.missing[NOT_FINITE] += 1


def _choice_side(answer: Answer, asked: Asked) -> ChoiceSide | None:
    """What a model made of the choices of an item; None where that is not stored."""
    metrics = {MetricKey(key).metric for key in answer.metrics}
    twice = "acc_mutual_info" in metrics and len(answer.responses) == 2 * len(asked.choices)  # then without a question
    responses = answer.responses[:len(asked.choices)] if twice else answer.responses
    known = [r.logprob for r in responses if r.logprob is not None]
    if len(known) != len(asked.choices) or len(known) != len(responses):
        return None
    normalized = "acc_norm" in metrics
    shares = choice_log_shares(known, [len(choice) for choice in asked.choices] if normalized else None)
    chosen = chosen_position(answer, asked, EXPECTED_ACCURACY)
    if shares is None or chosen is None:
        return None
    probabilities = [math.exp(v) for v in shares]
    return ChoiceSide(choice=_log_sum([shares[g] for g in asked.gold]), text=_log_sum([known[g] for g in asked.gold]),
                      confidence=probabilities[chosen], right=chosen in asked.gold,
                      brier=brier_score(probabilities, asked.gold[0]) if len(asked.gold) == 1 else None)


def _log_sum(values: Sequence[float]) -> float:
    """log(sum(exp(v))); the value itself if it is the only one."""
    top = max(values)
    return top if len(values) == 1 or top == -math.inf else top + math.log(math.fsum(math.exp(v - top) for v in values))


#: The differences of each task that has any, float64 [n], and the clusters of its items where there are some.
Differences = tuple[list[Floats], Clusters | None]


def choice_differences(values: Sequence[TaskValues]) -> Differences | None:
    """How the log-probability of the right choice differs on each item; None without any."""
    return _strata(values, lambda task: ([b.choice - a.choice for a, b, _ in task.choices],
                                         [label for *_, label in task.choices]))


def text_differences(values: Sequence[TaskValues]) -> Differences | None:
    """How the log-probability of the right text differs on each item; None without any."""
    return _strata(values, lambda task: (
        [*(b.text - a.text for a, b, _ in task.choices), *(b - a for a, b, _ in task.texts)],
        [label for *_, label in (*task.choices, *task.texts)]))


def _strata(values: Sequence[TaskValues], of: Callable[[TaskValues], tuple[list[float], list[Label | None]]]
            ) -> Differences | None:
    """The numbers of each task that has any, with the clusters where there are some; None without numbers."""
    parts = [part for task in values if (part := of(task))[0]]
    if not parts:
        return None
    return ([np.array(numbers) for numbers, _ in parts],
            [labels for _, labels in parts] if any(task.clustered for task in values) else None)


def calibration_shift(values: Sequence[TaskValues]) -> CalibrationShift | None:
    """The calibration of both models over all items of ``values``; None without probabilities."""
    items = [item for task in values for item in task.choices]
    if not items:
        return None
    base, tuned = _calibration([before for before, _, _ in items]), _calibration([after for _, after, _ in items])
    return CalibrationShift(
        n=len(items), base=base, tuned=tuned, overconfidence=_change(values, lambda side: side.confidence - side.right),
        brier=_change(values, lambda side: side.brier or 0.0) if base.brier is not None else None)


def _calibration(sides: Sequence[ChoiceSide]) -> Calibration:
    """The calibration of one model."""
    confidence, right = [s.confidence for s in sides], [float(s.right) for s in sides]
    error = calibration_error(confidence, right)
    scores = [s.brier for s in sides if s.brier is not None]
    return Calibration(
        confidence=float(np.mean(confidence)), accuracy=float(np.mean(right)),
        brier=float(np.mean(scores)) if len(scores) == len(sides) else None, error=error)


def _change(values: Sequence[TaskValues], of: Callable[[ChoiceSide], float]) -> MeanChange:
    """The mean change of a number of each model, over the items with choices."""
    strata = _strata(values, lambda task: ([of(b) - of(a) for a, b, _ in task.choices],
                                           [label for *_, label in task.choices]))
    assert strata is not None
    return mean_change(*strata)
