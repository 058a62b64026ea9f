"""Chooses and computes the tests for the paired values of one metric.

    paired_evidence(base, tuned, margin=0.02)             base, tuned: float64 [n], item by item
    group_evidence([base_a, base_b], [tuned_a, tuned_b], margin=0.02)

Values that are all 0 or 1 are binary and get Tango's test. Others are real and get a paired t test, with a bootstrap
beside it where they are few or skewed. The sign of a difference is such that positive is better. A task with clusters
also gets cluster-robust tests. A group of tasks gets one mean with stratified errors; if it has many tasks, it also
gets tests that treat the tasks as a sample.
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

#: From this many tasks on, the tasks of a group are also treated as a sample.
MANY_TASKS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """The figures and tests of one metric of base and tuned model.

    base, tuned: means over n items. delta: tuned - base, with the sign turned so that positive is better. low, high:
    95 % interval of delta. base_low: lower end of the 95 % interval of the base's mean; None where the metric is not a
    share (outside [0, 1], or lower is better). tests: against the margin. clustered: cluster-robust tests, None without
    clusters. bootstrap: bootstrap tests, None where t is sufficient. gained, lost, p_exact, p_mid: binary metrics only.
    items_needed: items that would decide the verdict if the true difference were 0, or the observed one if the interval
    excludes 0; None without variance, or where that difference equals the margin. notes: what a reader must know to
    read the verdict. details: further intervals.
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
    """Interval and tests of one difference. psi: upper bound of the variance of the difference on one item."""

    low: float
    high: float
    tests: MarginTests
    psi: float | None
    notes: tuple[str, ...] = ()


def paired_evidence(base: Floats, tuned: Floats, *, margin: float, higher_is_better: bool = True,
                    clusters: Sequence[Hashable] | None = None) -> Evidence:
    """Evidence on one metric of one task. base, tuned: float64 [n]; clusters: a label for each item.

    Raises ValueError for no items or unequal lengths.
    """
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
    """Evidence on the mean over a group of tasks, with errors stratified by task. base, tuned: an array for each task.

    Raises ValueError for no tasks, an empty task, or unequal lengths.
    """
    strata = [_difference(b, t, higher_is_better) for b, t in zip(base, tuned, strict=True)]
    estimate = stratified_mean(strata, weighting)
    level, after = stratified_mean(list(base), weighting), stratified_mean(list(tuned), weighting)
    d, before, later = (np.concatenate(list(arrays)) for arrays in (strata, base, tuned))
    sizes = [s.size for s in strata]
    effective = 1 / float((weights(sizes, weighting) ** 2 / np.asarray(sizes)).sum())  # N where micro
    core = _real(estimate, effective, margin, before, later)
    robust, details = _as_sample(strata, weighting, margin, shares=_shares(before, later))
    other: Weighting = "macro" if weighting == "micro" else "micro"
    alternative = stratified_mean(strata, other)
    details += (_interval(f"{other} mean {_signed(alternative.mean, _shares(before, later))},", alternative.interval(),
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
    """Tests that treat the tasks of a group as a sample (CR1 by task, or a t test over the means of the tasks).

    None for fewer than MANY_TASKS, which are not treated as a sample.
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
        raise ValueError(f"base {base.shape}, tuned {tuned.shape}: need two arrays of the same shape [n], n >= 1")
    return tuned - base if higher_is_better else base - tuned


def _binary(base: Floats, tuned: Floats) -> bool:
    return all(bool(((v == 0) | (v == 1)).all()) for v in (base, tuned))


def _shares(*values: Floats) -> bool:
    """True where all values lie in [0, 1]."""
    return all(bool(((v >= 0) & (v <= 1)).all()) for v in values)


def _with_flips(evidence: Evidence, d: Floats) -> Evidence:
    """``evidence`` with the counts of items that changed and McNemar's p-values of "any difference"."""
    gained, lost = int((d > 0).sum()), int((d < 0).sum())
    return replace(evidence, gained=gained, lost=lost, p_exact=mcnemar_exact(gained, lost),
                   p_mid=mcnemar_mid(gained, lost))


def _tango(gained: int, lost: int, n: int, margin: float) -> _Core:
    low, high = tango_interval(gained, lost, n)
    return _Core(low, high, tango_tests(gained, lost, n, margin), discordance_bound(gained + lost, n))


def _needed(core: _Core, effect: float, margin: float, delta: float) -> int | None:
    """Items that decide the verdict if the true difference is 0, or the observed one if the interval excludes 0."""
    true = 0.0 if core.low <= 0 <= core.high else delta
    return None if core.psi is None else items_needed(core.psi * effect + true**2, margin, true)


def _real(estimate: Estimate, n: float, margin: float, base: Floats, tuned: Floats) -> _Core:
    """t interval and tests, or their replacement where all differences are equal.

    If no item differs and the values are shares, Tango's interval without discordant items bounds the mean. Otherwise
    nothing is proven: the interval is the mean itself, and the verdict is undecided.
    """
    if not estimate.degenerate:
        low, high = estimate.interval()
        return _Core(low, high, estimate.tests(margin), variance_bound(estimate.se**2 * n, estimate.df))
    if estimate.mean == 0 and int(n) > 1 and _shares(base, tuned):
        core = _tango(0, 0, int(n), margin)
        return _Core(core.low, core.high, core.tests, core.psi, ("no item differs",))
    reason = "only one item" if base.size == 1 else "all items differ by the same amount"
    return _Core(estimate.mean, estimate.mean, NO_EVIDENCE, None, (f"{reason}: no error can be estimated",))


def _robust(d: Floats, clusters: Sequence[Hashable] | None, margin: float, *,
            shares: bool) -> tuple[MarginTests | None, float, tuple[str, ...]]:
    """Cluster-robust tests, the design effect (>= 1), and notes for the reader (shares: in percentage points)."""
    if clusters is None or len(set(clusters)) == d.size:
        return None, 1.0, ()
    groups = len(set(clusters))
    estimate, plain = clustered_mean(d, clusters), paired_mean(d)
    if estimate.degenerate:
        return None, 1.0, (f"no cluster-robust error ({groups} cluster{'s' * (groups > 1)})",)
    notes = [f"{_interval('cluster-robust', estimate.interval(), shares)} ({groups} clusters)"]
    if groups < FEW_CLUSTERS:
        notes.append(f"fewer than {FEW_CLUSTERS} clusters, so this interval is too narrow")
    return estimate.tests(margin), max(1.0, (estimate.se / plain.se) ** 2), tuple(notes)


def _signed(value: float, shares: bool) -> str:
    """A difference as the notes show it: in percentage points for shares, else in the unit of the metric."""
    return (f"{100 * value:+.2f}" if shares else f"{value:+.4f}").replace("-", "\N{MINUS SIGN}")


def _interval(name: str, ends: tuple[float, float], shares: bool) -> str:
    return f"{name} 95 % interval {_signed(ends[0], shares)} to {_signed(ends[1], shares)}"
