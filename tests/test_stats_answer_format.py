"""Format failure against skill loss: the counts, and the rule that names the cause."""

from __future__ import annotations

import pytest

from aftertune.stats.answer_format import cannot_be_judged, count_forms, end_is_unknown, loss_cause
from aftertune.values import Answer, Response


def answer(text: str, *, finish: str | None = "eos", valid: float | None = None, **extracted: str) -> Answer:
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


def test_an_unknown_end_is_in_no_count_of_ends() -> None:
    """Imported answers do not say how they ended."""
    answers = [answer("so 5", finish=None, flex="5"), answer("5", finish=None, flex="[invalid]"),
               answer("5", finish="length", flex="5"), answer("5", flex="5")]
    found = count_forms(answers, "flex")
    assert (found.n, found.cut_off, found.no_end, found.unknown_end, found.no_answer) == (4, 1, 1, 2, 1)
    assert [end_is_unknown(a) for a in answers] == [True, True, False, False]


@pytest.mark.parametrize(("lost", "by_form", "unknown", "expected"), [
    (40, 5, 0, "skill"), (40, 5, 35, "mixed"), (40, 0, 40, "mixed"), (40, 35, 5, "format"), (40, 2, 4, "skill")])
def test_the_rule_with_unknown_ends(lost: int, by_form: int, unknown: int, expected: str) -> None:
    """The cause is named only if it is the same whether or not the texts of unknown end were cut off."""
    found, low, high = loss_cause(lost, by_form, unknown)
    assert found == expected
    assert low == loss_cause(lost, by_form)[1]
    assert high == loss_cause(lost, by_form + unknown)[2]
