"""Computes sequential verdicts on items in random order, so that an evaluation can stop early.

    test = PairedSequential(10_042, 0.02)
    test.update([0, 0, -1, 0, …])        None, or "lower", "higher" or "within" as soon as it is proven
    test.interval()                      (-0.113, -0.021): a 95 % interval for all interim analyses together

A task has N items, drawn without replacement. After each item the test may ask whether the full run would show a change
beyond the margin. Any number of interim analyses is allowed, and the error rate stays the same. The claim is about the
mean difference of the full run, never about the early estimate.

Four one-sided tests bet against a boundary b of the full-run mean: "up" against "at most b", "down" against "at
least b" (which is "up" on -d and -b). Before item t, with S = sum of the differences seen and R = N - t + 1 items left,

    mu = (N b - S) / R,   lambda_j = min(scale_j N / R, 0.95 / (mu - low)),   log K_j += log1p(lambda_j (d - mu))

and b is rejected once the mean of the K_j over all scales has reached 2 / alpha, or once the remaining items cannot
bring the mean to b. If the full-run mean is b, mu is the expected value of item t given the past, so each K_j is a
martingale that starts at 1, and by Ville's inequality it ever reaches 2 / alpha with a probability of at most
alpha / 2. The factors fall as b rises, so this holds for the whole one-sided hypothesis. Source: Waudby-Smith & Ramdas
2020 (arXiv 2006.04347), with a mixture of fixed scales instead of their predictable bets.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aftertune.catalog import METRICS
from aftertune.stats.paired import Floats
from aftertune.values import Verdict

#: Scales of eight bets of equal weight, from small to large, for differences in [-1, 1].
SCALES: Floats = np.geomspace(0.05, 1, 8)
#: No bet may lose more than this share of its wealth on one item.
_MOST = 0.95
#: Sums of differences that differ by no more than this are equal.
_NEAR = 1e-9
#: Items that are processed at once, to bound the memory of long updates.
_CHUNK = 512


def random_order_key(seed: int, task: str, index: int, item: str) -> str:
    """Sort key of an item: items sorted by it are in a random order that the seed decides.

    It depends on the item alone (task, index in the task, content hash), so any subset of the items is in the same
    order.
    """
    return hashlib.sha256(f"{seed}/{task}/{index}/{item}".encode()).hexdigest()


def has_whole_differences(metric: str, differences: Floats) -> bool:
    """True where the differences of the full run are whole numbers: the metric is binary, and so are those so far."""
    return metric in METRICS and METRICS[metric].binary and bool((differences == np.round(differences)).all())


@dataclass(frozen=True, slots=True)
class Boundaries:
    """Boundaries of one-sided tests, float64 [tests]. sign: +1 for "up", -1 for "down"."""

    sign: Floats
    bound: Floats

    @classmethod
    def around(cls, margin: float) -> Boundaries:
        """The four tests of a verdict: up(-m), up(+m), down(-m), down(+m)."""
        return cls(np.array([1.0, 1.0, -1.0, -1.0]), np.array([-margin, margin, -margin, margin]))


def log_factors(d: Floats, before: Floats, seen: int, items: int, boundaries: Boundaries,
                low: float = -1.0, high: float = 1.0, scales: Floats = SCALES) -> Floats:
    """Logarithm of the factor by which each bet grows on each item, float64 [..., k, tests, scales].

    d: differences [..., k] in [low, high], in their random order. before: sum of the ``seen`` differences before them,
    [...]. items: of the full run.
    """
    left = items - seen - np.arange(d.shape[-1], dtype=np.float64)  # unseen items, this one included
    sums = before[..., None] + np.cumsum(d, axis=-1) - d
    signed = boundaries.sign * d[..., None]  # [..., k, tests]
    mean = (boundaries.sign * boundaries.bound * items - boundaries.sign * sums[..., None]) / left[:, None]
    lowest = np.where(boundaries.sign > 0, low, -high)
    room = np.maximum(mean - lowest, 1e-300)  # at or below ``lowest`` the boundary cannot be reached: see `unreachable`
    stakes = np.minimum(scales * (2 / (high - low) * items / left)[:, None, None], (_MOST / room)[..., None])
    factors = np.log1p(np.maximum(stakes * (signed - mean)[..., None], -_MOST))
    return np.where((mean > lowest)[..., None], factors, 0.0)


def unreachable(sums: Floats, seen: NDArray[np.int64], items: int, boundaries: Boundaries,
               low: float = -1.0, high: float = 1.0) -> NDArray[np.bool_]:
    """Boundaries that the remaining items cannot reach, bool [..., k, tests].

    sums, seen: sum and number of the differences up to and including each item, [..., k] and [k].
    """
    lowest = np.where(boundaries.sign > 0, low, -high)
    least = boundaries.sign * sums[..., None] + (items - seen)[:, None] * lowest
    return np.asarray(least > boundaries.sign * boundaries.bound * items + _NEAR)


def log_mixture(log_wealth: Floats) -> Floats:
    """Logarithm of the mean over the last axis (the scales)."""
    top = log_wealth.max(axis=-1)
    return np.asarray(top + np.log(np.exp(log_wealth - top[..., None]).mean(axis=-1)))


class PairedSequential:
    """A sequential test of one metric. It keeps the differences seen in memory.

    items: N of the full run. margin: a fraction. alpha: error level of this metric (alpha / number of metrics where
    there are several). low, high: bounds of a difference (-1 and 1 for shares). whole: differences are whole numbers.
    Raises ValueError for no items, a margin that is not positive, or bounds without 0 between them.
    """

    def __init__(self, items: int, margin: float, *, alpha: float = 0.05, low: float = -1.0, high: float = 1.0,
                 whole: bool = True) -> None:
        if items < 1 or not margin > 0 or not 0 < alpha < 1 or not low < 0 < high:
            raise ValueError(f"items={items}, margin={margin}, alpha={alpha}, bounds {low} to {high}: need items >= 1, "
                             "margin > 0, 0 < alpha < 1 and low < 0 < high")
        self.items, self.margin, self.low, self.high, self.whole = items, margin, low, high, whole
        self.threshold = math.log(2 / alpha)
        self.boundaries = Boundaries.around(margin)
        self.verdict: Verdict | None = None
        self.decided_at: int | None = None
        self._wealth: Floats = np.zeros((4, SCALES.size))
        self._best: Floats = np.zeros(4)  # logarithm of the largest mixture of each test so far (it starts at 1)
        self._ruled_out = np.zeros(4, dtype=bool)
        self._d: Floats = np.empty(min(items, _CHUNK))
        self._seen = 0
        self._sum = 0.0

    @property
    def seen(self) -> int:
        """Items so far."""
        return self._seen

    @property
    def mean(self) -> float:
        """Mean difference of the items so far: an early estimate, biased away from 0 when the test stops."""
        return self._sum / self._seen if self._seen else 0.0

    @property
    def p(self) -> float:
        """Anytime-valid p of the claim that is closest to proof: 2 / (largest mixture), at most 1."""
        up_low, up_high, down_low, down_high = np.where(self._ruled_out, math.inf, self._best)
        return float(min(1.0, 2 * math.exp(-max(up_high, down_low, min(up_low, down_high)))))

    def update(self, differences: Sequence[float] | Floats) -> Verdict | None:
        """Add the differences of the next items, in their random order. Returns the verdict, or None while undecided.

        The verdict is the same as if each item had been added alone. Raises ValueError for a value outside the bounds
        or for more items than the full run has.
        """
        d = np.asarray(differences, dtype=np.float64)
        if d.size and not (d.min() >= self.low - _NEAR and d.max() <= self.high + _NEAR):
            raise ValueError(f"differences from {d.min()} to {d.max()}: allowed are {self.low} to {self.high}")
        d = d.clip(self.low, self.high)  # a mean of probabilities may be 1 + 2e-16
        if self._seen + d.size > self.items:
            raise ValueError(f"{self._seen + d.size} items, but the full run has {self.items}")
        self._store(d)
        for start in range(0, d.size, _CHUNK):
            self._analyze(d[start:start + _CHUNK])
        if self._seen == self.items and self.verdict is None:
            self.verdict, self.decided_at = exact_verdict(self._sum / self.items, self.margin), self.items
        return self.verdict

    def _store(self, d: Floats) -> None:
        """Append to the differences seen."""
        needed = self._seen + d.size
        if needed > self._d.size:
            grown = np.empty(min(self.items, max(needed, 2 * self._d.size)))
            grown[:self._seen] = self._d[:self._seen]
            self._d = grown
        self._d[self._seen:needed] = d

    def _analyze(self, d: Floats) -> None:
        """Update the bets with a chunk of differences, and set the verdict at the first item that decides."""
        factors = log_factors(d, np.asarray(self._sum), self._seen, self.items, self.boundaries, self.low, self.high)
        wealth = self._wealth + np.cumsum(factors, axis=0)
        best = np.maximum(self._best, np.maximum.accumulate(log_mixture(wealth), axis=0))
        sums = self._sum + np.cumsum(d)
        out = unreachable(sums, self._seen + np.arange(1, d.size + 1), self.items, self.boundaries, self.low, self.high)
        out = self._ruled_out | np.logical_or.accumulate(out, axis=0)
        if self.verdict is None:
            first = first_verdict((best >= self.threshold) | out)
            if first is not None:
                self.verdict, self.decided_at = first[0], self._seen + first[1] + 1
        self._wealth, self._best, self._ruled_out = wealth[-1], best[-1], out[-1]
        self._sum, self._seen = float(sums[-1]), self._seen + d.size

    def interval(self) -> tuple[float, float]:
        """Interval of the full-run mean difference, valid for all interim analyses together: the means not rejected.

        Its ends are multiples of 1 / N, as the full-run mean of whole differences is; for other differences each end is
        moved outward by one step. Ends in the wrong order (with a probability below alpha) are swapped.
        """
        n, step = self.items, 0 if self.whole else 1
        least, most = self._sum + (n - self._seen) * self.low, self._sum + (n - self._seen) * self.high
        first, last = math.ceil(least - _NEAR), math.floor(most + _NEAR)
        low = self._edge(first, last, 1.0) - step
        high = self._edge(first, last, -1.0) + step
        ends = max(low, least) / n, min(high, most) / n
        return min(ends), max(ends)

    def _edge(self, first: int, last: int, sign: float) -> int:
        """The first k, from below (sign +1) or from above (-1), whose mean k / N is not rejected."""
        inside, outside = (last, first - 1) if sign > 0 else (first, last + 1)
        while abs(inside - outside) > 1:
            middle = (inside + outside) // 2
            if self._rejects(middle / self.items, sign):
                outside = middle
            else:
                inside = middle
        return inside

    def _rejects(self, bound: float, sign: float) -> bool:
        """True where the test of ``bound`` from this side has ever reached the threshold."""
        boundaries, wealth, total = Boundaries(np.array([sign]), np.array([bound])), np.zeros((1, SCALES.size)), 0.0
        for start in range(0, self._seen, _CHUNK):
            d = self._d[start:min(start + _CHUNK, self._seen)]
            factors = log_factors(d, np.asarray(total), start, self.items, boundaries, self.low, self.high)
            path = wealth + np.cumsum(factors, axis=0)
            sums = total + np.cumsum(d)
            out = unreachable(sums, start + np.arange(1, d.size + 1), self.items, boundaries, self.low, self.high)
            if bool((log_mixture(path) >= self.threshold).any()) or bool(out[-1].any()):
                return True
            wealth, total = path[-1], float(sums[-1])
        return False


def first_verdict(rejected: NDArray[np.bool_]) -> tuple[Verdict, int] | None:
    """The first verdict and the index of its item. rejected: bool [k, tests], the tests of `Boundaries.around`."""
    up_low, up_high, down_low, down_high = rejected[:, 0], rejected[:, 1], rejected[:, 2], rejected[:, 3]
    claims: dict[Verdict, NDArray[np.bool_]] = {"lower": down_low, "higher": up_high, "within": up_low & down_high}
    proven = [(int(claim.argmax()), verdict) for verdict, claim in claims.items() if claim.any()]
    return (min(proven)[1], min(proven)[0]) if proven else None


def exact_verdict(mean: float, margin: float) -> Verdict:
    """The verdict once all items of the full run are known."""
    if abs(mean) <= margin + 1e-12:
        return "within"
    return "lower" if mean < 0 else "higher"
