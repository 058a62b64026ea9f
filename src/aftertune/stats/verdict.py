"""Turns the p-values of a family of tests into verdicts: lower, higher, within or undecided.

    decide([Case(tests=tango_tests(6, 19, 100, 0.02))])    (Decision(verdict="lower", p=0.0256, …),)
    label_of("lower", lineage=True)                        "forgot"
    holm([0.01, 0.04, 0.03, 0.005])                        [0.03, 0.06, 0.06, 0.02]
    benjamini_hochberg([0.01, 0.04, 0.03, 0.005])          [0.02, 0.04, 0.04, 0.02]

The family is the primary metrics of one pair of base and tuned model on which something can be lost. Where the base is
at the floor nothing can be lost, and the tuning's own target asks what it learned: those are families of their own.
Holm's correction is applied to min(lower, higher), and apart from that to within. The verdict follows from the adjusted
p at 0.05. If items come in clusters, or few or skewed values need a bootstrap, the cluster-robust and bootstrap tests
are corrected in the same way; if they lead to another verdict, the verdict is undecided.

Holm controls the probability of any false claim in a family, whatever the dependence of its tests. Benjamini and
Hochberg's method controls the share of false claims; it is used only to explore the tasks of a group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from aftertune.stats.paired import MarginTests
from aftertune.values import VERDICT_LABELS, Verdict

# --- Corrections for several tests ---

def _check(p: Sequence[float]) -> None:
    invalid = [x for x in p if not 0 <= x <= 1]
    if invalid:
        raise ValueError(f"p-value {invalid[0]!r} is not in [0, 1]")


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the order given (Holm 1979). Raises ValueError outside [0, 1]."""
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


# --- Verdicts ---

ALPHA = 0.05

#: A base with generated answers is at the floor if the 95 % interval of its score reaches below this.
GENERATION_FLOOR = 0.02

AT_FLOOR = "undecided (at floor: nothing to forget)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One member of the family.

    clustered: cluster-robust tests, where the items come in clusters. bootstrap: bootstrap tests, where few or skewed
    values make the t interval doubtful. at_floor: the base is at the floor (see `at_floor`), so that "no loss" has no
    meaning. target: the task tests the skill that the fine-tune teaches.
    """

    tests: MarginTests
    clustered: MarginTests | None = None
    bootstrap: MarginTests | None = None
    at_floor: bool = False
    target: bool = False

    @property
    def family(self) -> Literal["forgetting", "target", "at floor"]:
        """The question that it belongs to. The base alone decides what is at the floor, not the outcome of the test."""
        return "target" if self.target else "at floor" if self.at_floor else "forgetting"


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The verdict of one member of the family.

    p, p_adjusted: of the test behind the verdict (of min(lower, higher) where undecided); the largest of all kinds of
    test. at_floor: no loss is proven, and the base has nothing to lose. members: tests of its family, over which p is
    adjusted.
    """

    verdict: Verdict
    p: float
    p_adjusted: float
    at_floor: bool = False
    note: str = ""
    members: int = 1


def at_floor(base_low: float, chance: float | None) -> bool:
    """True unless the whole 95 % interval of the base's score, with lower end ``base_low``, is above the floor.

    The floor is ``chance`` (1/choices) where answers can be guessed, else 2 %. A base that scores below chance is at
    the floor too.
    """
    return base_low < GENERATION_FLOOR if chance is None else base_low <= chance


def label_of(verdict: Verdict, *, lineage: bool, at_floor: bool = False) -> str:
    """The label of a verdict. "forgot", "improved" and "kept" need a proven lineage."""
    if at_floor:
        return AT_FLOOR
    return VERDICT_LABELS[verdict] if lineage else verdict


#: Names of the kinds of test of a case, in the order of `decide`.
_KINDS = ("item-wise", "cluster-robust", "bootstrap")


@dataclass(frozen=True, slots=True)
class _AdjustedTests:
    """One kind of test of one member of the family, with its adjusted p-values."""

    tests: MarginTests
    moved: float
    within: float

    @property
    def verdict(self) -> Verdict:
        if self.moved < ALPHA:
            return "lower" if self.tests.lower < self.tests.higher else "higher"
        return "within" if self.within < ALPHA else "undecided"


def decide(cases: Sequence[Case]) -> tuple[Decision, ...]:
    """The decisions of all cases, in their order; each family (`Case.family`) is corrected apart from the others."""
    decisions: dict[int, Decision] = {}
    for name in dict.fromkeys(case.family for case in cases):
        members = [i for i, case in enumerate(cases) if case.family == name]
        decisions |= zip(members, _decide_family([cases[i] for i in members]), strict=True)
    return tuple(decisions[i] for i in range(len(cases)))


def _decide_family(family: Sequence[Case]) -> tuple[Decision, ...]:
    """The decisions of one family, in its order."""
    kinds = [_adjust([case.tests for case in family]), _adjust([case.clustered or case.tests for case in family]),
             _adjust([case.bootstrap or case.tests for case in family])]
    return tuple(replace(_combine(case, tests), members=len(family))
                 for case, tests in zip(family, zip(*kinds, strict=True), strict=True))


def _adjust(family: Sequence[MarginTests]) -> list[_AdjustedTests]:
    """Both Holm corrections over one kind of test."""
    moved, within = holm([t.moved for t in family]), holm([t.within for t in family])
    return [_AdjustedTests(*values) for values in zip(family, moved, within, strict=True)]


def _combine(case: Case, kinds: Sequence[_AdjustedTests]) -> Decision:
    """The decision of one member from all kinds of its tests."""
    first, agreed = kinds[0].verdict, len({k.verdict for k in kinds}) == 1
    verdict: Verdict = first if agreed else "undecided"
    if verdict == "within":
        p, adjusted = max(k.tests.within for k in kinds), max(k.within for k in kinds)
    else:
        p, adjusted = max(k.tests.moved for k in kinds), max(k.moved for k in kinds)
    note = ""
    if not agreed:
        others = [f"{k.verdict} by the {name} test" for name, k in zip(_KINDS, kinds, strict=True)
                  if k.verdict != first]
        note = f"undecided, because the tests disagree: {first} by the {_KINDS[0]} test, {', '.join(others)}"
    floor = case.at_floor and verdict in ("within", "undecided")
    return Decision(verdict="undecided" if floor else verdict, p=p, p_adjusted=adjusted, at_floor=floor, note=note)
