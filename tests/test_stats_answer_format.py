"""Format failure against skill loss: the counts, and the rule that names the cause."""

from __future__ import annotations

import pytest

from aftertune.stats.answer_format import cannot_be_judged, count_forms, loss_cause
from aftertune.values import Answer, Response


def answer(text: str, *, finish: str = "eos", valid: float | None = None, **extracted: str) -> Answer:
    metrics = {"exact_match,flex": 0.0} | ({} if valid is None else {"valid_json,flex": valid})
    return Answer(task="t", index=0, item="i", metrics=metrics, extracted=extracted,
                  responses=(Response(text=text, tokens=3, finish=finish),))  # type: ignore[arg-type]


def test_counts() -> None:
    answers = [answer("so 5", flex="5", strict="5"), answer("5", finish="stop", flex="5", strict="[invalid]"),
               answer("hm", flex="[invalid]", strict="[invalid]"),
               answer("and then", finish="length", flex="7", strict=""), answer(" ", flex="", strict="")]
    found = count_forms(answers, "flex")
    assert (found.n, found.no_answer, found.cut_off, found.no_end, found.other_form, found.empty) == (5, 2, 1, 2, 2, 1)
    assert [cannot_be_judged(a, "flex") for a in answers] == [False, False, True, True, True]


def test_text_that_should_be_json() -> None:
    assert cannot_be_judged(answer("Sure!", valid=0.0, flex="Sure!"), "flex")
    assert not cannot_be_judged(answer("{}", valid=1.0, flex="{}"), "flex")


@pytest.mark.parametrize(("lost", "by_form", "expected"), [
    (0, 0, ""), (40, 35, "format"), (40, 5, "skill"), (40, 22, "mixed"), (3, 3, "mixed"), (4, 4, "format")])
def test_the_rule(lost: int, by_form: int, expected: str) -> None:
    found, low, high = loss_cause(lost, by_form)
    assert found == expected
    assert 0 <= low <= high <= 1
