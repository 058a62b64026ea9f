"""Distinguishes a loss of answer format from a loss of skill.

    count_forms(answers, "flexible-extract")          FormCounts(n=8, no_answer=2, cut_off=5, …)
    loss_cause(lost=40, by_form=35)                   ("format", 0.739, 0.945)
    loss_cause(lost=40, by_form=10, unknown=25)       ("mixed", 0.142, 0.945)

A generated text has *no answer* if the filter of the primary metric extracted nothing (lm-eval then writes
``[invalid]``, and aftertune ``[out of time]`` if the filter took too long), or if it should be JSON and is not. A
wrong item without an answer to judge (none, cut off at the token limit, or empty text) is lost by form. The cause of
a loss is "format" if Wilson's 95 % interval of the share of such items lies above a half, and "skill" if it lies below.
Where it is not known how a text ended, it may or may not have been cut off, so both cases bound the interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from aftertune.catalog import MetricKey
from aftertune.stats.paired import wilson
from aftertune.values import Answer, FormCounts
from aftertune.values.comparison import LETTER_FILTER, NO_ANSWER, OUT_OF_TIME

#: Extracted texts that stand for no answer.
_NOTHING = frozenset({"", NO_ANSWER, OUT_OF_TIME})

Cause = Literal["", "format", "skill", "mixed"]


def is_generated(answer: Answer) -> bool:
    """True for a generated answer, False for one that was scored by log-likelihoods."""
    return any(r.text is not None for r in answer.responses)


def has_no_answer(answer: Answer, filter_name: str) -> bool:
    """True where ``filter_name`` extracted nothing, or where the answer should be JSON and is not."""
    return answer.extracted.get(filter_name, "-").strip() in _NOTHING or \
        answer.metrics.get(MetricKey.of("valid_json", filter_name)) == 0


def is_cut_off(answer: Answer) -> bool:
    """True where generation ended at the token limit. What follows the letter of an answer by letter is no part of it.
    """
    return any(r.finish == "length" for r in answer.responses) and not _has_letter(answer)


def end_is_unknown(answer: Answer) -> bool:
    """True where it is not known how a text ended, and no other text of the answer ended without the end token."""
    return any(r.finish is None for r in answer.responses) and not _has_no_end(answer)


def _has_no_end(answer: Answer) -> bool:
    return any(r.finish not in ("eos", None) for r in answer.responses)


def _has_letter(answer: Answer) -> bool:
    return answer.extracted.get(LETTER_FILTER, "").strip() not in _NOTHING


def is_empty(answer: Answer) -> bool:
    """True where the text has no visible character."""
    return all(not (r.text or "").strip() for r in answer.responses)


def cannot_be_judged(answer: Answer, filter_name: str) -> bool:
    """True where there is no complete answer to judge."""
    return has_no_answer(answer, filter_name) or is_cut_off(answer) or is_empty(answer)


def count_forms(answers: Sequence[Answer], filter_name: str) -> FormCounts:
    """Count the failures of form of generated answers. filter_name: the filter of the primary metric."""
    def has_other_form(answer: Answer) -> bool:
        missed = any(v.strip() in _NOTHING for name, v in answer.extracted.items() if name != filter_name)
        return missed and not has_no_answer(answer, filter_name)

    return FormCounts(
        n=len(answers), no_answer=sum(has_no_answer(a, filter_name) for a in answers),
        cut_off=sum(map(is_cut_off, answers)), no_end=sum(map(_has_no_end, answers)),
        other_form=sum(map(has_other_form, answers)), empty=sum(map(is_empty, answers)),
        unknown_end=sum(map(end_is_unknown, answers)))


def loss_cause(lost: int, by_form: int, unknown: int = 0) -> tuple[Cause, float, float]:
    """(cause, low, high) of a loss, with the interval of the share lost by form; ("", 0, 1) for no loss.

    unknown: lost items besides those lost by form of which it is not known whether they were cut off.
    """
    if lost == 0:
        return "", 0.0, 1.0
    low, high = wilson(by_form, lost)[0], wilson(by_form + unknown, lost)[1]
    return "format" if low > 0.5 else "skill" if high < 0.5 else "mixed", low, high
