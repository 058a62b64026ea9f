"""From the paired values of one metric to all that a verdict needs: owns which test applies to which values.

Values that are all 0 or 1 on both sides are binary (Tango), others real (paired t; few or skewed ones with a
bootstrap beside it). The difference counts so that positive is better. A task with clusters gets cluster-robust tests
beside its own; a group of tasks gets one mean with stratified errors, and where it has many tasks the tests that take
these as a sample.

    paired_evidence(base, tuned, margin=0.02)             base, tuned: float64 [n], aligned
    group_evidence([base_a, base_b], [tuned_a, tuned_b], margin=0.02)
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from aftertune.stats.bootstrap import bca_mean
from aftertune.stats.clustered import FEW_CLUSTERS, Weighting, clustered_mean, stratified_mean, weights
from aftertune.stats.paired import (
    NO_EVIDENCE,
    Estimate,
    Floats,
    MarginTests,
    mcnemar_exact,
    mcnemar_mid,
    paired_mean,
    tango_interval,
    tango_tests,
    wilson,
)
from aftertune.stats.planning import discordance_bound, items_needed, variance_bound

#: A group of this many tasks is also looked at as a sample of tasks.
MANY_TASKS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """One metric, base against tuned. low, high: 95 % interval of delta (positive is better).

    base_low: lower end of the base's own 95 % interval, None where the metric is no share (outside [0, 1], or
    lower is better). items_needed: items that decide it if the models do not differ, or, where low and high
    rule that out, if they differ as observed; None without a spread or where that difference is the margin.
    clustered: cluster-robust tests, None without clusters; bootstrap: None where t is enough. gained, lost, p_exact,
    p_mid: binary only. notes: what the verdict cannot be read without; details: further intervals.
    """

    n: int
    base: float
    tuned: float
    delta: float
    low: float
    high: float
    kind: Literal["binary", "real"]
    tests: MarginTests
    items_needed: int | None
    base_low: float | None = None
    clustered: MarginTests | None = None
    bootstrap: MarginTests | None = None
    gained: int | None = None
    lost: int | None = None
    p_exact: float | None = None
    p_mid: float | None = None
    notes: tuple[str, ...] = ()
    details: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Core:
    """Interval and tests of one difference; psi: upper bound of the variance of one item's difference."""

    low: float
    high: float
    tests: MarginTests
    psi: float | None
    notes: tuple[str, ...] = ()


def paired_evidence(base: Floats, tuned: Floats, *, margin: float, higher_is_better: bool = True,
                    clusters: Sequence[Hashable] | None = None) -> Evidence:
    """Evidence of one metric of one task. Raises ValueError for no items or unequal lengths."""
    d = _difference(base, tuned, higher_is_better)
    binary = _binary(base, tuned)
    if binary:
        core = _tango(int((d > 0).sum()), int((d < 0).sum()), d.size, margin)
    else:
        core = _real(paired_mean(d), d.size, margin, base, tuned)
    robust, effect, notes = _robust(d, clusters, margin, shares=_shares(base, tuned))
    base_low = None
    if higher_is_better and _shares(base):
        base_low = wilson(float(base.sum()), d.size)[0] if binary else paired_mean(base).interval()[0]
    resampled = None if binary else bca_mean(d)
    evidence = Evidence(
        n=d.size, base=float(base.mean()), tuned=float(tuned.mean()), delta=float(d.mean()),
        low=core.low, high=core.high, kind="binary" if binary else "real", tests=core.tests,
        items_needed=_needed(core, effect, margin, float(d.mean())),
        base_low=base_low, clustered=robust, bootstrap=resampled.tests(margin) if resampled else None,
        notes=core.notes + notes,
        details=(_interval("bootstrap (BCa)", resampled.interval(), _shares(base, tuned)),) if resampled else ())
    return _with_flips(evidence, d) if binary else evidence


def group_evidence(base: Sequence[Floats], tuned: Sequence[Floats], *, margin: float,
                   higher_is_better: bool = True, weighting: Weighting = "micro") -> Evidence:
    """Evidence of the mean over a group of tasks, one array per task; errors are stratified by task.

    Raises ValueError for no tasks, an empty task, or unequal lengths.
    """
    strata = [_difference(b, t, higher_is_better) for b, t in zip(base, tuned, strict=True)]
    estimate = stratified_mean(strata, weighting)
    level, after = stratified_mean(list(base), weighting), stratified_mean(list(tuned), weighting)
    d, before, later = (np.concatenate(list(parts)) for parts in (strata, base, tuned))
    sizes = [s.size for s in strata]
    effective = 1 / float((weights(sizes, weighting) ** 2 / np.asarray(sizes)).sum())  # N where micro
    core = _real(estimate, effective, margin, before, later)
    robust, details = _as_sample(strata, weighting, margin, shares=_shares(before, later))
    other: Weighting = "macro" if weighting == "micro" else "micro"
    beside = stratified_mean(strata, other)
    details += (_interval(f"{other} mean {_signed(beside.mean, _shares(before, later))},", beside.interval(),
                          _shares(before, later)),)
    binary = _binary(before, later)
    evidence = Evidence(
        n=d.size, base=level.mean, tuned=after.mean, delta=estimate.mean, low=core.low, high=core.high,
        kind="binary" if binary else "real", tests=core.tests,
        items_needed=_needed(core, d.size / effective, margin, estimate.mean), clustered=robust,
        base_low=level.interval()[0] if higher_is_better and _shares(before) else None, notes=core.notes,
        details=details)
    return _with_flips(evidence, d) if binary else evidence


def _as_sample(strata: Sequence[Floats], weighting: Weighting, margin: float, *,
               shares: bool) -> tuple[MarginTests | None, tuple[str, ...]]:
    """Tests that take a group's tasks as a sample of tasks (CR1 by task, or a t over the tasks' means).

    None for fewer than MANY_TASKS: so few tasks are what they are, and no sample.
    """
    if len(strata) < MANY_TASKS:
        return None, ()
    sizes = [s.size for s in strata]
    if weighting == "micro":
        estimate = clustered_mean(np.concatenate(list(strata)), np.repeat(range(len(strata)), sizes).tolist())
    else:
        estimate = paired_mean([float(s.mean()) for s in strata])
    if estimate.degenerate:
        return None, ()
    few = f"; fewer than {FEW_CLUSTERS}, so it is too narrow" if len(strata) < FEW_CLUSTERS else ""
    return estimate.tests(margin), (
        f"{_interval('by task (cluster-robust)', estimate.interval(), shares)} ({len(strata)} tasks{few})",)


def _difference(base: Floats, tuned: Floats, higher_is_better: bool) -> Floats:
    if base.shape != tuned.shape or base.ndim != 1 or base.size == 0:
        raise ValueError(f"base {base.shape}, tuned {tuned.shape}: need two arrays [n] of one n >= 1")
    return tuned - base if higher_is_better else base - tuned


def _binary(base: Floats, tuned: Floats) -> bool:
    return all(bool(((v == 0) | (v == 1)).all()) for v in (base, tuned))


def _shares(*values: Floats) -> bool:
    """True where all values lie in [0, 1]."""
    return all(bool(((v >= 0) & (v <= 1)).all()) for v in values)


def _with_flips(evidence: Evidence, d: Floats) -> Evidence:
    """The same with the counts of items that changed, and McNemar's p-values of "any difference"."""
    gained, lost = int((d > 0).sum()), int((d < 0).sum())
    return replace(evidence, gained=gained, lost=lost, p_exact=mcnemar_exact(gained, lost),
                   p_mid=mcnemar_mid(gained, lost))


def _tango(gained: int, lost: int, n: int, margin: float) -> _Core:
    low, high = tango_interval(gained, lost, n)
    return _Core(low, high, tango_tests(gained, lost, n, margin), discordance_bound(gained + lost, n))


def _needed(core: _Core, effect: float, margin: float, delta: float) -> int | None:
    """Items that decide it, at a true difference of 0 where the interval has it, else at the one observed."""
    at = 0.0 if core.low <= 0 <= core.high else delta
    return None if core.psi is None else items_needed(core.psi * effect + at**2, margin, at)


def _real(estimate: Estimate, n: float, margin: float, base: Floats, tuned: Floats) -> _Core:
    """t interval and tests; where all differences are equal, what can still be said without an error.

    If no item differs and values are shares, Tango's interval without discordant items bounds the mean.
    Otherwise nothing is proven: the interval is the mean itself, and the verdict stays undecided.
    """
    if not estimate.degenerate:
        low, high = estimate.interval()
        return _Core(low, high, estimate.tests(margin), variance_bound(estimate.se**2 * n, estimate.df))
    if estimate.mean == 0 and int(n) > 1 and _shares(base, tuned):
        core = _tango(0, 0, int(n), margin)
        return _Core(core.low, core.high, core.tests, core.psi, ("no item differs",))
    found = "only one item" if base.size == 1 else "all items differ by the same amount"
    return _Core(estimate.mean, estimate.mean, NO_EVIDENCE, None, (f"{found}: no error can be estimated",))


def _robust(d: Floats, clusters: Sequence[Hashable] | None, margin: float, *,
            shares: bool) -> tuple[MarginTests | None, float, tuple[str, ...]]:
    """Cluster-robust tests, the design effect (>= 1), and what a reader must know (shares: in points)."""
    if clusters is None or len(set(clusters)) == d.size:
        return None, 1.0, ()
    groups = len(set(clusters))
    estimate, plain = clustered_mean(d, clusters), paired_mean(d)
    if estimate.degenerate:
        return None, 1.0, (f"no cluster-robust error ({groups} cluster{'s' * (groups > 1)})",)
    notes = [f"{_interval('cluster-robust', estimate.interval(), shares)} ({groups} clusters)"]
    if groups < FEW_CLUSTERS:
        notes.append(f"fewer than {FEW_CLUSTERS} clusters: that interval is too narrow")
    return estimate.tests(margin), max(1.0, (estimate.se / plain.se) ** 2), tuple(notes)


def _signed(value: float, shares: bool) -> str:
    """A difference as notes show it: in points for shares, else in the metric's own unit."""
    return (f"{100 * value:+.2f}" if shares else f"{value:+.4f}").replace("-", "\N{MINUS SIGN}")


def _interval(what: str, ends: tuple[float, float], shares: bool) -> str:
    return f"{what} 95 % interval {_signed(ends[0], shares)} to {_signed(ends[1], shares)}"
