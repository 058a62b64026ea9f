"""Wrong answer or no answer: owns the counts by which a loss of format is told apart from a loss of skill.

    count_forms(answers, "flexible-extract")     FormCounts(n=8, no_answer=2, cut_off=5, …)
    cause(lost=40, by_form=35)                   ("format", 0.739, 0.945)

An answer has *no answer* where the filter of the primary metric found nothing to extract (lm-eval writes
``[invalid]``; ``[out of time]`` stands where it took too long) or where it should be JSON and is not. Of the items that
became wrong, those without an answer to judge (none, cut off at the token limit, empty) are lost by form; the loss is
one of format where Wilson's 95 % interval of their share lies above a half, one of skill where it lies below.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from aftertune.catalog import MetricKey
from aftertune.stats.paired import wilson
from aftertune.values import Answer, FormCounts
from aftertune.values.comparison import OUT_OF_TIME

_NOTHING = frozenset({"", "[invalid]", OUT_OF_TIME})

Cause = Literal["", "format", "skill", "mixed"]


def generated(answer: Answer) -> bool:
    """True where the answer is text that a model wrote."""
    return any(r.text is not None for r in answer.responses)


def no_answer(answer: Answer, chosen: str) -> bool:
    """True where filter ``chosen`` found nothing, or where the answer should be JSON and is not."""
    return answer.extracted.get(chosen, "-").strip() in _NOTHING or \
        answer.metrics.get(MetricKey.of("valid_json", chosen)) == 0


def cut_off(answer: Answer) -> bool:
    """True where generation ended at the token limit."""
    return any(r.finish == "length" for r in answer.responses)


def empty(answer: Answer) -> bool:
    """True where no visible text came."""
    return all(not (r.text or "").strip() for r in answer.responses)


def unjudged(answer: Answer, chosen: str) -> bool:
    """True where there is no whole answer to judge."""
    return no_answer(answer, chosen) or cut_off(answer) or empty(answer)


def count_forms(answers: Sequence[Answer], chosen: str) -> FormCounts:
    """The form of generated answers; chosen: the filter of the primary metric."""
    def other(answer: Answer) -> bool:
        strict = any(v.strip() in _NOTHING for name, v in answer.extracted.items() if name != chosen)
        return strict and not no_answer(answer, chosen)

    return FormCounts(
        n=len(answers), no_answer=sum(no_answer(a, chosen) for a in answers), cut_off=sum(map(cut_off, answers)),
        no_end=sum(any(r.finish != "eos" for r in a.responses) for a in answers), other_form=sum(map(other, answers)),
        empty=sum(map(empty, answers)))


def cause(lost: int, by_form: int) -> tuple[Cause, float, float]:
    """What a loss of ``lost`` items is of, with the interval of the share lost by form; ("", 0, 1) for no loss."""
    if lost == 0:
        return "", 0.0, 1.0
    low, high = wilson(by_form, lost)
    return "format" if low > 0.5 else "skill" if high < 0.5 else "mixed", low, high
