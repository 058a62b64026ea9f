"""From p-values to verdicts: owns the rules by which a comparison may say lower, higher or within.

The family is the primary metrics of one base-tuned pair. Holm runs over min(lower, higher), and a second Holm
over within; the verdict follows the adjusted p at .05. Where items come in clusters, or few
or skewed values call for a bootstrap, those tests go through the same beside the item-wise ones, and the weaker
verdict stands (undecided is weaker than any).

    decide([Case(tests=tango_tests(6, 19, 100, 0.02))])    (Decision(verdict="lower", p=0.0256, …),)
    tell("lower", lineage=True)                            "forgot"

Adjusts the p-values of several tests at once.

Holm controls the chance of any false claim in a family, whatever the dependence, and carries the verdicts;
Benjamini-Hochberg controls the share of false claims and is for exploring many subtasks only.

    holm([0.01, 0.04, 0.03, 0.005])                 [0.03, 0.06, 0.06, 0.02]
    benjamini_hochberg([0.01, 0.04, 0.03, 0.005])   [0.02, 0.04, 0.04, 0.02]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aftertune.stats.paired import MarginTests
from aftertune.values import TOLD, Verdict


def _check(p: Sequence[float]) -> None:
    wrong = [x for x in p if not 0 <= x <= 1]
    if wrong:
        raise ValueError(f"p-value {wrong[0]!r} is not in [0, 1]")


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in given order (Holm 1979). Raises ValueError outside [0, 1]."""
    _check(p)
    adjusted, highest = [0.0] * len(p), 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=lambda j: p[j])):
        highest = max(highest, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = highest
    return adjusted


def benjamini_hochberg(p: Sequence[float]) -> list[float]:
    """Benjamini-Hochberg step-up adjusted p-values, in the order given (Benjamini and Hochberg 1995).

    Raises ValueError outside [0, 1].
    """
    from scipy.stats import false_discovery_control

    _check(p)
    return [float(q) for q in false_discovery_control([float(x) for x in p])]


ALPHA = 0.05

#: A generated-answer score whose 95 % interval reaches below this is at the floor.
GENERATION_FLOOR = 0.02

AT_FLOOR = "undecided (at floor: nothing to forget)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One member of the family. clustered, bootstrap: the same tests with errors of another kind, where the items
    come in clusters, or where few or skewed real values make the t interval doubtful.

    at_floor: the base is at the floor (see `at_floor`), so that "no loss" says nothing.
    """

    tests: MarginTests
    clustered: MarginTests | None = None
    bootstrap: MarginTests | None = None
    at_floor: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What one member of the family may claim.

    p, p_adjusted: of the test that the verdict stands on (of min(lower, higher) where undecided); of several
    kinds of test the largest. at_floor: no loss was proven and the base had nothing to lose.
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


#: How the tests of a case are called, in the order in which `decide` takes them.
_VIEWS = ("item by item", "by cluster", "by bootstrap")


@dataclass(frozen=True, slots=True)
class _Judged:
    """One member of the family by one kind of test, with its adjusted p-values."""

    tests: MarginTests
    moved: float
    within: float

    @property
    def verdict(self) -> Verdict:
        if self.moved < ALPHA:
            return "lower" if self.tests.lower < self.tests.higher else "higher"
        return "within" if self.within < ALPHA else "undecided"


def decide(family: Sequence[Case]) -> tuple[Decision, ...]:
    """Verdicts of a family, in its order."""
    views = [_judge([case.tests for case in family]), _judge([case.clustered or case.tests for case in family]),
             _judge([case.bootstrap or case.tests for case in family])]
    return tuple(_weakest(case, judged) for case, judged in zip(family, zip(*views, strict=True), strict=True))


def _judge(family: Sequence[MarginTests]) -> list[_Judged]:
    """Both Holm corrections over one kind of test."""
    moved, within = holm([t.moved for t in family]), holm([t.within for t in family])
    return [_Judged(*parts) for parts in zip(family, moved, within, strict=True)]


def _weakest(case: Case, judged: Sequence[_Judged]) -> Decision:
    """The decision of one member from all kinds of its tests."""
    first, agreed = judged[0].verdict, len({j.verdict for j in judged}) == 1
    verdict: Verdict = first if agreed else "undecided"
    if verdict == "within":
        p, adjusted = max(j.tests.within for j in judged), max(j.within for j in judged)
    else:
        p, adjusted = max(j.tests.moved for j in judged), max(j.moved for j in judged)
    note = ""
    if not agreed:
        others = [f"{how} {j.verdict}" for how, j in zip(_VIEWS, judged, strict=True) if j.verdict != first]
        note = f"{_VIEWS[0]} {first}, {', '.join(others)}: the weaker verdict stands"
    floor = case.at_floor and verdict in ("within", "undecided")
    return Decision(verdict="undecided" if floor else verdict, p=p, p_adjusted=adjusted, at_floor=floor, note=note)
