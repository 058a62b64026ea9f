"""Computes a bound on the mean of bounded values, which counts failures that were not seen.

    bounded_tests([0.0] * 300, 0.02)          MarginTests(…, within=0.0023): 0.98 ** 300
    bounded_interval([0.0] * 300)             (-0.0122, 0.0122): 1 - 0.025 ** (1 / 300)

Student's t and a bootstrap know only what was seen. If 2 of 100 answers fail completely and none of them is among the
items, both see no loss, however far from normal the true distribution is. The bound here adds one value that is as bad
as possible: for "the mean is at most c", p is the probability that a mean of the n values and of their lowest possible
value, with random weights, is at most c. The weights are uniform over all weights that add up to 1 (Dirichlet). With
values of 0 and 1 this is Clopper and Pearson's exact test. With many values it is close to the t test.

Sources: Gaffke 2005 ("Three test statistics for a nonparametric one-sided hypothesis on the mean of a nonnegative
variable", Math Methods Stat 14:451); Learned-Miller & Thomas 2019 (arXiv 1905.06208). That it keeps its level for every
distribution is a conjecture, which no simulation has contradicted; benchmarks/verdicts.py simulates the cases that
matter here. The tail probability is Lugannani and Rice's saddlepoint approximation (1980, Adv Appl Prob 12:475).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import ndtr

from aftertune.stats.paired import Floats, MarginTests, margin_tests

Integers = NDArray[np.int64]

#: Closer to the centre than this, the saddlepoint formula is replaced by its limit.
_CENTRE = 1e-5


def p_at_most(values: Sequence[float] | Floats, mean: float, low: float = -1.0) -> float:
    """One-sided p of "the true mean is ``mean`` or less", for values that cannot be below ``low``. values: [n]."""
    return _p_at_most(*_counted(np.append(np.asarray(values, dtype=np.float64), low)), mean)


def bounded_tests(differences: Sequence[float] | Floats, margin: float, *, most: float = 1.0) -> MarginTests:
    """Tests against +-margin and 0 for differences in [-most, most]. differences: float64 [n]."""
    lowest, highest = _sides(differences, most)
    return margin_tests(lambda value: (_p_at_most(*highest, -value), _p_at_most(*lowest, value)), margin)


def bounded_interval(differences: Sequence[float] | Floats, level: float = 0.95, *, most: float = 1.0
                     ) -> tuple[float, float]:
    """Interval of the mean that agrees with `bounded_tests`, for differences in [-most, most]."""
    d = np.asarray(differences, dtype=np.float64)
    tail, mean = (1 - level) / 2, float(d.mean())
    low, high = (_limit(side, centre, tail) for side, centre in zip(_sides(d, most), (mean, -mean), strict=True))
    return low, -high


def _limit(side: tuple[Floats, Integers], mean: float, tail: float) -> float:
    """The mean below ``mean`` at which p is ``tail``."""
    lowest = float(side[0][0])
    if mean <= lowest:
        return lowest
    return float(brentq(lambda c: _p_at_most(*side, c) - tail, lowest, mean, xtol=1e-9))


def _counted(values: Floats) -> tuple[Floats, Integers]:
    """The distinct values, from low to high, and how often each occurs."""
    distinct, counts = np.unique(values, return_counts=True)
    return distinct, counts


def _sides(differences: Sequence[float] | Floats, most: float) -> list[tuple[Floats, Integers]]:
    """The distinct values with their numbers, the worst one included: of the differences, and of their negatives."""
    d = np.asarray(differences, dtype=np.float64)
    return [_counted(np.append(side, -most)) for side in (d, -d)]


def _p_at_most(distinct: Floats, counts: Integers, mean: float) -> float:
    """P(sum of a_i E_i <= 0), a = values - mean, E exponential: the same as for weights E_i / sum(E)."""
    a = distinct - mean
    if a[0] >= 0:
        return 0.0
    if a[-1] <= 0:
        return 1.0
    # K(s) = -sum log(1 - a s); the saddlepoint is the root of K', between the poles 1/a[0] and 1/a[-1]
    low, high = 1 / a[0], 1 / a[-1]
    s = float(brentq(lambda x: float((counts * a / (1 - a * x)).sum()), low * (1 - 1e-12), high * (1 - 1e-12),
                     xtol=1e-15 * max(-low, high), rtol=1e-12, maxiter=200))
    ratio = a / (1 - a * s)
    second = float((counts * ratio**2).sum())
    w = math.copysign(math.sqrt(max(0.0, 2 * float((counts * np.log1p(-a * s)).sum()))), s)
    u = s * math.sqrt(second)
    if abs(w) < _CENTRE:
        third = float((counts * ratio**3).sum())
        return float(0.5 + third / (3 * second**1.5 * math.sqrt(2 * math.pi)))
    density = math.exp(-w * w / 2) / math.sqrt(2 * math.pi)
    return float(min(1.0, max(0.0, ndtr(w) + density * (1 / w - 1 / u))))
