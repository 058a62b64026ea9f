"""Pairs what each fine-tune learned on its target task with what it changed on the benchmarks.

    balances(outcomes)[0].points[0]
        Point(number=1, learned=Span(63.8, 52.8, 73.4), changed=Span(0.9, -0.8, 2.7), verdict="within", front=True, …)

The front consists of the points that no other point beats in both coordinates. It is computed from estimates, so
read it together with the intervals and the verdicts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from aftertune.report.names import task_title
from aftertune.report.results import Span, TuningOutcome, by_base, common_benchmarks, overall_verdict
from aftertune.report.table import shown_verdict
from aftertune.stats.clustered import mean_interval
from aftertune.study.cured import CURES
from aftertune.values import ComparisonRow, Tuning, Verdict, canonical

LOSS = "held-out loss"


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One fine-tune.

    learned: in points on the target task, or in nats per token. changed: in points, the mean over the benchmarks.
    verdict: over the benchmarks. proven: a gain in ``learned`` is proven. made_from: numbers of the points that it was
    made of without training. front: no other point is better in one coordinate and at least as good in the other.
    """

    number: int
    outcome: TuningOutcome
    learned: Span
    changed: Span
    verdict: Verdict | None
    proven: bool
    made_from: tuple[int, ...] = ()
    front: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """The fine-tunes of one base.

    measure: a target task, or LOSS. tasks: the benchmarks. floor: benchmarks that are left out because the base has
    nothing to lose there. margin: in points, or None if the benchmarks have different ones.
    """

    base: str
    base_name: str
    measure: str
    tasks: tuple[str, ...]
    floor: tuple[str, ...]
    margin: float | None
    points: tuple[Point, ...]

    @property
    def learned(self) -> str:
        """The title of the horizontal axis."""
        if self.measure == LOSS:
            return "learned: drop in held-out loss, nats per token"
        return f"learned: gain on {task_title(self.measure)}, points"

    @property
    def changed(self) -> str:
        """The title of the vertical axis."""
        if len(self.tasks) == 1:
            return f"change on {task_title(self.tasks[0])}, points"
        return f"mean change on {len(self.tasks)} benchmarks, points"

    def on(self, task: str) -> Balance:
        """The balance with one benchmark only, and with the interval, verdict and front of that benchmark."""
        rows = [_row(p.outcome, task) for p in self.points]
        points = [replace(point, changed=Span.of(row), verdict=shown_verdict(row))
                  for point, row in zip(self.points, rows, strict=True)]
        return replace(self, tasks=(task,), margin=_margin(rows), points=_with_front(points))


def balances(outcomes: Sequence[TuningOutcome], least: int = 2) -> list[Balance]:
    """One balance for each base and measure of learning that at least ``least`` fine-tunes have."""
    comparable = []
    for family in by_base(outcomes):
        covered: set[str] = set()
        measures = [*dict.fromkeys(r.task for o in family for r in o.targets), LOSS]
        for measure in measures:
            members = [o for o in family if _learned(o, measure)]
            if len(members) < least or {o.tuning.id for o in members} <= covered:
                continue
            if balance := _balance(members, measure):
                covered |= {o.tuning.id for o in members}
                comparable.append(balance)
    return comparable


def _balance(members: Sequence[TuningOutcome], measure: str) -> Balance | None:
    tasks = common_benchmarks(members)
    if not tasks:
        return None
    points, rows = [], []
    for number, outcome in enumerate(members, start=1):
        own_rows = [_row(outcome, task) for task in tasks]
        learned = _learned(outcome, measure)
        assert learned is not None
        spans = [Span.of(row) for row in own_rows]
        average = outcome.average(tasks)
        mean = Span.of(average) if average else Span(*mean_interval([(s.value, s.low, s.high) for s in spans]))
        rows += own_rows
        points.append(Point(number=number, outcome=outcome, learned=learned[0], changed=mean, proven=learned[1],
                            verdict=overall_verdict(own_rows), made_from=_made_from(outcome.tuning, members)))
    floor = [t for t in dict.fromkeys(r.task for o in members for r in o.benchmarks) if t not in tasks]
    first = members[0].comparison
    return Balance(base=first.base, base_name=first.base_name, measure=measure, tasks=tuple(tasks), floor=tuple(floor),
                   margin=_margin(rows), points=_with_front(points))


def _made_from(tuning: Tuning, members: Sequence[TuningOutcome]) -> tuple[int, ...]:
    """The numbers of the fine-tunes of which another one was made without training."""
    if not tuning.change:
        return ()
    if tuning.cure is not None:
        return tuple(n for n, o in enumerate(members, 1) if o.tuning.id in tuning.cure.parents)
    trained = _training(tuning)
    return tuple(n for n, o in enumerate(members, 1) if not o.tuning.change and _training(o.tuning) == trained)


def _training(tuning: Tuning) -> str:
    """Everything that decides a training."""
    settings = {k: v for k, v in tuning.settings.items() if k not in CURES}
    return canonical([tuning.base.fingerprint, tuning.method, tuning.data, tuning.seed, settings])


def _learned(outcome: TuningOutcome, measure: str) -> tuple[Span, bool] | None:
    """What was learned by this measure, and whether a gain is proven; None if it was not measured."""
    if measure == LOSS:
        drop = outcome.loss_drop
        return None if drop is None else (drop, drop.low > 0)
    return next(((Span.of(r), r.verdict in ("higher", "better")) for r in outcome.targets if r.task == measure), None)


def _row(outcome: TuningOutcome, task: str) -> ComparisonRow:
    return next(r for r in outcome.benchmarks if r.task == task)


def _margin(rows: Sequence[ComparisonRow]) -> float | None:
    margins = {100 * r.margin for r in rows if r.margin is not None}
    return margins.pop() if len(margins) == 1 else None


def _with_front(points: Sequence[Point]) -> tuple[Point, ...]:
    """The points with ``front`` set."""
    coordinates = [(p.learned.value, p.changed.value) for p in points]
    return tuple(replace(p, front=not any(x >= own[0] and y >= own[1] and (x, y) != own for x, y in coordinates))
                 for p, own in zip(points, coordinates, strict=True))
