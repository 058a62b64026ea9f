"""Rows of tasks that were stopped early: owns what may be claimed of a full run from a part in random order.

A side that was stopped asked its items in a random order that was fixed before the first one (`Early`). Whatever made
it stop, the sequential test holds at every item, so the verdict is the same for every look at the same items, and for
every margin. It speaks of the full run's difference; the early estimate is shown, and said to be one.

    units = early_units(left, right, pairs)
    rows = with_early_rows(rows, units, 0.02, lineage=True, forced=False)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from aftertune.catalog import MetricKey, is_bounded
from aftertune.comparison.pairing import MetricValues, Pair, columns
from aftertune.comparison.rows import FORCED, Draft, Margins, build_row, margin_of, off_the_floor
from aftertune.stats.evidence import Evidence
from aftertune.stats.paired import NO_EVIDENCE, Floats, wilson
from aftertune.stats.planning import discordance_bound, items_needed, settled_by
from aftertune.stats.sequential import PairedSequential, draw_key, is_whole
from aftertune.stats.verdict import ALPHA, Decision, at_floor
from aftertune.values import ComparisonRow, Early, EarlyUnit, Evaluation


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopped:
    """A unit that a side stopped early. columns: paired values in drawn order by ``metric,filter``; base: all known
    values of the base on the unit's own metric; share: of alpha, 1 / units."""

    unit: EarlyUnit
    columns: dict[str, MetricValues]
    base: Floats
    chance: float | None
    groups: tuple[str, ...]
    share: int
    target: bool


def is_stopped(left: Evaluation, right: Evaluation, task: str) -> bool:
    """True where a side was stopped before it had asked all items of the task."""
    return any(t is not None and t.used is not None for t in (left.task(task), right.task(task)))


def early_units(left: Evaluation, right: Evaluation, pairs: Sequence[Pair]) -> list[Stopped]:
    """What was stopped early on a side, from the pairs of shared items; a unit without any is left out."""
    plan = right.early or left.early
    if plan is None:
        return []
    found = []
    for unit in plan.units:
        mine = [p for p in pairs if p.settings.task in unit.tasks and is_stopped(left, right, p.settings.task)]
        if mine:
            found.append(_stopped(left, right, unit, mine, plan))
    return found


def _stopped(left: Evaluation, right: Evaluation, unit: EarlyUnit, pairs: Sequence[Pair], plan: Early) -> Stopped:
    tables = [columns(left, right, p) for p in pairs]
    answers = [a for p in pairs for a in p.right]
    order = sorted(range(len(answers)), key=lambda i: draw_key(plan.seed, answers[i].task, answers[i].index,
                                                               answers[i].item))
    keys = list(tables[0]) if len(unit.tasks) == 1 else [unit.key]
    kept = {}
    for key in keys:
        parts = [t.get(key) for t in tables]
        known = [c for c in parts if c is not None]
        if is_bounded(MetricKey(key).metric) and len(known) == len(parts):
            base, tuned = (np.concatenate([getattr(c, side) for c in known])[order] for side in ("base", "tuned"))
            kept[key] = MetricValues(base, tuned, known[0].higher_is_better, known[0].note)
    settings = [p.settings for p in pairs]
    chances = [s.chance for s in settings if s.chance is not None]
    return Stopped(
        unit=unit, columns=kept, base=np.array([a.metrics[unit.key] for p in pairs for a in p.all_left]),
        chance=sum(chances) / len(chances) if len(chances) == len(settings) else None,
        groups=settings[0].groups, share=len(plan.units), target=settings[0].target)


def with_early_rows(rows: Sequence[ComparisonRow], units: Sequence[Stopped], margins: Margins, *, lineage: bool,
                    forced: bool) -> tuple[ComparisonRow, ...]:
    """The rows with those of what was stopped early, primary ones first."""
    made = [_row(u, key, column, margin_of(margins, u.unit.name, *u.groups), lineage=lineage, forced=forced)
            for u in units for key, column in u.columns.items()]
    return tuple(sorted((*rows, *made), key=lambda r: not r.primary))


def _row(stopped: Stopped, key: str, column: MetricValues, margin: float, *, lineage: bool,
         forced: bool) -> ComparisonRow:
    unit, primary = stopped.unit, key == stopped.unit.key
    metric = MetricKey(key).metric
    d = column.tuned - column.base if column.higher_is_better else column.base - column.tuned
    watch = PairedSequential(unit.items, margin, alpha=ALPHA / stopped.share, whole=is_whole(metric, d))
    verdict = watch.update(d) or "undecided"
    low, high = watch.interval()
    floor = (primary and verdict in ("within", "undecided") and column.higher_is_better
             and at_floor(wilson(float(stopped.base.sum()), stopped.base.size)[0], stopped.chance))
    notes, needed = [FORCED if forced else "", _about(stopped) if primary else ""], None
    if floor:
        notes.append(off_the_floor(float(stopped.base.mean()), stopped.chance, unit.items))
    if primary and verdict == "undecided" and not floor:
        at = 0.0 if low <= 0 <= high else float(d.mean())
        psi = discordance_bound(int((d != 0).sum()), d.size)
        needed, why = settled_by(items_needed(max(psi, at**2), margin, at), d.size, unit.items)
        notes.append(why)
    decision = Decision(verdict="undecided" if floor else verdict, p=watch.p, at_floor=floor,
                        p_adjusted=min(1.0, watch.p * stopped.share)) if primary else None
    draft = Draft(task=unit.name, key=key, evidence=_evidence(column, d, (low, high), is_whole(metric, d)),
                  margin=margin, primary=primary, target=stopped.target, stopped_of=unit.items)
    return build_row(draft, decision, lineage=lineage, notes=notes, items_needed=needed)


def _evidence(column: MetricValues, d: Floats, interval: tuple[float, float], binary: bool) -> Evidence:
    """The early estimate of one metric, with the interval for the full run. The sequential test has no p-values of its
    own for "lower", "higher" and "within", so `tests` is empty here."""
    return Evidence(
        n=d.size, base=float(column.base.mean()), tuned=float(column.tuned.mean()), delta=float(d.mean()),
        low=interval[0], high=interval[1], kind="binary" if binary else "real", tests=NO_EVIDENCE, items_needed=None,
        gained=int((d > 0).sum()) if binary else None, lost=int((d < 0).sum()) if binary else None)


def _about(stopped: Stopped) -> str:
    """What was done, beside the figures: level, and whose mean it is."""
    parts = []
    if stopped.share > 1:
        parts.append(f"its share of the error rate is 1/{stopped.share}, one for each primary metric")
    if len(stopped.unit.tasks) > 1:
        parts.append(f"mean over the items of {len(stopped.unit.tasks)} tasks, drawn from all of them together")
    return "; ".join(parts)
