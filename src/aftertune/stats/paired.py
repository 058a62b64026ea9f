"""Computes paired tests and intervals for one metric of two models on the same items.

    tango_interval(6, 19, 100)          (-0.2296, -0.0343): a loss of 13 points, with its 95 % interval
    tango_tests(6, 19, 100, 0.02)       p-values for "lower", "higher", "within" a margin of two points
    paired_mean([-0.1, 0.0, -0.2]).interval(0.95)

For each item d = tuned - base. Binary metrics (0 or 1 on both sides) use gained = #(d = +1), lost = #(d = -1) and
Tango's score interval. Real-valued metrics use the paired t test. All values are fractions, all levels are two-sided
confidence levels, and no function returns NaN.

Sources: Tango 1998 (Stat Med 17:891), Fagerland, Lydersen & Laake 2013 (BMC MRM 13:91) for the mid-p,
Schuirmann 1987 for the two one-sided tests, Wilson 1927.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import bdtr, ndtr, ndtri, stdtr, stdtrit

Floats = NDArray[np.float64]

#: Replaces an infinite score statistic, because the root finder needs finite values.
_HUGE = 1e150


@dataclass(frozen=True, slots=True)
class MarginTests:
    """p-values of the tests against a margin m and against 0.

    lower: two-sided, H: delta >= -m. higher: two-sided, H: delta <= m. within: two one-sided tests (TOST). no_drop:
    one-sided, H: delta <= -m; a small value rules out a drop beyond the margin (non-inferiority). worse: two-sided,
    H: delta >= 0. better: two-sided, H: delta <= 0.
    """

    lower: float
    higher: float
    within: float
    no_drop: float = 1.0
    worse: float = 1.0
    better: float = 1.0

    @property
    def no_loss(self) -> float:
        """Two-sided p of H: delta <= -m. It is below 0.05 where the 95 % interval begins above -m."""
        return min(1.0, 2 * self.no_drop)

    @property
    def moved(self) -> float:
        """The smaller of ``lower`` and ``higher``: the member of the first Holm family."""
        return min(self.lower, self.higher)


#: The tests where no error can be estimated: nothing is proven.
NO_EVIDENCE = MarginTests(1.0, 1.0, 1.0)


def weakest(*tests: MarginTests | None) -> MarginTests:
    """The largest p of each test: what all of ``tests`` prove. None is skipped; no test at all proves nothing."""
    given = [t for t in tests if t is not None]
    if not given:
        return NO_EVIDENCE
    return MarginTests(**{f.name: max(getattr(t, f.name) for t in given) for f in fields(MarginTests)})


def _check_counts(gained: int, lost: int, n: int) -> None:
    if n < 1 or gained < 0 or lost < 0 or gained + lost > n:
        raise ValueError(f"gained={gained}, lost={lost}, n={n}: need counts >= 0 with a sum of at most n")


def tango_statistic(gained: int, lost: int, n: int, delta: float) -> float:
    """Tango's score statistic T(delta) of H: true difference = delta, with delta in [-1, 1]. T falls as delta rises.

    T = (b - c - n delta) / sqrt(n (2q + delta (1 - delta))), where b = gained, c = lost and q is the restricted
    maximum-likelihood estimate of the lost share. T(0)**2 is McNemar's (b - c)**2 / (b + c). Where the variance is 0, T
    is 0 if the numerator is 0 too, else +-1e150.
    """
    if delta < 0:  # T(b, c, delta) = -T(c, b, -delta); the branch delta >= 0 has no cancellation
        return -tango_statistic(lost, gained, n, -delta)
    linear = -(gained + lost) + (2 * n - gained + lost) * delta
    product = lost * delta * (1 - delta)
    root = math.sqrt(linear * linear + 8 * n * product)
    q = 2 * product / (linear + root) if linear > 0 else (root - linear) / (4 * n)
    variance = n * (2 * q + delta * (1 - delta))
    numerator = gained - lost - n * delta
    if variance <= 0:
        return 0.0 if numerator == 0 else math.copysign(_HUGE, numerator)
    return numerator / math.sqrt(variance)


def tango_interval(gained: int, lost: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Score interval of the difference (gained - lost) / n: all delta with |T(delta)| <= z.

    No discordant item gives +-z**2 / (n + z**2). Raises ValueError for impossible counts.
    """
    _check_counts(gained, lost, n)
    z = float(ndtri((1 + level) / 2))
    observed = (gained - lost) / n
    low, high = -1.0, 1.0
    if lost < n:
        low = float(brentq(lambda x: tango_statistic(gained, lost, n, x) - z, -1.0, observed,
                           xtol=1e-13, maxiter=1000))
    if gained < n:
        high = float(brentq(lambda x: tango_statistic(gained, lost, n, x) + z, observed, 1.0,
                            xtol=1e-13, maxiter=1000))
    return low, high


def tango_tests(gained: int, lost: int, n: int, margin: float) -> MarginTests:
    """Score tests against +-margin and 0. They agree with `tango_interval` at 95 %, and at 90 % for within."""
    _check_counts(gained, lost, n)

    def tails(value: float) -> tuple[float, float]:
        statistic = tango_statistic(gained, lost, n, value)
        return float(ndtr(statistic)), float(ndtr(-statistic))

    return margin_tests(tails, margin)


def margin_tests(tails: Callable[[float], tuple[float, float]], margin: float) -> MarginTests:
    """The tests of one difference. tails(value): the one-sided p of "the true difference is ``value`` or more", and of
    "it is ``value`` or less".
    """
    (below_low, above_low), (below_zero, above_zero), (below_high, above_high) = map(tails, (-margin, 0.0, margin))
    return MarginTests(lower=min(1.0, 2 * below_low), higher=min(1.0, 2 * above_high),
                       within=max(above_low, below_high), no_drop=above_low,
                       worse=min(1.0, 2 * below_zero), better=min(1.0, 2 * above_zero))


def mcnemar_exact(gained: int, lost: int) -> float:
    """Exact two-sided McNemar p of "no difference": min(1, 2 F(min(gained, lost))); 1 if no item differs."""
    return min(1.0, 2 * float(bdtr(min(gained, lost), gained + lost, 0.5)))


#: The most trials whose probability is computed from whole numbers, which takes less than a millisecond.
_EXACT_TRIALS = 2_000


def _binomial_mass(k: int, trials: int) -> float:
    """Probability of ``k`` successes in that many fair trials. Above _EXACT_TRIALS it is computed from logarithms, with
    a relative error below 1e-5 for 2**31 trials."""
    if trials <= _EXACT_TRIALS:
        return math.comb(trials, k) / (1 << trials)
    logs = math.lgamma(trials + 1) - math.lgamma(k + 1) - math.lgamma(trials - k + 1)
    return math.exp(logs - trials * math.log(2))


def mcnemar_mid(gained: int, lost: int) -> float:
    """Mid-p McNemar: 2 F(k) - f(k), and 1 - f(k) / 2 where gained = lost; 1 if no item differs."""
    total, k = gained + lost, min(gained, lost)
    if total == 0:
        return 1.0
    mass = _binomial_mass(k, total)
    if gained == lost:
        return 1 - mass / 2
    return min(1.0, max(0.0, 2 * float(bdtr(k, total, 0.5)) - mass))


def wilson(successes: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of one proportion. Raises ValueError for n < 1 or impossible counts."""
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"successes={successes}, n={n}: need 0 <= successes <= n and n >= 1")
    z = float(ndtri((1 + level) / 2))
    share = successes / n
    centre = share + z * z / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    low = 0.0 if successes == 0 else (centre - half) / scale
    high = 1.0 if successes == n else (centre + half) / scale
    return low, high


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean difference with its standard error and degrees of freedom."""

    mean: float
    se: float
    df: float

    @property
    def degenerate(self) -> bool:
        """True where no error can be estimated: all differences are equal, or there is only one item."""
        return self.se <= 0 or self.df < 1

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """mean +- t_df * se; the mean itself, twice, where degenerate."""
        if self.degenerate:
            return self.mean, self.mean
        half = float(stdtrit(self.df, (1 + level) / 2)) * self.se
        return self.mean - half, self.mean + half

    @property
    def p(self) -> float:
        """Two-sided p of "no difference". Degenerate: 0 if several items all changed by the same amount, else 1."""
        if self.degenerate:
            return 1.0 if self.mean == 0 or self.df < 1 else 0.0
        return min(1.0, 2 * float(stdtr(self.df, -abs(self.mean) / self.se)))

    def tests(self, margin: float) -> MarginTests:
        """t tests against +-margin and 0; `within` is the TOST. Degenerate: 1 for all (nothing is proven)."""
        if self.degenerate:
            return NO_EVIDENCE

        def tails(value: float) -> tuple[float, float]:
            t = (self.mean - value) / self.se
            return float(stdtr(self.df, t)), float(stdtr(self.df, -t))

        return margin_tests(tails, margin)


def rounding(values: Floats) -> float:
    """Largest range of differences that count as equal: the float64 error of subtracting values of this size."""
    return 1e-12 * max(1.0, float(np.abs(values).max(initial=0.0)))


def paired_mean(differences: Sequence[float] | Floats) -> Estimate:
    """Paired t estimate over items: mean, standard error s_d / sqrt(n), df = n - 1. differences: float64 [n].

    Raises ValueError for no item or a value that is not finite.
    """
    d = np.asarray(differences, dtype=np.float64)
    if d.size == 0 or not np.isfinite(d).all():
        raise ValueError(f"{d.size} differences, {int((~np.isfinite(d)).sum())} not finite: need finite ones")
    n = d.size
    if n == 1 or float(np.ptp(d)) <= rounding(d):
        mean = 0.0 if float(np.abs(d).max()) <= rounding(d) else float(d[0])
        return Estimate(mean, 0.0, n - 1)
    return Estimate(float(d.mean()), float(d.std(ddof=1)) / math.sqrt(n), n - 1)
