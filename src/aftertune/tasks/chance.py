"""Finds the expected score of a guess, for tasks whose answers can be guessed.

    guess(["yes", "no"])                                    0.5
    guess(["a", "b", "c", "c", "d"], gold=[0, 1])           0.5: two of four different choices are right
    options({"options": ["4", "5", "6"]}, "", "B")          3
    task_chance("mmlu_pro", [0.1, 0.1, None])               0.067: a third item has no options

The level of a task is the mean over its items, because the number of choices differs between the items of many tasks.
A task with generated answers has a level where each question lists its options (`options`), or where the catalog states
one (`aftertune.catalog.guessing_level`).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from aftertune import catalog

#: Fields of a document that list the options of a question.
_FIELDS = ("options", "choices", "endings")
#: A right answer that is a letter: "B", "(B)", "B.", "B)".
_LETTER = re.compile(r"\(?([A-Z])\)?[.:]?")
#: The target of an item with one or more right choices, as lm-eval writes it.
_INDICES = re.compile(r"\s*\[?\s*\d{1,4}(\s*,\s*\d{1,4})*\s*,?\s*\]?\s*")
#: The letter before an option in the text of a question: "(A) …" anywhere, "A. …", "A) …" or "A: …" at a line's start.
_LABEL = re.compile(r"\(([A-Z])\)|^\s*([A-Z])[.):]\s", re.MULTILINE)


def guess(choices: Sequence[Hashable], gold: Collection[int] = ()) -> float | None:
    """The expected score of a guess on one item: right choices divided by choices, equal ones counted once.

    gold: indices of the right choices; without one, one choice is taken to be right. None without choices.
    """
    if not choices:
        return None
    right = {choices[g] for g in gold if 0 <= g < len(choices)}
    return max(1, len(right)) / len(set(choices))


def request_guess(prompts: Sequence[tuple[str, str]], gold: Collection[int] = (), *, mutual_info: bool = False
                  ) -> float | None:
    """The same from the (context, continuation) of each request of an item.

    mutual_info: the task has the metric `acc_mutual_info`, for which lm-eval asks each choice once more, without the
    question.
    """
    half = len(prompts) // 2
    if mutual_info and len(prompts) == 2 * half and not any(context for context, _ in prompts[half:]):
        prompts = prompts[:half]
    return guess(list(prompts), gold)


def indices(target: str) -> tuple[int, ...]:
    """The indices of the right choices in the text of a target: "2" is (2,), "[0, 2]" is (0, 2); () for other text."""
    if not _INDICES.fullmatch(target):
        return ()
    return tuple(map(int, re.findall(r"\d+", target)))


def options(doc: Mapping[str, Any], question: str, reference: str) -> int | None:
    """The number of options of a question whose answer is generated; None where the answer is not one of them.

    question: the prompt without examples. reference: the right answer, a letter or the text of an option.
    """
    answer = reference.strip()
    letter = _LETTER.fullmatch(answer)
    for field in _FIELDS:
        listed = doc.get(field)
        texts = listed.get("text") if isinstance(listed, Mapping) else listed
        if not isinstance(texts, list | tuple) or len(texts) < 2:
            continue
        if (letter and ord(letter[1]) - ord("A") < len(texts)) or (answer and answer in map(str, texts)):
            return len(set(map(str, texts)))
    count = _last_labels(question)
    return count if letter and count > 1 and ord(letter[1]) - ord("A") < count else None


def _last_labels(text: str) -> int:
    """How many labels A, B, C … follow one another in the last list of a text, which is that of the question."""
    count = 0
    for first, second in _LABEL.findall(text):
        position = ord(first or second) - ord("A")
        count = 1 if position == 0 else count + 1 if position == count else count
    return count


def generated_guess(task: str, doc: Mapping[str, Any], question: str, reference: str) -> float | None:
    """The expected score of a guess on one item with a generated answer; None where it cannot be guessed."""
    count = options(doc, question, reference)
    return catalog.guessing_level(task, 1 / count if count else None)


def task_chance(task: str, levels: Iterable[float | None]) -> float | None:
    """The expected score of a guess on a task, from the levels of its items; None where it cannot be guessed.

    An item without a level counts as one that no guess gets right. Where most items have none, the task has none.
    """
    items = known = 0

    def stated() -> Iterator[float]:
        nonlocal items, known
        for level in levels:
            items += 1
            if level is not None:
                known += 1
                yield level

    total = sum(stated())
    if not known or 2 * known < items:
        return catalog.guessing_level(task, None)
    return catalog.guessing_level(task, total / items)
