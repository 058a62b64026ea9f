"""The sequential tests of an evaluation in progress: which items are asked next, and whether a verdict is safe.

    batch = test.next_batch()                     (task, index in its list of items, key) of each item
    test.analyze(base_metrics, tuned_metrics, early)
    test.decided, test.asked, test.ended()
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from aftertune.catalog import FRACTIONS, unit_of
from aftertune.comparison.weighted_draws import random_numbers
from aftertune.stats.sequential import PairedSequential
from aftertune.stats.weighted_sequential import WeightedSequential
from aftertune.values import DrawnBatch, Early, EarlyUnit

#: An item, as (task, index), and its values by ``metric,filter``.
ItemKey = tuple[str, int]
ItemMetrics = Mapping[str, float]


class RunningTest:
    """A sequential test in progress. order: (task, index in its list of items, key) of each item, in random order.

    counted: which items the test counts, in this order. sequential: None for a metric that cannot be tested early; then
    all items are one batch.
    """

    sequential: PairedSequential | WeightedSequential | None

    def __init__(self, unit: EarlyUnit, order: Sequence[tuple[str, int, ItemKey]], sign: int,
                 counted: NDArray[np.bool_], sequential: PairedSequential | WeightedSequential | None) -> None:
        self.unit, self.order, self.sign, self.counted, self.sequential = unit, order, sign, counted, sequential
        self.used = 0
        self.decided = False
        self.no_share = False  # a value outside [0, 1] was met, so all items are asked

    def next_batch(self) -> Sequence[tuple[str, int, ItemKey]]:
        batch = self.unit.items if self.sequential is None else self.unit.batch
        return self.order[self.used:self.used + batch]

    def analyze(self, base: Mapping[ItemKey, ItemMetrics], tuned: Mapping[ItemKey, ItemMetrics], early: Early) -> None:
        """Add the answers to the batch. ``decided`` becomes True once the verdict is safe or all items are used."""
        batch, key = self.next_batch(), self.unit.key
        values = [side[k][key] for _, _, k in batch for side in (base, tuned)]
        if self.sequential is not None and unit_of("", values) not in FRACTIONS:
            self.sequential, self.no_share = None, True
        self._add(np.array([self.sign * (tuned[k][key] - base[k][key]) for _, _, k in batch]))
        self.used += len(batch)
        self.decided = self.used == self.unit.items or self._is_safe(early) or self._is_enough(early)

    def _add(self, differences: NDArray[np.float64]) -> None:
        """Add the differences of the batch to the test."""
        if isinstance(self.sequential, PairedSequential):
            self.sequential.update(differences[self.counted[self.used:self.used + len(differences)]])

    @property
    def asked(self) -> Sequence[tuple[str, int, ItemKey]]:
        """The items that were asked so far."""
        return self.order[:self.used]

    def _is_safe(self, early: Early) -> bool:
        """True once there is a verdict, on enough items and with an interval that is narrow enough."""
        if self.sequential is None or self.sequential.verdict is None or self.used < early.min_items:
            return False
        low, high = self.sequential.interval() if early.max_width is not None else (0.0, 0.0)
        return high - low <= (early.max_width or 0.0)

    def _is_enough(self, early: Early) -> bool:
        """True where the next batch would exceed the largest number of items."""
        return self.sequential is not None and early.max_items is not None and \
            self.used + self.unit.batch > early.max_items

    @property
    def stopped(self) -> bool:
        return self.used < self.unit.items

    def ended(self) -> EarlyUnit:
        """The test as it is stored at the end."""
        verdict = self.sequential.verdict if self.sequential and self.stopped else None
        return replace(self.unit, used=self.used, verdict=verdict)


class WeightedTest(RunningTest):
    """A test on items that are drawn with weights. batches: what was drawn, also before an interruption."""

    def __init__(self, unit: EarlyUnit, order: Sequence[tuple[str, int, ItemKey]], sequential: WeightedSequential,
                 seed: int, batches: Sequence[DrawnBatch]) -> None:
        super().__init__(unit, order, 1, np.ones(len(order), dtype=bool), sequential)
        self.seed, self.batches, self.analyses = seed, list(batches), 0
        self.positions: list[int] = []  # in ``order``, of all items so far
        self.next_positions: list[int] = []  # of the next batch, once it is known

    def next_batch(self) -> Sequence[tuple[str, int, ItemKey]]:
        if not self.next_positions:
            self.next_positions = self._draw()
        return [self.order[i] for i in self.next_positions]

    def _draw(self) -> list[int]:
        if not isinstance(self.sequential, WeightedSequential):
            taken = set(self.positions)
            return [i for i in range(len(self.order)) if i not in taken]
        if len(self.batches) == self.analyses:
            numbers = random_numbers(self.seed, self.unit.name, self.used, self.unit.batch)
            self.batches.append(self.sequential.draw(numbers))
        return self.sequential.positions(self.batches[self.analyses])

    def _add(self, differences: NDArray[np.float64]) -> None:
        self.positions += self.next_positions
        self.next_positions = []
        if isinstance(self.sequential, WeightedSequential):
            self.sequential.update(self.batches[self.analyses], differences)
            self.analyses += 1

    @property
    def asked(self) -> Sequence[tuple[str, int, ItemKey]]:
        return [self.order[i] for i in self.positions]

    def ended(self) -> EarlyUnit:
        return replace(super().ended(), batches=tuple(self.batches[:self.analyses]))
