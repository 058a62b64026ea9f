"""Says whether stored weights are other weights after rounding, and what else they may be.

    stored = Stored(values, "BF16")
    stored.is_right(base, base + change)     whether they are the base with the change, rounded

A merge adds a change to a weight and rounds to the dtype of the file: once, or the change first and the sum then, from
the base as stored or rounded before. All these orders are allowed: each value may differ by one unit in the last place
of its dtype, by 2^-8 of its change, and by 2^-7 of the typical change (factors and products in bfloat16 or TF32 have
8 bits or more; the error of a sum is 2^-9.7 of its typical size, and a few values have four times that). So that a
change far below the last place cannot hide in this bound, the differences together may be at most SHARE of the change
that is left after rounding, as a sum of squares.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

#: Bits after the point of a number in each dtype, and its smallest exponent.
_MANTISSA = {"F64": (23, -126), "F32": (23, -126), "BF16": (7, -126), "F16": (10, -14)}
#: Dtypes to which a merge may have rounded, by the dtype of the file.
_GRIDS = {"F64": ("F32", "BF16", "F16"), "F32": ("F32", "BF16", "F16"), "BF16": ("BF16",), "F16": ("F16", "BF16")}
#: Largest difference of a right merge, in squares, as a share of the change; and the share of values beyond the bound.
SHARE, BEYOND = 0.05, 1e-3
#: Error of a change whose factors have 8 bits.
_CHANGE_ERROR = 2.0**-8


def round_to(values: Any, dtype: str) -> Any:
    """float32 values rounded to the nearest value of ``dtype`` (ties to even), as float32."""
    import numpy as np

    if dtype == "BF16":
        bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
        rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)
        return rounded.view(np.float32)
    if dtype == "F16":
        with np.errstate(over="ignore"):
            return values.astype(np.float16).astype(np.float32)
    return values.astype(np.float32)


def last_place(values: Any, dtype: str) -> Any:
    """The distance between neighbouring numbers of ``dtype`` at these magnitudes."""
    import numpy as np

    bits, smallest = _MANTISSA[dtype]
    _, exponent = np.frexp(values)
    return np.ldexp(np.float32(1), np.maximum(exponent - 1, smallest) - bits)


@dataclass(frozen=True, slots=True)
class Stored:
    """A stored weight. values: as a float32 array. dtype: as the file names it."""

    values: Any
    dtype: str

    def is_right(self, base: Any, merged: Any) -> bool:
        """Whether they are ``merged`` after rounding."""
        return self.values.shape == merged.shape and any(
            self._missing(*pair) <= SHARE for pair in _orders(base, merged, self.dtype))

    def is_same(self, base: Any) -> bool:
        """Whether they are ``base`` after rounding."""
        import numpy as np

        return self.values.shape == base.shape and any(
            np.array_equal(self.values, round_to(base, grid), equal_nan=True) for grid in _GRIDS[self.dtype])

    def _missing(self, base: Any, expected: Any, change: Any, grid: str) -> float:
        """How much of the change the stored values do not have, in squares: 0 for a right merge, 1 where the change is
        missing. Infinity where values lie beyond the bound."""
        import numpy as np

        gap = np.abs(self.values - expected)
        if not gap.any():
            return 0.0
        largest = np.maximum(np.maximum(np.abs(expected), np.abs(base)), np.abs(change))
        spread = float(np.sqrt(np.mean(np.square(change, dtype=np.float64))))
        bound = 1.01 * last_place(largest, grid) + _CHANGE_ERROR * (np.abs(change) + 2 * spread)
        if not float(np.mean(~(gap <= bound))) <= BEYOND:
            return float("inf")
        kept = float(np.sum(np.square(expected - base, dtype=np.float64)))
        return float(np.sum(np.square(gap, dtype=np.float64))) / kept if kept else float("inf")

    def factor(self, base: Any, merged: Any) -> float:
        """The factor of the change in the stored values, by least squares."""
        import numpy as np

        change = (merged - base).astype(np.float64)
        size = float(np.sum(change * change))
        return float(np.sum((self.values - base) * change)) / size if size else 0.0

    def distance(self, other: Any) -> float:
        """The norm of the difference, as a share of the norm of ``other``; NaN where values are no numbers."""
        import numpy as np

        size, gap = (float(np.linalg.norm(v.astype(np.float64))) for v in (other, self.values - other))
        return gap / size if size else float("inf") if gap else 0.0

    def has_levels(self, change: Any) -> bool:
        """Whether the values without the change are on at most 16 levels in each block, as weights in four bits."""
        import numpy as np

        values = (self.values - change).ravel()
        return any(_share_on_levels(values[:values.size // size * size][:4096 * size].reshape(-1, size)) >= 0.9
                   for size in (64, 32) if values.size >= 8 * size) and bool(np.isfinite(values).all())


def _orders(base: Any, merged: Any, dtype: str) -> Iterator[tuple[Any, Any, Any, str]]:
    """(base, merged weight, change, dtype) for each order of rounding."""
    change = merged - base
    for grid in _GRIDS[dtype]:
        for start in (base, round_to(base, grid)) if grid != "F32" else (base,):
            yield start, round_to(start + change, grid), change, grid
            if grid != "F32":
                yield start, round_to(start + round_to(change, grid), grid), change, grid


def _share_on_levels(blocks: Any) -> float:
    """The share of blocks whose values, over the largest of each, lie close to at most 16 levels."""
    import numpy as np

    largest = np.abs(blocks).max(axis=1, keepdims=True)
    levels = np.sort(blocks / np.where(largest > 0, largest, 1), axis=1)
    groups = 1 + np.sum(np.diff(levels, axis=1) > 0.015, axis=1)
    distinct = np.array([len(np.unique(np.round(row, 6))) for row in levels[:64]])
    return float(np.mean(groups <= 16)) if distinct.mean() > 2 else 0.0
