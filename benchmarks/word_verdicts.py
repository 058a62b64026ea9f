"""Simulate each word of a verdict: how often it is said, and how often it is false. `benchmarks/verdicts.py` runs it.

Items are independent draws from a population: the share ``psi`` of them differs between the two models, and the mean
difference is the truth. A word is false if the truth does not have the property that it claims, so at a boundary (0 or
plus or minus the margin) every word that points beyond the boundary is false. There "within" may be said in at most 5 %
of the comparisons and each other word in at most 2.5 %, with a fixed number of items and with early stopping. Early
stopping is simulated with its end: where the items run out, the interim analyses and the test of all items share the
error level (`after_looks`). Verdicts come from the functions of the program.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from aftertune.stats import Case, MarginTests, decide, tango_tests
from aftertune.stats.sequential import (
    CLAIMS,
    SCALES,
    Boundaries,
    after_looks,
    anytime_tests,
    first_verdict,
    log_factors,
    log_mixture,
    stop_thresholds,
)
from aftertune.values import verdict_label
from fixed_verdicts import ALPHA, MARGIN, Floats, share

WORDS = (*CLAIMS, "undecided")
#: Simulations of one step of arithmetic, and items of one step.
BLOCK, STEP = 64, 64


@dataclass(frozen=True, slots=True, kw_only=True)
class WordScenario:
    """truth: the mean difference of the population, a fraction. early: with early stopping."""

    items: int
    psi: float
    truth: float
    early: bool = False

    def false(self, word: str) -> bool:
        """True for a word that claims more than the truth."""
        low, high = self.truth <= -MARGIN + 1e-12, self.truth >= MARGIN - 1e-12
        return {"lower": self.truth >= -MARGIN - 1e-12, "higher": self.truth <= MARGIN + 1e-12, "within": low or high,
                "worse": self.truth >= 0, "better": self.truth <= 0, "no_loss": low}.get(word, False)

    @property
    def chances(self) -> list[float]:
        """Of a lost, an equal and a gained item."""
        return [(self.psi - self.truth) / 2, 1 - self.psi, (self.psi + self.truth) / 2]


POINTS = (-0.04, -0.03, -0.02, -0.01, 0.0, 0.005, 0.01, 0.015, 0.02, 0.03)
FIXED_WORDS = tuple(WordScenario(items=1000, psi=0.1, truth=truth) for truth in POINTS)
EARLY_WORDS = (
    *(WordScenario(items=1319, psi=0.1, truth=truth, early=True) for truth in (-0.05, -0.02, 0.0, 0.01, 0.02)),
    *(WordScenario(items=10_042, psi=0.08, truth=truth, early=True) for truth in (-0.05, -0.02, 0.0, 0.01, 0.02)),
)


@cache
def _fixed(gained: int, lost: int, items: int) -> MarginTests:
    return tango_tests(gained, lost, items, MARGIN)


@cache
def _word(tests: MarginTests) -> str:
    return decide([Case(tests=tests)])[0].verdict


def run_words(scenario: WordScenario, comparisons: int) -> dict[str, Any]:
    """How often each word is said, the number of items, and how many comparisons asked all items."""
    random = np.random.default_rng(round(1e6 * scenario.truth) % 2**31 + scenario.items)
    if not scenario.early:
        counts = random.multinomial(scenario.items, scenario.chances, comparisons)
        said = Counter(_word(_fixed(int(gained), int(lost), scenario.items)) for lost, _, gained in counts)
        return {"said": said, "comparisons": comparisons, "items": scenario.items, "ended": comparisons}
    words, at = [], []
    for start in range(0, comparisons, BLOCK):
        size = (min(BLOCK, comparisons - start), scenario.items)
        for word, items in early_words(random.choice([-1.0, 0.0, 1.0], size, p=scenario.chances)):
            words.append(word)
            at.append(items)
    return {"said": Counter(words), "comparisons": comparisons, "items": float(np.median(at)),
            "ended": sum(n == scenario.items for n in at)}


def early_words(d: Floats) -> list[tuple[str, int]]:
    """The word of each row of differences [comparisons, items] in their order, and after how many items it was said."""
    walls, stops = Boundaries.around(MARGIN, zero=True), stop_thresholds(ALPHA)
    rows, items = d.shape
    wealth, best = np.zeros((rows, 6, SCALES.size)), np.zeros((rows, 6))
    results: list[tuple[str, int]] = [("", 0)] * rows
    waiting = np.arange(rows)
    for seen in range(0, items, STEP):
        if not waiting.size:
            break
        part = d[waiting, seen:seen + STEP]
        path = wealth[:, None] + np.cumsum(log_factors(part, np.zeros(len(part)), seen, None, walls), axis=1)
        tops = np.maximum(best[:, None], np.maximum.accumulate(log_mixture(path), axis=1))
        settled = [first_verdict(rejected) for rejected in tops >= stops]
        for row, first in zip(waiting, settled, strict=True):
            if first is not None:
                results[row] = first[0], seen + first[1] + 1
        going = np.array([first is None for first in settled])
        waiting, wealth, best = waiting[going], path[going, -1], tops[going, -1]
    for row, log_evidence in zip(waiting, best, strict=True):
        gained, lost = int((d[row] > 0).sum()), int((d[row] < 0).sum())
        results[row] = _word(after_looks(anytime_tests(log_evidence), _fixed(gained, lost, items))), items
    return results


def level_of(word: str) -> float:
    """How often a word may be false at a boundary: "within" is one-sided at 5 %, the others are a side of 95 %."""
    return ALPHA if word == "within" else ALPHA / 2


def broken_words(scenario: WordScenario, found: dict[str, Any]) -> Iterator[str]:
    """The words that are false more often than they may be, by more than twice the Monte Carlo error."""
    n = found["comparisons"]
    for word in CLAIMS:
        level = level_of(word)
        if scenario.false(word) and found["said"][word] / n > level + 2 * math.sqrt(level * (1 - level) / n):
            yield f"{scenario}: false {word} {share(found['said'][word], n)}"


def word_lines(results: Sequence[tuple[WordScenario, dict[str, Any]]]) -> Iterator[str]:
    """The section of docs/benchmarks.md."""
    yield "## The words of a verdict"
    yield ""
    yield ("Written by `python benchmarks/verdicts.py`; the docstring of `benchmarks/word_verdicts.py` explains the "
           "simulation. No model is used. Bold: said although it is not true.")
    for early in (False, True):
        part = [(s, found) for s, found in results if s.early == early]
        if not part:
            continue
        yield ""
        yield f"{'Early stopping' if early else 'A fixed number of items'}, margin {100 * MARGIN:g} points:"
        yield ""
        heads = [verdict_label(word, lineage=True) for word in WORDS]
        more = ["median items", "asked all"] if early else ["undecided before"]
        yield f"| items | differ | true difference | {' | '.join([*heads, *more])} |"
        yield f"|{'---|' * (3 + len(heads) + len(more))}"
        for s, found in part:
            n = found["comparisons"]
            cells = [f"{100 * found['said'][word] / n:.1f} %" for word in WORDS]
            cells = [f"**{c}**" if s.false(word) and found["said"][word] else c
                     for word, c in zip(WORDS, cells, strict=True)]
            last = [f"{found['items']:,.0f}", f"{found['ended'] / n:.0%}"] if early else [
                f"{1 - sum(found['said'][w] for w in ('lower', 'higher', 'within')) / n:.0%}"]
            points = f"{100 * s.truth:+g}".replace("-", "\N{MINUS SIGN}") if s.truth else "0"
            yield f"| {s.items:,} | {s.psi:.0%} | {points} | {' | '.join([*cells, *last])} |"
        yield ""
        yield f"{part[0][1]['comparisons']:,} comparisons each. " + (
            "All items are asked where no word about the margin is proven before." if early else
            "*Undecided before*: without worse, better and no loss, as in version 2 of the rules.")
