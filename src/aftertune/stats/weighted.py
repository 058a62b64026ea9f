"""Chooses which items a sequential test asks next: those where the base was unsure.

    strata = Strata.of(base=[1, 0, 1, …], confidence=[0.02, 0.7, …])     by the base's side and its margin
    draws = WeightedDraws(strata, margin=0.02)
    chosen = draws.choose(draws.design(), np.array([[0.31, 0.87, …]]))    the stratum of each item of the next batch
    draws.take(chosen, d)                                                 the answers to it change the next design

An item that the base answered right can only be lost, and one that it answered wrong can only be gained; changes are
where its margin was small. So items are put into strata, and each draw takes an unseen item of stratum k with the
probability q = w_k / W, where W is the sum of the weights of all unseen items. Within a stratum the order is random and
fixed in advance. Weights, and predictions of the differences (control variates), are chosen before each batch from the
base's answers and the batches before it: where a change is likely the weight is large. The tests of
`aftertune.stats.weighted_bets` are valid whatever is chosen; a bad choice takes more items, but gives no more false
verdicts. One run of both is in `aftertune.stats.weighted_sequential`.

Sources: Waudby-Smith, Stark & Ramdas 2021 (RiLACS, arXiv 2107.11323) and Shekhar, Xu, Lipton, Liang & Ramdas 2023
(arXiv 2305.06884) on weighted sampling without replacement; Zrnic & Candès 2024 (arXiv 2403.03208) on predictions as
control variates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aftertune.stats.paired import Floats

Ints = NDArray[np.int64]

#: Strata of each side (items that the base answered right, and wrong): equal shares of its items by margin.
QUANTILES = 10
#: No weight is below this share of the mean weight.
_FLOOR = 0.1
#: Stakes that are tried, as parts of the largest possible one.
_PARTS: Floats = np.geomspace(0.01, 0.9, 18)
#: Items for which the first guess of a stratum's differences counts.
_PRIOR = 24.0
#: Parts of the expected squares of an earlier tuning that are tried, and the logarithm of the prior of each.
_ALIKE, _LIKELY = (0.5, 1.0, 2.0), 1.0
#: Surprises on the side that is settled may cost so many times more.
_SETTLED = 10.0
#: For a claim about the models, the first items have equal chances, and so have all others unless the mean square of
#: the differences so far is below this (a harsh tuning changes sure answers too, and is seen soon).
_PILOT, _GENTLE = 64, 0.15
#: Their bets are about those of `aftertune.stats.sequential`.
_EQUAL_STAKE = 0.1
#: … and unless the error of the benchmark as a sample is below this part of the margin. It is taken from the mean
#: square of the differences: about a quarter of it is between the strata.
_AFFORDABLE, _BETWEEN, _Z = 0.3, 0.25, 2.6
#: … and no later than after this part of the items.
_LATEST = 0.25
#: Mean square of the differences for which a benchmark must have enough items, before anything is known of them.
_USUAL = 0.1
#: For a claim about the models, a stratum is closed once no more than this share of its items is fresh.
_CLOSING = 0.1


# --- Strata ---

@dataclass(frozen=True, slots=True)
class Strata:
    """The items of a task, sorted into K strata by what is known before the tuned model answers.

    of_item: the stratum of each item, int [N]. low, high: bounds of the differences in each stratum, [K]. rank: mean
    rank of its items by the base's confidence among those of their side, from 0 to 1, [K]. whole: the base's values
    are 0 and 1.
    """

    of_item: Ints
    low: Floats
    high: Floats
    rank: Floats
    whole: bool = True

    @property
    def sizes(self) -> Floats:
        """Items of each stratum, float64 [K]."""
        return np.bincount(self.of_item, minlength=self.low.size).astype(np.float64)

    @classmethod
    def single(cls, items: int, low: float = -1.0, high: float = 1.0) -> Strata:
        """One stratum of all items: nothing is known of them."""
        return cls(np.zeros(items, dtype=np.int64), np.array([low]), np.array([high]), np.array([0.5]))

    @classmethod
    def of(cls, base: Sequence[float] | Floats, confidence: Sequence[float] | Floats | None = None,
           quantiles: int = QUANTILES) -> Strata:
        """Strata by the base's side (a value above one half, or not) and its confidence.

        base: its values in [0, 1], [N]; a difference is then between -base and 1 - base. confidence: how sure the base
        was of each item, such as its |margin|, [N]; without it there is one stratum for each side. Raises ValueError
        for values outside [0, 1] or arrays of unequal length.
        """
        values = np.asarray(base, dtype=np.float64)
        if values.size < 1 or not (values.min() >= 0 and values.max() <= 1):
            raise ValueError("need one value or more, all in [0, 1]")
        sure = np.zeros(values.size) if confidence is None else np.asarray(confidence, dtype=np.float64)
        if sure.shape != values.shape or np.isnan(sure).any():
            raise ValueError(f"{values.size} values, but a confidence of shape {sure.shape} (no NaN)")
        labels, rank = np.empty(values.size, dtype=np.int64), np.zeros(values.size)
        count = 1 if confidence is None else quantiles
        for side in (False, True):
            members = np.flatnonzero((values > 0.5) == side)
            order = members[np.argsort(sure[members], kind="stable")]
            rank[order] = (np.arange(order.size) + 0.5) / max(order.size, 1)
            labels[members] = (2 * np.minimum(count - 1, (rank[members] * count).astype(np.int64)) + side)
        _, labels = np.unique(labels, return_inverse=True)  # no empty stratum
        sizes = np.bincount(labels)
        means = np.bincount(labels, rank) / sizes if confidence is not None else np.full(sizes.size, 0.5)
        return cls._bounded(labels, values, means)

    @classmethod
    def _bounded(cls, labels: Ints, values: Floats, rank: Floats) -> Strata:
        low, high = np.zeros(rank.size), np.zeros(rank.size)
        np.maximum.at(low, labels, values)
        np.maximum.at(high, labels, 1 - values)
        return cls(labels, -low, high, rank, bool((values == np.round(values)).all()))

    @classmethod
    def read(cls, letters: str, ranks: Sequence[float], base: Floats) -> Strata:
        """The strata of stored letters. base: its values in [0, 1], from which the bounds of differences are read.

        Raises ValueError where the letters are not those of the values.
        """
        labels = np.frombuffer(letters.encode(), dtype=np.uint8).astype(np.int64) - ord("a")
        if labels.shape != base.shape or not (labels.min() >= 0 and labels.max() < len(ranks)):
            raise ValueError(f"{labels.size} letters of strata for {base.size} items and {len(ranks)} strata")
        return cls._bounded(labels, base, np.array(ranks))

    @property
    def letters(self) -> str:
        """The stratum of each item as a letter, a for 0."""
        return (self.of_item + ord("a")).astype(np.uint8).tobytes().decode()


# --- What is chosen before each batch ---

@dataclass(frozen=True, slots=True)
class Design:
    """Weights and predictions of the strata, [..., K], and the size of a bet on one item, [...].

    The mean weight of the unseen items is about 1. equal: of each run, all weights are 1 and nothing is predicted,
    [...].
    """

    weights: Floats
    predictions: Floats
    stake: Floats
    equal: NDArray[np.bool_]


def best_design(sizes: Floats, second: Floats, reach: Floats, gap: Floats, floor: float = _FLOOR
                ) -> tuple[Floats, Floats]:
    """Weights [..., K] and the stake [...] with which wealth grows fastest.

    sizes: unseen items of each stratum. second: expected squared distance of a difference from its prediction. reach:
    the largest possible distance. gap: distance of the boundary from the expected truth, times N / unseen items, [...].

    A bet of l on one item (lambda = l / unseen) makes the logarithm of the wealth grow by about

        l gap - l**2 / 2 * sum_k s_k second_k / w_k       with the shares s_k = sizes_k / unseen

    Neyman's weights, proportional to sqrt(second), make the sum smallest; but a surprise in stratum k costs l reach_k /
    w_k, which must stay below 1. So for each l the weights are Neyman's, except where that needs a larger one.
    """
    unseen = np.maximum(sizes.sum(-1), 1)
    share, deviation = sizes / unseen[..., None], np.sqrt(second)
    best, weights, stake = np.full(unseen.shape, -np.inf), np.ones_like(sizes), np.zeros_like(unseen)
    widest = np.maximum((share * reach).sum(-1), 1e-12)
    for part in _PARTS:
        bet = part / widest
        least = np.maximum(floor, bet[..., None] * reach)
        w = _filled(share, deviation, least)
        variance = (share * second / w).sum(-1)
        growth = bet * gap - bet ** 2 / 2 * variance
        better = growth > best
        best, stake = np.where(better, growth, best), np.where(better, bet, stake)
        weights = np.where(better[..., None], w, weights)
    return weights, stake


def _filled(share: Floats, deviation: Floats, least: Floats) -> Floats:
    """Weights max(least, c deviation) with mean 1: c is found by bisection."""
    top = 1 / np.maximum((share * deviation).sum(-1), 1e-12)
    low, high = np.zeros_like(top), top
    for _ in range(24):
        middle = (low + high) / 2
        over = (share * np.maximum(least, middle[..., None] * deviation)).sum(-1) > 1
        low, high = np.where(over, low, middle), np.where(over, middle, high)
    w = np.maximum(least, low[..., None] * deviation)
    return np.asarray(w / np.maximum((share * w).sum(-1), 1e-12)[..., None])


class StrataSeen:
    """What the batches so far say of each stratum. Arrays [runs, K]: items seen, sum and sum of squares of d.

    earlier: expected squares of the differences of earlier tunings in each stratum, [tunings, K]: likely values of
    those of this one.
    """

    def __init__(self, strata: Strata, runs: int, earlier: Floats | None = None) -> None:
        self.strata = strata
        self.earlier = np.empty((0, strata.low.size)) if earlier is None else earlier
        shape = runs, strata.low.size
        self.seen, self.sums, self.squares = np.zeros(shape), np.zeros(shape), np.zeros(shape)

    def add(self, chosen: Ints, d: Floats, counted: NDArray[np.bool_] | None = None) -> None:
        """chosen, d: stratum and difference of each item, [runs, batch]. counted: only these."""
        rows = np.broadcast_to(np.arange(len(chosen))[:, None], chosen.shape)
        ones = np.ones_like(d) if counted is None else counted.astype(np.float64)
        for into, values in ((self.seen, ones), (self.sums, ones * d), (self.squares, ones * d * d)):
            np.add.at(into, (rows, chosen), values)

    def keep(self, which: NDArray[np.bool_]) -> None:
        """Go on with some of the runs only."""
        self.seen, self.sums, self.squares = self.seen[which], self.sums[which], self.squares[which]

    def estimates(self, *, of_error: bool = False) -> tuple[Floats, Floats]:
        """Expected difference of each stratum, and its expected squared distance from it, [runs, K].

        Of each side, the expected square falls exponentially with the rank of the confidence: the mean of the curves
        that `_curves` lists and of those of earlier tunings, weighted by their likelihood. It counts as much as
        ``_PRIOR`` items of each stratum. Differences of expected accuracy are taken for changes of accuracy: most that
        count are nearly whole, in the only direction that the base's answer leaves.

        of_error: for the error of a claim about the models, which is part of stored results, so it is computed as ever:
        without earlier tunings, and for expected accuracy from curves of its own and the expected difference 0.
        """
        low, high = self.strata.low, self.strata.high
        right, whole = -low > high, self.strata.whole or not of_error
        second = np.empty_like(self.seen)
        for side in (right, ~right):
            if side.any():
                second[:, side] = self._fitted(side, self.earlier[:0] if of_error else self.earlier, whole)
        toward = np.where(right, low, high)  # the only change that an item of 0 or 1 can make
        mean = toward * second if whole else np.zeros_like(second)
        n = self.seen + _PRIOR
        mean = ((self.sums + _PRIOR * mean) / n).clip(low, high)
        square = (self.squares + _PRIOR * second) / n
        return mean, np.maximum(square - mean ** 2, square / 20)

    def _fitted(self, side: NDArray[np.bool_], earlier: Floats, whole: bool) -> Floats:
        """The expected square by the curves, for the strata of one side. whole: squares are taken for shares of items
        that changed."""
        curves, prior = _curves(self.strata.rank[side], whole)
        if len(earlier):
            alike = np.concatenate([part * earlier[:, side] for part in _ALIKE]).clip(curves.min(), 0.98)
            curves = np.concatenate([curves, alike])
            prior = np.concatenate([prior, np.full(len(alike), _LIKELY)])
        n, squares = self.seen[:, side], self.squares[:, side]
        if whole:
            fit = squares @ np.log(curves).T + (n - squares) @ np.log1p(-curves).T
        else:  # as if normal, with half the weight, because changes of shares have long tails
            fit = -0.25 * (n @ np.log(curves).T + squares @ (1 / curves).T)
        fit += prior
        weight = np.exp(fit - fit.max(-1, keepdims=True))
        return np.asarray(weight @ curves / weight.sum(-1, keepdims=True))


def _curves(rank: Floats, whole: bool) -> tuple[Floats, Floats]:
    """Expected squares that fall exponentially with the rank, [curves, K], and the logarithm of their prior, [curves].

    Most tunings are gentle, so a steep fall is more likely in advance. Flat curves are among them: harsh tunings change
    sure answers too. whole: squares are shares of items that changed.
    """
    top = np.geomspace(0.04, 0.6, 7) if whole else np.geomspace(1e-4, 0.1, 10)
    fall = np.array([0.0, 1.5, 3, 5, 8, 12, 18]) if whole else np.array([0.0, 1, 2, 4])
    usual = (0.4, 6.0) if whole else (0.003, 1.0)
    curves = top[:, None, None] * np.exp(-fall[:, None] * rank) + (1e-3 if whole else 1e-6)
    prior = -(np.log(top / usual[0])[:, None] ** 2 / 2 + ((fall - usual[1]) / 4) ** 2 / 2)
    return curves.reshape(-1, rank.size), prior.ravel()


def _error_of_sample(square: Floats | float, items: int) -> Floats:
    """About how far a benchmark of so many items may be from the population, by the mean square of the differences."""
    return np.asarray(_Z * np.sqrt(_BETWEEN * square / items))


def enough_items(items: int, margin: float) -> bool:
    """False for a benchmark with so few items that unequal weights are no help in a claim about the models."""
    return bool(_error_of_sample(_USUAL, items) < _AFFORDABLE * margin)


# --- The draws, for one run or many ---

class WeightedDraws:
    """Which stratum the next items are drawn from, for ``runs`` runs at once.

    adaptive: with False all weights are 1 and nothing is predicted, which is uniform drawing. models: for a claim about
    the models, not about the full run. earlier: see `StrataSeen`. unseen: items of each stratum that were not drawn,
    [runs, K]; fresh: those of them in clusters of which no item was drawn. weighted: of each run, whether a batch had
    unequal chances, [runs].
    """

    def __init__(self, strata: Strata, margin: float, *, runs: int = 1, adaptive: bool = True, models: bool = False,
                 earlier: Floats | None = None) -> None:
        self.strata, self.margin, self.adaptive, self.models = strata, margin, adaptive, models
        self.items = strata.of_item.size
        self.unseen = np.tile(strata.sizes, (runs, 1))
        self.fresh = self.unseen.copy()
        self.memory = StrataSeen(strata, runs, earlier)
        self.weighted = np.zeros(runs, dtype=bool)

    @property
    def closed(self) -> NDArray[np.bool_]:
        """Strata of which a claim about the models counts no more items, [runs, K]: hardly any of them are fresh."""
        return np.asarray(self.fresh <= np.maximum(_CLOSING * self.strata.sizes, 1))

    def design(self, rejected: NDArray[np.bool_] | None = None) -> Design:
        """Weights, predictions and stakes of the next batch, from the batches before it.

        rejected: of each run, which tests of `Boundaries.around` have rejected, [runs, 4]. Once a loss beyond the
        margin is ruled out, only surprising gains can cost wealth, and the other way round.
        """
        left = np.maximum(self.unseen.sum(-1), 1)
        ones, none = np.ones_like(self.unseen), np.zeros_like(self.unseen)
        if not self.adaptive:
            return Design(ones, none, self.items / left, np.ones(len(ones), dtype=bool))
        mean, second = self.memory.estimates()
        down, up = mean - self.strata.low, self.strata.high - mean
        if rejected is not None:
            no_loss, no_gain = rejected[:, :1] & ~rejected[:, 3:4], rejected[:, 3:4] & ~rejected[:, :1]
            down, up = np.where(no_loss, down / _SETTLED, down), np.where(no_gain, up / _SETTLED, up)
        reach = np.maximum(down, up)
        if self.models:
            weights, stake = self._for_models(second, reach)
        else:
            weights, stake = best_design(self.unseen, second, reach, self.margin * self.items / left)
        equal = self._has_equal_chances()
        stake = np.where(equal, _EQUAL_STAKE, stake)
        return Design(np.where(equal[:, None], ones, weights), np.where(equal[:, None], none, mean), stake, equal)

    @property
    def _mean_square(self) -> Floats:
        """Mean square of the differences so far, with that of a usual tuning as if of 30 items, [runs]."""
        return np.asarray((self.memory.squares.sum(-1) + 2) / (self.memory.seen.sum(-1) + 30))

    def _has_equal_chances(self) -> NDArray[np.bool_]:
        """Of each run, whether the next batch is drawn with equal chances. It depends on the differences alone, not on
        the strata that they are from: so the batches until then are a random sample of the population. [runs]"""
        if not self.models:
            return np.zeros(len(self.unseen), dtype=bool)
        seen = self.items - self.unseen.sum(-1)
        error = _error_of_sample(self._mean_square, self.items)
        worthwhile = (self._mean_square < _GENTLE) & (error < _AFFORDABLE * self.margin)
        return np.asarray(~(self.weighted | (worthwhile & (seen >= _PILOT) & (seen <= _LATEST * self.items))))

    def _for_models(self, second: Floats, reach: Floats) -> tuple[Floats, Floats]:
        """Weights and stakes for a claim about the models: the probability of a stratum is the same however many of its
        items are left. Closed strata have the smallest weight."""
        closed = self.closed
        sizes = np.where(closed, 0.0, self.strata.sizes)
        gap = self.margin * self.items / np.maximum(sizes.sum(-1), 1)
        weights, stake = best_design(sizes, second, reach, gap)
        return np.where(closed, _FLOOR, weights * self.strata.sizes / np.maximum(self.fresh, 1)), stake

    def choose(self, design: Design, uniform: Floats) -> Ints:
        """The strata of the next items, int [runs, batch]. uniform: numbers in [0, 1), of the same shape."""
        unseen, chosen = self.unseen.copy(), np.empty(uniform.shape, dtype=np.int64)
        rows = np.arange(len(unseen))
        for t in range(uniform.shape[1]):
            sums = np.cumsum(unseen * design.weights, axis=-1)
            k = (sums <= (uniform[:, t] * sums[:, -1])[:, None]).sum(-1).clip(0, sums.shape[1] - 1)
            empty = unseen[rows, k] < 1  # by rounding at the end of the range
            k = np.where(empty, (unseen * design.weights).argmax(-1), k)
            chosen[:, t] = k
            unseen[rows, k] -= 1
        return chosen

    def take(self, design: Design, chosen: Ints, d: Floats, counted: NDArray[np.bool_] | None = None,
             fresh: Floats | None = None) -> None:
        """Record the differences of the items that were chosen by a design. counted: which of them may be counted, of
        items that belong together; fresh: the fresh items after the batch, where that is not the unseen ones."""
        if self.models:
            still_open = design.equal[:, None] | ~np.take_along_axis(self.closed, chosen, axis=1)
            counted = still_open if counted is None else counted & still_open
        self.memory.add(chosen, d, counted)
        np.subtract.at(self.unseen, (np.broadcast_to(np.arange(len(chosen))[:, None], chosen.shape), chosen), 1)
        self.fresh = self.unseen.copy() if fresh is None else fresh
        self.weighted = self.weighted | ~design.equal

    def keep(self, which: NDArray[np.bool_]) -> None:
        """Go on with some of the runs only."""
        self.unseen, self.fresh, self.weighted = self.unseen[which], self.fresh[which], self.weighted[which]
        self.memory.keep(which)
