"""Items that belong together: owns cluster-robust errors and the means of task groups.

Clusters (several HellaSwag items cut from one source, several questions on one passage) share their luck, so
that counting items overstates the evidence. Strata (the subjects of MMLU) are fixed parts whose own paired
errors add up.

    clustered_mean(d, sources)                  Estimate with CR1 errors, df = clusters - 1
    stratified_mean([d_math, d_law], "micro")   mean over all items, paired error within each subject
    mean_interval([(0.01, -0.02, 0.04), …])     mean of tasks of which the intervals alone are at hand
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Literal

import numpy as np

from aftertune.stats.paired import Estimate, Floats, paired_mean, rounding

Weighting = Literal["micro", "macro"]

#: Fewer clusters than this make cluster-robust errors themselves unreliable.
FEW_CLUSTERS = 20


def clustered_mean(differences: Sequence[float] | Floats, clusters: Sequence[Hashable]) -> Estimate:
    """Mean with cluster-robust (CR1) error: G/(G-1) n**-2 sum_g (sum_{i in g} e_i)**2, df = G - 1.

    Without G/(G-1) it is the sum over all pairs of one cluster (Miller 2024, arXiv 2411.00640).
    Raises ValueError where the two lengths differ.
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
    """Weight of each stratum: its share of the items (micro, the default of lm-eval) or 1/K (macro)."""
    n = np.asarray(sizes, dtype=np.float64)
    return n / n.sum() if weighting == "micro" else np.full(n.size, 1 / n.size)


def stratified_mean(strata: Sequence[Floats], weighting: Weighting = "micro") -> Estimate:
    """sum_k w_k mean_k with SE**2 = sum_k w_k**2 SE_k**2, each SE_k from the paired values of stratum k.

    df = N - K. A stratum of one item has no error of its own and takes the variance of all items (df = N - 1
    where all strata are so).
    Raises ValueError for no stratum or an empty one.
    """
    if not strata:
        raise ValueError("no strata: a group mean needs at least one task")
    parts = [paired_mean(s) for s in strata]
    sizes = [len(s) for s in strata]
    share = weights(sizes, weighting)
    whole = paired_mean(np.concatenate(list(strata)))
    everywhere = whole.se * math.sqrt(sum(sizes))  # standard deviation of one item, for strata of one
    errors = np.array([everywhere if n == 1 else p.se for n, p in zip(sizes, parts, strict=True)])
    mean = float(share @ np.array([p.mean for p in parts]))
    within = sum(sizes) - len(sizes)
    return Estimate(mean, float(np.sqrt(((share * errors) ** 2).sum())), within or whole.df)


def mean_interval(parts: Sequence[tuple[float, float, float]]) -> tuple[float, float, float]:
    """Mean of independent estimates (value, low, high), such as those of tasks that share no items, with its interval.

    Margins of error are added in squares, each side on its own (Zou & Donner 2008, Stat Med 27:1693), so that the
    interval of proportions near 0 or 1 stays lopsided.
    Raises ValueError for none.
    """
    if not parts:
        raise ValueError("no estimates: a mean needs at least one")
    value, low, high = (np.array(column) for column in zip(*parts, strict=True))
    mean, n = float(value.mean()), len(parts)
    return mean, mean - float(np.hypot.reduce(value - low)) / n, mean + float(np.hypot.reduce(high - value)) / n
