"""Compares two recipes over several training seeds.

    seed_contrast(d).interval(0.95)                      d: float64 [seeds, items]
    seed_errors([d], clusters=[passages]).tests(0.02)    with the clusters and groups of the items

Both recipes are trained with the same seeds and answer the same items. d[s, i] is the difference on item i between the
two models of seed s. The seeds and the items are both samples: other seeds or other items would give another mean. The
margin of error is sqrt(e_seeds**2 + e_items**2). Each part is a quantile of Student's t times the standard error of the
mean, over seeds (S - 1 degrees of freedom) or over items (n - 1).

Over items the error is that of one comparison (`aftertune.stats.item_errors`), for the means over the seeds: stratified
by task, cluster-robust, and bounded where the values are in [0, 1].

Seeds are few, so their error is pooled over the recipes of a study where it can be (`pooled_spread`): the standard
error is sqrt(2 v / S), with v the mean variance between the seeds of a recipe, and R (S - 1) degrees of freedom in
place of S - 1. With positive correlation between recipes that share a seed this is too wide, never too narrow. It
assumes that seeds move all recipes alike, so two recipes that vary more than the others are pooled with each other
alone. Then, and if there are no others, one of the two may vary more, so the degrees of freedom are Welch's, between
S - 1 and 2 (S - 1). Three seeds seldom show that a recipe varies more: if one varies three times as much as the others,
the 95 % interval covers the truth in about 91 % (benchmarks/verdicts.py).

The noise of single answers is in both parts. It is counted twice, so the interval is slightly too wide and never too
narrow (Owen 2007, Ann Appl Stat 1:386, on two-way random effects). The margins of error are added in squares (Zou &
Donner 2008, Stat Med 27:1693), because Satterthwaite's degrees of freedom gave 7 % false differences at 3 seeds
(tests/test_stats_across_seeds.py). Why the variance between seeds must count: Bouthillier et al. 2021 (MLSys),
"Accounting for variance in machine learning benchmarks".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import fdtrc, stdtrit

from aftertune.stats.clustered import Weighting, satterthwaite, stratified_mean
from aftertune.stats.item_errors import Clusters, ItemErrors, item_errors
from aftertune.stats.paired import NO_EVIDENCE, Estimate, Floats, MarginTests, margin_tests, rounding

#: With fewer training seeds than this, recipes are not compared.
ENOUGH_SEEDS = 3
_SMALLEST = 1e-12
#: Two recipes are pooled with others unless this p says that they vary more. It is large, because the test is weak.
_UNEQUAL = 0.15


@dataclass(frozen=True, slots=True)
class SeedContrast:
    """A mean difference with its sources of error.

    mean: over seeds and items. parts: (standard error, degrees of freedom) of the mean over seeds and over items.
    """

    mean: float
    parts: tuple[tuple[float, float], ...]

    @property
    def degenerate(self) -> bool:
        """True where nothing varies, so that no error can be estimated."""
        return all(se <= 0 for se, _ in self.parts)

    def error(self, tail: float) -> float:
        """Margin of error at a one-sided tail probability ``tail``."""
        return math.sqrt(sum((se * float(stdtrit(df, tail))) ** 2 for se, df in self.parts))

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Interval of the mean; the mean itself, twice, where nothing varies."""
        half = 0.0 if self.degenerate else self.error((1 - level) / 2)
        return self.mean - half, self.mean + half

    def tests(self, margin: float) -> MarginTests:
        """Tests against +-margin and 0, which agree with the intervals. Where nothing varies, nothing is proven."""
        if self.degenerate:
            return NO_EVIDENCE
        return margin_tests(lambda value: (1 - self._below(value), self._below(value)), margin)

    def _below(self, value: float) -> float:
        """One-sided p of "the true mean is ``value`` or less"."""
        distance = abs(self.mean - value)
        if distance >= self.error(_SMALLEST):
            tail = _SMALLEST
        elif distance == 0:
            tail = 0.5
        else:
            tail = float(brentq(lambda q: self.error(q) - distance, _SMALLEST, 0.5, xtol=1e-15))
        return tail if self.mean > value else 1 - tail


def seed_contrast(d: NDArray[np.float64]) -> SeedContrast:
    """Mean difference over seeds and items, with both sources of error. d: differences [seeds, items].

    Raises ValueError for fewer than three seeds, no item, or values that are not finite.
    """
    if d.ndim != 2 or d.shape[0] < ENOUGH_SEEDS or d.shape[1] < 1 or not np.isfinite(d).all():
        raise ValueError(f"differences {d.shape}: need finite values [seeds, items] of {ENOUGH_SEEDS} seeds or more")
    seeds, items = d.shape
    parts: list[tuple[float, float]] = [(_error(d.mean(axis=1)), seeds - 1)]
    if items > 1:
        parts.append((_error(d.mean(axis=0)), items - 1))
    return SeedContrast(float(d.mean()), tuple(parts))


def _error(means: Floats) -> float:
    """Standard error of the mean of ``means``; 0 where they are equal up to rounding."""
    return 0.0 if float(np.ptp(means)) <= rounding(means) else float(means.std(ddof=1)) / math.sqrt(means.size)


@dataclass(frozen=True, slots=True)
class SeedSpread:
    """How much the score of a recipe varies between seeds, pooled over recipes. variance: of one model's score. df: its
    degrees of freedom."""

    variance: float
    df: float
    recipes: int


def pooled_spread(pair: Sequence[Floats], others: Sequence[Floats] = ()) -> SeedSpread | None:
    """The variance between seeds, pooled over two recipes that are compared and others of the same study.

    pair, others: scores of each recipe, one for each seed, [S] each; recipes with one seed are left out, and so are the
    others where the pair varies more than they do (one-sided F test, `_UNEQUAL`). None where there is no variance to
    pool.
    """
    own, rest = ([np.asarray(scores) for scores in group if len(scores) > 1] for group in (pair, others))
    if len(own) < 2:
        return None
    (a, df_a), (b, df_b) = ((sum(s.size * (s.size - 1) * _error(s) ** 2 for s in group), sum(s.size - 1 for s in group))
                            for group in (own, rest))
    if rest and (b <= 0 < a or (b > 0 and float(fdtrc(df_a, df_b, (a / df_a) / (b / df_b))) < _UNEQUAL)):
        rest, b, df_b = [], 0.0, 0
    variance = (a + b) / (df_a + df_b)
    df = float(df_a + df_b) if rest else satterthwaite([(s.size - 1) * s.size * _error(s) ** 2 for s in own],
                                                       [s.size - 1 for s in own])
    return SeedSpread(variance, df, len(own) + len(rest)) if variance > 0 else None


@dataclass(frozen=True, slots=True)
class SeedErrors:
    """A mean difference over seeds and items, with each kind of error of its items.

    seeds: (standard error of the mean over seeds, degrees of freedom). items: of the means over seeds.
    """

    seeds: tuple[float, float]
    items: ItemErrors

    @property
    def mean(self) -> float:
        """Over seeds and items."""
        return self.items.plain.mean

    def contrast(self, estimate: Estimate) -> SeedContrast:
        """The contrast with one kind of error over items."""
        return SeedContrast(estimate.mean, (self.seeds, (estimate.se, max(1.0, estimate.df))))

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Interval of the mean, with independent items."""
        ends = self.contrast(self.items.plain).interval(level)
        return ends if self.items.seen is None else self.items.seen.widened(ends, level)

    def widest_interval(self, level: float = 0.95) -> tuple[float, float]:
        """Interval of the mean that covers those of all kinds of error, so that it agrees with what all tests prove."""
        ends = [self.interval(level),
                *self.items.robust_intervals(level, lambda estimate: self.contrast(estimate).interval(level))]
        return min(low for low, _ in ends), max(high for _, high in ends)

    def tests(self, margin: float) -> MarginTests:
        """Tests against +-margin, with independent items."""
        return self.items.tests(margin, lambda estimate: self.contrast(estimate).tests(margin))

    def robust_tests(self, margin: float) -> MarginTests | None:
        """Tests with clusters, and with the tasks of a group as a sample; None if there is neither."""
        return self.items.robust_tests(margin, lambda estimate: self.contrast(estimate).tests(margin))


def seed_errors(strata: Sequence[NDArray[np.float64]], *, weighting: Weighting = "micro",
                clusters: Clusters | None = None, bounded: bool = False, spread: SeedSpread | None = None,
                members: Sequence[int] = ()) -> SeedErrors:
    """Mean difference over seeds and items of one task, of a group of tasks, or of an average over both. strata:
    float64 [seeds, items] each.

    spread: of the recipes of the study; None takes the error from the differences alone. For the others see
    `item_errors`. Raises ValueError as `seed_contrast` does, and for unequal numbers of seeds.
    """
    for d in strata:
        seed_contrast(d)  # checks its shape and values
    if len({len(d) for d in strata}) != 1:
        raise ValueError(f"numbers of seeds {[len(d) for d in strata]}: need the same for each task")
    seeds = len(strata[0])
    means = np.array([stratified_mean([d[s] for d in strata], weighting).mean for s in range(seeds)])
    items = item_errors([d.mean(axis=0) for d in strata], weighting=weighting, clusters=clusters, bounded=bounded,
                        members=members)
    if spread is not None:
        return SeedErrors((math.sqrt(2 * spread.variance / seeds), spread.df), items)
    return SeedErrors((_error(means), seeds - 1), items)
