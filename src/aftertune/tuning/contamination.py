"""Searches training data for evaluation items.

    [overlap] = find_overlap(corpus.training, questions)
    overlap.exact, overlap.ngram           (12,), (12, 407): indices of items of one task

There are two checks, both on lower-cased words without punctuation:

- exact: a text of the item is a text of an example.
- 13-gram, as in the contamination check of GPT-3 (Brown et al. 2020, arXiv:2005.14165, appendix C): 13 consecutive
  words of the item occur in an example. A shorter item counts if all of it occurs and it has at least 8 words; below
  that they found matches by chance.

Words that many items of a task share are its instruction and not its content, so they are skipped: 8 consecutive words
that occur in more than a tenth of the items, and in at least three.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np

from aftertune.tuning.example import Example
from aftertune.values import Overlap, Question

#: Consecutive words that must match, and the fewest words of an item that is compared as a whole.
NGRAM, SHORTEST = 13, 8
#: Words that a larger share of a task's items have in common are the task's instruction.
COMMON_SHARE = 0.1
#: For this many items of a task the matching words are stored, for the others only the index.
MAX_EVIDENCE = 20
Array = Any  # a numpy array; all here have one dimension


@dataclass(slots=True)
class _Texts:
    """Several texts as one sequence of W words. codes: a 64-bit hash of each word [W]; owner: the index of the text
    that each word is from [W]."""

    codes: Array
    owner: Array

    def ngrams(self, size: int) -> Array:
        """A hash of each ``size`` consecutive words [W - size + 1]; equal for equal words."""
        count = max(len(self.codes) - size + 1, 0)
        total = np.zeros(count, dtype=np.uint64)
        for offset in range(size if count else 0):
            total = total * np.uint64(0x9E3779B97F4A7C15) + self.codes[offset:offset + count]
        return total

    def within(self, size: int, run: Array) -> Array:
        """True where ``size`` consecutive words are in the same run [W - size + 1]. run: the number of each word's run
        [W]; a negative number means none."""
        count = max(len(run) - size + 1, 0)
        return (run[:count] == run[size - 1:size - 1 + count]) & (run[:count] >= 0)


@dataclass(slots=True)
class _Vocabulary:
    """Gives each distinct word a number, the same in all texts."""

    numbers: dict[str, int] = field(default_factory=dict)

    def encode(self, texts: Iterable[str]) -> _Texts:
        numbers, ids, lengths = self.numbers, [], []
        for text in texts:
            text_ids = [numbers.setdefault(word, len(numbers)) for word in words(text)]
            ids += text_ids
            lengths.append(len(text_ids))
        return _Texts(_split_mix(np.array(ids, dtype=np.uint64)), np.repeat(np.arange(len(lengths)), lengths))


def _split_mix(numbers: Array) -> Array:
    """A 64-bit hash of each number, without collisions (SplitMix64, Steele et al. 2014)."""
    mixed = (numbers + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def words(text: str) -> list[str]:
    """Lower-cased words, without punctuation."""
    return re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold())


def find_overlap(examples: Sequence[Example], questions: Iterable[Question]) -> tuple[Overlap, ...]:
    """The overlap of each task, in the order of ``questions``, where the questions of a task are adjacent."""
    tasks = [(name, list(group)) for name, group in groupby(questions, key=lambda q: q.task)]
    if not tasks:
        return ()
    vocabulary = _Vocabulary()
    data = vocabulary.encode(_full_text(example) for example in examples)
    example_of = {text: n for n in range(len(examples) - 1, -1, -1) for text in _single_texts(examples[n])}
    overlaps = []
    for name, items in tasks:
        asked = vocabulary.encode(text for item in items for text in item.texts)
        item_of = np.repeat(np.arange(len(items)), [len(item.texts) for item in items])
        ngrams = dict(_shared_ngrams(asked, data, item_of[asked.owner]))
        exact = {n: example_of[text] for n, item in enumerate(items)
                 for text in (" ".join(words(text)) for text in item.texts) if text in example_of}
        evidence = {n: ("exact", example, " ".join(words(items[n].texts[0]))) for n, example in exact.items()}
        for n, (example, first, size) in ngrams.items():
            text = [word for text in items[n].texts for word in words(text)][first:first + size]
            evidence.setdefault(n, (f"{size} words", example, " ".join(text)))
        overlaps.append(Overlap(
            task=name, n=len(items), exact=tuple(items[n].index for n in sorted(exact)),
            ngram=tuple(items[n].index for n in sorted(ngrams)),
            found=tuple({"item": items[n].index, "hash": items[n].hash, "by": evidence[n][0],
                         "in": examples[evidence[n][1]].where, "words": evidence[n][2]}
                        for n in sorted(evidence)[:MAX_EVIDENCE])))
    return tuple(overlaps)


def _shared_ngrams(asked: _Texts, data: _Texts, item: Array) -> Iterator[tuple[int, tuple[int, int, int]]]:
    """Items that share consecutive words with an example: (item, (example, first of the item's words, how many)).

    item: the item of each asked word [W].
    """
    run = _content_runs(asked, item)
    starts = np.searchsorted(item, np.arange(item.max(initial=-1) + 1))
    length = np.bincount(run[run >= 0], minlength=1) if len(run) else np.zeros(1, dtype=np.int64)
    longest = np.zeros(len(starts), dtype=np.int64)
    np.maximum.at(longest, item[run >= 0], length[run[run >= 0]])
    for size in range(SHORTEST, NGRAM + 1):
        usable = asked.within(size, run)
        if size < NGRAM:  # shorter n-grams count only for an item that has no longer run
            usable &= (length[run[:len(usable)]] == size) & (longest[item[:len(usable)]] == size)
        if not usable.any():
            continue
        asked_ngrams, data_ngrams = asked.ngrams(size), data.ngrams(size)
        matches = np.flatnonzero(data.within(size, data.owner) & np.isin(data_ngrams, asked_ngrams[usable]))
        # reversed, so that the first of equal n-grams is the one that stays
        first_match = dict(zip(data_ngrams[matches[::-1]].tolist(), matches[::-1].tolist(), strict=True))
        shared = np.flatnonzero(usable & np.isin(asked_ngrams, data_ngrams[matches]))
        _, firsts = np.unique(item[shared], return_index=True)
        for at in shared[firsts].tolist():
            match = first_match[int(asked_ngrams[at])]
            yield int(item[at]), (int(data.owner[match]), at - int(starts[item[at]]), size)


def _content_runs(asked: _Texts, item: Array) -> Array:
    """The number of each word's run of content [W]; -1 for words of the task's instruction. A run ends with its text.

    item: the item of each word [W].
    """
    most = max(2, COMMON_SHARE * (int(item.max(initial=-1)) + 1))
    inside, ngrams = asked.within(SHORTEST, asked.owner), asked.ngrams(SHORTEST)
    pairs = np.unique(np.stack([ngrams[inside], item[:len(ngrams)][inside].astype(np.uint64)]), axis=1)
    values, counts = np.unique(pairs[0], return_counts=True)
    common = np.flatnonzero(inside & np.isin(ngrams, values[counts > most]))
    covered = np.zeros(len(asked.codes), dtype=bool)
    for offset in range(SHORTEST):
        covered[common + offset] = True
    breaks = np.ones(len(covered), dtype=bool)
    breaks[1:] = (asked.owner[1:] != asked.owner[:-1]) | (covered[1:] != covered[:-1])
    return np.where(covered, -1, np.cumsum(breaks) - 1)


def _full_text(example: Example) -> str:
    return " ".join([*(text for _, text in example.conversation), example.completion])


def _single_texts(example: Example) -> Iterator[str]:
    """The texts of an example one by one: its turns, the instruction with and without its input, and the completion if
    it is more than a label."""
    texts = [words(text) for _, text in (*example.turns, *example.conversation[-1:])]
    completion = words(example.completion)
    if len(completion) >= SHORTEST:
        texts.append(completion)
    yield from (" ".join(text) for text in texts if text)
