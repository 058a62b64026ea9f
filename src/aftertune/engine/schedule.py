"""Cuts rows into batches and prompts into waves, from their lengths and the budget alone.

    batches([(60, 1), (10, 1), (10, 1)], budget)        # [[0], [1, 2]]: indices of rows, the longest first
    waves(prompts, 16, len)                             # lists of at most 16 prompts, the longest first

Rows are sorted by length and cut greedily so that no batch exceeds the budget. The result depends on nothing else, so a
resumed run has the same batches and the same floating-point sums.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeVar, get_args

T = TypeVar("T")
#: Tokens per slot for a budget without ``keys`` (an older one).
TOKENS_PER_SLOT = 2048
#: Texts of a wave per slot. At the end of a wave slots stay empty until its longest text is done.
TEXTS_PER_SLOT = 4
#: What computes packed rows: torch's operators or the compiled CPU kernels. Ledgers store the index.
BackendName = Literal["torch", "cpu"]
#: How linear layers read their weights: as the model stores them, packed by oneDNN, or in the tiles of the CPU kernels
#: for AMX. Ledgers store the index.
WeightsName = Literal["plain", "onednn", "amx"]


@dataclass(frozen=True, slots=True)
class Budget:
    """The limits of one batch. It is stored with the evaluation, so a resumed run has the same batches.

    tokens: padded tokens; logits: positions whose logits are computed (each is a row of the vocabulary); cells: numbers
    of the attention mask, padded length squared times rows; slots: sequences generated together, at most; threads: CPU
    threads; weights: how linear layers read their weights; backend: what computes attention and the operators around
    it; keys: tokens whose keys and values all slots together have room for (0 in an older budget: TOKENS_PER_SLOT for
    each slot).
    """

    tokens: int
    logits: int
    cells: int
    slots: int
    threads: int
    weights: WeightsName = "plain"
    backend: BackendName = "torch"
    keys: int = 0

    def stored(self) -> dict[str, int]:
        """The budget as ledgers store it: only numbers; ``weights`` is ``prepacked``, ``backend`` is ``kernels``."""
        numbers = asdict(self) | {name: words.index(getattr(self, name)) for name, words in _WORDS.items()}
        return {_STORED.get(name, name): int(number) for name, number in numbers.items()}

    @classmethod
    def load(cls, stored: Mapping[str, Any]) -> Budget:
        """The budget stored in a ledger. A number that an older ledger does not have is 0."""
        numbers = {name: int(stored.get(_STORED.get(name, name), 0)) for name in cls.__dataclass_fields__}
        return cls(**numbers | {name: words[numbers[name]] for name, words in _WORDS.items()})


#: The fields whose values are stored as an index, and the stored names of these fields.
_WORDS: dict[str, tuple[Any, ...]] = {"weights": get_args(WeightsName), "backend": get_args(BackendName)}
_STORED = {"weights": "prepacked", "backend": "kernels"}


def batches(shapes: list[tuple[int, int]], budget: Budget, *, padded: bool = True, past: int = 0
            ) -> list[list[int]]:
    """Cut rows, given as ``(length, number of logits)``, into batches of row indices.

    A row that exceeds the budget is a batch by itself. padded: a short row costs as much as the longest one; past:
    tokens of a prefix that every row also sees.
    """
    order = sorted(range(len(shapes)), key=lambda i: (-shapes[i][0], i))
    result: list[list[int]] = []
    width = logits = tokens = 0
    for i in order:
        length, row_logits = shapes[i]
        rows = len(result[-1]) + 1 if result else 1
        tokens = rows * width if padded else tokens + length
        full = (not result or tokens > budget.tokens or logits + row_logits > budget.logits
                or rows * width * (past + width) > budget.cells)
        if full:
            result.append([])
            width, logits, tokens = max(length, 1), 0, length
        result[-1].append(i)
        logits += row_logits
    return result


def waves(texts: Sequence[T], size: int, length: Callable[[T], int]) -> list[list[T]]:
    """Cut texts into waves of at most ``size``, those with the longest prompts first."""
    order = sorted(range(len(texts)), key=lambda i: (-length(texts[i]), i))
    return [[texts[i] for i in order[start: start + size]] for start in range(0, len(order), size)]


def slot_count(budget: Budget, room: int) -> int:
    """Number of slots of ``room`` tokens each that fit into the budget; at least 1."""
    keys = budget.keys or budget.slots * TOKENS_PER_SLOT
    return max(min(keys // max(room, 1), budget.slots), 1)
