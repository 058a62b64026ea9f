"""Weighted drawing of items between the ledger and its test: the strata of a base's answers, and a test from what is
stored.

    unit = with_strata(unit, base_values, margins, earlier)         before the first item: an EarlyUnit with its strata
    test = weighted_test(unit, base_values, 0.02, alpha=0.05, models=True, labels=None)
    test.draw(random_numbers(seed, unit.name, test.seen, 32))       a DrawnBatch

Items that the base nearly answered otherwise change most often, so they are drawn with a larger weight
(`aftertune.stats.weighted`). A mean over the drawn items therefore says nothing of the task: only `repeated_test`
reads them, with the weights of their batches.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from aftertune.catalog import MetricKey
from aftertune.comparison.answer_changes import choice_scores
from aftertune.comparison.lineage import find_relation
from aftertune.stats.paired import Floats
from aftertune.stats.weighted import QUANTILES, Strata
from aftertune.stats.weighted_sequential import WeightedSequential
from aftertune.values import Answer, Asked, EarlyUnit, Evaluation

if TYPE_CHECKING:
    from aftertune.ledger import Ledger

#: A task with no more items than this is asked with equal chances.
FEW = 200
#: Items of a stratum, at least about this many.
_STRATUM = 40
#: Earlier tunings of the same base whose changes are taken as likely, the newest ones.
_TUNINGS = 5
#: The mean square of the differences of an earlier tuning counts together with that of this many items of 2 % changes.
_SMOOTHING = 8


def choice_margin(answer: Answer, asked: Asked | None, key: str) -> float | None:
    """The score of the right choice less that of the best other one, as the metric compares them.

    Above 0 where the right choice was chosen. None where that is not known.
    """
    if asked is None or not asked.gold or len(answer.responses) < len(asked.choices):
        return None
    scores = choice_scores(MetricKey(key).metric, asked.choices, [r.logprob for r in answer.responses])
    right = [scores[g] for g in asked.gold if g < len(scores)]
    others = [s for i, s in enumerate(scores) if i not in asked.gold]
    if not right or not others:
        return None
    margin = max(right) - max(others)
    return margin if np.isfinite(margin) else None


def with_strata(unit: EarlyUnit, base: Floats, margins: Sequence[float],
                earlier: Sequence[tuple[Floats, Floats]] = ()) -> EarlyUnit:
    """The unit with strata for weighted drawing.

    base, margins: of each item in its random order, [N]. earlier: of earlier tunings, (values of the base, values of
    the tuning), in this order; NaN for an item that a tuning was not asked.

    A tuning that was stopped early counts with the items that it was asked. Which ones these are depends on the strata
    of the same base alone: within a stratum all items have the same chance, so the mean over those asked needs no
    weights.
    """
    quantiles = max(1, min(QUANTILES, base.size // (2 * _STRATUM)))
    strata = Strata.of(base, np.abs(np.asarray(margins)), quantiles)
    squares = []
    for own, tuned in earlier:
        asked = ~np.isnan(tuned)
        of_item, count = strata.of_item[asked], strata.sizes.size
        total = np.bincount(of_item, (tuned - own)[asked] ** 2, minlength=count)
        squares.append((total + 0.02 * _SMOOTHING) / (np.bincount(of_item, minlength=count) + _SMOOTHING))
    return replace(unit, draw="weighted", strata=strata.letters, ranks=tuple(strata.rank.round(4).tolist()),
                   earlier=tuple(tuple(s.round(4).tolist()) for s in squares))


def earlier_tunings(base: Evaluation, model: str, tasks: Sequence[str], ledger: Ledger) -> list[Evaluation]:
    """Evaluations of other tunings of the base's model on the same items, the newest ones. Of one that was stopped
    early at least `FEW` items were asked. model: fingerprint of the tuning that is evaluated now."""
    def alike(other: Evaluation) -> bool:
        pairs = [(a, b) for t in tasks if (a := base.task(t)) and (b := other.task(t))]
        return len(pairs) == len(tasks) and all((a.items, a.prompts) == (b.items, b.prompts) for a, b in pairs) and (
            all(b.used is None for _, b in pairs) or sum(b.n if b.used is None else b.used for _, b in pairs) >= FEW)

    made = [e for e in ledger.evaluations() if e.status == "done" and e.model.fingerprint != model and alike(e)
            and e.id != base.id and find_relation(base, e, ledger).lineage]
    return made[-_TUNINGS:]


def random_numbers(seed: int, unit: str, start: int, count: int) -> list[float]:
    """The numbers in [0, 1) that choose the strata of the draws from ``start`` on; fixed by their arguments."""
    return [int(hashlib.sha256(f"{seed}/{unit}/draw {i}".encode()).hexdigest()[:13], 16) / 16 ** 13
            for i in range(start, start + count)]


def weighted_test(unit: EarlyUnit, base: Floats, margin: float, *, alpha: float, models: bool,
                  labels: Sequence[Hashable | None] | None) -> WeightedSequential:
    """The test of a unit before its first batch. base: of each item in its random order; labels: of the clusters, None
    where no two items belong together."""
    numbers = {label: i for i, label in enumerate(dict.fromkeys(labels or ()))}
    clusters = np.array([numbers[label] for label in labels]) if labels is not None else None
    strata = Strata.read(unit.strata, unit.ranks, base)
    earlier = np.array(unit.earlier) if unit.earlier else None
    return WeightedSequential(strata, margin, alpha=alpha, models=models, clusters=clusters, earlier=earlier,
                              whole=strata.whole)


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnItems:
    """What is stored of a unit whose items were drawn with weights.

    base: values of all items in their random order; tuned: of the drawn ones, by position in this order; labels: of the
    clusters.
    """

    unit: EarlyUnit
    base: Floats
    tuned: Mapping[int, float]
    labels: Sequence[Hashable | None] | None
    repeated: dict[tuple[float, float, bool], WeightedSequential] = field(default_factory=dict, compare=False)

    def repeated_test(self, margin: float, *, alpha: float, models: bool) -> WeightedSequential:
        """The test after all batches, from what is stored. Raises ValueError where that is no run of it."""
        key = margin, alpha, models
        if key not in self.repeated:
            self.repeated[key] = self._repeat(margin, alpha=alpha, models=models)
        return self.repeated[key]

    def _repeat(self, margin: float, *, alpha: float, models: bool) -> WeightedSequential:
        test = weighted_test(self.unit, self.base, margin, alpha=alpha, models=models, labels=self.labels)
        for batch in self.unit.batches:
            positions = test.positions(batch)
            missing = [i for i in positions if i not in self.tuned]
            if missing:
                raise ValueError(f"{len(missing)} items of a batch have no answer")
            test.update(batch, [self.tuned[i] - float(self.base[i]) for i in positions])
        return test
