"""Simulate the signs of collapse: how often healthy and broken models show them. `benchmarks/verdicts.py` runs it.

A comparison has a multiple-choice task with four choices and a task with generated texts, of n items each. The answers
of both models to an item are independent draws, which is the worst case, because the answers of real models agree more.
A healthy model draws from the same distribution as its base, so each of its signs is false. Of the two healthy models
one is usual; of the other the shares lie in the middle between what is allowed of a base and what makes a sign. Such a
comparison may show a sign in at most 1 %. A model that lost half of the base's lead over a guess does not guess either;
it may be called so in at most 2.5 %. The rules and thresholds are those of `aftertune.stats.collapse`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from aftertune.stats import Case, decide, tango_tests
from aftertune.stats.collapse import LEVEL, RULES_OF_ANSWERS, change_p, guesses
from aftertune.values import CollapseKind, PairedCount, PositionTable
from fixed_verdicts import ALPHA, MARGIN, Floats, share

CHOICES = 4
KINDS: tuple[CollapseKind, ...] = ("guessing", "one_choice", "endless", "empty", "one_answer")
HEADS = {"guessing": "guessing", "one_choice": "one choice", "endless": "endless", "empty": "empty",
         "one_answer": "one answer"}
#: Tests of the answers of such a comparison: one for each position, and three of the texts.
TESTS = CHOICES + 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """right: share of right choices. first: share of the most frequent position, the others share the rest. endless,
    empty, same: shares of the texts that reach the limit, are empty, or are the most frequent one."""

    right: float
    first: float = 1 / CHOICES
    endless: float = 0.05
    empty: float = 0.01
    same: float = 0.05

    @property
    def positions(self) -> Floats:
        return np.array([self.first, *[(1 - self.first) / (CHOICES - 1)] * (CHOICES - 1)])


@dataclass(frozen=True, slots=True, kw_only=True)
class CollapseScenario:
    """name: what the tuned model does. bar: the largest share of comparisons that may show a sign; None for a broken
    model."""

    name: str
    items: int
    base: Model
    tuned: Model
    bar: float | None = None


USUAL = Model(right=0.6)
#: In the middle between what is allowed of a base and what makes a sign.
MIDDLE = Model(right=0.35, first=0.85, endless=0.6, empty=0.375, same=0.85)
SIZES = (20, 50, 100, 300, 1000)
BROKEN = (("guesses", replace(USUAL, right=0.25)), ("takes one choice", Model(right=0.25, first=0.99)),
          ("does not end", replace(USUAL, endless=0.95)), ("answers nothing", replace(USUAL, empty=0.8)),
          ("says one thing", replace(USUAL, same=0.99)))
COLLAPSES = (
    *(CollapseScenario(name="no change, usual", items=n, base=USUAL, tuned=USUAL, bar=LEVEL) for n in SIZES),
    *(CollapseScenario(name="no change, in the middle", items=n, base=MIDDLE, tuned=MIDDLE, bar=LEVEL) for n in SIZES),
    *(CollapseScenario(name="lost half of its lead", items=n, base=USUAL, tuned=replace(USUAL, right=0.425),
                       bar=ALPHA / 2) for n in SIZES),
    *(CollapseScenario(name=name, items=n, base=USUAL, tuned=tuned) for name, tuned in BROKEN for n in SIZES[::2]))


def run_collapse(scenario: CollapseScenario, comparisons: int) -> dict[str, Any]:
    """How many comparisons show each sign, and any."""
    random = np.random.default_rng(scenario.items)
    n, base, tuned = scenario.items, scenario.base, scenario.tuned

    def paired(before: float, after: float) -> Iterator[PairedCount]:
        chances = np.outer([1 - before, before], [1 - after, after]).ravel()
        for _, gained, lost, both in random.multinomial(n, chances, comparisons).tolist():
            yield PairedCount(n=n, base=lost + both, tuned=gained + both, gained=gained, lost=lost)

    tables = random.multinomial(n, np.outer(base.positions, tuned.positions).ravel(), comparisons)
    shown: Counter[str] = Counter()
    for table, right, endless, empty, same in zip(
            tables.reshape(-1, CHOICES, CHOICES).tolist(), paired(base.right, tuned.right),
            paired(base.endless, tuned.endless), paired(base.empty, tuned.empty), paired(base.same, tuned.same),
            strict=True):
        counts: dict[CollapseKind, PairedCount] = {"endless": endless, "empty": empty, "one_answer": same}
        signs = {kind for kind, count in counts.items() if change_p(kind, count, count, TESTS) is not None}
        signs |= {"one_choice"} if _one_choice(PositionTable(n=n, right=(), pairs=tuple(map(tuple, table)))) else set()
        signs |= {"guessing"} if _guessing(right) else set()
        shown.update(signs)
        shown["any"] += bool(signs)
    return {"shown": shown, "comparisons": comparisons}


def _one_choice(table: PositionTable) -> bool:
    """As `aftertune.comparison.collapse` asks it: of the tuned model's most frequent position."""
    taken = table.taken(max(range(CHOICES), key=table.tuned.__getitem__))
    return change_p("one_choice", replace(taken, base=max(table.base)), taken, TESTS) is not None


def _guessing(right: PairedCount) -> bool:
    if not guesses(right.base / right.n, right.tuned / right.n, right.n, chance=1 / CHOICES):
        return False
    return decide([Case(tests=tango_tests(right.gained, right.lost, right.n, MARGIN))])[0].verdict in ("lower", "worse")


def broken_collapse(scenario: CollapseScenario, found: dict[str, Any]) -> Iterator[str]:
    """The bar of a model that is not broken, which may be missed by twice the Monte Carlo error."""
    n, bar = found["comparisons"], scenario.bar
    if bar is not None and found["shown"]["any"] / n > bar + 2 * math.sqrt(bar * (1 - bar) / n):
        yield f"{scenario.name}, {scenario.items} items: a sign of collapse in {share(found['shown']['any'], n, 2)}"


def collapse_lines(results: Sequence[tuple[CollapseScenario, dict[str, Any]]]) -> Iterator[str]:
    """The section of docs/benchmarks.md."""
    yield "## Signs of collapse"
    yield ""
    yield ("Written by `python benchmarks/verdicts.py`; the docstring of `benchmarks/collapse_signs.py` explains the "
           "simulation. No model is used. The signs of the first three models are false alarms.")
    yield ""
    yield f"| the tuned model | items of each task | {' | '.join(HEADS[kind] for kind in KINDS)} | any sign |"
    yield f"|{'---|' * (3 + len(KINDS))}"
    for scenario, found in results:
        cells = [f"{100 * found['shown'][kind] / found['comparisons']:.2f} %" for kind in (*KINDS, "any")]
        cells[-1] = f"**{cells[-1]}**"
        yield f"| {scenario.name} | {scenario.items:,} | {' | '.join(cells)} |"
    yield ""
    usual, rules = USUAL, RULES_OF_ANSWERS
    yield (f"{results[0][1]['comparisons']:,} comparisons each. The base, where the tuned model is broken: "
           f"{usual.right:.0%} right of {CHOICES} choices, {usual.endless:.0%} of its texts reach the limit, "
           f"{usual.empty:.0%} are empty. A sign of endless texts needs {rules['endless'].tuned:.0%} of them, of one "
           f"choice {rules['one_choice'].tuned:.0%}, of empty texts {rules['empty'].tuned:.0%}, of one answer "
           f"{rules['one_answer'].tuned:.0%}.")
