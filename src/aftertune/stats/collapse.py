"""Decides from counts whether a tuned model shows a sign of collapse that its base does not show.

    guesses(0.436, 0.204, 450, chance=0.25)                                   True: like a guess, the base far above it
    RULES_OF_ANSWERS["endless"].holds(78, 3, 80)                              True: 98 % of the texts, and 4 % before
    texts = PairedCount(n=80, base=3, tuned=78, gained=75, lost=0)
    change_p("endless", texts, texts, tests=4)                                2e-22, corrected over 4 tests

All thresholds of collapse are here; docs/verdicts.md states them. A sign is a change from the base. Guessing needs a
proven loss besides (`aftertune.stats.verdict`). The signs of answers need a share that is nearly all with the tuned
model and far from it with the base, and McNemar's exact test of the change. Its p-values are corrected over all such
tests of a comparison, so that a model that did not change shows any of these signs in at most 1 % of comparisons
(`python benchmarks/verdicts.py --part collapse`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from aftertune.stats.paired import mcnemar_exact, wilson
from aftertune.stats.verdict import ALPHA, GENERATION_FLOOR, at_floor
from aftertune.values import CollapseKind, PairedCount

#: The base scores clearly above a guess if its 95 % interval begins at least this far above it.
CLEARLY_ABOVE = 0.05
#: At most this part of the lead that the base has over a guess may be left, both measured by the interval ends.
LEAD_LEFT = 0.5
#: Error level of the signs of answers, over all tests of a comparison together.
LEVEL = 0.01
#: The right positions, or the reference answers, vary if none of them is that of more than this share of the items.
VARIED = 0.75


@dataclass(frozen=True, slots=True)
class AnswerRule:
    """When a share of the answers is a sign.

    tuned: at least this share of the tuned model's answers. base: at most this share of the base's.
    """

    tuned: float
    base: float

    def holds(self, tuned: int, base: int, n: int) -> bool:
        """True where the tuned model has the sign and the base is far from it. tuned, base: counts of n answers."""
        return self.present(tuned, n) and base <= self.base * n

    def present(self, count: int, n: int) -> bool:
        """True where a model has the sign, whatever the other one does."""
        return n > 0 and count >= self.tuned * n


#: Sign -> its rule. endless: texts that reached the token limit. one_choice: the same position of a multiple-choice
#: task. empty: texts without a visible character. one_answer: the same generated answer.
RULES_OF_ANSWERS: Mapping[CollapseKind, AnswerRule] = {
    "endless": AnswerRule(tuned=0.80, base=0.40), "one_choice": AnswerRule(tuned=0.95, base=0.75),
    "empty": AnswerRule(tuned=0.50, base=0.25), "one_answer": AnswerRule(tuned=0.95, base=0.75)}


def guesses(base: float, tuned: float, n: int, *, chance: float | None, alpha: float = ALPHA) -> bool:
    """True where the tuned model scores like a guess and the base clearly above one.

    Wilson's interval of the tuned score includes the level of a guess or lies below it, and ends in the lower half
    between this level and the beginning of the base's interval, which is at least 5 points above it. chance: the
    expected score of a guess; None where answers cannot be guessed, then the level is 2 %. alpha: of both intervals.
    base, tuned: means of n values in [0, 1], for which Wilson's interval is too wide if they are not all 0 or 1.
    """
    level = GENERATION_FLOOR if chance is None else chance
    lead = wilson(base * n, n, 1 - alpha)[0] - level
    low, high = wilson(tuned * n, n, 1 - alpha)
    return lead >= CLEARLY_ABOVE and at_floor(low, chance) and high <= level + LEAD_LEFT * lead


def below_guess(score: float, n: int, chance: float | None, *, alpha: float = ALPHA) -> bool:
    """True where the interval of a score lies below the level of a guess. See `guesses`."""
    return chance is not None and wilson(score * n, n, 1 - alpha)[1] < chance


def change_p(kind: CollapseKind, count: PairedCount, tested: PairedCount, tests: int, *, level: float = LEVEL
             ) -> float | None:
    """The p-value of a sign of answers that the base does not show: McNemar's exact p, corrected over all tests of the
    comparison (Bonferroni). None where there is no such sign.

    count: over all items. tested: over independent ones, the first of each cluster. level: of the corrected p.
    """
    p = min(1.0, tests * mcnemar_exact(tested.gained, tested.lost))
    return p if RULES_OF_ANSWERS[kind].holds(count.tuned, count.base, count.n) and p <= level else None
