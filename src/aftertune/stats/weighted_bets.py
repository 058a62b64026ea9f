"""Tests by bets on items that are drawn with unequal weights. `aftertune.stats.weighted` chooses the draws.

    bets = Bets(items, Boundaries.around(0.02), runs=1, alpha=0.05, scales=FITTED_SCALES)
    for draw in draws_of(strata, design, draws.unseen, before, chosen, d):
        bets.add(draw)                                      which tests have rejected so far

A draw takes stratum k with the probability q = w_k / W for each of its unseen items. With a prediction e_k of the
difference in each stratum (a control variate), and E the sum of the predictions of all unseen items,

    Z = E + (d - e_k) / q                 has the mean  R = sum of the unseen differences,  given the past.

If the mean difference of the full run is b, R is N b - S (S: sum of the differences seen). The one-sided tests, the
mixture over bets, the level and the interval are those of `aftertune.stats.sequential`, with

    log K_j += log1p(lambda_j (Z - R)),   lambda_j <= 0.95 / (R - lowest possible Z)

Weights, predictions and bets are chosen before each batch from the base's answers and the batches before it, so each
K_j is a martingale whatever the tuned model does. With equal weights and no predictions, Z - R is W (d - mu), and the
test of `aftertune.stats.sequential` comes out. That is about the full run. The claim about the models adds the error of
the benchmark itself: see `model_draws_of` and `ModelBets`. Sources: those of `aftertune.stats.weighted`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from aftertune.stats.paired import Floats
from aftertune.stats.sequential import Boundaries
from aftertune.stats.weighted import Design, Ints, Strata, WeightedDraws

#: Bets as multiples of the best bet for a true difference of 0, and the share of the wealth that starts on each.
FITTED_SCALES: Floats = np.array([0.5, 0.75, 1.2, 2, 4, 8])
#: No bet may lose more than this share of its wealth on one item.
_MOST = 0.95
_NEAR = 1e-9


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

def model_draws_of(draws: WeightedDraws, design: Design, chosen: Ints, d: Floats, fresh: Floats | None = None,
                   counted: NDArray[np.bool_] | None = None) -> list[Draw]:
    """The draws of a batch as evidence about the models. draws: before the batch; chosen, d: as in `draws_of`.

    The fresh items of stratum k are a random sample of all items of its kind, with the mean difference mu_k. So with
    Q_k, the probability that a fresh draw takes stratum k, and N_k, its items in the benchmark,

        Z = sum_k N_k e_k + N_k (d - e_k) / Q_k     has the mean  N theta = sum_k N_k mu_k

    There are no bounds from the items left. Of a closed stratum, N_k times the mean of the items that were counted
    takes the place of N_k mu_k; `model_error` has the error of that. Items that belong to clusters of which one was
    seen, and those of closed strata, are not counted: there is no bet on them. Of a batch with equal chances, the fresh
    items are a random sample of the population, and Z = N d.

    fresh: fresh items of each stratum before each draw, [runs, batch, K], and counted: which draws are fresh, [runs,
    batch]; None where no items belong together.
    """
    strata, w, e, closed, memory = draws.strata, design.weights, design.predictions, draws.closed, draws.memory
    rows, none, sizes, unseen = np.arange(len(chosen)), np.zeros(len(chosen)), strata.sizes, draws.unseen.copy()
    known = memory.sums / np.maximum(memory.seen, 1)  # means of the closed strata
    expected = (sizes * np.where(closed, known, e)).sum(-1)
    open_sizes = np.where(closed, 0.0, sizes)
    stake = design.stake / np.where(design.equal, sizes.sum(), np.maximum(open_sizes.sum(-1), 1))
    items, equal, lowest, highest = strata.of_item.size, design.equal, strata.low.min(), strata.high.max()
    made = []
    for t in range(chosen.shape[1]):
        k, now = chosen[:, t], unseen if fresh is None else fresh[:, t]
        parts = np.where(closed, 0.0, now * w)
        usable = ~closed[rows, k] & ((now > 0) | closed).all(-1)
        step = open_sizes * parts.sum(-1, keepdims=True) / np.where(parts > 0, parts, 1)  # N_k / Q_k
        value = expected + step[rows, k] * (d[:, t] - e[rows, k])
        low, high = expected + (step * (strata.low - e)).min(-1), expected + (step * (strata.high - e)).max(-1)
        value, low, high = (np.where(equal, a, b) for a, b in (
            (items * d[:, t], value), (items * lowest, low), (items * highest, high)))
        usable = (equal | usable) if counted is None else (equal | usable) & counted[:, t]
        unseen[rows, k] -= 1
        made.append(Draw(value, low, high, none, none, none - np.inf, none + np.inf, np.where(usable, stake, 0.0)))
    return made


@dataclass(frozen=True, slots=True)
class ModelError:
    """Error of theta, and of what takes its place once strata are closed, as estimates of the models' mean difference.

    standard: its standard error, [runs]; 0 as long as all batches had equal chances. sides: 1, or 2 once a stratum is
    closed; the probability that the error is ever beyond h is then twice that of the last one (Lévy's inequality for
    partial sums).
    """

    standard: Floats
    sides: Floats

    def tail(self, h: Floats) -> Floats:
        """Probability of an error beyond h on one side, [runs, shifts]. h: [shifts]."""
        chance = self.sides[:, None] * ndtr(-h / np.maximum(self.standard[:, None], 1e-300))
        return np.asarray(np.where(self.standard[:, None] > 0, np.minimum(chance, 1.0), 0.0))

    def reach(self, p: float) -> Floats:
        """The error that is exceeded on one side with the probability p, [runs]."""
        return np.asarray(-ndtri(p / self.sides) * self.standard)


def model_error(draws: WeightedDraws, cluster_sizes: Floats | None = None) -> ModelError:
    """The error of the benchmark as a sample, after the items so far.

    The benchmark has N items, so its shares N_k / N of the strata have an error, and theta has the variance sum_k
    (N_k / N) (mu_k - theta)**2 / N at most: the first phase of two-phase sampling (Neyman 1938, J Am Stat Assoc
    33:101). mu_k**2 is estimated by the square of its estimate plus its variance, which is too large on average. Where
    items belong together, the variance of their sum is at most their number times the sum of their variances:
    cluster_sizes has the sum of the sizes of the clusters over the items of each stratum, [K]; None: each item alone.
    A closed stratum adds (N_k / N)**2 times the variance of the mean of its counted items.
    """
    strata, memory = draws.strata, draws.memory
    items = strata.of_item.size
    mean, second = memory.estimates(of_error=True)
    share = (strata.sizes if cluster_sizes is None else cluster_sizes) / items
    variance = (share * (mean ** 2 + second / (memory.seen + 1))).sum(-1) / items
    widest = np.maximum(strata.high, -strata.low) ** 2
    of_mean = np.where(memory.seen > 0, second / np.maximum(memory.seen, 1), widest)
    variance = variance + np.where(draws.closed, (strata.sizes / items) ** 2 * of_mean, 0.0).sum(-1)
    return ModelError(np.where(draws.weighted, np.sqrt(variance), 0.0), np.where(draws.closed.any(-1), 2.0, 1.0))


#: Part of the error level for the benchmark's own sampling error, and the shifts of the margin that are prepared for
#: it, as parts of the margin.
COMPOSITION = 0.1
_SHIFTS: Floats = np.array([0, 0.025, 0.05, 0.075, 0.1, 0.125, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7, 1, 1.5, 2.5, 5])


class ModelBets:
    """One-sided tests of the models' mean difference, of many runs.

    The mean is theta plus an error of the benchmark, which is beyond h with the probability `ModelError.tail`. So "not
    below -m" is proven at the level alpha / 2 once "theta <= -(m - h)" is rejected at (1 - `COMPOSITION`) alpha / 2,
    for an h that the error exceeds with a probability of at most `COMPOSITION` alpha / 2; and "below -m" once "theta >=
    -(m + h)" is. The tests of several h run side by side, and each analysis uses the best one. Tests of larger h are
    true where those of smaller h are, so all of them hold for all looks together. zero: and the tests against 0.
    """

    def __init__(self, items: int, margin: float, runs: int, scales: Floats, *, zero: bool = False) -> None:
        self.shifts = margin * _SHIFTS
        tests = Boundaries.around(margin, zero=zero)
        self.tests = tests.bound.size
        sign = np.repeat(tests.sign, self.shifts.size)
        bound = (tests.bound[:, None] + tests.sign[:, None] * self.shifts).ravel()
        self.bets = Bets(items, Boundaries(sign, bound), runs, 1.0, scales)

    def add(self, draw: Draw) -> None:
        """Bet on one draw."""
        self.bets.add(draw)

    def p(self, error: ModelError) -> Floats:
        """One-sided anytime-valid p of the tests of `Boundaries.around`, [runs, tests]. error: after the last draw."""
        best = self.bets.best.reshape(-1, self.tests, self.shifts.size)
        of_bets = np.exp(-best) / (1 - COMPOSITION)
        of_error = error.tail(self.shifts)[:, None] / COMPOSITION
        return np.asarray(np.minimum(np.maximum(of_bets, of_error).min(-1), 1.0))

    def keep(self, which: NDArray[np.bool_]) -> None:
        """Go on with some of the runs only."""
        self.bets.keep(which)
