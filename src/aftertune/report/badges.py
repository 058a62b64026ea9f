"""Defines the badge of each verdict: its symbol, colour and word in every table, page and chart.

    badge("lower").symbol          "▼"
    legend()                       "▼ lower, ▲ higher, ● within the margin, ◣ worse, …, ◆ undecided"

Colour is never the only cue: shape and word carry the same meaning. The labels for a base and its own fine-tune
("forgot", "improved", "kept") are in `aftertune.values.VERDICT_LABELS`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from aftertune.values import Verdict


@dataclass(frozen=True, slots=True)
class Badge:
    """The appearance of one verdict.

    symbol: shown in text. word: shown in the legend of a chart. colour: a CSS variable of the page and the CSS class of
    the badge. style: rich's style on the terminal. marker, size: the same shape for matplotlib, by name or as the
    vertices of a polygon; size makes all shapes look equally large.
    """

    symbol: str
    word: str
    colour: str
    style: str
    marker: str | tuple[tuple[float, float], ...]
    size: float


#: The right half of a circle: one side of "within the margin" is proven.
_HALF = tuple((math.cos(math.pi * k / 12), math.sin(math.pi * k / 12)) for k in range(-6, 7))

#: The symbols are filled, as the marks of the charts are. A hollow mark has another meaning in the chart of learned
#: against forgotten.
BADGES: Mapping[Verdict, Badge] = {
    "lower": Badge("▼", "lower", "lower", "bold red", "v", 1.22),
    "higher": Badge("▲", "higher", "higher", "bold green", "^", 1.22),
    "within": Badge("●", "within the margin", "within", "bold cyan", "o", 1.0),
    "worse": Badge("◣", "worse (below 0)", "lower", "red", ((-1, 1), (-1, -1), (1, -1)), 0.9),
    "better": Badge("◢", "better (above 0)", "higher", "green", ((1, 1), (-1, -1), (1, -1)), 0.9),
    "no_loss": Badge("◗", "not lower", "within", "cyan", _HALF, 1.0),
    "undecided": Badge("◆", "undecided", "undecided", "yellow", "D", 0.9),
}

#: A row without a verdict.
NO_VERDICT = Badge("■", "a secondary metric without a verdict", "muted", "", "s", 0.95)


def badge(verdict: Verdict | None) -> Badge:
    """The badge of a verdict, or `NO_VERDICT` for a row without one."""
    return NO_VERDICT if verdict is None else BADGES[verdict]


def legend(words: Mapping[Verdict, str] | None = None) -> str:
    """The legend of a chart: each symbol with its word, in the order of ``words`` (default: all verdicts)."""
    meanings = {verdict: b.word for verdict, b in BADGES.items()} if words is None else words
    return ", ".join(f"{BADGES[verdict].symbol} {word}" for verdict, word in meanings.items())
