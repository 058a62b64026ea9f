"""Computes how many items a comparison needs, and the smallest difference that n items can show.

    items_for_difference(0.15, 0.05)        468.57: items that show a true change of 5 points, power 80 %
    items_for_equivalence(0.08, 0.02)       1712.9: items that show "within 2 points" at a true 0
    items_beyond(0.30, 0.05, -0.08)         2560.5: items that show that a loss of 8 points is more than 5
    smallest_difference(0.10, 1319)         0.0244
    items_for_verdicts(0.10, 0.02, total=10042).kept      2141: items that show "within 2 points", of 10,042

The discordance psi is the share of items on which the two models differ; for a real-valued metric it is the variance of
the per-item difference. Differences and margins are fractions.

Sources: Connor 1987 (Biometrics 43:207) and the normal approximation of two one-sided tests.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

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


def items_needed(psi: float, margin: float, delta: float = 0.0) -> int | None:
    """Items that decide a row at a true difference ``delta``. psi: an upper bound of the discordance or variance.

    None where the difference equals the margin, because then no number of items shows on which side of it it is.
    """
    if math.isclose(abs(delta), margin, rel_tol=1e-9):
        return None
    rule = items_for_equivalence if abs(delta) < margin else items_beyond
    return math.ceil(rule(psi, margin, delta))


def items_above(share: float, floor: float, *, alpha: float = 0.05) -> int | None:
    """Items with which the Wilson interval of ``share`` is above ``floor``; None where the share is not above it.

    The lower end is above the floor where n (share - floor)**2 > z**2 floor (1 - floor).
    """
    if share <= floor:
        return None
    return math.floor(_z(1 - alpha / 2) ** 2 * floor * (1 - floor) / (share - floor) ** 2) + 1


def items_to_decide(needed: int | None, seen: int, total: int) -> tuple[int | None, str]:
    """(items that would decide a row of ``seen`` items, ""), or (None, the reason why there is no number).

    needed: from `items_needed`. total: items that the task has.
    """
    if needed is not None and needed > total:
        return None, f"cannot be decided with this task ({needed:,} items needed, it has {total:,})"
    if needed is None or needed <= seen:
        return None, "the difference is close to the margin, so more items may not decide it"
    return needed, ""


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
    return RequiredItems(total, math.ceil(items_for_equivalence(psi, margin, alpha=alpha, power=power)), lost,
                smallest_difference(psi, total, alpha=alpha, power=power), z * math.sqrt(psi / total))
