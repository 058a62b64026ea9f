"""A sequential test of one metric on items that are drawn where the base was unsure.

    test = WeightedSequential(strata, margin=0.02, models=True)
    batch = test.draw([0.31, 0.87, …])          a DrawnBatch: weights, predictions, and the stratum of each item
    positions = test.positions(batch)           which items these are
    test.update(batch, [0, -1, 0, …])           None, or "lower", "higher" or "within" as soon as it is proven
    test.interval()                             (-0.013, 0.011): a 95 % interval for all interim analyses together

A batch says all that its bets depend on, so a ledger that has the batches and the answers can repeat the test, at any
margin and about either target, whatever a later version would have drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields

import numpy as np
from numpy.typing import NDArray

from aftertune.stats.paired import Floats, MarginTests
from aftertune.stats.sequential import LOOKS, SCALES, AnytimeClaims, Boundaries, anytime_tests, exact_verdict
from aftertune.stats.verdict import SETTLED
from aftertune.stats.weighted import Design, Ints, Strata, WeightedDraws
from aftertune.stats.weighted_bets import (
    COMPOSITION,
    FITTED_SCALES,
    Bets,
    Draw,
    ModelBets,
    ModelError,
    draws_of,
    impossible,
    log_growth,
    model_draws_of,
    model_error,
)
from aftertune.values import DrawnBatch, Verdict

_NEAR = 1e-9
#: An interval for the models has ends that are multiples of 1 / _STEPS.
_STEPS = 1_000_000


class _Clusters:
    """Which items belong together, as draws go on. labels: the cluster of each item, int [N]."""

    def __init__(self, labels: Ints, strata: Strata) -> None:
        self.labels, self.of_item, self.count = labels, strata.of_item, strata.low.size
        self.members = [np.flatnonzero(labels == c) for c in range(int(labels.max()) + 1)]
        self.seen = np.zeros(len(self.members), dtype=bool)
        self.fresh = strata.sizes
        sizes = np.bincount(labels)[labels].astype(np.float64)
        #: Summed over the items of each stratum.
        self.sizes = np.bincount(self.of_item, sizes, minlength=self.count).astype(np.float64)

    def take(self, positions: Sequence[int]) -> tuple[Floats, NDArray[np.bool_]]:
        """(fresh items of each stratum before each draw [1, batch, K], which draws are fresh [1, batch])."""
        before, counted = [], []
        for i in positions:
            before.append(self.fresh.copy())
            cluster = self.labels[i]
            counted.append(not self.seen[cluster])
            if counted[-1]:
                self.seen[cluster] = True
                self.fresh -= np.bincount(self.of_item[self.members[cluster]], minlength=self.count)
        return np.array(before)[None], np.array(counted)[None]


class WeightedSequential(AnytimeClaims):
    """A sequential test on weighted draws. It keeps the draws in memory.

    strata: of the task's items, in their random order. margin: a fraction. alpha: error level of this metric. models:
    the claim is about the models; otherwise about the full run. clusters: the cluster of each item, int [N] from 0 up;
    None where no two items belong together. earlier: expected squares of the differences of earlier tunings in each
    stratum, [tunings, K]. adaptive: False gives uniform drawing, and for the full run the test of
    `aftertune.stats.sequential`. whole: differences are whole numbers. Raises ValueError for a margin that is not
    positive or an alpha outside 0 to 1.
    """

    def __init__(self, strata: Strata, margin: float, *, alpha: float = 0.05, models: bool = False,
                 clusters: Ints | None = None, earlier: Floats | None = None, adaptive: bool = True,
                 whole: bool = True) -> None:
        if not margin > 0 or not 0 < alpha < 1:
            raise ValueError(f"margin={margin}, alpha={alpha}: need margin > 0 and 0 < alpha < 1")
        self.strata, self.margin, self.alpha, self.of_models = strata, margin, alpha, models
        self.step = 0 if whole and not models else 1
        self.draws = WeightedDraws(strata, margin, adaptive=adaptive, models=models, earlier=earlier)
        self.items = self.draws.items
        self.scales = FITTED_SCALES if adaptive else SCALES
        self.clusters = _Clusters(clusters, strata) if models and clusters is not None else None
        self.queues = [np.flatnonzero(strata.of_item == k) for k in range(strata.low.size)]
        self.full = Bets(self.items, Boundaries.around(margin, zero=True), 1, alpha, self.scales)
        self.models = ModelBets(self.items, margin, 1, self.scales, zero=True)
        self.seen, self.sum = 0, 0.0
        self._full_history: list[Draw] = []
        self._history: list[Draw] = []  # of the target

    def draw(self, uniform: Sequence[float] | Floats) -> DrawnBatch:
        """The next batch, one item for each number in [0, 1); fewer where fewer items are left.

        It depends on the numbers and on the batches before it, and changes nothing. Weights, predictions and stake are
        rounded, so that they are stored as they are used.
        """
        u = np.asarray(uniform, dtype=np.float64)[:self.items - self.seen]
        made = self.draws.design(self._rejected)
        design = Design(made.weights.round(4), made.predictions.round(5), made.stake.round(12), made.equal)
        equal = bool(design.equal[0])
        return DrawnBatch(weights=() if equal else tuple(design.weights[0].tolist()),
                          predictions=() if equal else tuple(design.predictions[0].tolist()),
                          stake=float(design.stake[0]), strata=tuple(self.draws.choose(design, u[None])[0].tolist()))

    def positions(self, batch: DrawnBatch) -> list[int]:
        """The items of the next batch: of each stratum, the first ones in their random order that were not drawn.

        Raises ValueError for a batch that takes more items of a stratum than are left.
        """
        taken = (self.strata.sizes - self.draws.unseen[0]).astype(np.int64)
        result = []
        for k in batch.strata:
            if not 0 <= k < len(self.queues) or taken[k] >= self.queues[k].size:
                raise ValueError(f"no item of stratum {k} is left after {self.seen} items")
            result.append(int(self.queues[k][taken[k]]))
            taken[k] += 1
        return result

    def update(self, batch: DrawnBatch, differences: Sequence[float] | Floats) -> Verdict | None:
        """Add the differences of the items of a batch, in its order. Returns ``verdict``.

        Raises ValueError for a difference outside the bounds of its stratum, or where there is not one for each item.
        """
        k, d = np.asarray(batch.strata, dtype=np.int64), np.asarray(differences, dtype=np.float64)
        count = self.strata.low.size
        weights, predictions = (batch.weights, batch.predictions) if batch.weights else ((1.0,) * count, (0.0,) * count)
        if k.shape != d.shape or not len(weights) == len(predictions) == count or min(weights) <= 0:
            raise ValueError(f"{k.size} items, {d.size} differences, {len(weights)} weights for {count} strata: need "
                             "one difference for each item, and positive weights")
        low, high = self.strata.low[k], self.strata.high[k]
        if not bool(((d >= low - _NEAR) & (d <= high + _NEAR)).all()):
            raise ValueError(f"differences {d.tolist()[:8]} are outside the bounds of their strata")
        design = Design(np.array([weights]), np.array([predictions]), np.array([batch.stake]),
                        np.array([not batch.weights]))
        self._bet(self.positions(batch), k[None], d.clip(low, high)[None], design)
        return self.verdict

    def _bet(self, positions: Sequence[int], k: Ints, d: Floats, design: Design) -> None:
        of_full = draws_of(self.strata, design, self.draws.unseen, np.array([self.sum]), k, d)
        self._full_history += of_full
        if self.of_models:
            fresh, counted = self.clusters.take(positions) if self.clusters else (None, None)
            of_models = model_draws_of(self.draws, design, k, d, fresh, counted)
            for draw in of_models:
                self.models.add(draw)
            self._history += of_models
            self.draws.take(design, k, d, counted, self.clusters.fresh[None] if self.clusters else None)
        else:
            for draw in of_full:
                self.full.add(draw)
            self._history += of_full
            self.draws.take(design, k, d)
        self.seen, self.sum = self.seen + len(positions), self.sum + float(d.sum())

    @property
    def _one_sided(self) -> Floats:
        """One-sided p of the tests of `Boundaries.around` with ``zero``, [6]."""
        if self.of_models:
            return np.asarray(self.models.p(self._error)[0])
        return np.where(self.full.out[0], 0.0, np.exp(-self.full.best[0]))

    @property
    def _rejected(self) -> NDArray[np.bool_]:
        return np.asarray(self._one_sided[None, :4] <= self.alpha / 2)

    @property
    def _error(self) -> ModelError:
        return model_error(self.draws, self.clusters.sizes if self.clusters else None)

    @property
    def tests(self) -> MarginTests:
        """The anytime-valid p-values after the items so far."""
        if not self.of_models and self.seen == self.items:
            true = {exact_verdict(self.sum / self.items, self.margin)} | self._signs()
            return MarginTests(**{f.name: float(f.name not in true) for f in fields(MarginTests)})
        with np.errstate(divide="ignore"):
            return anytime_tests(-np.log(self._one_sided))

    def _signs(self) -> set[str]:
        """What is true of a full run beside its verdict."""
        mean = self.sum / self.items
        facts = {"worse": mean < -_NEAR, "better": mean > _NEAR, "no_drop": mean >= -self.margin - 1e-12}
        return {name for name, holds in facts.items() if holds}

    @property
    def verdict(self) -> Verdict | None:
        """The first of "lower", "higher" and "within" that is proven, or None."""
        claims = self.claims & SETTLED
        return next((claim for claim in ("lower", "higher", "within") if claim in claims), None)

    @property
    def estimate(self) -> float:
        """Unbiased estimate of the full run's mean difference: the mean of (S + Z) / N over the draws; 0 before the
        first. At a stop it is an early estimate, as all are."""
        history = self._full_history
        return float(np.mean([h.before + h.value for h in history])) / self.items if history else 0.0

    def interval(self) -> tuple[float, float]:
        """Interval of the mean difference, valid for all interim analyses together: the means not rejected.

        Its ends are accurate to one item in N, or for the models to a millionth, and rounded outward. Ends in the wrong
        order (with a probability below alpha) are swapped.
        """
        if self.of_models:
            level = LOOKS * self.alpha
            threshold, widened = math.log(2 / ((1 - COMPOSITION) * level)), float(
                self._error.reach(COMPOSITION * level / 2)[0])
            n, unseen, total = _STEPS, self.strata.sizes / self.items * _STEPS, 0.0
        else:
            threshold, widened, n = math.log(2 / self.alpha), 0.0, self.items
            unseen, total = self.draws.unseen[0], self.sum
        least, most = total + float((unseen * self.strata.low).sum()), total + float((unseen * self.strata.high).sum())
        first, last = math.ceil(least - _NEAR), math.floor(most + _NEAR)
        low, high = (self._edge(first, last, sign, n, threshold) for sign in (1.0, -1.0))
        ends = max(low - self.step, least) / n - widened, min(high + self.step, most) / n + widened
        return max(min(ends), -1.0), min(max(ends), 1.0)

    def _edge(self, first: int, last: int, sign: float, n: int, threshold: float) -> int:
        """The first k, from below (sign +1) or from above (-1), whose mean k / n is not rejected."""
        if not self._history:
            return first if sign > 0 else last
        draws = Draw(*(np.concatenate([getattr(h, f.name) for h in self._history]) for f in fields(Draw)))
        inside, outside = (last, first - 1) if sign > 0 else (first, last + 1)
        while abs(inside - outside) > 1:
            middle = (inside + outside) // 2
            if self._rejects(draws, middle / n, sign, threshold):
                outside = middle
            else:
                inside = middle
        return inside

    def _rejects(self, draws: Draw, bound: float, sign: float, threshold: float) -> bool:
        """True where the test of ``bound`` from this side has ever reached the threshold. draws: all, as [draws]."""
        boundary = Boundaries(np.array([sign]), np.array([bound]))
        wealth = np.cumsum(log_growth(draws, self.items, boundary, self.scales)[:, 0], axis=0)
        best = np.logaddexp.reduce(wealth - math.log(self.scales.size), axis=-1).max()
        return bool(best >= threshold) or bool(impossible(draws, self.items, boundary).any())
