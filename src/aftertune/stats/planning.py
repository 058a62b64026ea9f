"""How many items a question needs: owns sample sizes and the smallest difference that n items can show.

The discordance psi is the share of items on which the two models differ (for a real-valued metric: the
variance of the per-item difference). Differences and margins are fractions.

    items_for_difference(0.15, 0.05)        468.57: items that show a true change of 5 points, power 80 %
    items_for_equivalence(0.08, 0.02)       1712.9: items that show "within 2 points" at a true 0
    items_beyond(0.30, 0.05, -0.08)         2560.5: items that show that a loss of 8 points is more than 5
    smallest_difference(0.10, 1319)         0.0244
    need(0.10, 0.02, total=10042).kept      2141: items that show "within 2 points", of 10,042

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
    """Items by which a true difference ``delta`` is found: Connor's formula, unrounded.

    n = (z_{1-alpha/2} sqrt(psi) + z_power sqrt(psi - delta**2))**2 / delta**2.
    Raises ValueError unless 0 < |delta| <= psi <= 1.
    """
    if not 0 < abs(delta) <= psi <= 1:
        raise ValueError(f"delta={delta}, psi={psi}: need 0 < |delta| <= psi <= 1")
    root = _z(1 - alpha / 2) * math.sqrt(psi) + _z(power) * math.sqrt(psi - delta**2)
    return root**2 / delta**2


def items_for_equivalence(psi: float, margin: float, delta: float = 0.0, *, alpha: float = 0.05,
                          power: float = 0.8) -> float:
    """Items by which "within the margin" is shown at a true difference ``delta``, unrounded.

    n = (z_{1-alpha} + z)**2 (psi - delta**2) / (margin - |delta|)**2, z = z_{(1+power)/2} at delta = 0, else
    z_power. psi may be a variance. Raises ValueError unless |delta| < margin and psi >= delta**2.
    """
    if not abs(delta) < margin or psi < delta**2:
        raise ValueError(f"delta={delta}, margin={margin}, psi={psi}: need |delta| < margin, psi >= delta**2")
    z = _z((1 + power) / 2 if delta == 0 else power)
    return (_z(1 - alpha) + z) ** 2 * (psi - delta**2) / (margin - abs(delta)) ** 2


def smallest_difference(psi: float, n: int, *, alpha: float = 0.05, power: float = 0.8) -> float | None:
    """The smallest true difference that n items find with this power; None where not even psi is found.

    A difference cannot exceed the discordance, so a small psi on few items has no detectable difference.
    Raises ValueError unless 0 < psi <= 1 and n >= 1.
    """
    if not 0 < psi <= 1 or n < 1:
        raise ValueError(f"psi={psi}, n={n}: need 0 < psi <= 1 and n >= 1")
    fixed, factor, root_n = _z(1 - alpha / 2) * math.sqrt(psi), _z(power), math.sqrt(n)

    def excess(delta: float) -> float:
        return root_n * delta - fixed - factor * math.sqrt(max(0.0, psi - delta**2))

    return None if excess(psi) <= 0 else float(brentq(excess, 0.0, psi, xtol=1e-13))


def discordance_bound(discordant: int, n: int) -> float:
    """Upper end of the 95 % Wilson interval of the discordant share: what planning takes for psi."""
    return wilson(discordant, n)[1]


def variance_bound(variance: float, df: float) -> float:
    """Upper end of the 95 % chi-square interval of a variance with ``df`` degrees of freedom (df >= 1)."""
    return variance * df / float(chdtri(df, 0.975))


def items_beyond(psi: float, margin: float, delta: float, *, alpha: float = 0.05, power: float = 0.8) -> float:
    """Items by which a true difference ``delta`` is shown to lie beyond the margin, unrounded.

    n = (z_{1-alpha/2} + z_power)**2 (psi - delta**2) / (|delta| - margin)**2.
    Raises ValueError unless |delta| > margin and psi >= delta**2.
    """
    if not abs(delta) > margin or psi < delta**2:
        raise ValueError(f"delta={delta}, margin={margin}, psi={psi}: need |delta| > margin, psi >= delta**2")
    z = _z(1 - alpha / 2) + _z(power)
    return float(z**2 * (psi - delta**2) / (abs(delta) - margin) ** 2)


def items_needed(psi: float, margin: float, delta: float = 0.0) -> int | None:
    """Items that decide a row at a true difference ``delta``; psi as an upper bound (see above).

    None where the difference is the margin itself: no number of items tells on which side of it it lies.
    """
    if math.isclose(abs(delta), margin, rel_tol=1e-9):
        return None
    rule = items_for_equivalence if abs(delta) < margin else items_beyond
    return math.ceil(rule(psi, margin, delta))


def items_above(share: float, floor: float, *, alpha: float = 0.05) -> int | None:
    """Items from which the Wilson interval of a ``share`` lies above ``floor``; None where the share does not.

    Its lower end is above the floor where n (share - floor)**2 > z**2 floor (1 - floor).
    """
    if share <= floor:
        return None
    return math.floor(_z(1 - alpha / 2) ** 2 * floor * (1 - floor) / (share - floor) ** 2) + 1


def settled_by(needed: int | None, seen: int, total: int) -> tuple[int | None, str]:
    """Items that would decide a row of ``seen`` items, or None with the reason why no number is given.

    needed: as `items_needed` gives it; total: items that the task has.
    """
    if needed is not None and needed > total:
        return None, f"cannot be decided with this task ({needed:,} items needed, it has {total:,})"
    if needed is None or needed <= seen:
        return None, "the difference lies near the margin: more items may not decide it"
    return needed, ""


@dataclass(frozen=True, slots=True)
class Need:
    """What a task of ``total`` items can decide. kept: items that show "within the margin" where the models do not
    differ; lost: (true loss, items that show it to be more than the margin); smallest: the least difference that all
    items find, None where they find none; kept_at: the least margin within which all items show "kept"."""

    total: int
    kept: int
    lost: tuple[tuple[float, int], ...]
    smallest: float | None
    kept_at: float

    @property
    def can_show_kept(self) -> bool:
        return self.kept <= self.total


def need(psi: float, margin: float, *, total: int, alpha: float = 0.05, power: float = 0.8,
         losses: tuple[float, ...] = (1.5, 2.0, 3.0)) -> Need:
    """Items for both verdicts at a discordance ``psi``; losses: true losses that are planned for, in margins.

    The least margin of "kept" solves `items_for_equivalence` for the margin, at a true 0.
    Raises ValueError unless 0 < psi <= 1, 0 < margin < 1, total >= 1 and the losses lie above one margin.
    """
    if not (0 < psi <= 1 and 0 < margin < 1 and total >= 1 and all(one > 1 for one in losses)):
        raise ValueError(f"psi={psi}, margin={margin}, total={total}, losses={losses}: need 0 < psi <= 1, "
                         "0 < margin < 1, total >= 1, losses above 1")
    true = [one * margin for one in losses if one * margin < 1]
    lost = tuple((loss, math.ceil(items_beyond(max(psi, loss**2), margin, -loss, alpha=alpha, power=power)))
                 for loss in true)
    z = _z(1 - alpha) + _z((1 + power) / 2)
    return Need(total, math.ceil(items_for_equivalence(psi, margin, alpha=alpha, power=power)), lost,
                smallest_difference(psi, total, alpha=alpha, power=power), z * math.sqrt(psi / total))
