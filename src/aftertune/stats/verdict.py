"""Turns the p-values of a family of tests into verdicts.

    decide([Case(tests=tango_tests(6, 19, 100, 0.02))])    (Decision(verdict="lower", p=0.0256, …),)
    label_of("lower", lineage=True)                        "forgot"
    holm([0.01, 0.04, 0.03, 0.005])                        [0.03, 0.06, 0.06, 0.02]
    benjamini_hochberg([0.01, 0.04, 0.03, 0.005])          [0.02, 0.04, 0.04, 0.02]

A row can prove six claims about the true difference, with m for the margin: lower (below -m), higher (above m), within
(between them), worse (below 0), better (above 0) and no_loss (above -m). Its verdict is the first one in this order
that is proven, or "undecided". All of them except "within" are readings of one 95 % interval: if the interval contains
the true difference, none of them is false. "within" is the test of equivalence (TOST), which takes the 90 % interval.

The family is the primary metrics of one pair of base and tuned model on which something can be lost. Where the base is
at the floor nothing can be lost, and the tuning's own target asks what it learned: those are families of their own.
Holm's correction is applied over the family, for each question apart: is a change beyond the margin (lower or higher),
is it within the margin, is there a change (worse or better), is a loss beyond the margin ruled out (no_loss). So for
each question the probability of any false claim in the family is at most 5 %. A claim is proven if its adjusted p is
below 0.05. If items come in clusters, or few or skewed values need a bootstrap, the cluster-robust and bootstrap tests
are corrected in the same way, and a claim is proven if all kinds of test prove it.

Holm controls the probability of any false claim in a family, whatever the dependence of its tests. Benjamini and
Hochberg's method controls the share of false claims; it is used only to explore the tasks of a group.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from aftertune.stats.paired import MarginTests
from aftertune.values import Verdict, verdict_label

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

#: The questions that are corrected over a family, each apart, and their claims. A row's verdict is the first claim here
#: that is proven.
QUESTIONS: tuple[tuple[Verdict, ...], ...] = (("lower", "higher"), ("within",), ("worse", "better"), ("no_loss",))
#: Verdicts on which side of the margin a difference is. More items can still decide the others.
SETTLED: frozenset[Verdict] = frozenset({"lower", "higher", "within"})
#: Verdicts that say nothing where the base has nothing to lose.
_FLOORED: frozenset[Verdict] = frozenset({"within", "no_loss", "undecided"})


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
    test. at_floor: no change is proven, and the base has nothing to lose. members: tests of its family, over which p
    is adjusted. claims: the adjusted p of every claim; 1 for claims that mean nothing at the floor.
    """

    verdict: Verdict
    p: float
    p_adjusted: float
    at_floor: bool = False
    note: str = ""
    members: int = 1
    claims: Mapping[Verdict, float] = field(default_factory=dict)


def at_floor(base_low: float, chance: float | None) -> bool:
    """True unless the whole 95 % interval of the base's score, with lower end ``base_low``, is above the floor.

    The floor is ``chance`` (1/choices) where answers can be guessed, else 2 %. A base that scores below chance is at
    the floor too.
    """
    return base_low < GENERATION_FLOOR if chance is None else base_low <= chance


def label_of(verdict: Verdict, *, lineage: bool, at_floor: bool = False) -> str:
    """The label of a verdict (`verdict_label`), with the reason at the floor."""
    return AT_FLOOR if at_floor else verdict_label(verdict, lineage=lineage)


def floored(verdict: Verdict, floor: bool) -> bool:
    """True for a verdict that means nothing because the base has nothing to lose. floor: the base is at the floor."""
    return floor and verdict in _FLOORED


#: Names of the kinds of test of a case, in the order of `decide`.
_KINDS = ("item-wise", "cluster-robust", "bootstrap")


@dataclass(frozen=True, slots=True)
class _AdjustedTests:
    """One kind of test of one member of the family. adjusted: claim -> its adjusted p-value."""

    tests: MarginTests
    adjusted: Mapping[Verdict, float]

    @property
    def verdict(self) -> Verdict:
        return proven_verdict(self.adjusted)


def first_claim(proven: Collection[Verdict]) -> Verdict:
    """The verdict of a row of which these claims are proven: the first one in the order of `QUESTIONS`."""
    return next((claim for question in QUESTIONS for claim in question if claim in proven), "undecided")


def proven_verdict(claims: Mapping[Verdict, float], tests: int = 1) -> Verdict:
    """The verdict of a row. claims: the adjusted p of each claim. tests: over how many such rows, in as many families,
    the error level is shared besides (Bonferroni)."""
    return first_claim([claim for claim, p in claims.items() if tests * p < ALPHA])


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
    """Holm's correction over one kind of test, for each question. Of the two sides of a question, the one with the
    larger p is never proven."""
    adjusted: list[dict[Verdict, float]] = [{} for _ in family]
    for question in QUESTIONS:
        nearest = [min(((float(getattr(tests, claim)), claim) for claim in question), key=lambda side: side[0])
                   for tests in family]
        for row, (_, side), value in zip(adjusted, nearest, holm([p for p, _ in nearest]), strict=True):
            row |= {claim: value if claim == side else 1.0 for claim in question}
    return [_AdjustedTests(tests, row) for tests, row in zip(family, adjusted, strict=True)]


def _combine(case: Case, kinds: Sequence[_AdjustedTests]) -> Decision:
    """The decision of one member from all kinds of its tests: what all of them prove."""
    claims = {claim: max(k.adjusted[claim] for k in kinds) for question in QUESTIONS for claim in question}
    verdict = proven_verdict(claims)
    floor = floored(verdict, case.at_floor)
    if floor or verdict == "undecided":
        p = max(k.tests.moved for k in kinds)
        adjusted = max(min(k.adjusted["lower"], k.adjusted["higher"]) for k in kinds)
    else:
        p, adjusted = max(float(getattr(k.tests, verdict)) for k in kinds), claims[verdict]
    note, first = "", kinds[0].verdict
    if len({k.verdict for k in kinds}) > 1:
        others = [f"{_word(k.verdict)} by the {name} test" for name, k in zip(_KINDS, kinds, strict=True)
                  if k.verdict != first]
        note = (f"{_word(verdict)}, because the tests disagree: {_word(first)} by the {_KINDS[0]} test, "
                f"{', '.join(others)}")
    return Decision(verdict="undecided" if floor else verdict, p=p, p_adjusted=adjusted, at_floor=floor, note=note,
                    claims={c: 1.0 if case.at_floor and c in _FLOORED else p for c, p in claims.items()})


def _word(verdict: Verdict) -> str:
    return verdict_label(verdict, lineage=False)
