"""The marks of lines that are told apart: colour, shape and dash of each, and how it looks in a key.

    style(1)        Style(ink="c2", marker="s", dash=(6, 2))
    swatch(1)       '<svg class="swatch" aria-hidden="true" …>', to stand before its name

The sheet that a chart is drawn on: owns its ink, its look, and how it becomes markup.

    with sheet("c-1f…", 760, 300) as s:
        axes = s.axes(60, 10, 680, 240)            left, top, width and height in px, from the top left
        axes.plot([0, 1], [0, 1], color=INK["accent"])
        svg = s.svg("Loss", "Training loss of careful: 1.9 at step 1, 0.3 at step 60")

Colours are CSS variables of the page, so that a chart follows light and dark and print; text stays text, in the
page's own font; the title and the description are what a screen reader says. The same input gives the same bytes.
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

#: CSS variable -> the placeholder colour that stands for it while matplotlib draws.
INK = {name: f"#0a0b{i:02x}" for i, name in enumerate(
    ("ink", "muted", "line", "band", "paper", "lower", "higher", "within", "undecided", "accent",
     "c1", "c2", "c3", "c4", "c5", "c6"), start=16)}
#: From this width on, a chart has room for labels beside what it shows.
WIDE = 560

_SETTINGS = {"svg.fonttype": "none", "font.size": 11, "axes.linewidth": 0.8, "axes.unicode_minus": True,
             "text.parse_math": False, "lines.solid_capstyle": "round"}


@dataclass(frozen=True, slots=True)
class Sheet:
    """A figure of fixed size in px. key: makes its ids its own in the page."""

    figure: Any
    key: str
    width: int
    height: int

    @property
    def wide(self) -> bool:
        return self.width >= WIDE

    def axes(self, left: float, top: float, width: float, height: float) -> Any:
        """Axes at this place, in the look of all charts: one quiet line at the bottom."""
        axes = self.figure.add_axes((left / self.width, 1 - (top + height) / self.height, width / self.width,
                                     height / self.height))
        axes.patch.set_visible(False)
        for side in ("left", "right", "top"):
            axes.spines[side].set_visible(False)
        axes.spines["bottom"].set_color(INK["line"])
        axes.tick_params(colors=INK["muted"], labelsize=10, length=3)
        axes.set_axisbelow(True)
        return axes

    def text(self, left: float, top: float, words: str, **style: Any) -> None:
        """Text on the sheet itself, at a place in px from the top left."""
        self.figure.text(left / self.width, 1 - top / self.height, words, **style)

    def svg(self, title: str, description: str) -> str:
        """The sheet as an element to put into a page."""
        buffer = io.StringIO()
        with warnings.catch_warnings():  # the reader's fonts draw the text, whatever glyphs matplotlib's lacks
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            self.figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
        drawn = buffer.getvalue()
        said = (f'<title id="{self.key}t">{html.escape(fmt.visible(title))}</title>'
                f'<desc id="{self.key}d">{html.escape(fmt.visible(description, 6000))}</desc>')
        return (f'<svg role="img" aria-labelledby="{self.key}t {self.key}d" '
                f'viewBox="0 0 {self.width} {self.height}">{said}{_body(fmt.visible(drawn, len(drawn)))}')


@contextmanager
def sheet(name: str, width: int, height: int) -> Iterator[Sheet]:
    """A sheet whose ids hang on its name and size alone."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    key = "g" + digest([name, width])[:10]
    with rc_context({**_SETTINGS, "svg.hashsalt": key}):
        figure = Figure(figsize=(width / 72, height / 72), dpi=72)
        figure.patch.set_visible(False)
        yield Sheet(figure, key, width, height)


def mark(verdict: Verdict | None, size: float) -> dict[str, Any]:
    """Marker and size of a verdict's badge, for matplotlib, with a rim that sets it off from what lies below."""
    shape = badge(verdict)
    return {"marker": shape.marker, "markersize": size * shape.size, "markeredgecolor": INK["paper"],
            "markeredgewidth": 0.8}


def short(name: str, room: int) -> str:
    """A name cut in its middle to so many characters, since names of a matrix differ at their ends; the table beside
    the chart and the chart's description have it whole."""
    name = " ".join(fmt.visible(name).split())
    tail = room // 3
    return name if len(name) <= room else f"{name[:room - 1 - tail]}…{name[-tail:]}"


def _body(svg: str) -> str:
    """What stands inside the element: no prologue, no metadata, no ids but those in use, in few bytes."""
    body = re.sub(r"^.*?<svg[^>]*>", "", svg, flags=re.S)
    body = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>|<!--.*?-->", "", body, flags=re.S)
    body = re.sub(r"<clipPath.*?</clipPath>", "", body, flags=re.S)
    body = re.sub(r"<[^>]*>", _shorter, body)
    body = re.sub(r">\s+<", "><", body).strip()
    before = ""
    while body != before:  # groups around nothing, or around one element
        before = body
        body = re.sub(r'<g/>|<defs/>|<g></g>|<defs></defs>|<path d="M[^A-Za-z"]*"[^>]*/>', "", body)
        body = re.sub(r"<g>(<(?:path|use)[^>]*/>|<text[^>]*>[^<]*</text>)</g>", r"\1", body)
    for name, colour in INK.items():
        body = body.replace(colour, f"var(--{name})")
    return body


def _shorter(tag: re.Match[str]) -> str:
    """A tag without what says nothing; the text between tags is never touched."""
    text = re.sub(r' (?:clip-path="[^"]*"|transform="rotate\(-?0 [^"]*\)")', "", tag[0])
    text = re.sub(r" font-family: [^;\"]*;", "", text)
    text = re.sub(r'<g id="[^"]*"', "<g", text).replace("xlink:href", "href")
    text = re.sub(r"-?\d+\.\d+", lambda number: f"{float(number[0]):.2f}".rstrip("0").rstrip("."), text)
    return re.sub(r'"(M [^"]*)"', lambda path: f'"{_path(path[1])}"', text)


def _path(data: str) -> str:
    return re.sub(r"\s*([A-Za-z])\s*", r"\1", " ".join(data.split()))


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
