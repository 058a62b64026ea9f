"""Checks whether published scores, standard errors and differences are arithmetically possible.

    whole_counts(Figure.parse("26.50%"), 100)       range(26, 26): no k/100 is printed as 26.50
    whole_counts(Figure.parse("47.00%"), 100)       range(47, 48)
    stderr_agrees(value, Figure.parse("4.42%"), n)  False        100 sqrt(p (1 - p) / (n - 1)) is 4.44
    pairing_bounds(47, 34, 100)                     PairingBounds(net=-13, low=13, high=81, mid=43, exact=37)

Only the printed figures are used. They are strings, because trailing zeros show how far a figure was rounded.

A share of n items is k/n. A printed figure is accepted if some k/n rounds to it, half-up or half-even (the GRIM test:
Brown & Heathers 2017, Soc Psychol Personal Sci 8:363). lm-eval's standard error of such a share divides by n - 1. A
failed check means only that the figure is not k/n at the stated n.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from scipy.special import ndtr

from aftertune.stats.paired import mcnemar_exact, mcnemar_mid

_FIGURE = re.compile(r"[+-]?(\d{1,12}(?:\.\d{0,20})?|\.\d{1,20})(?:[eE][+-]?\d{1,2})?", re.ASCII)
#: A figure with more decimals than this is an unrounded float, perhaps of 32 bits.
_MOST_DECIMALS = 9
_FLOAT_SLACK = Fraction(1, 10**7)


@dataclass(frozen=True, slots=True)
class Figure:
    """A printed number. half: half a unit of its last place. scale: 100 for percent, 1 for a share."""

    value: Decimal
    half: Decimal
    scale: int = 100

    @classmethod
    def parse(cls, text: str, *, percent: bool | None = None) -> Figure:
        """The figure in ``text``. percent: whether it is in percent; None: if it has a percent sign.

        Raises ValueError where the text is not a number.
        """
        bare = text.strip().lstrip("±").strip()
        marked = bare.endswith("%")
        bare = bare.rstrip("%").strip().replace("−", "-")
        if not _FIGURE.fullmatch(bare):
            raise ValueError(f"{text[:40]!r} is not a number")
        value = Decimal(bare)
        exponent = value.as_tuple().exponent
        assert isinstance(exponent, int)
        return cls(value, Decimal(5).scaleb(exponent - 1), 100 if (marked if percent is None else percent) else 1)

    @property
    def decimals(self) -> int:
        """Digits after the point."""
        return max(0, -self.half.adjusted() - 1)

    @property
    def fraction(self) -> float:
        """The value as a share of 1."""
        return float(self.value / self.scale)

    @property
    def slack(self) -> Fraction:
        """Half a unit of the last place, exact; for an unrounded float, a bound of its rounding error."""
        return Fraction(self.half) if self.decimals <= _MOST_DECIMALS else _FLOAT_SLACK * self.scale

    @property
    def span(self) -> tuple[float, float]:
        """The shares that are printed as this figure, from lowest to highest."""
        value, slack = Fraction(self.value), self.slack
        return float((value - slack) / self.scale), float((value + slack) / self.scale)

    def shows(self, exact: Fraction) -> bool:
        """True where ``exact`` (in the unit of the figure) rounds to this figure, half-up or half-even."""
        distance = exact - Fraction(self.value)
        if distance == self.slack:  # a tie above the value: half-even rounds down to it if its last digit is even
            return self.decimals > _MOST_DECIMALS or self._last_digit % 2 == 0
        return abs(distance) <= self.slack

    @property
    def _last_digit(self) -> int:
        return self.value.as_tuple().digits[-1]


def whole_counts(value: Figure, n: int) -> range:
    """All k from 0 to n whose share k/n is printed as ``value``. Raises ValueError for n < 1."""
    if n < 1:
        raise ValueError(f"n={n}: need n >= 1")
    low = (Fraction(value.value) - value.slack) * n / value.scale
    high = (Fraction(value.value) + value.slack) * n / value.scale
    start, stop = max(0, math.ceil(low)), min(n, math.floor(high))
    # between the two ends every share is printed as the value; at an end it depends on how ties are rounded
    start += start <= stop and not value.shows(Fraction(start * value.scale, n))
    stop -= start <= stop and not value.shows(Fraction(stop * value.scale, n))
    return range(start, max(start, stop + 1))


def cut_counts(value: Figure, n: int) -> range:
    """All k from 0 to n whose share k/n is printed as ``value`` if its further digits are cut off, not rounded."""
    low = Fraction(value.value) * n / value.scale
    high = (Fraction(value.value) + 2 * Fraction(value.half)) * n / value.scale
    start = max(0, math.ceil(low))
    return range(start, max(start, min(n, math.ceil(high) - 1) + 1))


#: Numbers of items to which people limit a run.
_LIMITS = (10, 16, 20, 25, 30, 32, 40, 50, 60, 64, 80, 100, 120, 128, 150, 200, 250, 256, 300, 400, 500, 512, 600, 700,
           750, 800, 900, 1000, 1024, 1200, 1500, 2000, 2048, 2500, 3000, 4000, 5000, 10_000)


def limit_of(value: Figure, stderr: Figure, most: int) -> tuple[int, int] | None:
    """(k, n) with the smallest usual limit n below ``most`` items that gives both figures; None where none does.

    0.3970 with an error of 0.0155 is 397 of 1,000.
    """
    for n in _LIMITS:
        if n >= most:
            break
        fits = [k for k in whole_counts(value, n) if _shows_error(k / n, n, stderr)]
        if fits:
            return fits[0], n
    return None


def _shows_error(share: float, n: int, stderr: Figure) -> bool:
    low, high = stderr.span
    return low - 1e-9 <= stderr_of(share, n) <= high + 1e-9


def nearest_counts(value: Figure, n: int) -> tuple[int, int]:
    """The two counts whose shares are next to a ``value`` that is not k/n."""
    below = math.floor(Fraction(value.value) * n / value.scale)
    return max(0, min(n, below)), max(0, min(n, below + 1))


def stderr_of(share: float, n: int) -> float:
    """lm-eval's standard error of a share of n items: sqrt(p (1 - p) / (n - 1)); 0 for one item."""
    return math.sqrt(max(0.0, share * (1 - share)) / (n - 1)) if n > 1 else 0.0


def stderr_span(value: Figure, n: int) -> tuple[float, float]:
    """Smallest and largest standard error (as a share) of all shares that are printed as ``value``."""
    counts = whole_counts(value, n)
    if counts:
        errors = [stderr_of(k / n, n) for k in (counts[0], counts[-1])]
        ends = (counts[0] / n, counts[-1] / n)
    else:
        ends = tuple(min(1.0, max(0.0, end)) for end in value.span)  # type: ignore[assignment]
        errors = [stderr_of(end, n) for end in ends]
    if ends[0] <= 0.5 <= ends[1]:
        errors.append(stderr_of(0.5, n))
    return min(errors), max(errors)


def stderr_agrees(value: Figure, stderr: Figure, n: int) -> bool:
    """True where ``stderr`` can be the printed standard error of a share printed as ``value``.

    If ``value`` is not k/n, its whole rounding interval is used.
    """
    low, high = stderr_span(value, n)
    span = stderr.span
    tiny = 1e-9
    return low <= span[1] + tiny and high >= span[0] - tiny


def counts_of_stderr(stderr: Figure, n: int, near: float) -> tuple[int, int] | None:
    """First and last k whose standard error is printed as ``stderr``, on the side of ``near`` (a share).

    k and n - k have the same error. Where both ranges meet at n/2, the joined range is returned. None: no k has it.
    """
    half = range(n // 2 + 1)  # where the error rises with k

    def error(k: int) -> float:
        return math.sqrt(k / n * (1 - k / n) / max(1, n - 1))

    low, high = stderr.span
    first = bisect_left(half, low - 1e-12, key=error)
    last = bisect_right(half, high + 1e-12, key=error) - 1
    if first > last:
        return None
    runs = [(first, n - first)] if n - last <= last + 1 else [(first, last), (n - last, n - first)]
    return min(runs, key=lambda run: abs((run[0] + run[1]) / 2 / n - near))


def detection_power(value: Figure, n: int) -> float:
    """Probability that a random figure with as many decimals fails the check, because it is not k/n.

    0 where every figure is some k/n (10,042 items, two decimals); near 1 for few items.
    """
    units: int = value.scale * 10**value.decimals
    if value.decimals > _MOST_DECIMALS or units > 10**9:
        return 1.0
    # with n < units every k is printed as another figure; else every figure is that of some k
    return 1.0 - (min(n, units) + 1) / (units + 1)


@dataclass(frozen=True, slots=True)
class UnpairedDifference:
    """A difference between two scores with its z and two-sided p. z is None where both standard errors are 0."""

    difference: float
    z: float | None
    p: float


def unpaired_difference(first: tuple[float, float], second: tuple[float, float]) -> UnpairedDifference:
    """Test second minus first, each (share, standard error), as if the items were independent."""
    difference = second[0] - first[0]
    error = math.hypot(first[1], second[1])
    if error == 0:
        return UnpairedDifference(difference, None, 1.0 if difference == 0 else 0.0)
    z = difference / error
    return UnpairedDifference(difference, z, min(1.0, 2 * float(ndtr(-abs(z)))))


def p_at_every_pairing(before: Sequence[int], after: Sequence[int], n: int) -> float:
    """The largest mid-p of McNemar's test over all pairings of two counts of right answers to the same n items.

    before, after: the counts that are possible, in order; the two that are nearest to each other are used. The p-value
    rises with the number of items on which the models differ, so the largest number decides.
    """
    if before[-1] >= after[0] and after[-1] >= before[0]:
        return 1.0
    pair = (before[-1], after[0]) if before[-1] < after[0] else (before[0], after[-1])
    bounds = pairing_bounds(*pair, n)
    gained = (bounds.high + bounds.net) // 2
    return mcnemar_mid(gained, bounds.high - gained)


def p_at_any_correlation(first: tuple[float, float], second: tuple[float, float]) -> float:
    """Two-sided p of second minus first, each (value, standard error), if the answers were as opposed as possible.

    The standard error of a difference is at most the sum of the two.
    """
    difference, error = abs(second[0] - first[0]), first[1] + second[1]
    if error == 0:
        return 1.0 if difference == 0 else 0.0
    return min(1.0, 2 * float(ndtr(-difference / error)))


@dataclass(frozen=True, slots=True)
class PairingBounds:
    """The possible results of a paired test, given only the two counts of right answers.

    M is the number of items on which the models differ: from ``low`` to ``high``. net: gained minus lost, known from
    the counts. mid, exact: the largest M with McNemar's mid-p and exact p below alpha (None: for no possible M).
    independent: the expected M if the answers of the two models were independent.
    """

    n: int
    net: int
    low: int
    high: int
    mid: int | None
    exact: int | None
    independent: float

    @property
    def always(self) -> bool:
        """True where the difference is significant (mid-p) for every pairing."""
        return self.mid == self.high

    @property
    def never(self) -> bool:
        """True where the difference is significant for no pairing."""
        return self.mid is None


def pairing_bounds(before: int, after: int, n: int, *, alpha: float = 0.05) -> PairingBounds:
    """Bounds of the paired test of two counts of right answers to the same n items.

    M is in [|net|, min(k1 + k2, 2 n - k1 - k2)] and has the parity of net. Raises ValueError for counts outside
    [0, n].
    """
    if not (0 <= before <= n and 0 <= after <= n and n >= 1):
        raise ValueError(f"counts {before} and {after} of n={n}: need 0 <= count <= n and n >= 1")
    net = after - before
    low, high = abs(net), min(before + after, 2 * n - before - after)
    grid = range(low, high + 1, 2)
    return PairingBounds(n, net, low, grid[-1] if grid else low,
                   _largest(grid, net, alpha, exact=False), _largest(grid, net, alpha, exact=True),
                   (before * (n - after) + after * (n - before)) / n)


def _largest(grid: Sequence[int], net: int, alpha: float, *, exact: bool) -> int | None:
    """The largest M of ``grid`` with p < alpha, by binary search, since p rises with M."""
    test = mcnemar_exact if exact else mcnemar_mid
    low, high = -1, len(grid) - 1
    while low < high:
        middle = (low + high + 1) // 2
        gained = (grid[middle] + net) // 2
        if test(gained, grid[middle] - gained) < alpha:
            low = middle
        else:
            high = middle - 1
    return grid[low] if low >= 0 else None
