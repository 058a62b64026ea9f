"""Owns whether training data shows what an evaluation asks.

    [overlap] = find_overlap(corpus.shown, questions)
    overlap.exact, overlap.ngram           (12,), (12, 407): indices of items of one task

Two checks, on lower-cased words without punctuation. Exact: a text of the item is a text of an example. 13-gram, as in
the contamination check of GPT-3 (Brown et al. 2020, arXiv:2005.14165, appendix C): 13 words in a row of the item stand
in an example; an item that is shorter counts where all of it does, if it has 8 words at least, below which they found
collisions by chance. What is worded alike in many items of a task (8 words in a row that more than a tenth of them
share, and three at least) is the task's instruction and not its content; it is passed over.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np

from aftertune.tuning.data import Example
from aftertune.values import Overlap, Question

GRAM, LEAST = 13, 8
#: 8 words in a row that a larger share of a task's items has are the task's wording.
COMMON = 0.1
#: So many findings are kept with their words; of the others the index.
KEPT = 20
Array = Any  # a numpy array; all here have one dimension


@dataclass(slots=True)
class _Texts:
    """Texts as words in one row. codes: a random number for each word [W]; owner: which text it is of [W]."""

    codes: Array
    owner: Array

    def grams(self, size: int) -> Array:
        """A number for each ``size`` words in a row [W - size + 1]; equal for equal words."""
        count = max(len(self.codes) - size + 1, 0)
        total = np.zeros(count, dtype=np.uint64)
        for offset in range(size if count else 0):
            total = total * np.uint64(0x9E3779B97F4A7C15) + self.codes[offset:offset + count]
        return total

    def within(self, size: int, run: Array) -> Array:
        """Which ``size`` words in a row lie in one run, numbered by ``run`` [W]; negative numbers are none."""
        count = max(len(run) - size + 1, 0)
        return (run[:count] == run[size - 1:size - 1 + count]) & (run[:count] >= 0)


@dataclass(slots=True)
class _Words:
    """Numbers words, the same for all texts."""

    numbers: dict[str, int] = field(default_factory=dict)

    def read(self, texts: Iterable[str]) -> _Texts:
        number, ids, lengths = self.numbers, [], []
        for text in texts:
            found = [number.setdefault(word, len(number)) for word in words(text)]
            ids += found
            lengths.append(len(found))
        return _Texts(_scattered(np.array(ids, dtype=np.uint64)), np.repeat(np.arange(len(lengths)), lengths))


def _scattered(numbers: Array) -> Array:
    """64 bits that look random for each number, different for different ones (SplitMix64, Steele et al. 2014)."""
    mixed = (numbers + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def words(text: str) -> list[str]:
    """Lower-cased words, without punctuation."""
    return re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold())


def find_overlap(examples: Sequence[Example], questions: Iterable[Question]) -> tuple[Overlap, ...]:
    """The overlap of each task, in the order of ``questions`` (those of one task stand together)."""
    tasks = [(name, list(group)) for name, group in groupby(questions, key=lambda q: q.task)]
    if not tasks:
        return ()
    vocabulary = _Words()
    shown = vocabulary.read(_whole(example) for example in examples)
    units = {unit: place for place in range(len(examples) - 1, -1, -1) for unit in _units(examples[place])}
    found = []
    for name, items in tasks:
        asked = vocabulary.read(text for item in items for text in item.texts)
        item_of = np.repeat(np.arange(len(items)), [len(item.texts) for item in items])
        grams = dict(_shared(asked, shown, item_of[asked.owner]))
        exact = {n: units[text] for n, item in enumerate(items)
                 for text in (" ".join(words(text)) for text in item.texts) if text in units}
        evidence = {n: ("exact", place, " ".join(words(items[n].texts[0]))) for n, place in exact.items()}
        for n, (place, first, size) in grams.items():
            text = [word for text in items[n].texts for word in words(text)][first:first + size]
            evidence.setdefault(n, (f"{size} words", place, " ".join(text)))
        found.append(Overlap(
            task=name, n=len(items), exact=tuple(items[n].index for n in sorted(exact)),
            ngram=tuple(items[n].index for n in sorted(grams)),
            found=tuple({"item": items[n].index, "hash": items[n].hash, "by": evidence[n][0],
                         "in": examples[evidence[n][1]].where, "words": evidence[n][2]}
                        for n in sorted(evidence)[:KEPT])))
    return tuple(found)


def _shared(asked: _Texts, shown: _Texts, item: Array) -> Iterator[tuple[int, tuple[int, int, int]]]:
    """Items with words in a row that an example has: (item, (example, first word of the item's, how many))."""
    run = _runs(asked, item)
    starts = np.searchsorted(item, np.arange(item.max(initial=-1) + 1))
    length = np.bincount(run[run >= 0], minlength=1) if len(run) else np.zeros(1, dtype=np.int64)
    longest = np.zeros(len(starts), dtype=np.int64)
    np.maximum.at(longest, item[run >= 0], length[run[run >= 0]])
    for size in range(LEAST, GRAM + 1):
        usable = asked.within(size, run)
        if size < GRAM:  # an item shorter than that counts as a whole
            usable &= (length[run[:len(usable)]] == size) & (longest[item[:len(usable)]] == size)
        if not usable.any():
            continue
        wanted, there = asked.grams(size), shown.grams(size)
        theirs = np.flatnonzero(shown.within(size, shown.owner) & np.isin(there, wanted[usable]))
        place_of = dict(zip(there[theirs[::-1]].tolist(), theirs[::-1].tolist(), strict=True))  # the first of each
        ours = np.flatnonzero(usable & np.isin(wanted, there[theirs]))
        _, firsts = np.unique(item[ours], return_index=True)
        for at in ours[firsts].tolist():
            place = place_of[int(wanted[at])]
            yield int(item[at]), (int(shown.owner[place]), at - int(starts[item[at]]), size)


def _runs(asked: _Texts, item: Array) -> Array:
    """A number for each stretch of a text that is not wording common to the task, and -1 for what is [W]."""
    most = max(2, COMMON * (int(item.max(initial=-1)) + 1))
    inside, grams = asked.within(LEAST, asked.owner), asked.grams(LEAST)
    pairs = np.unique(np.stack([grams[inside], item[:len(grams)][inside].astype(np.uint64)]), axis=1)
    values, counts = np.unique(pairs[0], return_counts=True)
    common = np.flatnonzero(inside & np.isin(grams, values[counts > most]))
    covered = np.zeros(len(asked.codes), dtype=bool)
    for offset in range(LEAST):
        covered[common + offset] = True
    breaks = np.ones(len(covered), dtype=bool)
    breaks[1:] = (asked.owner[1:] != asked.owner[:-1]) | (covered[1:] != covered[:-1])
    return np.where(covered, -1, np.cumsum(breaks) - 1)


def _whole(example: Example) -> str:
    return " ".join([*(text for _, text in example.conversation), example.completion])


def _units(example: Example) -> Iterator[str]:
    """The texts of an example, one by one: its turns, an instruction with and without its input, and a completion that
    is no mere label."""
    texts = [words(text) for _, text in (*example.turns, *example.conversation[-1:])]
    completion = words(example.completion)
    if len(completion) >= LEAST:
        texts.append(completion)
    yield from (" ".join(text) for text in texts if text)
