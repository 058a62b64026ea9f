"""Evaluation items in training data: exact and 13-gram matches, compared with the slow definition."""

from __future__ import annotations

import random

import pytest

from aftertune.report import data_facts
from aftertune.tuning.contamination import find_overlap, words
from aftertune.tuning.example import Example
from aftertune.values import Overlap, Question

LONG = "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May."


def asked(*texts: str, task: str = "t") -> list[Question]:
    return [Question(task=task, index=10 + n, hash=f"h{n}", texts=(text,)) for n, text in enumerate(texts)]


def shown(*texts: str, completion: str = "yes") -> list[Example]:
    return [Example((("user", text),), completion, where=f"d.jsonl:{n}") for n, text in enumerate(texts, 1)]


def test_an_item_that_is_an_example_is_found_whatever_case_spaces_and_punctuation():
    [found] = find_overlap(shown("Something else.", f"  {LONG.upper()}!"), asked("Who wrote it?", LONG))
    assert (found.n, found.exact, found.ngram, found.items) == (2, (11,), (11,), (11,))
    assert found.found[0] == {"item": 11, "hash": "h1", "by": "exact", "in": "d.jsonl:2",
                              "words": " ".join(words(LONG))}


@pytest.mark.parametrize(("kept", "found"), [(13, True), (12, False)])
def test_thirteen_words_in_a_row_are_overlap_and_twelve_are_not(kept, found):
    part = " ".join(LONG.split()[:kept])
    [overlap] = find_overlap(shown(f"Once {part} or so it is said."), asked(LONG))
    assert overlap.exact == ()
    assert overlap.ngram == ((10,) if found else ())
    if found:
        assert overlap.found[0]["words"] == " ".join(words(part))
        assert overlap.found[0]["by"] == "13 words"


@pytest.mark.parametrize(("item", "found"), [
    ("one two three four five six seven eight", True), ("one two three four five six seven", False),
    ("one two three four five six seven eight nine ten", True)])
def test_a_short_item_is_found_whole_from_eight_words_on(item, found):
    [overlap] = find_overlap(shown(f"Zero {item} and so on"), asked(item))
    assert overlap.ngram == ((10,) if found else ())


def test_answers_and_plain_text_are_looked_through_too_and_a_short_answer_is_no_match():
    [overlap] = find_overlap([Example((("user", "Hi"),), LONG, where="a"), Example((), LONG, where="b")], asked(LONG))
    assert (overlap.exact, overlap.found[0]["in"]) == ((10,), "a")
    [overlap] = find_overlap(shown("Which?", completion="Yes"), asked("Yes"))
    assert overlap.items == ()


def test_words_do_not_run_from_one_example_or_item_into_the_next():
    first, last = " ".join(LONG.split()[:8]), " ".join(LONG.split()[8:])
    [overlap] = find_overlap(shown(first, last), asked(LONG))
    assert overlap.items == ()  # 8 words and 12
    first, last = " ".join(LONG.split()[:7]), " ".join(LONG.split()[7:])
    [overlap] = find_overlap(shown(LONG), asked(first, last))
    assert overlap.ngram == (11,)  # 13 words; the other has 7


def test_the_wording_of_a_task_is_no_overlap_but_its_content_is():
    head = "Write the order as JSON with item in the singular and quantity and color or null:"
    orders = [f"{head} please send {n} trays of kind {n * n} to the town of number {n + 7} by day {n % 7}, and hurry, "
              f"said customer {n * 31}" for n in range(40)]
    [overlap] = find_overlap(shown(*(f"{head} {n} mugs" for n in range(100, 120))), asked(*orders))
    assert overlap.items == ()
    [overlap] = find_overlap(shown(f"{head} 1 mug", orders[3]), asked(*orders))
    assert overlap.items == (13,)


def test_each_task_is_told_on_its_own_and_without_tasks_nothing_is():
    questions = [*asked("Who wrote it?", task="a"), *asked(LONG, task="b")]
    assert [(o.task, o.n, o.items) for o in find_overlap(shown(LONG), questions)] == [("a", 1, ()), ("b", 1, (10,))]
    assert find_overlap(shown(LONG), []) == ()


def slow(examples, questions):
    """The definition, by comparing every 13 words of every item with every example (no wording in common)."""
    def grams(text):
        found = words(text)
        size = min(13, len(found))
        return {tuple(found[i:i + size]) for i in range(len(found) - size + 1)} if size >= 8 else set()

    def holds(text, gram):
        found = words(text)
        return any(tuple(found[i:i + len(gram)]) == gram for i in range(len(found)))

    return tuple(q.index for q in questions if any(
        holds(f"{e.turns[0][1]} {e.completion}", gram) for e in examples for t in q.texts for gram in grams(t)))


@pytest.mark.parametrize("seed", range(4))
def test_it_finds_what_the_slow_definition_finds(seed):
    draw = random.Random(seed)
    texts = [" ".join(f"w{draw.randrange(60)}" for _ in range(draw.randrange(5, 30))) for _ in range(60)]
    questions = asked(*texts)
    examples = []
    for n in range(160):
        source = words(draw.choice(texts))
        begin = draw.randrange(len(source))
        piece = source[begin:begin + draw.randrange(6, 20)]
        examples += shown(" ".join(["x", *piece, f"y{n}"]), completion=f"z{n}")
    [overlap] = find_overlap(examples, questions)
    assert overlap.ngram == slow(examples, questions)
    assert 5 < len(overlap.ngram) < 55


def test_many_findings_keep_every_index_and_the_words_of_a_few():
    texts = [" ".join(f"w{n}x{k}" for k in range(15)) for n in range(50)]
    [overlap] = find_overlap(shown(*texts), asked(*texts))
    assert (len(overlap.exact), len(overlap.ngram), len(overlap.found)) == (50, 50, 20)


def test_it_is_told_with_the_items_and_where_or_that_there_is_none():
    found = Overlap(task="gsm8k", n=1319, exact=(3,), ngram=(3, 40),
                    found=({"item": 3, "in": "d.jsonl:7", "words": "a b c"},))
    none = Overlap(task="hellaswag", n=300)
    [first, second] = data_facts({}, (found, none))
    assert first == ("Data Overlap, GSM8K", "2 of 1,319 items are in the training data (1 exactly, 2 with 13 words in "
                     "a row): 3, 40; the first in d.jsonl:7: 'a b c'")
    assert second == ("Data Overlap, HellaSwag", "none of 300 items is in the training data, exactly or with 13 words "
                      "in a row")
