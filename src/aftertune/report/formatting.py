"""Formats every number and every foreign text of a report.

    percent(0.47)                  "47.00%"
    points(-0.11)                  "−11.00"          (percentage points, real minus sign, zero unsigned)
    points_interval(-0.15, -0.07)  "−15.00 to −7.00"
    p_value(0.00004)               "<0.001"
    count(10042)                   "10,042"
    visible("a\\u202eb")           "a⟨U+202E⟩b"

A value that is missing or not finite is shown as a dash; no report prints NaN.
"""

from __future__ import annotations

import math
import re

from aftertune.redaction import visible as visible

MINUS = "−"
DASH = "–"


def _number(value: float | None, digits: int, *, signed: bool = False) -> str:
    if value is None or not math.isfinite(value):
        return DASH
    text = f"{abs(value):.{digits}f}"
    if float(text) == 0:
        return text
    return (MINUS if value < 0 else "+" if signed else "") + text


def is_finite(value: float | None) -> bool:
    """True for a finite number, False for None, NaN and infinities."""
    return value is not None and math.isfinite(value)


def percent(value: float | None) -> str:
    """A fraction as percent with two decimals: 0.47 -> "47.00%"."""
    text = _number(None if value is None else 100 * value, 2)
    return text if text == DASH else f"{text}%"


def raw(value: float | None, digits: int = 4) -> str:
    """A number that is not a fraction, such as a perplexity or a loss, with a fixed number of decimals."""
    return _number(value, digits)


def own_digits(*values: float | None) -> int:
    """Decimals of a metric in its own unit: two from 10 on (a BLEU of 34.56), else four (0.8712 bits per byte)."""
    return 2 if any(value is not None and abs(value) >= 10 for value in values) else 4


def points(value: float | None, scale: float = 100, digits: int = 2) -> str:
    """A signed difference of fractions in percentage points: -0.11 -> "−11.00"."""
    return _number(None if value is None else scale * value, digits, signed=True)


def points_interval(low: float, high: float, scale: float = 100) -> str:
    """An interval of a difference in percentage points: "−15.00 to −7.00"."""
    return f"{points(low, scale)} to {points(high, scale)}" if is_finite(low) and is_finite(high) else DASH


def change(value: float, digits: int = 3) -> str:
    """A signed difference in its own unit, for example nats per token."""
    return _number(value, digits, signed=True)


def p_value(p: float | None) -> str:
    """A p-value with three decimals; below a thousandth "<0.001"."""
    if p is None or not math.isfinite(p):
        return DASH
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def count(n: int | float | None) -> str:
    """A count with thousands separators."""
    return DASH if n is None or not math.isfinite(n) else f"{round(n):,}"


def compact(n: int | None) -> str:
    """A parameter count in three or four digits: 134515008 -> "134.5M"."""
    if n is None:
        return DASH
    for size, letter in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if n >= size:
            return f"{n / size:.2f}{letter}" if letter == "B" else f"{n / size:.1f}{letter}"
    return str(n)


def duration(seconds: float | None) -> str:
    """Seconds for a reader: 192.4 -> "3 min 12 s"."""
    if seconds is None or not 0 <= seconds < math.inf:
        return DASH
    if seconds < 60:
        return f"{abs(seconds):.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def short_digests(text: str) -> str:
    """The text with only the first twelve hex digits of each fingerprint or digest in it."""
    return re.sub(r"\b[0-9a-f]{32,}\b", lambda found: short(found[0]), text)


def short(fingerprint: str) -> str:
    """The first twelve hex digits of a fingerprint."""
    return fingerprint[:12]
