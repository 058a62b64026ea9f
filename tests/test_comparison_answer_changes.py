"""What answers look like on both sides: chosen positions, ends, empty and repeated texts, lengths."""

import math

import pytest

from aftertune.comparison.answer_changes import (
    choice_scores,
    chosen_position,
    cut_off_count,
    empty_count,
    position_table,
    reference_share,
    repeated_count,
    text_lengths,
)
from aftertune.comparison.pairing import Pair
from aftertune.values import Answer, Asked, PairedCount, Response
from early_cases import settings

CHOICES = ("a", "bb", "ccc", "dddd")


def chosen(index, position, *, size=4, **metrics):
    """An answer whose best choice is ``position``."""
    return Answer(task="t", index=index, item=f"h{index}", metrics=metrics or {"acc,none": 1.0}, responses=tuple(
        Response(logprob=-1.0 if i == position else -2.0, greedy=False) for i in range(size)))


def written(index, text, finish="eos", *, extracted=None, tokens=None):
    return Answer(task="t", index=index, item=f"h{index}", metrics={"exact_match,none": 0.0},
                  responses=(Response(text=text, finish=finish, tokens=tokens),), extracted=extracted or {})


def pair(left, right, *, kind="multiple_choice", asked=None, primary="acc,none"):
    task = settings("t", len(left), output_type=kind, primary=primary)
    return Pair(task, left, right, left, right,
                questions=asked or {a.item: Asked(choices=CHOICES, gold=(a.index % 4,)) for a in left})


def test_the_choice_is_that_of_the_metric():
    asked = Asked(choices=("aaaaaaaa", "b"), gold=(0,))
    answer = Answer(task="t", index=0, item="h", metrics={"acc,none": 0.0, "acc_norm,none": 1.0},
                    responses=(Response(logprob=-4.0), Response(logprob=-3.0)))
    assert choice_scores("acc_norm", asked.choices, [-4.0, -3.0]) == (-0.5, -3.0)
    assert [chosen_position(answer, asked, m) for m in ("acc", "acc_norm", "acc_bytes", "prob")] == [1, 0, 0, 0]
    assert chosen_position(answer, None, "acc") == 1
    assert chosen_position(answer, None, "acc_norm") is None  # the lengths of the choices are not stored


@pytest.mark.parametrize(("responses", "metrics"), [
    ((), {"acc,none": 1.0}),  # imported without log-likelihoods
    ((Response(logprob=None), Response(logprob=-1.0)), {"acc,none": 1.0}),
    ((Response(logprob=math.nan), Response(logprob=-1.0)), {"acc,none": 1.0}),
    ((Response(logprob=-1.0),), {"acc,none": 1.0}),  # one continuation is no choice
    ((Response(text="B"),), {"exact_match,none": 1.0}),
    ((Response(logprob=-1.0), Response(logprob=-2.0)), {"acc,none": 1.0, "acc_mutual_info,none": 1.0}),
])
def test_what_is_not_stored_is_no_choice(responses, metrics):
    answer = Answer(task="t", index=0, item="h", metrics=metrics, responses=responses)
    assert chosen_position(answer, None, "acc") is None


def test_choices_that_were_asked_twice_count_once():
    answer = Answer(task="t", index=0, item="h", metrics={"acc,none": 1.0, "acc_mutual_info,none": 0.0},
                    responses=tuple(Response(logprob=p) for p in (-3.0, -2.0, -0.5, -0.1)))
    assert chosen_position(answer, Asked(choices=("a", "b"), gold=(1,)), "acc") == 1


def test_the_table_of_positions_is_paired():
    table = position_table(pair([chosen(i, i % 4) for i in range(8)], [chosen(i, 1) for i in range(8)]))
    assert table is not None
    assert (table.n, table.right, table.base, table.tuned) == (8, (2, 2, 2, 2), (2, 2, 2, 2), (0, 8, 0, 0))
    assert table.taken(1) == PairedCount(n=8, base=2, tuned=8, gained=6, lost=0)
    assert table.taken(0) == PairedCount(n=8, base=2, tuned=0, gained=0, lost=2)


def test_positions_without_the_right_ones_and_of_other_tasks():
    both = [chosen(i, 0) for i in range(3)]
    known = {"h0": Asked(choices=CHOICES, gold=(2,)), "h1": Asked(choices=CHOICES)}
    table = position_table(pair(both, both, asked=known))
    assert table is not None
    assert (table.n, table.right, table.tuned) == (3, (), (3, 0, 0))
    assert position_table(pair(both, both, kind="loglikelihood")) is None
    assert position_table(pair([written(0, "A")], [written(0, "A")])) is None


def test_ends_are_counted_where_both_are_known():
    left = [written(0, "x"), written(1, "x", "length"), written(2, "x", None), written(3, "x", "stop")]
    right = [written(0, "x", "length"), written(1, "x"), written(2, "x", "length"), written(3, "x", "length")]
    count = cut_off_count(pair(left, right, kind="generate_until"))
    assert count == PairedCount(n=3, base=1, tuned=2, gained=2, lost=1)
    unknown = [written(i, "x", None) for i in range(3)]
    assert cut_off_count(pair(unknown, unknown, kind="generate_until")) is None
    assert cut_off_count(pair([chosen(0, 1)], [chosen(0, 1)])) is None


def test_empty_and_repeated_texts():
    left = [written(i, f"answer {i}") for i in range(4)]
    right = [written(0, " \n"), written(1, "yes"), written(2, "yes "), written(3, "")]
    both = pair(left, right, kind="generate_until", primary="exact_match,none")
    assert empty_count(both) == PairedCount(n=4, base=0, tuned=2, gained=2, lost=0)
    assert repeated_count(both) == PairedCount(n=4, base=1, tuned=2, gained=2, lost=1)
    nothing = [written(i, "") for i in range(4)]
    assert repeated_count(pair(nothing, nothing, kind="generate_until")) == PairedCount(n=4, base=0, tuned=0, gained=0,
                                                                                       lost=0)


def test_a_repeated_answer_is_what_was_extracted():
    left = [written(i, f"so it is {i}", extracted={"none": str(i)}) for i in range(4)]
    right = [written(i, f"because {i}, so it is 7", extracted={"none": "7"}) for i in range(3)] + [
        written(3, "no idea", extracted={"none": "[invalid]"})]
    count = repeated_count(pair(left, right, kind="generate_until", primary="exact_match,none"))
    assert count == PairedCount(n=4, base=1, tuned=3, gained=2, lost=0)


def test_the_share_of_the_most_frequent_reference():
    texts = [written(i, "x") for i in range(4)]
    asked = {f"h{i}": Asked(reference="yes" if i < 3 else "no") for i in range(4)}
    assert reference_share(pair(texts, texts, kind="generate_until", asked=asked)) == 0.75
    assert reference_share(pair(texts, texts, kind="generate_until", asked={**asked, "h1": Asked()})) is None


def test_lengths_are_paired():
    left, right = [written(0, "x", tokens=3), written(1, "x")], [written(0, "x", tokens=9), written(1, "x", tokens=2)]
    assert text_lengths(pair(left, right, kind="generate_until")) == ([3], [9])
    assert text_lengths(pair(left[1:], right[1:], kind="generate_until")) is None
