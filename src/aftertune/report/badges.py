"""The badges of the verdicts: one symbol, one colour and one word for each, in every table, page and chart.

    badge("lower").symbol          "▼"
    legend()                       "▼ lower, ▲ higher, ● within the margin, ◆ undecided"

A badge is never colour alone: its shape and its word say the same. The label of a verdict between a base and its own
fine-tune ("forgot", "improved", "kept") is `aftertune.values.TOLD`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from aftertune.values import Verdict


@dataclass(frozen=True, slots=True)
class Badge:
    """How one verdict looks.

    symbol: in text. word: in the legend of a chart. colour: a CSS variable of the page, also the badge's CSS class.
    style: colour on the terminal, for rich. marker, size: the same shape in a chart, for matplotlib; size makes all
    shapes look equally large.
    """

    symbol: str
    word: str
    colour: str
    style: str
    marker: str
    size: float


#: A chart fills its marks, so the symbols are the filled ones. In the chart of learned against forgotten a hollow mark
#: has a meaning of its own.
BADGES: Mapping[Verdict, Badge] = {
    "lower": Badge("▼", "lower", "lower", "bold red", "v", 1.22),
    "higher": Badge("▲", "higher", "higher", "bold green", "^", 1.22),
    "within": Badge("●", "within the margin", "within", "bold cyan", "o", 1.0),
    "undecided": Badge("◆", "undecided", "undecided", "yellow", "D", 0.9),
}

#: A row without a verdict.
NO_VERDICT = Badge("■", "a secondary metric without a verdict", "muted", "", "s", 0.95)


def badge(verdict: Verdict | None) -> Badge:
    """The badge of a verdict, or of a row without one."""
    return NO_VERDICT if verdict is None else BADGES[verdict]


def legend(words: Mapping[Verdict, str] | None = None) -> str:
    """The symbols of a chart with what each means there, in the order of ``words``; without these, all verdicts."""
    meaning = {v: b.word for v, b in BADGES.items()} if words is None else words
    return ", ".join(f"{BADGES[v].symbol} {word}" for v, word in meaning.items())
