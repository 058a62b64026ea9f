"""Defines counts of what the answers of two models to the same items look like.

    PairedCount(n=80, base=3, tuned=78, gained=75, lost=0)      texts that reached the token limit, before and after
    PositionTable(n=100, right=(24, 26, 25, 25), pairs=((0, 100), (0, 0)))      first choice before, second one after

They describe answers and do not say whether these are right. `aftertune.comparison.answer_changes` makes them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedCount:
    """On how many of n items the answers of two models have some property.

    base, tuned: items on which the answer of this model has it. gained: only the tuned model's has it; lost: only the
    base's has it.
    """

    n: int
    base: int
    tuned: int
    gained: int
    lost: int

    @classmethod
    def of(cls, base: list[bool], tuned: list[bool]) -> PairedCount:
        """From the items of both sides, in the same order. Raises ValueError for lists of different lengths."""
        pairs = list(zip(base, tuned, strict=True))
        return cls(n=len(pairs), base=sum(base), tuned=sum(tuned), gained=sum(b > a for a, b in pairs),
                   lost=sum(a > b for a, b in pairs))


@dataclass(frozen=True, slots=True, kw_only=True)
class PositionTable:
    """Which choice of a multiple-choice task two models took: the first, the second, and so on.

    n: items of which both choices are known. right: on how many of them each position is right; () where that is not
    known of every item. pairs: ``pairs[i][j]`` items on which the base took position i and the tuned model position j.
    """

    n: int
    right: tuple[int, ...]
    pairs: tuple[tuple[int, ...], ...]

    @property
    def base(self) -> tuple[int, ...]:
        """How often the base took each position."""
        return tuple(map(sum, self.pairs))

    @property
    def tuned(self) -> tuple[int, ...]:
        """How often the tuned model took each position."""
        return tuple(sum(row[j] for row in self.pairs) for j in range(len(self.pairs)))

    def taken(self, position: int) -> PairedCount:
        """On how many items each model took one position."""
        base, tuned, both = self.base[position], self.tuned[position], self.pairs[position][position]
        return PairedCount(n=self.n, base=base, tuned=tuned, gained=tuned - both, lost=base - both)
