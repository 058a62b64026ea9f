"""Estimates the error of a mean difference in each way that its items call for.

    errors = item_errors([d], clusters=[sources], bounded=True)
    errors.plain.interval(), errors.tests(0.02), errors.robust_tests(0.02)

The items of a task are independent, or come in clusters. A group has a stratum of items for each of its tasks, and if
it has many tasks, they are also treated as a sample. Differences of values in [0, 1] are bounded, so that failures
which were not seen can be bounded too (`aftertune.stats.bounded`): for items, and for clusters as a whole. One pair of
models (`aftertune.stats.evidence`) and recipes over several seeds (`aftertune.stats.across_seeds`) use the same errors.

The average over the tasks of a comparison gives each of its members, a task or a group, the same weight. Its strata are
the tasks, with the weights that follow from this. A member that is a group of many tasks is also treated as a sample of
tasks, as in its own row.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

from aftertune.stats.bounded import bounded_interval, bounded_tests
from aftertune.stats.clustered import (
    Weighting,
    cluster_totals,
    clustered_mean,
    satterthwaite,
    stratified_clustered_mean,
    stratified_mean,
    weights,
)
from aftertune.stats.paired import NO_EVIDENCE, Estimate, Floats, MarginTests, paired_mean, rounding, weakest

#: From this many tasks on, the tasks of a group are also treated as a sample.
MANY_TASKS = 10

#: A label for each item of each stratum. None: the label of an item is not known.
Clusters = Sequence[Sequence[Hashable | None]]


@dataclass(frozen=True, slots=True)
class Observations:
    """What a test takes as its observations, for the bound on unseen failures. worst: the size of the worst value."""

    values: Floats
    worst: float

    def tests(self, margin: float) -> MarginTests:
        """The tests of `bounded_tests`."""
        return bounded_tests(self.values, margin, most=self.worst)

    def widened(self, ends: tuple[float, float], level: float = 0.95) -> tuple[float, float]:
        """``ends``, made wide enough for failures that were not seen.

        Never narrower than `bounded_interval`, and on each side of the mean than z**2 / (n + z**2), which is Tango's
        interval if none of n items differs.
        """
        low, high = bounded_interval(self.values, level, most=self.worst)
        mean, z = float(self.values.mean()), float(ndtri((1 + level) / 2))
        least = z * z / (self.values.size / self.worst + z * z)
        return max(-1.0, min(ends[0], low, mean - least)), min(1.0, max(ends[1], high, mean + least))


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemErrors:
    """The errors of one mean difference over items.

    plain: independent items, stratified by task. clustered: cluster-robust; None if no two items share a cluster.
    by_task: the tasks of a group as a sample; None for few tasks. clusters: how many there are. problem: why the
    clusters cannot be used, which proves nothing; "" if they can. seen: items as observations, and seen_clusters:
    clusters as observations, for bounded differences. effect: variance with clusters over that without, at least 1.
    """

    plain: Estimate
    clustered: Estimate | None = None
    by_task: Estimate | None = None
    clusters: int = 0
    problem: str = ""
    seen: Observations | None = None
    seen_clusters: Observations | None = None
    effect: float = 1.0

    def tests(self, margin: float, test: Callable[[Estimate], MarginTests] | None = None) -> MarginTests:
        """Item-wise tests. test: of an estimate, in place of its t test. Nothing is proven where nothing varies."""
        return self._guarded(self.plain, self.seen, margin, test)

    def robust_tests(self, margin: float, test: Callable[[Estimate], MarginTests] | None = None) -> MarginTests | None:
        """What the cluster-robust test and the test of the tasks as a sample both prove; None if there is neither."""
        if self.problem:
            return NO_EVIDENCE
        kinds = []
        if self.clustered is not None:
            kinds.append(self._guarded(self.clustered, self.seen_clusters, margin, test))
        if self.by_task is not None and not self.by_task.degenerate:
            kinds.append(test(self.by_task) if test else self.by_task.tests(margin))
        return weakest(*kinds) if kinds else None

    def robust_intervals(self, level: float = 0.95, interval: Callable[[Estimate], tuple[float, float]] | None = None
                         ) -> list[tuple[float, float]]:
        """The intervals that agree with `robust_tests`. interval: of an estimate, in place of its t interval."""
        kinds = [(e, seen) for e, seen in ((self.clustered, self.seen_clusters), (self.by_task, None))
                 if e is not None and not e.degenerate]
        ends = [(interval(e) if interval else e.interval(level), seen) for e, seen in kinds]
        return [seen.widened(pair, level) if seen else pair for pair, seen in ends]

    @staticmethod
    def _guarded(estimate: Estimate, seen: Observations | None, margin: float,
                 test: Callable[[Estimate], MarginTests] | None) -> MarginTests:
        """The tests of an estimate, and of the bound where there is one."""
        bound = seen.tests(margin) if seen else None
        if estimate.degenerate and estimate.mean == 0 and bound is not None and test is None:
            return bound
        return weakest(test(estimate) if test else estimate.tests(margin), bound)


def item_errors(strata: Sequence[Floats], *, weighting: Weighting = "micro", clusters: Clusters | None = None,
                bounded: bool = False, members: Sequence[int] = ()) -> ItemErrors:
    """The errors of the mean over ``strata``, float64 [n] for each task. bounded: the differences are in [-1, 1].
    members: of an average over tasks and groups, with given weights: how many strata each of them has, in order.

    Raises ValueError for no stratum or an empty one.
    """
    sizes = [s.size for s in strata]
    plain = stratified_mean(strata, weighting) if len(strata) > 1 else paired_mean(strata[0])
    d = np.concatenate(list(strata))
    weight = np.repeat(weights(sizes, weighting) / np.asarray(sizes) * d.size, sizes)
    seen = Observations(weight * d, float(weight.max())) if bounded else None
    by_task = _by_task(strata, weighting, members)
    labels = [label for stratum in clusters or () for label in stratum]
    count = len(set(labels))
    if clusters is None or (count == d.size and None not in labels):
        return ItemErrors(plain=plain, by_task=by_task, seen=seen)
    if problem := _problem(labels):
        return ItemErrors(plain=plain, by_task=by_task, seen=seen, clusters=count, problem=problem)
    clustered = stratified_clustered_mean(strata, clusters, weighting) if len(strata) > 1 else \
        clustered_mean(d, labels)
    totals, worst = cluster_totals(d, labels, weight)
    effect = (clustered.se / plain.se) ** 2 if plain.se > 0 else worst * d.size / count
    return ItemErrors(plain=plain, by_task=by_task, seen=seen, clusters=count, clustered=clustered,
                      seen_clusters=Observations(totals, max(worst, float(weight.max()))) if bounded else None,
                      effect=max(1.0, effect))


def _problem(labels: Sequence[Hashable | None]) -> str:
    """Why clusters with these labels cannot be used; "" if they can."""
    unknown = sum(label is None for label in labels)
    if unknown:
        return f"the clusters of {unknown:,} of {len(labels):,} items are not known"
    return "all items are one cluster" if len(set(labels)) == 1 else ""


def _by_task(strata: Sequence[Floats], weighting: Weighting, members: Sequence[int]) -> Estimate | None:
    """The tasks of a group as a sample: CR1 by task, or a t test over the means of the tasks. None for few tasks.

    members: of an average, as in `item_errors`. Each that has many tasks is such a sample; the others are strata.
    """
    if isinstance(weighting, str):
        if len(strata) < MANY_TASKS:
            return None
        if weighting == "macro":
            return paired_mean([float(s.mean()) for s in strata])
        tasks = np.repeat(np.arange(len(strata)), [s.size for s in strata])
        return clustered_mean(np.concatenate(list(strata)), tasks.tolist())
    if max(members, default=0) < MANY_TASKS:
        return None
    estimates, shares, start = [], [], 0
    for count in members:
        own, weight = strata[start:start + count], weighting[start:start + count]
        shares.append(float(weight.sum()))
        estimates.append(_as_sample(own, weight / shares[-1]) if count >= MANY_TASKS
                         else stratified_mean(own, weight / shares[-1]))
        start += count
    parts = [(w * e.se) ** 2 for w, e in zip(shares, estimates, strict=True)]
    mean = sum(w * e.mean for w, e in zip(shares, estimates, strict=True))
    return Estimate(mean, float(np.sqrt(sum(parts))), satterthwaite(parts, [max(1.0, e.df) for e in estimates]))


def _as_sample(strata: Sequence[Floats], weight: Floats) -> Estimate:
    """Mean over tasks that are a sample: SE**2 = K/(K-1) sum_k (w_k (mean_k - mean))**2 with df = K - 1.

    weight: float64 [K] with the sum 1. With the tasks' shares of the items it is CR1 by task, with 1/K the t test over
    their means.
    """
    means = np.array([float(s.mean()) for s in strata])
    mean, k = float(weight @ means), len(strata)
    deviations = weight * (means - mean)
    se = float(np.sqrt(k / (k - 1) * (deviations @ deviations)))
    return Estimate(mean, se if se > rounding(means) else 0.0, k - 1)
