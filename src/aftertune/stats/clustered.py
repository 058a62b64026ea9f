"""Computes means with cluster-robust errors, and means over groups of tasks.

    clustered_mean(d, sources)                  Estimate with CR1 errors, df = clusters - 1
    stratified_mean([d_math, d_law], "micro")   mean over all items, paired error within each subject
    stratified_clustered_mean(…)                both: strata, and clusters of items within or across them
    mean_interval([(0.01, -0.02, 0.04), …])     mean of tasks of which only the intervals are known

The items of a cluster (HellaSwag items from one source, questions on one passage) are correlated, so that treating them
as independent overstates the evidence. Strata (the subjects of MMLU) are fixed parts: the paired errors within each of
them are added.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from aftertune.stats.paired import Estimate, Floats, paired_mean, rounding

#: How strata are weighted: by their items ("micro", lm-eval's default), all alike ("macro"), or by given weights with
#: the sum 1, float64 [strata].
Weighting = Literal["micro", "macro"] | Floats

#: With fewer clusters than this, cluster-robust errors are unreliable.
FEW_CLUSTERS = 20


def codes_of(clusters: Sequence[Hashable]) -> NDArray[np.intp]:
    """The clusters as numbers from 0, in the order in which they first occur, intp [n]."""
    number: dict[Hashable, int] = {}
    return np.fromiter((number.setdefault(c, len(number)) for c in clusters), dtype=np.intp, count=len(clusters))


def cluster_totals(values: Floats, clusters: Sequence[Hashable], weight: Floats) -> tuple[Floats, float]:
    """(one value for each cluster, the size of its worst value), for tests that take clusters as the observations.

    values: float64 [n]. weight: of each item, with mean 1. The values of the clusters are sums of weight * values,
    scaled so that their mean is that of weight * values. If every item of a cluster changes by 1, its value is about
    the second result: 1 for clusters of one size, else G sum s_g**2 / (sum s_g)**2, where s_g is the sum of the weights
    of cluster g, so that they count as fewer clusters of one size (Kish 1965, Survey Sampling).
    """
    codes = codes_of(clusters)
    sizes = np.bincount(codes, weights=weight)
    totals = np.bincount(codes, weights=weight * values) * sizes.size / values.size
    return totals, float(sizes.size * (sizes @ sizes) / sizes.sum() ** 2)


def clustered_mean(differences: Sequence[float] | Floats, clusters: Sequence[Hashable]) -> Estimate:
    """Mean with cluster-robust (CR1) error. differences: float64 [n]; clusters: a label for each.

    SE**2 = G/(G-1) n**-2 sum_g (sum_{i in g} e_i)**2 with df = G - 1. Without G/(G-1) it is the sum over all pairs of
    items of one cluster (Miller 2024, arXiv 2411.00640). Raises ValueError where the two lengths differ.
    """
    d = np.asarray(differences, dtype=np.float64)
    if len(clusters) != d.size:
        raise ValueError(f"{d.size} differences but {len(clusters)} cluster labels: need one per item")
    codes = codes_of(clusters)
    plain, groups = paired_mean(d), int(codes.max()) + 1
    if plain.degenerate or groups < 2:
        return Estimate(plain.mean, 0.0, groups - 1)
    sums = np.bincount(codes, weights=d - plain.mean, minlength=groups)
    se = math.sqrt(groups / (groups - 1) * float(sums @ sums)) / d.size
    return Estimate(plain.mean, se if se * d.size > rounding(d) else 0.0, groups - 1)


def weights(sizes: Sequence[int], weighting: Weighting) -> Floats:
    """Weight of each stratum: its share of the items (micro), 1/K (macro), or as given. Raises ValueError unless there
    is one given weight for each stratum."""
    n = np.asarray(sizes, dtype=np.float64)
    if not isinstance(weighting, str):
        if weighting.shape != n.shape:
            raise ValueError(f"{weighting.size} weights for {n.size} strata: need one for each")
        return weighting
    return n / n.sum() if weighting == "micro" else np.full(n.size, 1 / n.size)


def stratified_mean(strata: Sequence[Floats], weighting: Weighting = "micro") -> Estimate:
    """sum_k w_k mean_k with SE**2 = sum_k w_k**2 SE_k**2, each SE_k from the paired values of stratum k.

    df = N - K with micro weights, else Welch and Satterthwaite's, because a small stratum with a large weight can be
    most of the error. A stratum of one item has no error, so the variance of all items is used for it (df = N - 1 if
    all strata have one item). Raises ValueError for no stratum or an empty one.
    """
    if not strata:
        raise ValueError("no strata: a group mean needs at least one task")
    estimates = [paired_mean(s) for s in strata]
    sizes = [len(s) for s in strata]
    share = weights(sizes, weighting)
    pooled = paired_mean(np.concatenate(list(strata)))
    deviation = pooled.se * math.sqrt(sum(sizes))  # standard deviation of one item, for strata of one
    errors = np.array([deviation if n == 1 else e.se for n, e in zip(sizes, estimates, strict=True)])
    mean = float(share @ np.array([e.mean for e in estimates]))
    within = (sum(sizes) - len(sizes)) or pooled.df
    parts = (share * errors) ** 2
    df = _df(parts, [n - 1 or pooled.df for n in sizes], within, weighting)
    return Estimate(mean, float(np.sqrt(parts.sum())), df)


def _df(parts: Floats, df: Sequence[float], most: float, weighting: Weighting) -> float:
    """The degrees of freedom of a sum of variances ``parts``: at most ``most``, which holds with micro weights."""
    return most if isinstance(weighting, str) and weighting == "micro" else min(most, satterthwaite(parts, df))


def satterthwaite(parts: Sequence[float] | Floats, df: Sequence[float] | Floats) -> float:
    """Degrees of freedom of a sum of independent variances, each with its own (Satterthwaite 1946, Biometrics 2:110).

    (sum v)**2 / sum(v**2 / df), Welch's for two means; the sum of all df where every part is 0. parts, df: [k].
    """
    v, own = np.asarray(parts, dtype=np.float64), np.asarray(df, dtype=np.float64)
    return float(v.sum() ** 2 / (v**2 / own).sum()) if v.any() else float(own.sum())


def stratified_clustered_mean(strata: Sequence[Floats], clusters: Sequence[Sequence[Hashable]],
                              weighting: Weighting = "micro") -> Estimate:
    """As `stratified_mean`, where the items also come in clusters, which may have items in several strata.

    clusters: a label for each item of each stratum. SE**2 = sum_g (sum_k c_k w_k / n_k sum_{i in g, k} e_i)**2 with
    c_k**2 = G_k / (G_k - 1), so that clusters within one stratum give the sum of the strata's CR1 errors. df = the
    number of clusters in the strata less the number of strata, and at most the number of clusters less 1; with other
    than micro weights also at most Satterthwaite's from the errors of the strata. Degenerate if a stratum has one
    cluster.
    """
    mean, sizes = stratified_mean(strata, weighting).mean, [len(s) for s in strata]
    counts = [len(set(labels)) for labels in clusters]
    labels = [c for stratum in clusters for c in stratum]
    codes = codes_of(labels)
    df: float = min(sum(counts) - len(counts), int(codes.max()))
    if min(counts) < 2:
        return Estimate(mean, 0.0, df)
    parts = [math.sqrt(g / (g - 1)) * share / n * (s - s.mean()) for s, n, g, share in
             zip(strata, sizes, counts, weights(sizes, weighting), strict=True)]
    sums = np.bincount(codes, weights=np.concatenate(parts))
    se = math.sqrt(float(sums @ sums))
    own = [np.bincount(codes_of(c), weights=p) for c, p in zip(clusters, parts, strict=True)]
    df = _df(np.array([float(s @ s) for s in own]), [g - 1 for g in counts], df, weighting)
    return Estimate(mean, se if se * sum(sizes) > rounding(np.concatenate(list(strata))) else 0.0, df)


def mean_interval(estimates: Sequence[tuple[float, float, float]]) -> tuple[float, float, float]:
    """Mean of independent estimates (value, low, high), such as those of tasks without shared items, as (mean, low,
    high).

    Margins of error are added in squares, lower and upper ones apart (Zou & Donner 2008, Stat Med 27:1693), so that an
    asymmetric interval, as of proportions near 0 or 1, remains asymmetric. Raises ValueError for no estimate.
    """
    if not estimates:
        raise ValueError("no estimates: a mean needs at least one")
    value, low, high = (np.array(column) for column in zip(*estimates, strict=True))
    mean, n = float(value.mean()), len(estimates)
    return mean, mean - float(np.hypot.reduce(value - low)) / n, mean + float(np.hypot.reduce(high - value)) / n
