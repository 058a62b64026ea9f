"""Computes sequential verdicts on items that are drawn with unequal weights, where the base was unsure.

    strata = Strata.of(base=[1, 0, 1, …], confidence=[0.02, 0.7, …])     by the base's side and its margin
    test = WeightedSequential(strata, margin=0.02)
    chosen = test.draw([0.31, 0.87, …])       the stratum of each item of the next batch
    test.update(chosen, [0, -1, 0, …])        None, or "lower", "higher" or "within" as soon as it is proven
    test.interval()                           (-0.013, 0.011): a 95 % interval for all interim analyses together

An item that the base answered right can only be lost, and one that it answered wrong can only be gained; changes are
where its margin was small. So items are put into strata, and each draw takes an unseen item of stratum k with the
probability q = w_k / W, where W is the sum of the weights of all unseen items. Within a stratum the order is random and
fixed in advance. With a prediction e_k of the difference in each stratum (a control variate), and E the sum of the
predictions of all unseen items,

    Z = E + (d - e_k) / q                 has the mean  R = sum of the unseen differences,  given the past.

If the mean difference of the full run is b, R is N b - S (S: sum of the differences seen). The one-sided tests, the
mixture over bets, the level and the interval are those of `aftertune.stats.sequential`, with

    log K_j += log1p(lambda_j (Z - R)),   lambda_j <= 0.95 / (R - lowest possible Z)

Weights, predictions and bets are chosen before each batch from the base's answers and the batches before it, so each
K_j is a martingale whatever the tuned model does: a bad choice takes more items, but gives no more false verdicts. With
equal weights and no predictions, Z - R is W (d - mu), and the test of `aftertune.stats.sequential` comes out.

That is about the full run. The claim about the models adds the error of the benchmark itself: see `model_draws_of` and
`ModelBets`. Sources: Waudby-Smith, Stark & Ramdas 2021 (RiLACS, arXiv 2107.11323) and Shekhar, Xu,
Lipton, Liang & Ramdas 2023 (arXiv 2305.06884) on weighted sampling without replacement; Zrnic & Candès 2024 (arXiv
2403.03208) on predictions as control variates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from aftertune.stats.paired import Floats
from aftertune.stats.sequential import SCALES, Boundaries, exact_verdict, first_verdict
from aftertune.values import Verdict

Ints = NDArray[np.int64]

#: Strata of each side (items that the base answered right, and wrong): equal shares of its items by margin.
QUANTILES = 10
#: Bets as multiples of the best bet for a true difference of 0, and the share of the wealth that starts on each.
FITTED_SCALES: Floats = np.array([0.5, 0.75, 1.2, 2, 4, 8])
#: No bet may lose more than this share of its wealth on one item.
_MOST = 0.95
#: No weight is below this share of the mean weight.
_FLOOR = 0.1
#: Stakes that are tried, as parts of the largest possible one.
_PARTS: Floats = np.geomspace(0.01, 0.9, 18)
#: Items for which the first guess of a stratum's differences counts.
_PRIOR = 24.0
#: Surprises on the side that is settled may cost so many times more.
_SETTLED = 10.0
_NEAR = 1e-9


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
        low, high = np.zeros(sizes.size), np.zeros(sizes.size)
        np.maximum.at(low, labels, values)
        np.maximum.at(high, labels, 1 - values)
        return cls(labels, -low, high, np.bincount(labels, rank) / sizes if confidence is not None else
                   np.full(sizes.size, 0.5), bool((values == np.round(values)).all()))


# --- What is chosen before each batch ---

@dataclass(frozen=True, slots=True)
class Design:
    """Weights and predictions of the strata, [..., K], and the size of a bet on one item, [...].

    The mean weight of the unseen items is 1.
    """

    weights: Floats
    predictions: Floats
    stake: Floats


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
    """What the batches so far say of each stratum. Arrays [runs, K]: items seen, sum and sum of squares of d."""

    def __init__(self, strata: Strata, runs: int) -> None:
        self.strata = strata
        shape = runs, strata.low.size
        self.seen, self.sums, self.squares = np.zeros(shape), np.zeros(shape), np.zeros(shape)

    def add(self, chosen: Ints, d: Floats) -> None:
        """chosen, d: stratum and difference of each item, [runs, batch]."""
        rows = np.arange(len(chosen))[:, None]
        for into, values in ((self.seen, np.ones_like(d)), (self.sums, d), (self.squares, d * d)):
            np.add.at(into, (np.broadcast_to(rows, chosen.shape), chosen), values)

    def keep(self, which: NDArray[np.bool_]) -> None:
        """Go on with some of the runs only."""
        self.seen, self.sums, self.squares = self.seen[which], self.sums[which], self.squares[which]

    def estimates(self) -> tuple[Floats, Floats]:
        """Expected difference of each stratum, and its expected squared distance from it, [runs, K].

        Of each side, the expected square falls exponentially with the rank of the confidence: the mean of the curves
        that `_curves` lists, weighted by their likelihood. It counts as much as ``_PRIOR`` items of each stratum.
        """
        low, high = self.strata.low, self.strata.high
        right = -low > high
        second = np.empty_like(self.seen)
        for side in (right, ~right):
            if side.any():
                second[:, side] = self._fitted(side)
        toward = np.where(right, low, high)  # the only change that an item of 0 or 1 can make
        mean = toward * second if self.strata.whole else np.zeros_like(second)
        n = self.seen + _PRIOR
        mean = ((self.sums + _PRIOR * mean) / n).clip(low, high)
        square = (self.squares + _PRIOR * second) / n
        return mean, np.maximum(square - mean ** 2, square / 20)

    def _fitted(self, side: NDArray[np.bool_]) -> Floats:
        """The expected square by the curves, for the strata of one side."""
        curves, prior = _curves(self.strata.rank[side], self.strata.whole)
        n, squares = self.seen[:, side], self.squares[:, side]
        if self.strata.whole:
            fit = squares @ np.log(curves).T + (n - squares) @ np.log1p(-curves).T
        else:  # as if normal, with half the weight, because changes of shares have long tails
            fit = -0.25 * (n @ np.log(curves).T + squares @ (1 / curves).T)
        fit += prior
        weight = np.exp(fit - fit.max(-1, keepdims=True))
        return np.asarray(weight @ curves / weight.sum(-1, keepdims=True))


def _curves(rank: Floats, whole: bool) -> tuple[Floats, Floats]:
    """Expected squares that fall exponentially with the rank, [curves, K], and the logarithm of their prior, [curves].

    Most tunings are gentle, so a steep fall is more likely in advance. Flat curves are among them: harsh tunings change
    sure answers too.
    """
    top = np.geomspace(0.04, 0.6, 7) if whole else np.geomspace(1e-4, 0.1, 10)
    fall = np.array([0.0, 1.5, 3, 5, 8, 12, 18]) if whole else np.array([0.0, 1, 2, 4])
    usual = (0.4, 6.0) if whole else (0.003, 1.0)
    curves = top[:, None, None] * np.exp(-fall[:, None] * rank) + (1e-3 if whole else 1e-6)
    prior = -(np.log(top / usual[0])[:, None] ** 2 / 2 + ((fall - usual[1]) / 4) ** 2 / 2)
    return curves.reshape(-1, rank.size), prior.ravel()


# --- The draws and the tests, for one run or many ---

class WeightedDraws:
    """Which stratum the next items are drawn from, for ``runs`` runs at once.

    adaptive: with False all weights are 1 and nothing is predicted, which is uniform drawing.
    """

    def __init__(self, strata: Strata, margin: float, *, runs: int = 1, adaptive: bool = True) -> None:
        self.strata, self.margin, self.adaptive = strata, margin, adaptive
        self.items = strata.of_item.size
        self.unseen = np.tile(strata.sizes, (runs, 1))
        self.memory = StrataSeen(strata, runs)

    def design(self, rejected: NDArray[np.bool_] | None = None) -> Design:
        """Weights, predictions and stakes of the next batch, from the batches before it.

        rejected: of each run, which tests of `Boundaries.around` have rejected, [runs, 4]. Once a loss beyond the
        margin is ruled out, only surprising gains can cost wealth, and the other way round.
        """
        left = np.maximum(self.unseen.sum(-1), 1)
        if not self.adaptive:
            return Design(np.ones_like(self.unseen), np.zeros_like(self.unseen), self.items / left)
        mean, second = self.memory.estimates()
        down, up = mean - self.strata.low, self.strata.high - mean
        if rejected is not None:
            no_loss, no_gain = rejected[:, :1] & ~rejected[:, 3:], rejected[:, 3:] & ~rejected[:, :1]
            down, up = np.where(no_loss, down / _SETTLED, down), np.where(no_gain, up / _SETTLED, up)
        weights, stake = best_design(self.unseen, second, np.maximum(down, up), self.margin * self.items / left)
        return Design(weights, mean, stake)

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

    def take(self, chosen: Ints, d: Floats) -> None:
        """Record the differences of the chosen items."""
        self.memory.add(chosen, d)
        np.subtract.at(self.unseen, (np.broadcast_to(np.arange(len(chosen))[:, None], chosen.shape), chosen), 1)

    def keep(self, which: NDArray[np.bool_]) -> None:
        """Go on with some of the runs only."""
        self.unseen = self.unseen[which]
        self.memory.keep(which)


@dataclass(frozen=True, slots=True)
class Draw:
    """One drawn item of each run, as the tests need it. All arrays are [runs].

    value: Z. lowest, highest: bounds of Z. before: sum of the differences before it. after: sum with it. least, most:
    bounds of the sum of the full run after it. stake: lambda of a bet of scale 1.
    """

    value: Floats
    lowest: Floats
    highest: Floats
    before: Floats
    after: Floats
    least: Floats
    most: Floats
    stake: Floats


def draws_of(strata: Strata, design: Design, unseen: Floats, before: Floats, chosen: Ints, d: Floats) -> list[Draw]:
    """The draws of a batch. unseen: items of each stratum before it, [runs, K]. before: sum of the differences before
    it, [runs]. chosen, d: [runs, batch]."""
    rows, unseen, w, e = np.arange(len(unseen)), unseen.copy(), design.weights, design.predictions
    begun = unseen.sum(-1)
    draws = []
    for t in range(chosen.shape[1]):
        k, total, left = chosen[:, t], (unseen * w).sum(-1), np.maximum(unseen.sum(-1), 1)
        expected, possible = (unseen * e).sum(-1), unseen > 0
        low = expected + total * np.where(possible, (strata.low - e) / w, np.inf).min(-1)
        high = expected + total * np.where(possible, (strata.high - e) / w, -np.inf).max(-1)
        value = expected + total * (d[:, t] - e[rows, k]) / w[rows, k]
        unseen[rows, k] -= 1
        after = before + d[:, t]
        draws.append(Draw(value, low, high, before, after, after + (unseen * strata.low).sum(-1),
                          after + (unseen * strata.high).sum(-1), design.stake * begun / left ** 2))
        before = after
    return draws


def log_growth(draw: Draw, items: int, boundaries: Boundaries, scales: Floats) -> Floats:
    """Logarithm of the factor by which each bet grows on a draw, float64 [runs, tests, scales]."""
    remaining = items * boundaries.bound - draw.before[:, None]  # R, [runs, tests]
    up = boundaries.sign > 0
    room = np.where(up, remaining - draw.lowest[:, None], draw.highest[:, None] - remaining)
    gain = boundaries.sign * (draw.value[:, None] - remaining)
    stakes = np.minimum(scales * draw.stake[:, None, None], (_MOST / np.maximum(room, 1e-300))[..., None])
    factors = np.log1p(np.maximum(stakes * gain[..., None], -_MOST))
    return np.where((room > 0)[..., None], factors, 0.0)


def impossible(draw: Draw, items: int, boundaries: Boundaries) -> NDArray[np.bool_]:
    """Boundaries that the unseen items cannot reach any more, bool [runs, tests]."""
    total = items * boundaries.bound
    return np.where(boundaries.sign > 0, draw.least[:, None] > total + _NEAR, draw.most[:, None] < total - _NEAR)


class Bets:
    """The wealth of one-sided tests of many runs. reached: bool [runs, tests]; best: log of the largest mixture."""

    def __init__(self, items: int, boundaries: Boundaries, runs: int, alpha: float, scales: Floats) -> None:
        self.items, self.boundaries, self.scales = items, boundaries, scales
        self.threshold = math.log(2 / alpha)
        self.wealth = np.full((runs, boundaries.bound.size, scales.size), -math.log(scales.size))
        self.best = np.zeros((runs, boundaries.bound.size))
        self.out = np.zeros(self.best.shape, dtype=bool)

    def add(self, draw: Draw) -> NDArray[np.bool_]:
        """Bet on one draw. Returns which tests have rejected so far, [runs, tests]."""
        self.wealth += log_growth(draw, self.items, self.boundaries, self.scales)
        self.best = np.maximum(self.best, np.logaddexp.reduce(self.wealth, axis=-1))
        self.out |= impossible(draw, self.items, self.boundaries)
        return self.rejected

    @property
    def rejected(self) -> NDArray[np.bool_]:
        """Which tests have rejected so far, [runs, tests]."""
        return (self.best >= self.threshold) | self.out

    def keep(self, which: NDArray[np.bool_]) -> None:
        """Go on with some of the runs only."""
        self.wealth, self.best, self.out = self.wealth[which], self.best[which], self.out[which]


# --- The models: the population that the benchmark's items stand for ---

def model_draws_of(strata: Strata, design: Design, unseen: Floats, chosen: Ints, d: Floats) -> list[Draw]:
    """The draws of a batch as evidence about the models. Arguments as in `draws_of`.

    The unseen items of stratum k are a random sample of all items of its kind, with the mean difference mu_k. So with
    Q_k, the probability that a draw takes stratum k, and N_k, its items in the benchmark,

        Z = sum_k N_k e_k + N_k (d - e_k) / Q_k     has the mean  N theta = sum_k N_k mu_k

    There are no bounds from the items left. Once a stratum is exhausted, nothing more is learned (Z = N theta = 0).
    """
    rows, unseen, w, e = np.arange(len(unseen)), unseen.copy(), design.weights, design.predictions
    sizes, items, none = strata.sizes, float(strata.of_item.size), np.zeros(len(unseen))
    expected = (sizes * e).sum(-1)
    draws = []
    for t in range(chosen.shape[1]):
        k, parts = chosen[:, t], unseen * w
        open_ = (unseen > 0).all(-1)
        step = sizes * parts.sum(-1, keepdims=True) / np.where(unseen > 0, parts, 1)  # N_k / Q_k
        value = expected + step[rows, k] * (d[:, t] - e[rows, k])
        low, high = expected + (step * (strata.low - e)).min(-1), expected + (step * (strata.high - e)).max(-1)
        unseen[rows, k] -= 1
        draws.append(Draw(value, low, high, none, none, none - np.inf, none + np.inf,
                          np.where(open_, design.stake / items, 0.0)))
    return draws


def composition_error(strata: Strata, memory: StrataSeen) -> Floats:
    """Standard error of theta as an estimate of the models' mean difference, [runs].

    The benchmark is a sample of N items, so its shares N_k / N of the strata have an error, and theta has the variance
    sum_k (N_k / N) (mu_k - theta)**2 / N at most: the first phase of two-phase sampling (Neyman 1938, J Am Stat Assoc
    33:101). mu_k**2 is estimated by the square of its estimate plus its variance, which is too large on average.
    """
    mean, second = memory.estimates()
    share = strata.sizes / strata.of_item.size
    return np.asarray(np.sqrt((share * (mean ** 2 + second / (memory.seen + 1))).sum(-1) / strata.of_item.size))


#: Part of the error level for the benchmark's own sampling error, and the shifts of the margin that are prepared for
#: it, as parts of the margin.
_COMPOSITION = 0.2
_SHIFTS: Floats = np.array([0.025, 0.05, 0.075, 0.1, 0.125, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7, 1, 1.5, 2.5, 5])


class ModelBets:
    """One-sided tests of the models' mean difference, of many runs.

    The mean is theta plus an error of the benchmark's composition, h = z sqrt(variance) at ``_COMPOSITION`` of alpha.
    So "not below -m" is proven once "theta <= -(m - h)" is rejected at the rest of alpha, and "below -m" once
    "theta >= -(m + h)" is. The tests of several h run side by side; each analysis uses the next larger one. As all of
    them hold for all looks together, h may change from look to look.
    """

    def __init__(self, items: int, margin: float, runs: int, alpha: float, scales: Floats) -> None:
        h = margin * _SHIFTS
        self.z = float(ndtri(1 - _COMPOSITION * alpha / 2))
        self.shifts = h
        bound = np.concatenate([-(margin - h), margin + h, -(margin + h), margin - h])
        sign = np.repeat([1.0, 1.0, -1.0, -1.0], h.size)
        self.bets = Bets(items, Boundaries(sign, bound), runs, (1 - _COMPOSITION) * alpha, scales)

    def add(self, draw: Draw) -> None:
        """Bet on one draw."""
        self.bets.add(draw)

    def rejected(self, error: Floats) -> NDArray[np.bool_]:
        """The tests of `Boundaries.around`, bool [runs, 4]. error: `composition_error`, [runs]."""
        reached = self.bets.rejected.reshape(len(error), 4, self.shifts.size)
        which = np.searchsorted(self.shifts, self.z * error)
        known = which < self.shifts.size
        at = np.take_along_axis(reached, np.minimum(which, self.shifts.size - 1)[:, None, None], axis=2)[:, :, 0]
        return np.asarray(at & known[:, None])

    def keep(self, which: NDArray[np.bool_]) -> None:
        """Go on with some of the runs only."""
        self.bets.keep(which)


# --- One run ---

class WeightedSequential:
    """A sequential test of one metric on items that are drawn with weights. See the module.

    strata: of the task's items. margin: a fraction. alpha: error level of this metric. adaptive: False gives uniform
    drawing and the test of `aftertune.stats.sequential`. whole: differences are whole numbers. verdict: of the full
    run; models_verdict: of the models. Both are None while undecided, and do not change once they are there. Raises
    ValueError for a margin that is not positive or an alpha outside 0 to 1.
    """

    def __init__(self, strata: Strata, margin: float, *, alpha: float = 0.05, adaptive: bool = True, whole: bool = True
                 ) -> None:
        if not margin > 0 or not 0 < alpha < 1:
            raise ValueError(f"margin={margin}, alpha={alpha}: need margin > 0 and 0 < alpha < 1")
        self.strata, self.margin, self.alpha, self.step = strata, margin, alpha, 0 if whole else 1
        self.draws = WeightedDraws(strata, margin, adaptive=adaptive)
        self.items = self.draws.items
        self.scales = FITTED_SCALES if adaptive else SCALES
        self.bets = Bets(self.items, Boundaries.around(margin), 1, alpha, self.scales)
        self.models = ModelBets(self.items, margin, 1, alpha, self.scales)
        self.verdict: Verdict | None = None
        self.models_verdict: Verdict | None = None
        self.decided_at: int | None = None
        self.seen, self.sum = 0, 0.0
        self._design: Design | None = None
        self._history: list[Draw] = []

    def draw(self, uniform: Sequence[float] | Floats) -> list[int]:
        """The strata of the next batch, one for each number in [0, 1); fewer where fewer items are left.

        The next item of a stratum is the next one of its own random order. Calling it again before `update` replaces
        the batch.
        """
        u = np.asarray(uniform, dtype=np.float64)[:self.items - self.seen]
        self._design = self.draws.design(self.bets.rejected)
        return [int(k) for k in self.draws.choose(self._design, u[None])[0]]

    def update(self, chosen: Sequence[int], differences: Sequence[float] | Floats) -> Verdict | None:
        """Add the differences of the batch that `draw` gave. Returns the verdict of the full run, or None.

        Raises ValueError for a difference outside the bounds of its stratum, or for a batch that was not drawn.
        """
        k, d = np.asarray(chosen, dtype=np.int64), np.asarray(differences, dtype=np.float64)
        if self._design is None or k.shape != d.shape:
            raise ValueError(f"{k.size} strata and {d.size} differences: draw a batch, and give one for each")
        low, high = self.strata.low[k], self.strata.high[k]
        if not bool(((d >= low - _NEAR) & (d <= high + _NEAR)).all()):
            raise ValueError(f"differences {d.tolist()[:8]} are outside the bounds of their strata")
        self._bet(k[None], d.clip(low, high)[None], self._design)
        self._design = None
        if self.seen == self.items and self.verdict is None:
            self.verdict, self.decided_at = exact_verdict(self.sum / self.items, self.margin), self.items
        return self.verdict

    def _bet(self, k: Ints, d: Floats, design: Design) -> None:
        for draw in draws_of(self.strata, design, self.draws.unseen, np.array([self.sum]), k, d):
            rejected = self.bets.add(draw)
            self._history.append(draw)
            self.seen += 1
            if self.verdict is None and (first := first_verdict(rejected)) is not None:
                self.verdict, self.decided_at = first[0], self.seen
        for draw in model_draws_of(self.strata, design, self.draws.unseen, k, d):
            self.models.add(draw)
        self.draws.take(k, d)
        self.sum += float(d.sum())
        if self.models_verdict is None and self.draws.adaptive:
            proven = first_verdict(self.models.rejected(composition_error(self.strata, self.draws.memory)))
            self.models_verdict = None if proven is None else proven[0]

    @property
    def estimate(self) -> float:
        """Early estimate of the full run's mean difference: the mean of S + Z over the draws, 0 before the first."""
        return float(np.mean([h.before + h.value for h in self._history])) / self.items if self._history else 0.0

    def interval(self) -> tuple[float, float]:
        """Interval of the full run's mean difference, valid for all interim analyses together: the means not rejected.

        Its ends are accurate to one item in N and rounded outward. Ends in the wrong order (with a probability below
        alpha) are swapped.
        """
        n = self.items
        least = self.sum + float((self.draws.unseen * self.strata.low).sum())
        most = self.sum + float((self.draws.unseen * self.strata.high).sum())
        first, last = math.ceil(least - _NEAR), math.floor(most + _NEAR)
        low, high = self._edge(first, last, 1.0), self._edge(first, last, -1.0)
        ends = max(low - self.step, least) / n, min(high + self.step, most) / n
        return min(ends), max(ends)

    def _edge(self, first: int, last: int, sign: float) -> int:
        """The first k, from below (sign +1) or from above (-1), whose mean k / N is not rejected."""
        inside, outside = (last, first - 1) if sign > 0 else (first, last + 1)
        while abs(inside - outside) > 1:
            middle = (inside + outside) // 2
            inside, outside = (inside, middle) if self._rejects(middle / self.items, sign) else (middle, outside)
        return inside

    def _rejects(self, bound: float, sign: float) -> bool:
        """True where the test of ``bound`` from this side has ever reached the threshold."""
        bets = Bets(self.items, Boundaries(np.array([sign]), np.array([bound])), 1, self.alpha, self.scales)
        return any(bool(bets.add(draw).any()) for draw in self._history)
