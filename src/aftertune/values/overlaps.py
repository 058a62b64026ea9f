"""What evaluations ask, and what of it stands in training data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What an evaluation item asks, to be looked for in training data. texts: its prompt without examples, and the
    longer texts of its document."""

    task: str
    index: int
    hash: str
    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """Items of one task that training data shows; ``n`` of its items were looked for. exact, ngram: indices of those
    whose text is an example's text, and of those that share 13 words in a row with one. found: of the first few the
    item, where it was found, and the words."""

    task: str
    n: int
    exact: tuple[int, ...] = ()
    ngram: tuple[int, ...] = ()
    found: tuple[Mapping[str, Any], ...] = ()

    @property
    def items(self) -> tuple[int, ...]:
        """Indices of all items that were found, either way."""
        return tuple(sorted({*self.exact, *self.ngram}))
