"""Which answers belong together: owns the pairing of two sides by item hash.

An item is found by its content, not by its place, so that two runs over differing samples share what they
share. Equal items within one task are paired in order: first with first, second with second.

    pair_up(settings, base_answers, tuned_answers).counts      (300, 300, 300): left, right, shared
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from aftertune.values import Answer, TaskSettings


@dataclass(frozen=True, slots=True)
class Pair:
    """One task on both sides: all answers, and those to shared items in one order (left, right).

    settings: of the left side.
    """

    settings: TaskSettings
    all_left: Sequence[Answer]
    all_right: Sequence[Answer]
    left: Sequence[Answer]
    right: Sequence[Answer]

    @property
    def counts(self) -> tuple[int, int, int]:
        """How many items the left, the right, and both have."""
        return len(self.all_left), len(self.all_right), len(self.left)


def pair_up(settings: TaskSettings, left: Sequence[Answer], right: Sequence[Answer]) -> Pair:
    """Pair the answers of one task, in the order of the left side."""
    others = dict(_numbered(right))
    shared = [(a, others[key]) for key, a in _numbered(left) if key in others]
    return Pair(settings, left, right, [a for a, _ in shared], [b for _, b in shared])


def _numbered(answers: Iterable[Answer]) -> Iterator[tuple[tuple[str, int], Answer]]:
    """Answers by (item hash, how many equal items came before)."""
    seen: Counter[str] = Counter()
    for answer in answers:
        yield (answer.item, seen[answer.item]), answer
        seen[answer.item] += 1
