"""Learned against forgotten: what each fine-tune gained on what it was made for, beside what it changed elsewhere.

    balances(outcomes)[0].points[0]
        Point(number=1, learned=Span(63.8, 52.8, 73.4), changed=Span(0.9, -0.8, 2.7), verdict="within", front=True, …)

The front holds the points that no other one beats on both sides. It is drawn through estimates: the intervals and the
verdicts say how far it is to be trusted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from aftertune.report.names import task_title
from aftertune.report.results import Span, TuningOutcome, against, common_benchmarks, whole_verdict
from aftertune.report.table import shown_verdict
from aftertune.stats.clustered import mean_interval
from aftertune.values import ComparisonRow, Verdict

LOSS = "held-out loss"


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One fine-tune. learned: in points of the target task, or nats per token; changed: in points. verdict: over the
    benchmarks; proven: that it learned is; front: no other point is better on one side and as good on the other."""

    number: int
    outcome: TuningOutcome
    learned: Span
    changed: Span
    verdict: Verdict | None
    proven: bool
    front: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """The fine-tunes of one base. measure: a target task, or LOSS; tasks: the benchmarks; floor: those on which the
    base had nothing to lose, left out; margin: in points, where all have the same."""

    base: str
    base_name: str
    measure: str
    tasks: tuple[str, ...]
    floor: tuple[str, ...]
    margin: float | None
    points: tuple[Point, ...]

    @property
    def learned(self) -> str:
        """What stands to the right."""
        if self.measure == LOSS:
            return "learned: fall of the held-out loss, nats per token"
        return f"learned: gain on {task_title(self.measure)}, points"

    @property
    def changed(self) -> str:
        """What stands above."""
        if len(self.tasks) == 1:
            return f"change on {task_title(self.tasks[0])}, points"
        return f"mean change on {len(self.tasks)} benchmarks, points"

    def on(self, task: str) -> Balance:
        """The same with one benchmark alone, its own interval, verdict and front."""
        rows = [_row(p.outcome, task) for p in self.points]
        points = [replace(p, changed=Span.of(r), verdict=shown_verdict(r)) for p, r in zip(self.points, rows,
                                                                                          strict=True)]
        return replace(self, tasks=(task,), margin=_margin(rows), points=_fronted(points))


def balances(found: Sequence[TuningOutcome]) -> list[Balance]:
    """One for each base and measure of what was learned, where two fine-tunes or more can be set side by side."""
    made = []
    for family in against(found):
        covered: set[str] = set()
        measures = [*dict.fromkeys(r.task for o in family for r in o.targets), LOSS]
        for measure in measures:
            members = [o for o in family if _learned(o, measure)]
            if len(members) < 2 or {o.tuning.id for o in members} <= covered:
                continue
            if balance := _balance(members, measure):
                covered |= {o.tuning.id for o in members}
                made.append(balance)
    return made


def _balance(members: Sequence[TuningOutcome], measure: str) -> Balance | None:
    tasks = common_benchmarks(members)
    if not tasks:
        return None
    points, rows = [], []
    for number, outcome in enumerate(members, start=1):
        mine = [_row(outcome, task) for task in tasks]
        learned = _learned(outcome, measure)
        assert learned is not None
        spans = [Span.of(r) for r in mine]
        mean = Span(*mean_interval([(s.value, s.low, s.high) for s in spans]))
        rows += mine
        points.append(Point(number=number, outcome=outcome, learned=learned[0], changed=mean, proven=learned[1],
                            verdict=whole_verdict(mine)))
    floor = [t for t in dict.fromkeys(r.task for o in members for r in o.benchmarks) if t not in tasks]
    first = members[0].comparison
    return Balance(base=first.base, base_name=first.base_name, measure=measure, tasks=tuple(tasks), floor=tuple(floor),
                   margin=_margin(rows), points=_fronted(points))


def _learned(outcome: TuningOutcome, measure: str) -> tuple[Span, bool] | None:
    """What was learned by this measure, and whether that it was is proven."""
    if measure == LOSS:
        drop = outcome.loss_drop
        return None if drop is None else (drop, drop.low > 0)
    return next(((Span.of(r), r.verdict == "higher") for r in outcome.targets if r.task == measure), None)


def _row(outcome: TuningOutcome, task: str) -> ComparisonRow:
    return next(r for r in outcome.benchmarks if r.task == task)


def _margin(rows: Sequence[ComparisonRow]) -> float | None:
    margins = {100 * r.margin for r in rows}
    return margins.pop() if len(margins) == 1 else None


def _fronted(points: Sequence[Point]) -> tuple[Point, ...]:
    """The points with the front marked."""
    at = [(p.learned.value, p.changed.value) for p in points]
    return tuple(replace(p, front=not any(x >= here[0] and y >= here[1] and (x, y) != here for x, y in at))
                 for p, here in zip(points, at, strict=True))
