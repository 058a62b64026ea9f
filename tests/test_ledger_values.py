"""What is stored comes back equal: every value that crosses the border of the ledger."""

from __future__ import annotations

import dataclasses
import itertools
import math
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ledger_cases as cases
from aftertune.errors import SourceError, StorageError
from aftertune.ledger import Ledger
from aftertune.ledger.store import decode, encode
from aftertune.values import Answer, Comparison, Evaluation, Item, Response, Tuning

FAST = settings(max_examples=40, deadline=None, derandomize=True)
_numbers = itertools.count()


def fresh() -> str:
    """An id that no example had before: the ledger is shared by all of them."""
    return f"id-{next(_numbers):06d}"


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def ledger(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ledger]:
    place = tmp_path_factory.mktemp("ledger") / "ledger.db" if request.param == "sqlite" else \
        request.getfixturevalue("postgres").ledger()
    with Ledger(place) as ledger:
        yield ledger


@FAST
@given(value=cases.any_evaluation)
def test_an_evaluation_comes_back_equal(ledger: Ledger, value: Evaluation) -> None:
    value = dataclasses.replace(value, id=fresh())
    running = dataclasses.replace(value, status="running", scores=(), schedule={})
    assert ledger.open_evaluation(running, []) == running
    assert ledger.finish_evaluation(value, [], []) == value
    assert ledger.find_evaluation(value.id) == value


@FAST
@given(value=cases.any_tuning)
def test_a_tuning_comes_back_equal(ledger: Ledger, value: Tuning) -> None:
    value = dataclasses.replace(value, id=fresh())
    assert ledger.save_tuning(value) == value
    assert ledger.find_tuning(value.id) == value


@FAST
@given(value=cases.any_comparison)
def test_a_comparison_comes_back_equal(ledger: Ledger, value: Comparison) -> None:
    value = dataclasses.replace(value, id=fresh())
    ledger.save_comparison(value)
    assert ledger.find_comparison(value.id) == value


@FAST
@given(values=st.lists(cases.any_response, min_size=1, max_size=5))
def test_responses_come_back_equal_to_the_last_bit(ledger: Ledger, values: list[Response]) -> None:
    id = fresh()
    ledger.open_evaluation(cases.evaluation(id), [])
    ledger.save_batch(id, 0, dict(enumerate(values)))
    back = ledger.responses(id)
    assert list(back.values()) == values
    for was, now in zip(values, back.values(), strict=True):
        if was.logprob is not None:
            assert struct.pack("d", was.logprob + 0.0) == struct.pack("d", now.logprob)  # no sign of zero
        assert was.greedy is now.greedy


@FAST
@given(docs=st.lists(cases.mapping, min_size=1, max_size=4), metrics=cases.floats,
       extracted=st.dictionaries(cases.text, cases.text, max_size=2), cluster=st.none() | cases.text)
def test_items_and_answers_come_back_equal(ledger: Ledger, docs: list[dict[str, Any]],
                                           metrics: dict[str, float], extracted: dict[str, str],
                                           cluster: str | None) -> None:
    id = fresh()
    # One hash for several documents must not mix them up.
    asked = [Item(task="t", index=k, hash="h", doc=doc, cluster=cluster) for k, doc in enumerate(docs)]
    given_ = [Answer(task="t", index=k, item="h", metrics=metrics, extracted=extracted, cluster=cluster)
              for k in range(len(docs))]
    ledger.open_evaluation(cases.evaluation(id), asked)
    assert ledger.items(id) == asked
    ledger.finish_evaluation(cases.evaluation(id), given_, [[] for _ in docs])
    assert ledger.answers(id) == given_


@pytest.mark.parametrize("broken", [float("nan"), -float("nan")])
def test_a_log_probability_that_is_no_number_is_refused(ledger: Ledger, broken: float) -> None:
    ledger.open_evaluation(cases.evaluation("nan"), [])
    with pytest.raises(SourceError, match="request 7 is not a number"):
        ledger.save_batch("nan", 0, {6: Response(logprob=-1.0), 7: Response(logprob=broken)})
    assert ledger.done_positions("nan") == set()


def test_a_score_that_is_no_number_is_refused_and_nothing_is_stored(ledger: Ledger) -> None:
    ledger.open_evaluation(cases.evaluation("nan2"), [])
    bad = dataclasses.replace(cases.scores()[0], stderr=math.nan)
    with pytest.raises(SourceError, match="standard error of arc_easy acc,none is not a number"):
        ledger.finish_evaluation(cases.evaluation("nan2", scores=(bad,)), [], [])
    assert ledger.find_evaluation("nan2").status == "running"


def test_metrics_may_be_infinite_or_nan(ledger: Ledger) -> None:
    [asked] = cases.items(n=1)
    ledger.open_evaluation(cases.evaluation("inf"), [asked])
    answer = Answer(task="arc_easy", index=0, item=asked.hash, metrics={"a": math.inf, "b": math.nan})
    ledger.finish_evaluation(cases.evaluation("inf"), [answer], [[]])
    [back] = ledger.answers("inf")
    assert back.metrics["a"] == math.inf
    assert math.isnan(back.metrics["b"])


@pytest.mark.parametrize("value", [object(), b"bytes", {"a": {1, 2}}, {1: "key"}])
def test_what_is_not_json_is_refused_in_one_line(value: Any) -> None:
    with pytest.raises(StorageError) as caught:
        encode({"doc": value})
    assert "\n" not in str(caught.value)


def test_fields_that_a_stored_value_lacks_take_their_default() -> None:
    old = {k: v for k, v in encode(cases.tuning()).items() if k not in ("notes", "held_out")}
    assert decode(Tuning, old) == cases.tuning()


def test_a_stored_value_that_does_not_fit_is_refused_in_one_line() -> None:
    with pytest.raises(StorageError, match=r"Tuning\.seed: .* \(found 'x'\)") as caught:
        decode(Tuning, {**encode(cases.tuning()), "seed": "x"})
    assert "\n" not in str(caught.value)
