"""Computes means with cluster-robust errors, and means over groups of tasks.

    clustered_mean(d, sources)                  Estimate with CR1 errors, df = clusters - 1
    stratified_mean([d_math, d_law], "micro")   mean over all items, paired error within each subject
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

from aftertune.stats.paired import Estimate, Floats, paired_mean, rounding

Weighting = Literal["micro", "macro"]

#: With fewer clusters than this, cluster-robust errors are unreliable.
FEW_CLUSTERS = 20


def clustered_mean(differences: Sequence[float] | Floats, clusters: Sequence[Hashable]) -> Estimate:
    """Mean with cluster-robust (CR1) error. differences: float64 [n]; clusters: a label for each.

    SE**2 = G/(G-1) n**-2 sum_g (sum_{i in g} e_i)**2 with df = G - 1. Without G/(G-1) it is the sum over all pairs of
    items of one cluster (Miller 2024, arXiv 2411.00640). Raises ValueError where the two lengths differ.
    """
    d = np.asarray(differences, dtype=np.float64)
    if len(clusters) != d.size:
        raise ValueError(f"{d.size} differences but {len(clusters)} cluster labels: need one per item")
    number: dict[Hashable, int] = {}
    codes = np.fromiter((number.setdefault(c, len(number)) for c in clusters), dtype=np.intp, count=d.size)
    plain, groups = paired_mean(d), len(number)
    if plain.degenerate or groups < 2:
        return Estimate(plain.mean, 0.0, groups - 1)
    sums = np.bincount(codes, weights=d - plain.mean, minlength=groups)
    se = math.sqrt(groups / (groups - 1) * float(sums @ sums)) / d.size
    return Estimate(plain.mean, se if se * d.size > rounding(d) else 0.0, groups - 1)


def weights(sizes: Sequence[int], weighting: Weighting) -> Floats:
    """Weight of each stratum: its share of the items (micro, lm-eval's default) or 1/K (macro)."""
    n = np.asarray(sizes, dtype=np.float64)
    return n / n.sum() if weighting == "micro" else np.full(n.size, 1 / n.size)


def stratified_mean(strata: Sequence[Floats], weighting: Weighting = "micro") -> Estimate:
    """sum_k w_k mean_k with SE**2 = sum_k w_k**2 SE_k**2, each SE_k from the paired values of stratum k.

    df = N - K. A stratum of one item has no error, so the variance of all items is used for it (df = N - 1 if all
    strata have one item). Raises ValueError for no stratum or an empty one.
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
    within = sum(sizes) - len(sizes)
    return Estimate(mean, float(np.sqrt(((share * errors) ** 2).sum())), within or pooled.df)


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
