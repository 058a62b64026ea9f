"""Charts as inline SVG: the forest plot of a comparison and the loss curve of a fine-tune.

    forest(comparison, width=720)     '<svg role="img" aria-label="Differences …" viewBox="0 0 720 …">…</svg>'

Colours are CSS variables of the page (so that they follow light and dark), every verdict has its own marker
shape beside its colour, text stays text, and the same input gives the same bytes.
"""

from __future__ import annotations

import html
import io
import re
import warnings
from typing import Any

from aftertune.report import format as fmt
from aftertune.report.names import is_fraction, metric_title, task_title
from aftertune.report.table import shown_verdict, told_word
from aftertune.values import Comparison, ComparisonRow, Tuning

#: CSS variable -> the placeholder colour that stands for it while matplotlib draws.
_INK = {name: f"#0a0b{i:02x}" for i, name in enumerate(
    ("ink", "muted", "line", "band", "lower", "higher", "within", "undecided", "accent"), start=1)}
_MARKERS = {"lower": "v", "higher": "^", "within": "o", "undecided": "D", None: "s"}
_SETTINGS = {"svg.fonttype": "none", "font.size": 11, "axes.linewidth": 0.8, "axes.unicode_minus": True,
             "text.parse_math": False}
_WIDE = 560  # from this width on, labels stand left of the intervals and numbers right of them
_COLUMN = 36  # characters of a name that fit beside the plot


def forest(comparison: Comparison, width: int) -> str:
    """Forest plot of a comparison's differences with their 95 % intervals and margins, ``width`` px wide.

    Target tasks have a panel of their own, because their differences are of another size. Metrics that are
    no fractions are left out. Returns "" where nothing is left to draw.
    """
    rows = [r for r in comparison.rows if is_fraction(r.metric) and fmt.known(r.low) and fmt.known(r.high)]
    panels = [p for p in ([r for r in rows if not r.target], [r for r in rows if r.target]) if p]
    if not panels:
        return ""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    wide = width >= _WIDE
    step = 36 if wide else 58
    heights = [step * len(p) + 52 for p in panels]
    total = sum(heights)
    with rc_context({**_SETTINGS, "svg.hashsalt": f"{comparison.id}-{width}"}):
        figure = Figure(figsize=(width / 72, total / 72), dpi=72)
        left, right = (0.32, 0.73) if wide else (0.02, 0.98)
        top = float(total)
        for panel, height in zip(panels, heights, strict=True):
            axes = figure.add_axes((left, (top - height + 42) / total, right - left, (height - 50) / total))
            _panel(axes, panel, comparison.lineage, wide)
            top -= height
        label = "Differences in percentage points with 95 % intervals. " + "; ".join(
            f"{_label(r)}: {_numbers(r)}{', ' + told_word(r, comparison.lineage) if r.primary else ''}"
            for r in rows)
        return _svg(figure, width, total, label)


def _panel(axes: Any, rows: list[ComparisonRow], lineage: bool, wide: bool) -> None:
    """Draw the rows from top to bottom on one scale, in points."""
    edge = max(1.0, *(100 * abs(v) for r in rows for v in (r.low, r.high, r.margin)))
    axes.set_xlim(-1.06 * edge, 1.06 * edge)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    for y, row in enumerate(rows):
        verdict = shown_verdict(row)
        colour = _INK[verdict or "muted"]
        offset, half = (0.0, 0.34) if wide else (0.24, 0.16)
        axes.plot([0, 0], [y + offset - half, y + offset + half], color=_INK["muted"], linewidth=1, zorder=1)
        axes.fill_betweenx([y + offset - half, y + offset + half], -100 * row.margin, 100 * row.margin,
                           color=_INK["band"], linewidth=0, zorder=0)
        axes.plot([100 * row.low, 100 * row.high], [y + offset] * 2, color=colour,
                  linewidth=2.4 if row.primary else 1.2, solid_capstyle="round", zorder=2)
        axes.plot([100 * row.delta], [y + offset], marker=_MARKERS[verdict], color=colour,
                  markersize=8 if row.primary else 4.5, zorder=3)
        _labels(axes, row, y, told_word(row, lineage), wide)
    axes.set_yticks([])
    for side in ("left", "right", "top"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_INK["line"])
    axes.tick_params(axis="x", colors=_INK["muted"], labelsize=10, length=3)
    axes.set_xlabel("difference in percentage points (positive is better)", color=_INK["muted"], fontsize=10)


def _labels(axes: Any, row: ComparisonRow, y: int, word: str, wide: bool) -> None:
    """Name of the row, its numbers and its verdict: beside the interval, or above it on a narrow chart."""
    where = axes.get_yaxis_transform()
    ink = _INK["ink"] if row.primary else _INK["muted"]
    colour = _INK[shown_verdict(row) or "muted"]
    left, upper, lower = (-0.78, y - 0.16, y + 0.22) if wide else (0.0, y - 0.38, y - 0.1)
    axes.text(left, upper, _short(task_title(row.task)), transform=where, color=ink, va="center",
              fontsize=12 if row.primary else 11)
    metric = _short(metric_title(row.metric, row.filter))
    axes.text(left, lower, metric, transform=where, color=_INK["muted"], va="center", fontsize=10)
    right, side = (1.03, "left") if wide else (1.0, "right")
    axes.text(right, upper, word if word else _numbers(row), transform=where, color=colour, va="center",
              ha=side, fontsize=11, weight="bold" if word else "normal")
    if word:
        axes.text(right, lower, _numbers(row), transform=where, color=_INK["ink"], va="center", ha=side,
                  fontsize=10.5)


def _short(name: str) -> str:
    """A name cut to what its column holds; the table and the chart's label have it whole."""
    name = fmt.visible(name)
    return name if len(name) <= _COLUMN else f"{name[:_COLUMN - 1]}…"


def _label(row: ComparisonRow) -> str:
    title = task_title(row.task)
    return title if row.primary else f"{title}, {metric_title(row.metric, row.filter)}"


def _numbers(row: ComparisonRow) -> str:
    return f"{fmt.points(row.delta)} ({fmt.points_interval(row.low, row.high)})"


def loss_curve(tuning: Tuning, width: int) -> str:
    """Training loss over the steps, with the held-out loss before and after; "" without logged steps."""
    steps = [(s["step"], s["loss"]) for s in tuning.steps
             if fmt.known(s.get("step")) and fmt.known(s.get("loss"))]
    if not steps:
        return ""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    height = 250
    with rc_context({**_SETTINGS, "svg.hashsalt": f"{tuning.id}-{width}"}):
        figure = Figure(figsize=(width / 72, height / 72), dpi=72)
        axes = figure.add_axes((56 / width, 46 / height, 1 - 72 / width, 1 - 62 / height))
        axes.plot([s for s, _ in steps], [loss for _, loss in steps], color=_INK["accent"], linewidth=1.6,
                  marker="." if len(steps) < 3 else None)
        held = tuning.held_out
        if held is not None:
            axes.plot([0, steps[-1][0]], [held.before, held.after], color=_INK["higher"], linewidth=0,
                      marker="D", markersize=7)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("step", color=_INK["muted"], fontsize=10)
        axes.set_ylabel("loss, nats per token", color=_INK["muted"], fontsize=10)
        axes.tick_params(colors=_INK["muted"], labelsize=10, length=3)
        axes.grid(axis="y", color=_INK["line"], linewidth=0.6)
        axes.set_axisbelow(True)
        for side in ("left", "right", "top"):
            axes.spines[side].set_visible(False)
        axes.spines["bottom"].set_color(_INK["line"])
        first, last = (f"{fmt.raw(loss, 3)} at step {fmt.count(s)}" for s, loss in (steps[0], steps[-1]))
        label = f"Training loss of {tuning.name}: {first}, {last}"
        if held is not None:
            label += f"; held-out loss {fmt.raw(held.before, 3)} before, {fmt.raw(held.after, 3)} after"
        return _svg(figure, width, height, label)


def _svg(figure: Any, width: int, height: int, label: str) -> str:
    """The figure as an element to put into a page: no prologue, no metadata, no ids but those in use."""
    buffer = io.StringIO()
    with warnings.catch_warnings():  # the reader's fonts draw the text, whatever glyphs matplotlib's lacks
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    body = re.sub(r"^.*?<svg[^>]*>", "", buffer.getvalue(), flags=re.S)
    body = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>|<!--.*?-->", "", body, flags=re.S)
    body = re.sub(r" font-family: [^;\"]*;", "", body)
    body = re.sub(r'<g id="[^"]*"', "<g", body).replace("xlink:href", "href")
    for name, colour in _INK.items():
        body = body.replace(colour, f"var(--{name})")
    return (f'<svg role="img" aria-label="{html.escape(fmt.visible(label))}" '
            f'viewBox="0 0 {width} {height}">{body.strip()}')
