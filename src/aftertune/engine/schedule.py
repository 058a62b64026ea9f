"""The schedule: which rows run together, as a pure function of the rows and the resolved budget.

Rows are sorted by length, longest first, and cut greedily so that no batch exceeds the budget. Because the
result depends on nothing else, a resumed run makes the same batches, and so the same floating-point sums.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

T = TypeVar("T")
#: Tokens that each slot of a budget without ``keys`` has room for.
ROOM = 2048
#: Of a budget's ``prepacked``: in tiles of the kernels.
TILED = 2
#: Texts of a wave, for each slot: a wave that ends waits for its longest text with empty slots.
WAVE = 4


@dataclass(frozen=True, slots=True)
class Budget:
    """What one batch may hold. tokens: padded tokens; logits: kept positions (each costs a row of the
    vocabulary); cells: padded length squared times rows, the attention mask; slots: sequences generated
    together, at most; threads: CPU threads; prepacked: 1 where linear layers compute from packed copies of their
    weights, TILED where from tiles of the kernels; kernels: 1 where attention and what lies around it run in the
    kernels; keys: tokens whose keys and values all slots together have room for (0, of an older budget: ROOM each)."""

    tokens: int
    logits: int
    cells: int
    slots: int
    threads: int
    prepacked: int = 0
    kernels: int = 0
    keys: int = 0

    def stored(self) -> dict[str, int]:
        return asdict(self)

    @classmethod
    def load(cls, stored: Mapping[str, Any]) -> Budget:
        return cls(**{k: int(stored.get(k, 0)) for k in cls.__dataclass_fields__})


def batches(shapes: list[tuple[int, int]], budget: Budget, *, padded: bool = True, past: int = 0
            ) -> list[list[int]]:
    """Cut rows of ``(length, kept)`` into batches of row indices. A row over budget is a batch of its own.

    padded: short rows cost as much as the longest one; past: tokens of a prefix that every row sees too.
    """
    order = sorted(range(len(shapes)), key=lambda i: (-shapes[i][0], i))
    result: list[list[int]] = []
    width = kept = tokens = 0
    for i in order:
        length, keep = shapes[i]
        rows = len(result[-1]) + 1 if result else 1
        tokens = rows * width if padded else tokens + length
        full = (not result or tokens > budget.tokens or kept + keep > budget.logits
                or rows * width * (past + width) > budget.cells)
        if full:
            result.append([])
            width, kept, tokens = max(length, 1), 0, length
        result[-1].append(i)
        kept += keep
    return result


def waves(texts: Sequence[T], size: int, length: Callable[[T], int]) -> list[list[T]]:
    """Cut texts into waves of at most ``size``, those with the longest prompts first."""
    order = sorted(range(len(texts)), key=lambda i: (-length(texts[i]), i))
    return [[texts[i] for i in order[start: start + size]] for start in range(0, len(order), size)]


def slots(budget: Budget, room: int) -> int:
    """Slots of ``room`` tokens each that the budget leaves space for."""
    keys = budget.keys or budget.slots * ROOM
    return max(min(keys // max(room, 1), budget.slots), 1)
