"""Both answers to an item as a page shows them: bars of the choices, and two texts with the words marked that differ.

    choice_bars(item)[0].tuned                   ("-1.532", 87.5, True): its score, the length of its bar, chosen
    before, after = word_diff("the red mug", "the blue mug")
    before                               [DiffPart("the ", False), DiffPart("red ", True), DiffPart("mug", False)]

Words are what white space divides; the space after a word belongs to it, so the parts joined are the text. Texts of
many words are compared by their lines, and longer ones not at all: the time grows with the square of the number.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from aftertune.comparison.paired_items import PairedItem, PairedItems
from aftertune.report import formatting as fmt
from aftertune.report.changed_items import ENDS
from aftertune.values import FlipSide

#: The most words, and the most lines, that are compared.
MOST_WORDS, MOST_LINES = 1500, 1500
_WORD = re.compile(r"\s*\S+\s*|\s+")
_LINE = re.compile(r"[^\n]*\n|[^\n]+")


@dataclass(frozen=True, slots=True)
class DiffPart:
    """A part of a text. changed: the other text does not have it here."""

    text: str
    changed: bool


def word_diff(before: str, after: str) -> tuple[list[DiffPart], list[DiffPart]]:
    """The parts of both texts."""
    for pattern, most in ((_WORD, MOST_WORDS), (_LINE, MOST_LINES)):
        left, right = pattern.findall(before), pattern.findall(after)
        if max(len(left), len(right)) <= most:
            return _parts(left, right)
    return [DiffPart(before, False)], [DiffPart(after, False)]


def _parts(left: Sequence[str], right: Sequence[str]) -> tuple[list[DiffPart], list[DiffPart]]:
    matcher = SequenceMatcher(None, [w.strip() for w in left], [w.strip() for w in right], autojunk=False)
    before: list[DiffPart] = []
    after: list[DiffPart] = []
    for tag, i1, i2, j1, j2 in matcher.get_opcodes():
        for parts, words in ((before, left[i1:i2]), (after, right[j1:j2])):
            if words:
                parts.append(DiffPart("".join(words), tag != "equal"))
    return before, after


@dataclass(frozen=True, slots=True)
class ChoiceBars:
    """One choice. base, tuned: (score as text, length of its bar from 0 to 100, whether the model chose it)."""

    text: str
    right: bool
    base: tuple[str, float, bool]
    tuned: tuple[str, float, bool]


@dataclass(frozen=True, slots=True)
class GeneratedText:
    """One generated answer. about: how it ended and what was extracted."""

    name: str
    right: bool
    about: tuple[str, ...]
    parts: Sequence[DiffPart]


def choice_bars(item: PairedItem) -> list[ChoiceBars]:
    """The choices with the scores of both models, on one scale; [] for generated answers."""
    scores = [s for s in (*item.base.scores, *item.tuned.scores) if math.isfinite(s)]
    if not scores:
        return []
    low, high = min(scores), max(scores)
    room = (high - low) or 1.0

    def side(of: FlipSide, number: int) -> tuple[str, float, bool]:
        if number >= len(of.scores):
            return fmt.DASH, 0.0, False
        score = of.scores[number]
        length = 4 + 96 * (score - low) / room if math.isfinite(score) else 0.0
        best = max(range(len(of.scores)), key=of.scores.__getitem__)
        return fmt.raw(score, 3), round(length, 1), number == best

    return [ChoiceBars(text, n in item.golds, side(item.base, n), side(item.tuned, n))
            for n, text in enumerate(item.choices or [f"choice {n + 1}" for n in range(len(item.base.scores))])]


def generated_texts(item: PairedItem, listed: PairedItems) -> list[GeneratedText]:
    """Both generated answers, with the words that differ marked; [] for choices."""
    if item.base.scores or item.tuned.scores:
        return []
    removed, added = word_diff(item.base.chosen, item.tuned.chosen)
    return [GeneratedText(name, side.right, about_text(side), parts) for name, side, parts in (
        (listed.base.name, item.base, removed), (listed.tuned.name, item.tuned, added))]


def about_text(side: FlipSide) -> tuple[str, ...]:
    """How a generated answer ended, and what was extracted from it."""
    extracted = [f"extracted{'' if name == 'none' else f' by {name}'}: {value.strip() or '(nothing)'}"
                 for name, value in side.extracted.items() if value.strip() != side.chosen.strip()]
    trace = [] if side.reasoning is None else [f"reasoning, not judged: {side.reasoning.strip() or '(empty)'}"]
    return tuple(filter(None, [ENDS.get(side.finish or "", ""), *extracted, *trace]))
