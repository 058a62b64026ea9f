"""Tests whether a fine-tune moved the log-probabilities of a model.

    moves = [log_probability_move("text", [d]) for d in differences]
    adjusted_moves(moves)[0].moved            True where the mean change is proven to be more than rounding

Accuracy changes only where another choice becomes the most likely one. A log-probability changes on every item, so that
a few dozen items show that a model moved. It does not show that the model became worse.

The mean over the items is tested against +-ROUNDING with Student's t, with the cluster-robust error too where items
come in clusters, and with a BCa bootstrap too where there are few or skewed values. What all of them prove counts.
Where every item changed by the same amount there is no error to estimate, and the sign test takes their place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from aftertune.stats.bootstrap import TOO_FEW, Bootstrap, bca_mean
from aftertune.stats.item_errors import Clusters, ItemErrors, item_errors
from aftertune.stats.paired import Estimate, Floats, weakest
from aftertune.stats.verdict import ALPHA, holm
from aftertune.values.changes import LogProbabilityMove, MeanChange, Measure

#: A mean change of log-probabilities, or a KL divergence, of at most this many nats may come from rounding.
ROUNDING = 1e-3


@dataclass(frozen=True, slots=True)
class _Kinds:
    """The estimates of one mean over items, in each way that its items call for."""

    errors: ItemErrors
    bootstrap: Bootstrap | None

    @property
    def estimates(self) -> list[Estimate]:
        return [e for e in (self.errors.plain, self.errors.clustered, self.errors.by_task) if e is not None]

    @property
    def change(self) -> MeanChange:
        """The mean with the interval that contains those of all kinds."""
        mean = self.errors.plain.mean
        ends = [e.interval() for e in self.estimates] + ([self.bootstrap.interval()] if self.bootstrap else [])
        return MeanChange(mean=mean, low=min(low for low, _ in ends), high=max(high for _, high in ends))

    def p(self, n: int) -> float:
        """Two-sided p of "the mean is within +-ROUNDING": the largest of all kinds. n: items, or clusters of them."""
        if self.errors.plain.degenerate:
            return min(1.0, 2 * 0.5**n) if abs(self.errors.plain.mean) > ROUNDING else 1.0
        tests = [e.tests(ROUNDING) for e in self.estimates]
        return weakest(*tests, self.bootstrap.tests(ROUNDING) if self.bootstrap else None).moved


def _kinds(strata: Sequence[Floats], clusters: Clusters | None) -> _Kinds:
    return _Kinds(item_errors(strata, clusters=clusters), bca_mean(strata[0]) if len(strata) == 1 else None)


def mean_change(strata: Sequence[Floats], clusters: Clusters | None = None) -> MeanChange:
    """A mean over items with its 95 % interval. strata: float64 [n] for each task; clusters: labels for each task."""
    return _kinds(strata, clusters).change


def log_probability_move(measure: Measure, strata: Sequence[Floats], clusters: Clusters | None = None,
                         problem: str = "") -> LogProbabilityMove:
    """Estimate and test a mean change over all items. strata: tuned less base, nats, float64 [n] for each task.

    clusters: a label for each item of each task. problem: why nothing can be proven. Fewer than 8 items or clusters
    prove nothing either. Raises ValueError for no item or a value that is not finite.
    """
    kinds, n = _kinds(strata, clusters), sum(s.size for s in strata)
    errors, change = kinds.errors, kinds.change
    se = max(e.se for e in kinds.estimates)
    clustered = errors.clustered is not None
    observations = errors.clusters if clustered else n
    if observations < TOO_FEW:
        problem = problem or f"fewer than {TOO_FEW} {'clusters of items' if clustered else 'items'}"
    problem = problem or errors.problem
    p = 1.0 if problem else kinds.p(observations)
    return LogProbabilityMove(measure=measure, n=n, mean=change.mean, low=change.low, high=change.high,
                              z=change.mean / se if se > 0 else None, p=p, p_adjusted=p, moved=p < ALPHA,
                              clustered=clustered, problem=problem)


def adjusted_moves(moves: Sequence[LogProbabilityMove]) -> list[LogProbabilityMove]:
    """The moves after Holm's correction over all of them, in their order."""
    return [replace(move, p_adjusted=p, moved=p < ALPHA)
            for move, p in zip(moves, holm([m.p for m in moves]), strict=True)]
