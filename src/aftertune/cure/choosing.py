"""Chooses one of several models on one part of the items, and judges it on the other part alone.

    goal = Goal(keep={"hellaswag": 2.0}, target="orders")
    points = measure(values_of_a_model, goal)              one WatchPoint for each task, each tested alone
    number = choose([points_a, points_b], goal)            which gained most, and lost nothing beyond a margin
    confirm(values_on_other_items, goal, tries=1).outcome  "confirmed", "open" or "failed"

The best of several noisy scores is too good: its luck was chosen with it. So nothing is claimed from the items that
chose. Whether an item chooses or confirms is decided by the hash of its content (or of its cluster), so it has the same
part in every run, with every sample and every cure (`confirms`).

To confirm that all is kept, each task must rule out a loss beyond its margin, by a one-sided test at 5 %. All of these
tests must succeed, so they need no correction for their number (intersection-union test, Berger 1982, Technometrics
24:295). The words of the single tasks are corrected over the tasks, as in a comparison (`aftertune.stats.verdict`).
Who looks at one model after another until one is confirmed, or at one model with more and more items, makes a claim
that spans all looks. So the first look gets four fifths of the error level of 5 %, and the later ones share the rest
(`aftertune.cure.looks.correction`): however many there are, a cure is claimed falsely in at most 5 % of the cases.
`benchmarks/cures.py` simulates it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

from aftertune.cure.looks import correction
from aftertune.stats.evidence import Evidence, paired_evidence
from aftertune.stats.paired import Floats
from aftertune.stats.verdict import ALPHA, Case, Decision, at_floor, decide
from aftertune.values import CureOutcome, Half, TaskOutcome, Verdict, WatchPoint

#: Margin of a task for which none was given (the target), in points.
MARGIN = 2.0
#: A measured loss in points within this of its margin is within it: sums of floating-point numbers are not exact.
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Goal:
    """What a cure should reach. keep: margin of each task that should be kept, in points. target: the task that shows
    what was learned, "" without one."""

    keep: Mapping[str, float]
    target: str = ""

    def margin(self, task: str) -> float:
        """The margin of a task, in points."""
        return self.keep.get(task, MARGIN)


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedTask:
    """The primary metric of one task on the same items: of the base and of a model made from it.

    before, after: shares, float64 [n]. clusters: a label for each item. chance: expected score of a guess, None where
    answers cannot be guessed.
    """

    task: str
    metric: str
    before: Floats
    after: Floats
    clusters: Sequence[Hashable | None] | None = None
    chance: float | None = None
    higher_is_better: bool = True


@dataclass(frozen=True, slots=True)
class Confirmation:
    """What the items that had no part in the choice show. points: one for each task; outcomes: by task."""

    points: tuple[WatchPoint, ...]
    outcomes: Mapping[str, TaskOutcome]
    outcome: CureOutcome


def confirms(label: str) -> bool:
    """True for an item that confirms, False for one that chooses. label: its hash, or its cluster."""
    return hashlib.sha256(f"choose or confirm: {label}".encode()).digest()[0] % 2 == 1


# --- Choose ---


def measure(values: Sequence[AskedTask], goal: Goal, *, half: Half = "choice") -> tuple[WatchPoint, ...]:
    """Each task of a model, tested alone."""
    return tuple(_point(v, e, decide([_case(v, e, goal)])[0].verdict, goal, half) for v, e in _evidence(values, goal))


def refusal(points: Sequence[WatchPoint], goal: Goal) -> str:
    """Why a model may not be chosen; "" if it may: no task that should be kept lost more than its margin, and the
    target gained."""
    of_task = {point.task: point for point in points}
    lost = [f"{task} ({_points(of_task[task])})" for task, margin in goal.keep.items()
            if -100 * of_task[task].delta > margin + _ROUNDING]
    if lost:
        return f"loses more than the margin on {', '.join(lost)}"
    if goal.target and of_task[goal.target].delta <= 0:
        return f"gains nothing on {goal.target} ({_points(of_task[goal.target])})"
    return ""


def choose(candidates: Sequence[Sequence[WatchPoint]], goal: Goal) -> int | None:
    """The number of the candidate to take: of those that may be chosen the one that gained most on the target, and of
    those that gained as much the one that stays farthest from its margins. Of equal ones, and without a target, the
    first: candidates come in the order of preference. None if none may be chosen."""
    def merit(points: Sequence[WatchPoint]) -> tuple[float, float]:
        of_task = {point.task: point.delta for point in points}
        if not goal.target:
            return 0.0, 0.0
        return of_task[goal.target], min(100 * of_task[task] + margin for task, margin in goal.keep.items())

    allowed = [n for n, points in enumerate(candidates) if not refusal(points, goal)]
    return max(allowed, key=lambda n: (*merit(candidates[n]), -n), default=None)


# --- Confirm ---


def confirm(values: Sequence[AskedTask], goal: Goal, *, tries: int = 1, half: Half = "report") -> Confirmation:
    """Judge the chosen model. values: on items that had no part in the choice. tries: looks at models of the same
    fine-tune so far, with this one.

    The outcome is "confirmed" if a loss beyond the margin is ruled out on every task that should be kept (a task on
    which the base only guesses has nothing to lose) and a gain on the target is proven; "failed" if such a loss, or a
    loss on the target, is proven; else "open".
    """
    measured = _evidence(values, goal)
    decisions = decide([_case(v, e, goal) for v, e in measured])
    points = [_point(v, e, _corrected(d, tries), goal, half) for (v, e), d in zip(measured, decisions, strict=True)]
    outcomes = {v.task: _task_outcome(v, e, d, goal, tries) for (v, e), d in zip(measured, decisions, strict=True)}
    kept = [outcomes[task] for task in goal.keep]
    if "lost" in outcomes.values():
        outcome: CureOutcome = "failed"
    elif "kept" in kept and "open" not in outcomes.values():
        outcome = "confirmed"
    else:
        outcome = "open"
    return Confirmation(tuple(points), outcomes, outcome)


def _task_outcome(values: AskedTask, evidence: Evidence, decision: Decision, goal: Goal, tries: int) -> TaskOutcome:
    """What is proven of one task. A loss is not corrected for the number of tries, because it claims no cure."""
    verdict = _corrected(decision, tries)
    if values.task == goal.target:
        lost = decision.verdict in ("lower", "worse")
        return "lost" if lost else "learned" if verdict in ("higher", "better") else "open"
    if decision.verdict == "lower":
        return "lost"
    if decision.at_floor:
        return "floor"
    no_drop = max(t.no_drop for t in (evidence.tests, evidence.clustered, evidence.bootstrap) if t is not None)
    return "kept" if correction(tries) * no_drop < ALPHA else "open"


def _corrected(decision: Decision, tries: int) -> Verdict:
    return decision.verdict if correction(tries) * decision.p_adjusted < ALPHA else "undecided"


# --- Tests of one model ---


def _evidence(values: Sequence[AskedTask], goal: Goal) -> list[tuple[AskedTask, Evidence]]:
    return [(v, paired_evidence(v.before, v.after, margin=goal.margin(v.task) / 100, clusters=v.clusters,
                                higher_is_better=v.higher_is_better)) for v in values]


def _case(values: AskedTask, evidence: Evidence, goal: Goal) -> Case:
    floor = evidence.base_low is not None and at_floor(evidence.base_low, values.chance)
    return Case(tests=evidence.tests, clustered=evidence.clustered, bootstrap=evidence.bootstrap, at_floor=floor,
                target=values.task == goal.target)


def _point(values: AskedTask, evidence: Evidence, verdict: Verdict, goal: Goal, half: Half) -> WatchPoint:
    return WatchPoint(step=0, task=values.task, metric=values.metric, n=evidence.n, base=evidence.base,
                      tuned=evidence.tuned, delta=evidence.delta, low=evidence.low, high=evidence.high, verdict=verdict,
                      half=half, is_target=values.task == goal.target)


def _points(point: WatchPoint) -> str:
    return f"{100 * point.delta:+.1f} points".replace("-", "\N{MINUS SIGN}")
