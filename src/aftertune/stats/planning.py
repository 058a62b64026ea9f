"""Computes how many items a comparison needs, and the smallest difference that n items can show.

    items_for_difference(0.15, 0.05)        468.57: items that show a true change of 5 points, power 80 %
    items_for_equivalence(0.08, 0.02)       1712.9: items that show "within 2 points" at a true 0
    items_for_average([0.1] * 6, 0.02)      357: items of each of six tasks that show it for their average
    items_until_kept(0.08, 0.02, 10042)     2570: items that a run asks until it is proven, at the median
    items_beyond(0.30, 0.05, -0.08)         2560.5: items that show that a loss of 8 points is more than 5
    smallest_difference(0.10, 1319)         0.0244
    items_for_verdicts(0.10, 0.02, total=10042).kept      2141: items that show "within 2 points", of 10,042

The discordance psi is the share of items on which the two models differ; for a real-valued metric it is the variance of
the per-item difference. Differences and margins are fractions.

Sources: Connor 1987 (Biometrics 43:207) and the normal approximation of two one-sided tests.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import chdtri, ndtri

from aftertune.stats.paired import wilson


def _z(level: float) -> float:
    return float(ndtri(level))


def items_for_difference(psi: float, delta: float, *, alpha: float = 0.05, power: float = 0.8) -> float:
    """Items that detect a true difference ``delta`` with this power: Connor's formula, not rounded.

    n = (z_{1-alpha/2} sqrt(psi) + z_power sqrt(psi - delta**2))**2 / delta**2.
    Raises ValueError unless 0 < |delta| <= psi <= 1.
    """
    if not 0 < abs(delta) <= psi <= 1:
        raise ValueError(f"delta={delta}, psi={psi}: need 0 < |delta| <= psi <= 1")
    root = _z(1 - alpha / 2) * math.sqrt(psi) + _z(power) * math.sqrt(psi - delta**2)
    return root**2 / delta**2


def items_for_equivalence(psi: float, margin: float, delta: float = 0.0, *, alpha: float = 0.05,
                          power: float = 0.8) -> float:
    """Items that show "within the margin" at a true difference ``delta``, not rounded.

    n = (z_{1-alpha} + z)**2 (psi - delta**2) / (margin - |delta|)**2, z = z_{(1+power)/2} at delta = 0, else
    z_power. psi may be a variance. Raises ValueError unless |delta| < margin and psi >= delta**2.
    """
    if not abs(delta) < margin or psi < delta**2:
        raise ValueError(f"delta={delta}, margin={margin}, psi={psi}: need |delta| < margin, psi >= delta**2")
    z = _z((1 + power) / 2 if delta == 0 else power)
    return (_z(1 - alpha) + z) ** 2 * (psi - delta**2) / (margin - abs(delta)) ** 2


def items_for_average(psi: Sequence[float], margin: float, totals: Sequence[int] | None = None, *,
                      alpha: float = 0.05, power: float = 0.8) -> int | None:
    """Items of each task that show "within the margin" for the average of the tasks, if the models do not differ.

    psi: the discordance of each of K tasks; totals: the items that each has, more cannot be asked. The smallest n with
    (z_{1-alpha} + z_{(1+power)/2})**2 sum_k psi_k / min(n, N_k) / K**2 <= margin**2 which also rules out losses
    that were not seen: K min(n, N_k) >= `items_without_failure` for each task. With tasks of one size and discordance
    that is 1 / K of `items_for_equivalence`. None where the tasks have too few items.
    """
    variances, count = np.asarray(psi, dtype=np.float64), len(psi)
    most = np.full(count, math.inf) if totals is None else np.asarray(totals, dtype=np.float64)
    z = _z(1 - alpha) + _z((1 + power) / 2)
    unseen = items_without_failure(margin, alpha)

    def enough(n: int) -> bool:
        asked = np.minimum(n, most)
        return bool(z**2 * (variances / asked).sum() / count**2 <= margin**2 and count * asked.min() >= unseen)

    high = math.ceil(max(items_for_equivalence(float(variances.max()), margin, alpha=alpha, power=power), unseen))
    high = high if totals is None else max(high, int(most.max()))
    return 1 + bisect_left(range(1, high + 1), True, key=enough) if enough(high) else None


def smallest_difference(psi: float, n: int, *, alpha: float = 0.05, power: float = 0.8) -> float | None:
    """The smallest true difference that n items detect with this power; None where there is none.

    A difference cannot exceed the discordance, so with a small psi and few items no difference is detectable.
    Raises ValueError unless 0 < psi <= 1 and n >= 1.
    """
    if not 0 < psi <= 1 or n < 1:
        raise ValueError(f"psi={psi}, n={n}: need 0 < psi <= 1 and n >= 1")
    fixed, factor, root_n = _z(1 - alpha / 2) * math.sqrt(psi), _z(power), math.sqrt(n)

    def excess(delta: float) -> float:
        return root_n * delta - fixed - factor * math.sqrt(max(0.0, psi - delta**2))

    return None if excess(psi) <= 0 else float(brentq(excess, 0.0, psi, xtol=1e-13))


def discordance_bound(discordant: int, n: int) -> float:
    """Upper end of the 95 % Wilson interval of the discordant share, which planning uses as psi."""
    return wilson(discordant, n)[1]


def variance_bound(variance: float, df: float) -> float:
    """Upper end of the 95 % chi-square interval of a variance with ``df`` degrees of freedom (df >= 1)."""
    return variance * df / float(chdtri(df, 0.975))


def items_beyond(psi: float, margin: float, delta: float, *, alpha: float = 0.05, power: float = 0.8) -> float:
    """Items that show that a true difference ``delta`` is beyond the margin, not rounded.

    n = (z_{1-alpha/2} + z_power)**2 (psi - delta**2) / (|delta| - margin)**2.
    Raises ValueError unless |delta| > margin and psi >= delta**2.
    """
    if not abs(delta) > margin or psi < delta**2:
        raise ValueError(f"delta={delta}, margin={margin}, psi={psi}: need |delta| > margin, psi >= delta**2")
    z = _z(1 - alpha / 2) + _z(power)
    return float(z**2 * (psi - delta**2) / (abs(delta) - margin) ** 2)


def items_without_failure(margin: float, alpha: float = 0.05) -> int:
    """Items without any loss that show "within the margin" for values in [0, 1]: ln(alpha) / ln(1 - margin).

    With fewer, a share ``margin`` of complete failures is unseen with a probability above alpha.
    """
    return math.ceil(math.log(alpha) / math.log1p(-margin)) if margin < 1 else 1


def items_needed(psi: float, margin: float, delta: float = 0.0, *, alpha: float = 0.05, power: float = 0.8
                 ) -> int | None:
    """Items that decide a row at a true difference ``delta``. psi: an upper bound of the discordance or variance.

    None where the difference equals the margin, because then no number of items shows on which side of it it is.
    """
    if math.isclose(abs(delta), margin, rel_tol=1e-9):
        return None
    rule = items_for_equivalence if abs(delta) < margin else items_beyond
    return math.ceil(rule(psi, margin, delta, alpha=alpha, power=power))


def items_above(share: float, floor: float, *, alpha: float = 0.05) -> int | None:
    """Items with which the Wilson interval of ``share`` is above ``floor``; None where the share is not above it.

    The lower end is above the floor where n (share - floor)**2 > z**2 floor (1 - floor).
    """
    if share <= floor:
        return None
    return math.floor(_z(1 - alpha / 2) ** 2 * floor * (1 - floor) / (share - floor) ** 2) + 1


#: Share of items on which two models differ, if it is not known: typical for a light fine-tune.
USUAL_DISCORDANCE = 0.1
#: Items until "kept" with many looks, for each item that one test with 80 % power needs: of a claim about the models,
#: and of one about the full run. Medians of `benchmarks/verdicts.py` and `benchmarks/active.py`.
_LOOKS = {True: 1.5, False: 1.4}
#: Of these, the share that is asked where items are drawn where the base was unsure (`benchmarks/active.py`: 0.38 to
#: 0.67).
_WEIGHTED = 0.6


def items_until_kept(psi: float, margin: float, total: int, *, alpha: float = 0.05, models: bool = True,
                     weighted: bool = False) -> int:
    """About how many items a run asks until "within the margin" is proven, if the models do not differ: the median.

    total: items of the task, all of which are asked at most. models: of a claim about the models, not about the full
    run, whose n is n / (1 + n / total). weighted: items are drawn where the base was unsure.
    """
    needed = items_for_equivalence(psi, margin, alpha=alpha)
    needed = needed if models else needed / (1 + needed / total)
    return min(total, math.ceil(needed * _LOOKS[models] * (_WEIGHTED if weighted else 1)))


#: Power for which the number of items is given that would decide a row.
POWER = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class DecidingItems:
    """How many items would decide an undecided row, and for which true difference.

    items: the number; None where the task cannot decide the row. at: the true difference for which it holds, and for
    which ``needed`` holds; power: how often it then decides. needed: the number even where the task has fewer; None
    where no number decides. near_margin: the observed difference is so close to the margin that ``at`` is that
    difference. if_equal: the number if the models do not differ, where it is another one that the task has.
    """

    items: int | None
    at: float
    needed: int | None
    power: float = POWER
    near_margin: bool = False
    if_equal: int | None = None


def items_to_decide(psi: float, margin: float, observed: float, *, includes_zero: bool, seen: int, total: int,
                    alpha: float = 0.05, shares: bool = True) -> DecidingItems:
    """How many items would decide a row, for a stated true difference and with a power of 80 %.

    psi: upper bound of the discordance or variance at a true difference of 0. observed: the observed difference;
    includes_zero: its interval includes 0. seen: items of the row; total: items of the task. alpha: the level after
    Holm's correction (0.05 / number of tests: its first and strictest step). shares: differences of values in [0, 1].

    The true difference is 0 if the interval includes 0 and the observed difference is at most half the margin, else the
    observed one: with the number for 0, a row whose true difference is half the margin is decided in about half of the
    cases, and one near the margin hardly ever (tests/test_stats_planning.py).
    """
    def needed_at(delta: float) -> int | None:
        needed = items_needed(psi + delta**2, margin, delta, alpha=alpha)
        unseen = items_without_failure(margin, alpha) if shares and abs(delta) < margin else 0
        return None if needed is None else max(needed, unseen)

    def usable(needed: int | None) -> int | None:
        return needed if needed is not None and seen < needed <= total else None

    equal = needed_at(0.0)
    if includes_zero and abs(observed) <= margin / 2:
        return DecidingItems(items=usable(equal), at=0.0, needed=equal)
    needed = needed_at(observed)
    return DecidingItems(items=usable(needed), at=observed, needed=needed,
                         near_margin=abs(abs(observed) - margin) <= margin / 2,
                         if_equal=usable(equal) if includes_zero else None)


@dataclass(frozen=True, slots=True)
class RequiredItems:
    """What a task of ``total`` items can decide.

    kept: items that show "within the margin" if the models do not differ. lost: (true loss, items that show that it
    exceeds the margin). smallest: smallest difference that all items detect, None where they detect none. kept_at:
    smallest margin within which all items show "kept".
    """

    total: int
    kept: int
    lost: tuple[tuple[float, int], ...]
    smallest: float | None
    kept_at: float

    @property
    def can_show_kept(self) -> bool:
        """True where the task has enough items for "kept"."""
        return self.kept <= self.total


def items_for_verdicts(psi: float, margin: float, *, total: int, alpha: float = 0.05, power: float = 0.8,
         losses: tuple[float, ...] = (1.5, 2.0, 3.0)) -> RequiredItems:
    """Items needed for "kept" and for "forgot" at a discordance ``psi``. losses: true losses, as multiples of the
    margin.

    ``kept_at`` solves `items_for_equivalence` for the margin, at a true difference of 0. Raises ValueError unless
    0 < psi <= 1, 0 < margin < 1, total >= 1 and every loss is above one margin.
    """
    if not (0 < psi <= 1 and 0 < margin < 1 and total >= 1 and all(loss > 1 for loss in losses)):
        raise ValueError(f"psi={psi}, margin={margin}, total={total}, losses={losses}: need 0 < psi <= 1, "
                         "0 < margin < 1, total >= 1, losses above 1")
    true = [loss * margin for loss in losses if loss * margin < 1]
    lost = tuple((loss, math.ceil(items_beyond(max(psi, loss**2), margin, -loss, alpha=alpha, power=power)))
                 for loss in true)
    z = _z(1 - alpha) + _z((1 + power) / 2)
    kept = max(math.ceil(items_for_equivalence(psi, margin, alpha=alpha, power=power)),
               items_without_failure(margin, alpha))
    return RequiredItems(total, kept, lost, smallest_difference(psi, total, alpha=alpha, power=power),
                         max(z * math.sqrt(psi / total), 1 - alpha ** (1 / total)))
