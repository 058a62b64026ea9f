"""From p-values to verdicts: owns the rules by which a comparison may say lower, higher or within.

The family is the primary metrics of one base-tuned pair. Holm runs over min(lower, higher), and a second Holm
over within; the verdict follows the adjusted p at .05. Where items come in clusters both the item-wise and
the cluster-robust tests go through this, and the weaker verdict stands (undecided is weaker than any).

    decide([Case(tests=tango_tests(6, 19, 100, 0.02))])    (Decision(verdict="lower", p=0.0256, …),)
    tell("lower", lineage=True)                            "forgot"
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aftertune.stats.multiplicity import holm
from aftertune.stats.paired import MarginTests
from aftertune.values import TOLD, Verdict

ALPHA = 0.05

#: A generated-answer score whose 95 % interval reaches below this is at the floor.
GENERATION_FLOOR = 0.02

AT_FLOOR = "undecided (at floor: nothing to forget)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One member of the family. clustered: the cluster-robust tests, where items come in clusters.

    at_floor: the base is at the floor (see `at_floor`), so that "no loss" says nothing.
    """

    tests: MarginTests
    clustered: MarginTests | None = None
    at_floor: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What one member of the family may claim.

    p, p_adjusted: of the test that the verdict stands on (of min(lower, higher) where undecided); with
    clusters the larger of the two. at_floor: no loss was proven and the base had nothing to lose.
    """

    verdict: Verdict
    p: float
    p_adjusted: float
    at_floor: bool = False
    note: str = ""


def at_floor(base_low: float, chance: float | None) -> bool:
    """True where the base's 95 % interval, lower end ``base_low``, does not lie wholly above the floor.

    The floor is ``chance`` (1/choices) where answers can be guessed, else 2 %. A base wholly below chance is
    at the floor too.
    """
    return base_low < GENERATION_FLOOR if chance is None else base_low <= chance


def tell(verdict: Verdict, *, lineage: bool, at_floor: bool = False) -> str:
    """The verdict in words: forgot, improved, kept only where the lineage is proven."""
    if at_floor:
        return AT_FLOOR
    return TOLD[verdict] if lineage else verdict


def _verdict(tests: MarginTests, moved: float, within: float) -> Verdict:
    """Verdict of one set of tests, given its adjusted p-values."""
    if moved < ALPHA:
        return "lower" if tests.lower < tests.higher else "higher"
    return "within" if within < ALPHA else "undecided"


def decide(family: Sequence[Case]) -> tuple[Decision, ...]:
    """Verdicts of a family, in its order."""
    item_wise = [c.tests for c in family]
    robust = [c.clustered or c.tests for c in family]
    sides = []
    for tests in (item_wise, robust):
        moved, within = holm([t.moved for t in tests]), holm([t.within for t in tests])
        sides.append([(_verdict(t, m, w), m, w) for t, m, w in zip(tests, moved, within, strict=True)])
    return tuple(_weaker(case, items, clusters)
                 for case, items, clusters in zip(family, sides[0], sides[1], strict=True))


def _weaker(case: Case, items: tuple[Verdict, float, float],
            clusters: tuple[Verdict, float, float]) -> Decision:
    """The decision of one member from its (verdict, adjusted moved, adjusted within), both ways."""
    robust = case.clustered or case.tests
    verdict: Verdict = items[0] if items[0] == clusters[0] else "undecided"
    if verdict == "within":
        p, adjusted = max(case.tests.within, robust.within), max(items[2], clusters[2])
    else:
        p, adjusted = max(case.tests.moved, robust.moved), max(items[1], clusters[1])
    note = ""
    if items[0] != clusters[0]:
        note = f"item by item {items[0]}, by cluster {clusters[0]}: the weaker verdict stands"
    floor = case.at_floor and verdict in ("within", "undecided")
    return Decision(verdict="undecided" if floor else verdict, p=p, p_adjusted=adjusted, at_floor=floor,
                    note=note)
