"""Computes sequential verdicts on items in random order, so that an evaluation can stop early.

    test = PairedSequential(None, 0.02)
    test.update([0, 0, -1, 0, …])        None, or "lower", "higher" or "within" as soon as it is proven
    test.interval()                      (-0.113, -0.021): a 95 % interval for all interim analyses together
    test.claims                          frozenset({"worse", "lower"}): all that was proven so far

After each item the test may ask whether the models differ by more than the margin. Any number of interim analyses is
allowed, and the error rate stays the same. There are two targets. With ``items=None`` the claim is about the models:
the mean difference of the population that the items of a benchmark stand for. With ``items=N`` it is about the full
run: the mean difference of the N items of a task, drawn without replacement, which is known once all are asked.

One-sided tests bet against a boundary b of the mean: "up" against "at most b", "down" against "at least b" (which is
"up" on -d and -b). Before item t, with S = sum of the differences seen and R = N - t + 1 items left,

    mu = (N b - S) / R,   lambda_j = min(scale_j N / R, 0.95 / (mu - low)),   log K_j += log1p(lambda_j (d - mu))

and b is rejected once the mean of the K_j over all scales has reached 2 / alpha, or once the remaining items cannot
bring the mean to b. For the models N is infinite: mu = b and N / R = 1. If the mean is b, mu is the expected value of
item t given the past, so each K_j is a martingale that starts at 1, and by Ville's inequality it ever reaches 2 / alpha
with a probability of at most alpha / 2. The factors fall as b rises, so this holds for the whole one-sided hypothesis.
Source: Waudby-Smith & Ramdas 2020 (arXiv 2006.04347; section 5 for the models), with a mixture of fixed scales instead
of their predictable bets.

Where the items run out before the models' test has decided, the test of a fixed number of items is used too.
`after_looks` splits the error level between the two, so that both together keep it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from aftertune.catalog import METRICS
from aftertune.stats.paired import Floats, MarginTests
from aftertune.values import Verdict

#: Scales of eight bets of equal weight, from small to large, for differences in [-1, 1].
SCALES: Floats = np.geomspace(0.05, 1, 8)
#: No bet may lose more than this share of its wealth on one item.
_MOST = 0.95
#: Sums of differences that differ by no more than this are equal.
_NEAR = 1e-9
#: Items that are processed at once, to bound the memory of long updates.
_CHUNK = 512
#: An interval for the models has ends that are multiples of 1 / _STEPS.
_STEPS = 1_000_000

#: The share of the error level that the interim analyses of the models' test have. The rest is for the test of a fixed
#: number of items, if all items were asked.
LOOKS = 0.8
#: The same for "within". It is false on one side only, where a bet at alpha / 2 takes half of the error level.
_LOOKS_WITHIN = 0.5
#: The level of the interval of all items after interim analyses, as a part of a 95 % interval of both.
END_LEVEL = 1 - (1 - LOOKS) * 0.05


#: The claims of a test, in the order of `aftertune.stats.verdict.QUESTIONS`.
CLAIMS: tuple[Verdict, ...] = ("lower", "higher", "within", "worse", "better", "no_loss")


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
    def around(cls, margin: float, *, zero: bool = False) -> Boundaries:
        """The tests of a verdict: up(-m), up(+m), down(-m), down(+m). zero: and those against 0: up(0), down(0)."""
        more = [0.0, 0.0] if zero else []
        return cls(np.array([1.0, 1.0, -1.0, -1.0, 1.0, -1.0][:4 + len(more)]),
                   np.array([-margin, margin, -margin, margin, *more]))


def log_factors(d: Floats, before: Floats, seen: int, items: int | None, boundaries: Boundaries,
                low: float = -1.0, high: float = 1.0, scales: Floats = SCALES) -> Floats:
    """Logarithm of the factor by which each bet grows on each item, float64 [..., k, tests, scales].

    d: differences [..., k] in [low, high], in their random order. before: sum of the ``seen`` differences before them,
    [...]. items: of the full run; None for the models.
    """
    signed = boundaries.sign * d[..., None]  # [..., k, tests]
    if items is None:
        growth = np.ones(d.shape[-1])
        mean = np.broadcast_to(boundaries.sign * boundaries.bound, signed.shape)
    else:
        left = items - seen - np.arange(d.shape[-1], dtype=np.float64)  # unseen items, this one included
        sums = before[..., None] + np.cumsum(d, axis=-1) - d
        growth = items / left
        mean = (boundaries.sign * boundaries.bound * items - boundaries.sign * sums[..., None]) / left[:, None]
    lowest = np.where(boundaries.sign > 0, low, -high)
    room = np.maximum(mean - lowest, 1e-300)  # at or below ``lowest`` the boundary cannot be reached: see `unreachable`
    stakes = np.minimum(scales * (2 / (high - low) * growth)[:, None, None], (_MOST / room)[..., None])
    factors = np.log1p(np.maximum(stakes * (signed - mean)[..., None], -_MOST))
    return np.where((mean > lowest)[..., None], factors, 0.0)


def unreachable(sums: Floats, seen: NDArray[np.int64], items: int | None, boundaries: Boundaries,
               low: float = -1.0, high: float = 1.0) -> NDArray[np.bool_]:
    """Boundaries that the remaining items cannot reach, bool [..., k, tests]; none of the models' mean.

    sums, seen: sum and number of the differences up to and including each item, [..., k] and [k].
    """
    if items is None:
        return np.zeros((*sums.shape, boundaries.sign.size), dtype=bool)
    lowest = np.where(boundaries.sign > 0, low, -high)
    least = boundaries.sign * sums[..., None] + (items - seen)[:, None] * lowest
    return np.asarray(least > boundaries.sign * boundaries.bound * items + _NEAR)


def log_threshold(alpha: float, *, models: bool = True) -> float:
    """What the logarithm of a mixture must reach to reject. models: about the models, which have the share LOOKS."""
    return math.log(2 / (LOOKS * alpha if models else alpha))


def stop_thresholds(alpha: float, *, models: bool = True) -> Floats:
    """The same for each test of `Boundaries.around` with ``zero``, where it may end a run. Both sides of "within" have
    alpha / 2 each; a test against 0 ends no run."""
    inside, beyond = math.log(2 / alpha), log_threshold(alpha, models=models)
    return np.array([inside, beyond, beyond, inside, math.inf, math.inf])


def log_mixture(log_wealth: Floats) -> Floats:
    """Logarithm of the mean over the last axis (the scales)."""
    top = log_wealth.max(axis=-1)
    return np.asarray(top + np.log(np.exp(log_wealth - top[..., None]).mean(axis=-1)))


class AnytimeClaims:
    """What the anytime-valid p-values of a sequential test prove at its error level ``alpha``.

    of_models: the claims are about the models, and have the share `LOOKS` of the level ("within": alpha / 2 on each
    side); the rest is for `after_looks`. Otherwise they are about the full run. tests: the p-values.
    """

    alpha: float
    of_models: bool

    @property
    def tests(self) -> MarginTests:
        """The anytime-valid p-values after the items so far."""
        raise NotImplementedError

    def p_of(self, claim: Verdict) -> float:
        """Anytime-valid p of a claim: 2 / (largest mixture of its test so far), at most 1; 1 for "undecided"."""
        if claim == "undecided":
            return 1.0
        tests = self.tests
        return min(1.0, 2 * tests.within) if claim == "within" else float(getattr(tests, claim))

    @property
    def claims(self) -> frozenset[Verdict]:
        """All claims that are proven; at the end of a full run, all that are true of it."""
        return frozenset(claim for claim in CLAIMS if self.level_p(claim) <= self.alpha * (1 + 1e-12))

    def level_p(self, claim: Verdict) -> float:
        """p of a claim over the share of the error level that it has: at most alpha where the claim is proven."""
        share = LOOKS if self.of_models and claim != "within" else 1.0
        return min(1.0, self.p_of(claim) / share)


class PairedSequential(AnytimeClaims):
    """A sequential test of one metric. It keeps the differences seen in memory.

    items: N of the full run; None for the models. margin: a fraction. alpha: error level of this metric (alpha / number
    of metrics where there are several). The models' test uses the share `LOOKS` of it, and for "within" alpha / 2 on
    each side; the rest is for `after_looks`. low, high: bounds of a difference (-1 and 1 for shares). whole:
    differences are whole numbers. verdict: the first of "lower", "higher" and "within" that was proven, after
    ``decided_at`` items.
    Raises ValueError for no items, a margin that is not positive, or bounds without 0 between them.
    """

    def __init__(self, items: int | None, margin: float, *, alpha: float = 0.05, low: float = -1.0, high: float = 1.0,
                 whole: bool = True) -> None:
        if (items is not None and items < 1) or not margin > 0 or not 0 < alpha < 1 or not low < 0 < high:
            raise ValueError(f"items={items}, margin={margin}, alpha={alpha}, bounds {low} to {high}: need items >= 1, "
                             "margin > 0, 0 < alpha < 1 and low < 0 < high")
        self.items, self.margin, self.low, self.high, self.whole = items, margin, low, high, whole
        self.alpha, self.of_models = alpha, items is None
        self.threshold = log_threshold(alpha, models=items is None)
        self._stops = stop_thresholds(alpha, models=items is None)
        self.boundaries = Boundaries.around(margin, zero=True)
        self.verdict: Verdict | None = None
        self.decided_at: int | None = None
        self._wealth: Floats = np.zeros((6, SCALES.size))
        self._best: Floats = np.zeros(6)  # logarithm of the largest mixture of each test so far (it starts at 1)
        self._ruled_out = np.zeros(6, dtype=bool)
        self._d: Floats = np.empty(_CHUNK)
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
        """Anytime-valid p of the verdict that is closest to proof: 2 / (largest mixture), at most 1."""
        return min(self.p_of("lower"), self.p_of("higher"), self.p_of("within"))

    @property
    def tests(self) -> MarginTests:
        """The anytime-valid p-values after the items so far."""
        return anytime_tests(np.where(self._ruled_out, math.inf, self._best))

    def update(self, differences: Sequence[float] | Floats) -> Verdict | None:
        """Add the differences of the next items, in their random order. Returns the verdict, or None while undecided.

        The verdict is the same as if each item had been added alone. Raises ValueError for a value outside the bounds
        or for more items than the full run has.
        """
        d = np.asarray(differences, dtype=np.float64)
        if d.size and not (d.min() >= self.low - _NEAR and d.max() <= self.high + _NEAR):
            raise ValueError(f"differences from {d.min()} to {d.max()}: allowed are {self.low} to {self.high}")
        d = d.clip(self.low, self.high)  # a mean of probabilities may be 1 + 2e-16
        if self.items is not None and self._seen + d.size > self.items:
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
            grown = np.empty(max(needed, 2 * self._d.size))
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
            first = first_verdict((best >= self._stops) | out)
            if first is not None:
                self.verdict, self.decided_at = first[0], self._seen + first[1] + 1
        self._wealth, self._best, self._ruled_out = wealth[-1], best[-1], out[-1]
        self._sum, self._seen = float(sums[-1]), self._seen + d.size

    def interval(self) -> tuple[float, float]:
        """Interval of the mean difference, valid for all interim analyses together: the means not rejected.

        For a full run its ends are multiples of 1 / N, as the full-run mean of whole differences is; for the models
        they are multiples of a millionth. For the models and for differences that are not whole, each end is moved
        outward by one step. Ends in the wrong order (with a probability below alpha) are swapped.
        """
        n = _STEPS if self.items is None else self.items
        step = 0 if self.whole and self.items is not None else 1
        unseen, total = (n, 0.0) if self.items is None else (n - self._seen, self._sum)
        least, most = total + unseen * self.low, total + unseen * self.high
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
            if self._rejects(middle / (_STEPS if self.items is None else self.items), sign):
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
    """The first of "lower", "higher" and "within", and the index of its item. rejected: bool [k, tests], the tests of
    `Boundaries.around`."""
    up_low, up_high, down_low, down_high = rejected[:, 0], rejected[:, 1], rejected[:, 2], rejected[:, 3]
    claims: dict[Verdict, NDArray[np.bool_]] = {"lower": down_low, "higher": up_high, "within": up_low & down_high}
    proven = [(int(claim.argmax()), verdict) for verdict, claim in claims.items() if claim.any()]
    return (min(proven)[1], min(proven)[0]) if proven else None


def exact_verdict(mean: float, margin: float) -> Verdict:
    """The verdict once all items of the full run are known."""
    if abs(mean) <= margin + 1e-12:
        return "within"
    return "lower" if mean < 0 else "higher"


def anytime_tests(log_evidence: Floats) -> MarginTests:
    """Anytime-valid p-values: 1 / (largest mixture) on one side, twice that on two. log_evidence: the logarithm of the
    largest mixture of each test of `Boundaries.around` with ``zero``, [6]. "within" and no drop are one-sided."""
    up_low, up_high, down_low, down_high, up_zero, down_zero = np.exp(-log_evidence).tolist()
    return MarginTests(lower=min(1.0, 2 * down_low), higher=min(1.0, 2 * up_high), within=max(up_low, down_high),
                       no_drop=up_low, worse=min(1.0, 2 * down_zero), better=min(1.0, 2 * up_zero))


def after_looks(looks: MarginTests, fixed: MarginTests) -> MarginTests:
    """What interim analyses and the test of a fixed number of items prove together, once all items were asked.

    looks: the anytime-valid p-values of `PairedSequential.tests`. fixed: those of all items. For shares w and 1 - w of
    the error level, min(p_looks / w, p_fixed / (1 - w)) is a p-value by the union bound: it is at most alpha with a
    probability of at most w alpha + (1 - w) alpha, whatever the dependence of the two.
    """
    def combined(name: str) -> float:
        share = _LOOKS_WITHIN if name == "within" else LOOKS
        return _either(float(getattr(looks, name)), float(getattr(fixed, name)), share)

    return MarginTests(**{field.name: combined(field.name) for field in fields(MarginTests)})


def interval_after_looks(looks: tuple[float, float], fixed: tuple[float, float]) -> tuple[float, float]:
    """The interval that agrees with `after_looks`: what neither test rejects.

    looks: of the interim analyses at `LOOKS` of the error level, as `PairedSequential.interval` gives it. fixed: of all
    items, at the rest of it (`END_LEVEL`). Where the two do not meet, which has a probability below alpha, it is that
    of the looks.
    """
    low, high = max(looks[0], fixed[0]), min(looks[1], fixed[1])
    return (low, high) if low <= high else looks


def no_drop_after_looks(looks: MarginTests, fixed: float) -> float:
    """The one-sided p against a drop beyond the margin, as a gate takes it at 5 %. It has the shares of "within", so
    whatever proves a verdict without such a drop proves this too. fixed: p of the test of all items."""
    return _either(looks.no_drop, fixed, _LOOKS_WITHIN)


def _either(looks: float, fixed: float, share: float) -> float:
    """p of what one of two tests proves, which have ``share`` of the error level and the rest of it."""
    return min(1.0, looks / share, fixed / (1 - share))


def first_of_clusters(labels: Sequence[Hashable | None] | None, n: int) -> NDArray[np.bool_]:
    """Which of n items the models' test may count, bool [n]: the first one of each cluster, in their random order.

    Items of one cluster are not independent. A bet on the first one of each is fair; a second one could be predicted
    from it. labels: of the items; None where no two of them belong together. Where one label is not known, none counts.
    """
    if labels is None:
        return np.ones(n, dtype=bool)
    if None in labels:
        return np.zeros(n, dtype=bool)
    seen: set[Hashable | None] = set()
    first = np.zeros(n, dtype=bool)
    for i, label in enumerate(labels):
        first[i] = label not in seen
        seen.add(label)
    return first
