"""Computes the BCa bootstrap of a mean difference, for few or skewed values.

    bca_mean(d)                       None where the t test is sufficient, or where nothing can be resampled
    bca_mean(d).interval(0.95)        bias-corrected and accelerated (Efron 1987, JASA 82:171)

Student's t needs many values or a symmetric distribution. With fewer than a hundred values, or where n <= 25 skew**2
(Cochran 1977, Sampling Techniques, section 2.15), its verdict counts only if the bootstrap agrees.

For a mean the acceleration has a closed form, sum e**3 / (6 (sum e**2)**1.5), so no jackknife is needed. The random
draws are seeded, so the same values give the same interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, ndtri

from aftertune.stats.paired import Floats, MarginTests, margin_tests, paired_mean

#: With fewer values than this, the t interval is always checked.
FEW = 100
#: With fewer values than this, a bootstrap adds nothing to the t test.
TOO_FEW = 8
#: Resamples: the usual and the smallest number, and the largest number of values in all of them.
_DRAWS, _LEAST_DRAWS, _BUDGET = 10_000, 2_000, 20_000_000


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """A bootstrap of a mean. means: the sorted resampled means, float64 [draws]; bias: the bias correction z0."""

    means: Floats
    bias: float
    acceleration: float

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """BCa interval of the mean."""
        ends = []
        for z in (float(ndtri((1 - level) / 2)), float(ndtri((1 + level) / 2))):
            shifted = self.bias + (self.bias + z) / max(1e-9, 1 - self.acceleration * (self.bias + z))
            ends.append(float(np.quantile(self.means, ndtr(shifted))))
        return ends[0], ends[1]

    def below(self, value: float) -> float:
        """Confidence that the mean is below ``value``: the level of the one-sided interval that ends there."""
        left, right = (np.searchsorted(self.means, value, side=side) for side in ("left", "right"))
        share = float(left + right) / (2 * self.means.size)
        limit = 1 / (self.means.size + 1)
        w = float(ndtri(min(max(share, limit), 1 - limit))) - self.bias
        return float(ndtr(w / max(1e-9, 1 + self.acceleration * w) - self.bias))

    def tests(self, margin: float) -> MarginTests:
        """Tests against +-margin and 0, which agree with the intervals."""
        return margin_tests(lambda value: (1 - self.below(value), self.below(value)), margin)


def acceleration(d: Floats) -> float:
    """The acceleration of a mean: one sixth of the skewness of the sum."""
    e = d - d.mean()
    return float((e**3).sum() / (6 * (e**2).sum() ** 1.5))


def needs_bootstrap(d: Floats) -> bool:
    """True where the t interval must be checked: n < 100, or n <= 25 skew**2."""
    return d.size < FEW or d.size <= 25 * (6 * acceleration(d)) ** 2 * d.size


def bca_mean(differences: Sequence[float] | Floats) -> Bootstrap | None:
    """The bootstrap of the mean where t is doubtful; None elsewhere, for equal values, and for fewer than 8."""
    d = np.asarray(differences, dtype=np.float64)
    if d.size < TOO_FEW or paired_mean(d).degenerate or not needs_bootstrap(d):
        return None
    draws = max(_LEAST_DRAWS, min(_DRAWS, _BUDGET // d.size))
    random, means = np.random.default_rng(0), []
    for start in range(0, draws, 500):
        means.append(d[random.integers(0, d.size, (min(500, draws - start), d.size))].mean(axis=1))
    sorted_means = np.sort(np.concatenate(means))
    left, right = (np.searchsorted(sorted_means, d.mean(), side=side) for side in ("left", "right"))
    return Bootstrap(sorted_means, float(ndtri(float(left + right) / (2 * draws))), acceleration(d))
