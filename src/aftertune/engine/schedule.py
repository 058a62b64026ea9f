"""The schedule: which rows run together, as a pure function of the rows and the resolved budget.

Rows are sorted by length, longest first, and cut greedily so that no batch exceeds the budget. Because the
result depends on nothing else, a resumed run makes the same batches, and so the same floating-point sums.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeVar, get_args

T = TypeVar("T")
#: Tokens that each slot of a budget without ``keys`` has room for.
ROOM = 2048
#: Texts of a wave, for each slot: a wave that ends waits for its longest text with empty slots.
WAVE = 4
#: What computes packed rows: torch's operators, or the compiled CPU kernels. Ledgers store the index.
BackendName = Literal["torch", "cpu"]
#: How linear layers read their weights: as the model stores them, packed by oneDNN, or in tiles of the CPU kernels (for
#: AMX). Ledgers store the index.
WeightsName = Literal["plain", "onednn", "amx"]


@dataclass(frozen=True, slots=True)
class Budget:
    """What one batch may hold. tokens: padded tokens; logits: kept positions (each costs a row of the
    vocabulary); cells: padded length squared times rows, the attention mask; slots: sequences generated
    together, at most; threads: CPU threads; weights: how linear layers read their weights; backend: what computes
    attention and the operators around it; keys: tokens whose keys and values all slots together have room for (0, in an
    older budget: ROOM each)."""

    tokens: int
    logits: int
    cells: int
    slots: int
    threads: int
    weights: WeightsName = "plain"
    backend: BackendName = "torch"
    keys: int = 0

    def stored(self) -> dict[str, int]:
        """The budget as ledgers store it: numbers only, ``weights`` as ``prepacked`` and ``backend`` as ``kernels``."""
        numbers = asdict(self) | {name: words.index(getattr(self, name)) for name, words in _WORDS.items()}
        return {_STORED.get(name, name): int(number) for name, number in numbers.items()}

    @classmethod
    def load(cls, stored: Mapping[str, Any]) -> Budget:
        """The budget of a ledger; what an older one lacks is 0 there."""
        numbers = {name: int(stored.get(_STORED.get(name, name), 0)) for name in cls.__dataclass_fields__}
        return cls(**numbers | {name: words[numbers[name]] for name, words in _WORDS.items()})


#: The words of a budget, of which ledgers store the index, and the stored names of these fields.
_WORDS: dict[str, tuple[Any, ...]] = {"weights": get_args(WeightsName), "backend": get_args(BackendName)}
_STORED = {"weights": "prepacked", "backend": "kernels"}


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
