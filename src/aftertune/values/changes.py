"""Defines the values that say what changed between the answers of two models, beside right and wrong.

    comparison.changes.identical, comparison.changes.answered      372, 400: items with the same answer
    comparison.changes.tasks[0].moves[0].moved                     True: the log-probabilities moved
    comparison.changes.tasks[0].calibration.tuned.confidence       0.61

None of them says that a model became worse. Log-probabilities are in nats; all shares are fractions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from aftertune.values.answer_changes import PositionTable

#: Of what a log-probability is: of the right choice among all choices, or of the right text alone.
Measure = Literal["choice", "text"]
#: What is known of a fine-tune that had no effect on the answers; "" where it had one, or where it is not known.
NoEffect = Literal["", "zero adapter", "not applied", "same numbers", "same texts", "rounding"]
#: How it is known.
NO_EFFECT: dict[NoEffect, str] = {
    "zero adapter": "all B matrices of its adapter are zero",
    "not applied": "every log-likelihood is the base's to the last digit, although the B matrices of its adapter are "
                   "not zero; the adapter was not loaded, or it changes less than the precision shows",
    "same numbers": "every log-likelihood is the base's to the last digit",
    "same texts": "every generated text is the base's",
    "rounding": "every answer is the base's, and no log-likelihood differs by more than 0.001 nats, which is rounding"}


@dataclass(frozen=True, slots=True, kw_only=True)
class MeanChange:
    """A mean over items, tuned less base, with its 95 % interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LogProbabilityMove:
    """The mean change of a log-probability over n items, tuned less base, in nats (of a text: nats per text).

    low, high: 95 % interval, as wide as the widest of the tests. z: mean / standard error (the largest one); None where
    there is no error. p: two-sided, of "the mean change is at most rounding"; p_adjusted: after Holm's correction over
    all moves of the comparison. moved: p_adjusted is below 0.05; False does not mean that the model did not move.
    clustered: the items come in clusters. problem: why nothing can be proven, "" if something can.
    """

    measure: Measure
    n: int
    mean: float
    low: float
    high: float
    z: float | None
    p: float
    p_adjusted: float
    moved: bool
    clustered: bool = False
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationError:
    """The expected calibration error of one model, over groups of items with similar probabilities.

    plain: the weighted mean of |mean probability - accuracy| over the groups. debiased: the same less an estimate of
    its excess from sampling noise, at least 0. by_chance: the expected plain value of a calibrated model with these
    probabilities. bins: the number of groups.
    """

    plain: float
    debiased: float
    by_chance: float
    bins: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """How well the probabilities of one model agree with its answers.

    confidence: mean probability of the chosen answer. accuracy: share of right ones, by the same log-likelihoods.
    brier: Brier score, from 0 (best) to 2; None where an item has several right choices. error: None for fewer than 20
    items.
    """

    confidence: float
    accuracy: float
    brier: float | None
    error: CalibrationError | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationShift:
    """The calibration of both models on the same n items.

    overconfidence: the change of confidence less accuracy. brier: the change of the Brier score; below 0 is better.
    """

    n: int
    base: Calibration
    tuned: Calibration
    overconfidence: MeanChange
    brier: MeanChange | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TextForm:
    """The generated texts of one model.

    median, long: length of the median text, and the length that one text in ten exceeds. ended: texts that the model
    ended itself; cut_off: at the token limit; stopped: by a stop string; unknown: not known how. empty: texts without a
    visible character.
    """

    median: float
    long: float
    ended: int
    cut_off: int
    stopped: int
    unknown: int
    empty: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TextShift:
    """The generated texts of both models to the same items. n: texts of each model. unit: of the lengths, characters
    where the number of tokens is not stored."""

    n: int
    unit: Literal["tokens", "characters"]
    base: TextForm
    tuned: TextForm


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskChange:
    """What changed on one task, or on a group of tasks that has one verdict.

    n: items that both models answered. identical, answered: items with the same answer (chosen answer, or generated
    text), of those of which both answers are known. moves: of log-probabilities. missing: what is not known, and why.
    """

    task: str
    n: int
    identical: int
    answered: int
    moves: tuple[LogProbabilityMove, ...] = ()
    calibration: CalibrationShift | None = None
    positions: PositionTable | None = None
    texts: TextShift | None = None
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What changed over all tasks of a comparison.

    identical, answered: as in `TaskChange`, over all items. text: the mean change of the log-probability of the right
    text over all items that have one; its p-value is not adjusted. no_effect: what is known of a fine-tune that had no
    effect on the answers. tasks: in the order of the verdicts.
    """

    identical: int
    answered: int
    text: LogProbabilityMove | None
    no_effect: NoEffect
    tasks: tuple[TaskChange, ...]

    @property
    def tests(self) -> int:
        """The moves over which p-values are adjusted."""
        return sum(len(task.moves) for task in self.tasks)

    @property
    def moved(self) -> list[str]:
        """The tasks on which a log-probability is proven to have moved."""
        return [task.task for task in self.tasks if any(move.moved for move in task.moves)]
