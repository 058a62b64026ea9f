"""Chooses and computes the tests for the paired values of one metric.

    paired_evidence(base, tuned, margin=0.02)             base, tuned: float64 [n], item by item
    group_evidence([base_a, base_b], [tuned_a, tuned_b], margin=0.02)
    average_evidence([base_a, base_b], [tuned_a, tuned_b], [0.5, 0.5], margin=0.02, clusters=labels, members=[1, 1])

Values that are all 0 or 1 are binary and get Tango's test. Others are real and get a paired t test, with a bootstrap
beside it where they are few or skewed. Where they are in [0, 1], the t test counts only as far as the bound on failures
that were not seen allows (`aftertune.stats.bounded`). The sign of a difference is such that positive is better. A task
with clusters also gets cluster-robust tests. A group of tasks gets one mean with stratified errors and the same bound;
if it has many tasks, it also gets tests that treat the tasks as a sample. The average over the tasks and groups of a
comparison is such a mean with other weights. Its interval is the widest of all its kinds of test, so that it agrees
with the verdict.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from aftertune.stats.bootstrap import bca_mean
from aftertune.stats.clustered import FEW_CLUSTERS, Weighting, stratified_mean, weights
from aftertune.stats.item_errors import Clusters, ItemErrors, Observations, item_errors
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
from aftertune.stats.planning import discordance_bound, variance_bound


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """The figures and tests of one metric of base and tuned model.

    base, tuned: means over n items. delta: tuned - base, with the sign turned so that positive is better. low, high:
    95 % interval of delta. base_low: lower end of the 95 % interval of the base's mean; None where the metric is not a
    share (outside [0, 1], or lower is better). tests: against the margin. clustered: cluster-robust tests, None without
    clusters. bootstrap: bootstrap tests, None where t is sufficient. gained, lost, p_exact, p_mid: binary metrics only.
    psi: upper bound of the variance of the difference on one item if the true difference is 0, with the effect of
    clusters; None if nothing varies. shares: all values are in [0, 1]. notes: what a reader must know to read the
    verdict. details: further intervals.
    """

    n: int
    base: float
    tuned: float
    delta: float
    low: float
    high: float
    kind: Literal["binary", "real"]
    tests: MarginTests
    psi: float | None = None
    shares: bool = False
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
                    clusters: Sequence[Hashable | None] | None = None, bounded: bool = True) -> Evidence:
    """Evidence on one metric of one task. base, tuned: float64 [n]. clusters: a label for each item, None for an item
    whose cluster is not known; then nothing is proven. bounded: False for a metric that is no share, although these
    values may lie in [0, 1].

    Raises ValueError for no items or unequal lengths.
    """
    d = _difference(base, tuned, higher_is_better)
    binary, shares = is_binary(base, tuned), bounded and is_shares(base, tuned)
    errors = item_errors([d], clusters=None if clusters is None else [clusters], bounded=shares)
    core = _tango(d, margin) if binary else _real(errors, d.size, margin)
    base_low = None
    if higher_is_better and bounded and is_shares(base):
        base_low = wilson(float(base.sum()), d.size)[0] if binary else paired_mean(base).interval()[0]
    resampled = None if binary else bca_mean(d)
    evidence = Evidence(
        n=d.size, base=float(base.mean()), tuned=float(tuned.mean()), delta=float(d.mean()),
        low=core.low, high=core.high, kind="binary" if binary else "real", tests=core.tests,
        psi=None if core.psi is None else core.psi * errors.effect, shares=shares,
        base_low=base_low, clustered=errors.robust_tests(margin),
        bootstrap=resampled.tests(margin) if resampled else None, notes=core.notes + cluster_notes(errors, shares),
        details=(_interval("bootstrap (BCa)", resampled.interval(), shares),) if resampled else ())
    return _with_flips(evidence, d) if binary else evidence


def interval_at(base: Sequence[Floats], tuned: Sequence[Floats], level: float, *, higher_is_better: bool = True,
                weighting: Weighting = "micro") -> tuple[float, float]:
    """The interval that a row of shares shows, at another level. base, tuned: an array for each task, as in
    `group_evidence`; one array as in `paired_evidence`."""
    strata = [_difference(b, t, higher_is_better) for b, t in zip(base, tuned, strict=True)]
    if len(strata) == 1 and is_binary(*base, *tuned):
        return tango_interval(int((strata[0] > 0).sum()), int((strata[0] < 0).sum()), strata[0].size, level)
    errors = item_errors(strata, weighting=weighting, bounded=True)
    return _widened(errors.plain, errors.seen, level)


def group_evidence(base: Sequence[Floats], tuned: Sequence[Floats], *, margin: float, higher_is_better: bool = True,
                   weighting: Weighting = "micro", clusters: Clusters | None = None, bounded: bool = True) -> Evidence:
    """Evidence on the mean over a group of tasks, with errors stratified by task. base, tuned: an array for each task;
    clusters: a label for each item of each task, and bounded, as in `paired_evidence`. Items of several tasks may share
    a cluster.

    Raises ValueError for no tasks, an empty task, or unequal lengths.
    """
    strata = [_difference(b, t, higher_is_better) for b, t in zip(base, tuned, strict=True)]
    d, before, later = (np.concatenate(list(arrays)) for arrays in (strata, base, tuned))
    shares, binary = bounded and is_shares(before, later), is_binary(before, later)
    errors = item_errors(strata, weighting=weighting, clusters=clusters, bounded=shares)
    level, after = stratified_mean(list(base), weighting), stratified_mean(list(tuned), weighting)
    sizes = [s.size for s in strata]
    effective = 1 / float((weights(sizes, weighting) ** 2 / np.asarray(sizes)).sum())  # N where micro
    core = _real(errors, effective, margin)
    other: Weighting = "micro" if isinstance(weighting, str) and weighting == "macro" else "macro"
    alternative = stratified_mean(strata, other)
    evidence = Evidence(
        n=d.size, base=level.mean, tuned=after.mean, delta=errors.plain.mean, low=core.low, high=core.high,
        kind="binary" if binary else "real", tests=core.tests, shares=shares,
        psi=None if core.psi is None else core.psi * errors.effect * d.size / effective,
        clustered=errors.robust_tests(margin), notes=core.notes + cluster_notes(errors, shares),
        base_low=level.interval()[0] if higher_is_better and bounded and is_shares(before) else None,
        details=(*_task_details(errors, len(strata), shares),
                 _interval(f"{other} mean {_signed(alternative.mean, shares)},", alternative.interval(), shares)))
    return _with_flips(evidence, d) if binary else evidence


def average_evidence(base: Sequence[Floats], tuned: Sequence[Floats], weight: Sequence[float], *, margin: float,
                     clusters: Clusters, members: Sequence[int]) -> Evidence:
    """Evidence on the average over tasks and groups. base, tuned: values in [0, 1] of which more is better, an array
    for each task; weight: of each task, with the sum 1. clusters: a label for each item of each task. members: how
    many tasks each task or group has.

    Raises ValueError as `group_evidence` does.
    """
    shares, sizes = np.asarray(weight, dtype=np.float64), np.array([b.size for b in base])
    errors = _average_errors(base, tuned, shares, clusters, members)
    effective = 1 / float((shares**2 / sizes).sum())
    core = _real(errors, effective, margin)
    low, high = _widest(errors, 0.95)
    return Evidence(
        n=int(sizes.sum()), base=stratified_mean(list(base), shares).mean,
        tuned=stratified_mean(list(tuned), shares).mean, delta=errors.plain.mean, low=low, high=high, kind="real",
        tests=core.tests, shares=True, clustered=errors.robust_tests(margin),
        psi=None if core.psi is None else core.psi * errors.effect * int(sizes.sum()) / effective,
        notes=core.notes + cluster_notes(errors, True))


def average_interval(base: Sequence[Floats], tuned: Sequence[Floats], weight: Sequence[float], *, level: float,
                     clusters: Clusters, members: Sequence[int]) -> tuple[float, float]:
    """The interval of `average_evidence` at another level; -1 to 1 where nothing can be proven."""
    errors = _average_errors(base, tuned, np.asarray(weight, dtype=np.float64), clusters, members)
    unproven = NO_EVIDENCE in (errors.tests(1.0), errors.robust_tests(1.0))
    return (-1.0, 1.0) if unproven else _widest(errors, level)


def _average_errors(base: Sequence[Floats], tuned: Sequence[Floats], weight: Floats, clusters: Clusters,
                    members: Sequence[int]) -> ItemErrors:
    strata = [_difference(b, t, True) for b, t in zip(base, tuned, strict=True)]
    return item_errors(strata, weighting=weight, clusters=clusters, bounded=True, members=members)


def _widest(errors: ItemErrors, level: float) -> tuple[float, float]:
    """The interval that covers those of all kinds of error, so that it agrees with what all tests prove."""
    ends = [_widened(errors.plain, errors.seen, level), *errors.robust_intervals(level)]
    return min(low for low, _ in ends), max(high for _, high in ends)


def _task_details(errors: ItemErrors, tasks: int, shares: bool) -> tuple[str, ...]:
    """The interval of a group with its tasks as a sample."""
    if errors.by_task is None or errors.by_task.degenerate:
        return ()
    few = f"; fewer than {FEW_CLUSTERS}, so it is too narrow" if tasks < FEW_CLUSTERS else ""
    return (f"{_interval('by task (cluster-robust)', errors.by_task.interval(), shares)} ({tasks} tasks{few})",)


def cluster_notes(errors: ItemErrors, shares: bool) -> tuple[str, ...]:
    """What a reader must know about the clusters. shares: in percentage points."""
    if errors.problem:
        return (f"{errors.problem}, so no error can be estimated and nothing is proven",)
    if errors.clustered is None:
        return ()
    ends = errors.clustered.interval()
    if errors.seen_clusters is not None:
        ends = errors.seen_clusters.widened(ends)
    elif errors.clustered.degenerate:
        return (f"no cluster-robust error ({errors.clusters} clusters)",)
    notes = [f"{_interval('cluster-robust', ends, shares)} ({errors.clusters:,} clusters)"]
    if errors.clusters < FEW_CLUSTERS and errors.seen_clusters is None:
        notes.append(f"fewer than {FEW_CLUSTERS} clusters, so this interval is too narrow")
    return tuple(notes)


def _difference(base: Floats, tuned: Floats, higher_is_better: bool) -> Floats:
    if base.shape != tuned.shape or base.ndim != 1 or base.size == 0:
        raise ValueError(f"base {base.shape}, tuned {tuned.shape}: need two arrays of the same shape [n], n >= 1")
    return tuned - base if higher_is_better else base - tuned


def is_binary(*values: Floats) -> bool:
    """True where all values are 0 or 1."""
    return all(bool(((v == 0) | (v == 1)).all()) for v in values)


def is_shares(*values: Floats) -> bool:
    """True where all values lie in [0, 1], up to rounding."""
    return all(bool(((v >= -1e-9) & (v <= 1 + 1e-9)).all()) for v in values)


def _with_flips(evidence: Evidence, d: Floats) -> Evidence:
    """``evidence`` with the counts of items that changed and McNemar's p-values of "any difference"."""
    gained, lost = int((d > 0).sum()), int((d < 0).sum())
    return replace(evidence, gained=gained, lost=lost, p_exact=mcnemar_exact(gained, lost),
                   p_mid=mcnemar_mid(gained, lost))


def _tango(d: Floats, margin: float) -> _Core:
    gained, lost = int((d > 0).sum()), int((d < 0).sum())
    low, high = tango_interval(gained, lost, d.size)
    return _Core(low, high, tango_tests(gained, lost, d.size, margin), discordance_bound(gained + lost, d.size))


def _real(errors: ItemErrors, n: float, margin: float) -> _Core:
    """t interval and tests; those of shares as far as the bound on unseen failures allows. n: effective items.

    If no item differs and the values are shares, the bound remains. Without it, nothing is proven if all differences
    are equal: the interval is the mean itself, and the verdict is undecided.
    """
    estimate, seen = errors.plain, errors.seen
    if not estimate.degenerate:
        low, high = _widened(estimate, seen)
        return _Core(low, high, errors.tests(margin), variance_bound(estimate.se**2 * n, estimate.df))
    if estimate.mean == 0 and n > 1 and seen is not None:
        low, high = _widened(estimate, seen)
        return _Core(low, high, errors.tests(margin), discordance_bound(0, int(n)), ("no item differs",))
    reason = "only one item" if n == 1 else "all items differ by the same amount"
    return _Core(estimate.mean, estimate.mean, NO_EVIDENCE, None, (f"{reason}: no error can be estimated",))


def _widened(estimate: Estimate, seen: Observations | None, level: float = 0.95) -> tuple[float, float]:
    return estimate.interval(level) if seen is None else seen.widened(estimate.interval(level), level)


def _signed(value: float, shares: bool) -> str:
    """A difference as the notes show it: in percentage points for shares, else in the unit of the metric."""
    return (f"{100 * value:+.2f}" if shares else f"{value:+.4f}").replace("-", "\N{MINUS SIGN}")


def _interval(name: str, ends: tuple[float, float], shares: bool) -> str:
    return f"{name} 95 % interval {_signed(ends[0], shares)} to {_signed(ends[1], shares)}"
