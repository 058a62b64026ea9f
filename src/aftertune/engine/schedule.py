"""The schedule: which rows run together, as a pure function of the rows and the resolved budget.

Rows are sorted by length, longest first, and cut greedily so that no batch exceeds the budget. Because the
result depends on nothing else, a resumed run makes the same batches, and so the same floating-point sums.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Budget:
    """What one batch may hold. tokens: padded tokens; logits: kept positions (each costs a row of the
    vocabulary); cells: padded length squared times rows, the attention mask; slots: sequences generated
    together; threads: CPU threads."""

    tokens: int
    logits: int
    cells: int
    slots: int
    threads: int

    def stored(self) -> dict[str, int]:
        return asdict(self)

    @classmethod
    def load(cls, stored: Mapping[str, Any]) -> Budget:
        return cls(**{k: int(stored[k]) for k in cls.__dataclass_fields__})


def batches(shapes: list[tuple[int, int]], budget: Budget) -> list[list[int]]:
    """Cut rows of ``(length, kept)`` into batches of row indices. A row over budget is a batch of its own."""
    order = sorted(range(len(shapes)), key=lambda i: (-shapes[i][0], i))
    result: list[list[int]] = []
    width = kept = 0
    for i in order:
        length, keep = shapes[i]
        rows = len(result[-1]) + 1 if result else 1
        full = (not result or rows * width > budget.tokens or kept + keep > budget.logits
                or rows * width * width > budget.cells)
        if full:
            result.append([])
            width, kept = max(length, 1), 0
        result[-1].append(i)
        kept += keep
    return result


def waves(lengths: list[int], groups: list[Any], slots: int) -> list[list[int]]:
    """Cut prompts into waves of at most ``slots``; one wave holds one group (generation settings) only."""
    order = sorted(range(len(lengths)), key=lambda i: (str(groups[i]), -lengths[i], i))
    result: list[list[int]] = []
    for i in order:
        if not result or len(result[-1]) == slots or groups[result[-1][0]] != groups[i]:
            result.append([])
        result[-1].append(i)
    return result
