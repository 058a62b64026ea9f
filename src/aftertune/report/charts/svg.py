"""Turns matplotlib figures into small inline SVG that uses the fonts and colours of the page.

    with sheet("c-1f…", 760, 300) as s:
        axes = s.axes(60, 10, 680, 240)            left, top, width and height in px, from the top left
        axes.plot([0, 1], [0, 1], color=INK["accent"])
        svg = s.svg("Loss", "Training loss of careful: 1.9 at step 1, 0.3 at step 60")

    style(1)        Style(ink="c2", marker="s", dash=(6, 2))       of the second line in a chart
    swatch(1)       '<svg class="swatch" aria-hidden="true" …>'    the same line in the key of the chart

Colours are CSS variables of the page, so a chart follows its light, dark and print colours. Text stays text, in the
font of the page. Title and description are for screen readers. The same input gives the same bytes.
"""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

from aftertune.report import formatting as fmt
from aftertune.report.badges import badge
from aftertune.values import Verdict, digest

# --- The sheet: a figure, and its markup ---

#: CSS variable -> the placeholder colour that matplotlib draws with; the markup has the variable instead.
INK = {name: f"#0a0b{i:02x}" for i, name in enumerate(
    ("ink", "muted", "line", "band", "paper", "lower", "higher", "within", "undecided", "accent",
     "c1", "c2", "c3", "c4", "c5", "c6"), start=16)}
#: px; a chart of this width or more has labels beside the plot.
WIDE = 560

_SETTINGS = {"svg.fonttype": "none", "font.size": 11, "axes.linewidth": 0.8, "axes.unicode_minus": True,
             "text.parse_math": False, "lines.solid_capstyle": "round"}


@dataclass(frozen=True, slots=True)
class Sheet:
    """A figure of fixed size in px. key: a prefix that makes its ids unique in the page."""

    figure: Any
    key: str
    width: int
    height: int

    @property
    def wide(self) -> bool:
        return self.width >= WIDE

    def axes(self, left: float, top: float, width: float, height: float) -> Any:
        """Axes at a position in px from the top left, in the style of all charts: only a bottom spine."""
        axes = self.figure.add_axes((left / self.width, 1 - (top + height) / self.height, width / self.width,
                                     height / self.height))
        axes.patch.set_visible(False)
        for side in ("left", "right", "top"):
            axes.spines[side].set_visible(False)
        axes.spines["bottom"].set_color(INK["line"])
        axes.tick_params(colors=INK["muted"], labelsize=10, length=3)
        axes.set_axisbelow(True)
        return axes

    def text(self, left: float, top: float, text: str, **style: Any) -> None:
        """Write text on the figure, at a position in px from the top left."""
        self.figure.text(left / self.width, 1 - top / self.height, text, **style)

    def svg(self, title: str, description: str) -> str:
        """The figure as an ``<svg>`` element."""
        buffer = io.StringIO()
        with warnings.catch_warnings():  # the browser draws the text, so matplotlib's font may lack glyphs
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            self.figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
        markup = buffer.getvalue()
        labels = (f'<title id="{self.key}t">{html.escape(fmt.visible(title))}</title>'
                  f'<desc id="{self.key}d">{html.escape(fmt.visible(description, 6000))}</desc>')
        return (f'<svg role="img" aria-labelledby="{self.key}t {self.key}d" '
                f'viewBox="0 0 {self.width} {self.height}">{labels}{_body(fmt.visible(markup, len(markup)))}')


@contextmanager
def sheet(name: str, width: int, height: int) -> Iterator[Sheet]:
    """A sheet. Its ids are derived from ``name`` and ``width``, so the same chart has the same bytes."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    key = "g" + digest([name, width])[:10]
    with rc_context({**_SETTINGS, "svg.hashsalt": key}):
        figure = Figure(figsize=(width / 72, height / 72), dpi=72)
        figure.patch.set_visible(False)
        yield Sheet(figure, key, width, height)


def mark(verdict: Verdict | None, size: float) -> dict[str, Any]:
    """The marker of a verdict's badge for matplotlib, with an edge in the colour of the page."""
    shape = badge(verdict)
    return {"marker": shape.marker, "markersize": size * shape.size, "markeredgecolor": INK["paper"],
            "markeredgewidth": 0.8}


def short(name: str, limit: int) -> str:
    """A name of at most ``limit`` characters, cut in the middle, because names of a matrix differ at their ends.

    The table beside the chart and the description of the chart have the full name.
    """
    name = " ".join(fmt.visible(name).split())
    tail = limit // 3
    return name if len(name) <= limit else f"{name[:limit - 1 - tail]}…{name[-tail:]}"


def _body(svg: str) -> str:
    """The content of matplotlib's ``<svg>`` element without prologue, metadata and unused ids, in few bytes."""
    body = re.sub(r"^.*?<svg[^>]*>", "", svg, flags=re.S)
    body = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>|<!--.*?-->", "", body, flags=re.S)
    body = re.sub(r"<clipPath.*?</clipPath>", "", body, flags=re.S)
    body = re.sub(r"<[^>]*>", _shorten, body)
    body = re.sub(r">\s+<", "><", body).strip()
    previous = ""
    while body != previous:  # remove groups that are empty or have one element
        previous = body
        body = re.sub(r'<g/>|<defs/>|<g></g>|<defs></defs>|<path d="M[^A-Za-z"]*"[^>]*/>', "", body)
        body = re.sub(r"<g>(<(?:path|use)[^>]*/>|<text[^>]*>[^<]*</text>)</g>", r"\1", body)
    for name, colour in INK.items():
        body = body.replace(colour, f"var(--{name})")
    return body


def _shorten(tag: re.Match[str]) -> str:
    """A tag without attributes that have no effect, and with rounded numbers."""
    text = re.sub(r' (?:clip-path="[^"]*"|transform="rotate\(-?0 [^"]*\)")', "", tag[0])
    text = re.sub(r" font-family: [^;\"]*;", "", text)
    text = re.sub(r'<g id="[^"]*"', "<g", text).replace("xlink:href", "href")
    text = re.sub(r"-?\d+\.\d+", lambda number: f"{float(number[0]):.2f}".rstrip("0").rstrip("."), text)
    return re.sub(r'"(M [^"]*)"', lambda path: f'"{_path(path[1])}"', text)


def _path(data: str) -> str:
    return re.sub(r"\s*([A-Za-z])\s*", r"\1", " ".join(data.split()))


# --- Line styles and their swatches in a key ---

_SHAPES = {"o": '<circle cx="16" cy="6" r="3.6"/>', "s": '<path d="M12.6 2.6h6.8v6.8h-6.8z"/>',
           "^": '<path d="M16 1.6l4.4 8h-8.8z"/>', "D": '<path d="M16 1.4l4.6 4.6-4.6 4.6-4.6-4.6z"/>',
           "v": '<path d="M16 10.4l4.4-8h-8.8z"/>', "P": '<path d="M14.4 1.6h3.2v2.8h2.8v3.2h-2.8v2.8h-3.2v-2.8h-2.8'
                                                          'v-3.2h2.8z"/>'}
_DASHES: tuple[tuple[float, ...], ...] = ((), (6, 2.4), (1.6, 2), (8, 2, 1.6, 2), (3.5, 1.6), (10, 3))
#: The number of line styles.
STYLES = len(_SHAPES)


@dataclass(frozen=True, slots=True)
class Style:
    """The style of a line. ink: a key of `INK`; dash: lengths on and off, () for a solid line."""

    ink: str
    marker: str
    dash: tuple[float, ...]

    @property
    def plot_options(self) -> dict[str, Any]:
        """Keyword arguments for matplotlib's ``plot``."""
        return {"color": INK[self.ink], "linestyle": (0, self.dash) if self.dash else "-", "linewidth": 1.8}


def style(number: int) -> Style:
    """The style of a line by its number, from 0; the styles repeat after the last one."""
    i = number % STYLES
    return Style(f"c{i + 1}", list(_SHAPES)[i], _DASHES[i])


@cache
def patch(ink: str) -> str:
    """A small square in a colour of `INK`, as inline SVG, for the key of a chart with bars."""
    return (f'<svg class="swatch patch" aria-hidden="true" viewBox="0 0 12 12" style="color: var(--{ink})">'
            '<path d="M0 0h12v12h-12z" fill="currentColor"/></svg>')


@cache
def swatch(number: int, *, marked: bool = True) -> str:
    """A short piece of the line, as inline SVG. marked: with its marker, if the markers in the chart are those of the
    line and not those of verdicts."""
    look = style(number)
    dash = f' stroke-dasharray="{" ".join(map(str, look.dash))}"' if look.dash else ""
    return (f'<svg class="swatch" aria-hidden="true" viewBox="0 0 32 12" style="color: var(--{look.ink})">'
            f'<path d="M0 6h32" fill="none" stroke="currentColor" stroke-width="1.8"{dash}/>'
            f'{f"""<g fill="currentColor">{_SHAPES[look.marker]}</g>""" if marked else ""}</svg>')
