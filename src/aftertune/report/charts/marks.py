"""The marks of lines that are told apart: colour, shape and dash of each, and how it looks in a key.

    style(1)        Style(ink="c2", marker="s", dash=(6, 2))
    swatch(1)       '<svg class="swatch" aria-hidden="true" …>', to stand before its name
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from aftertune.report.charts.sheet import INK

_SHAPES = {"o": '<circle cx="16" cy="6" r="3.6"/>', "s": '<path d="M12.6 2.6h6.8v6.8h-6.8z"/>',
           "^": '<path d="M16 1.6l4.4 8h-8.8z"/>', "D": '<path d="M16 1.4l4.6 4.6-4.6 4.6-4.6-4.6z"/>',
           "v": '<path d="M16 10.4l4.4-8h-8.8z"/>', "P": '<path d="M14.4 1.6h3.2v2.8h2.8v3.2h-2.8v2.8h-3.2v-2.8h-2.8'
                                                          'v-3.2h2.8z"/>'}
_DASHES: tuple[tuple[float, ...], ...] = ((), (6, 2.4), (1.6, 2), (8, 2, 1.6, 2), (3.5, 1.6), (10, 3))
#: So many can be told apart.
STYLES = len(_SHAPES)


@dataclass(frozen=True, slots=True)
class Style:
    """ink: a colour of the page; dash: lengths on and off, () for a whole line."""

    ink: str
    marker: str
    dash: tuple[float, ...]

    @property
    def line(self) -> dict[str, Any]:
        """How matplotlib is told of it."""
        return {"color": INK[self.ink], "linestyle": (0, self.dash) if self.dash else "-", "linewidth": 1.8}


def style(number: int) -> Style:
    """The style of the line with this number, from 0; they begin again after the last."""
    at = number % STYLES
    return Style(f"c{at + 1}", list(_SHAPES)[at], _DASHES[at])


@cache
def swatch(number: int, *, marked: bool = True) -> str:
    """A short piece of the line with its mark, or without where the marks on it say something else."""
    mark = style(number)
    dash = f' stroke-dasharray="{" ".join(map(str, mark.dash))}"' if mark.dash else ""
    return (f'<svg class="swatch" aria-hidden="true" viewBox="0 0 32 12" style="color: var(--{mark.ink})">'
            f'<path d="M0 6h32" fill="none" stroke="currentColor" stroke-width="1.8"{dash}/>'
            f'{f"""<g fill="currentColor">{_SHAPES[mark.marker]}</g>""" if marked else ""}</svg>')
