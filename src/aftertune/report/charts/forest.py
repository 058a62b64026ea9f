"""Forest plots: differences with their 95 % intervals, and the band within which a difference does not matter.

    forest(comparison, 760)                            the tasks and metrics of one comparison
    task_forest("hellaswag", comparisons, 760)         one task, a line for each model that was made from the base
    contrast_forest(contrast, 760)                     two recipes over several seeds

Every verdict has its own marker shape beside its colour.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from aftertune.catalog import is_fraction
from aftertune.report import formatting as fmt
from aftertune.report.badges import badge
from aftertune.report.charts.svg import INK, WIDE, Sheet, mark, sheet, short
from aftertune.report.names import metric_title, task_title
from aftertune.report.table import row_label, shown_verdict
from aftertune.values import Comparison, ComparisonRow, Contrast

_COLUMN = 36  # characters of a name that fit beside the plot
_NARROW = 31  # the same beside the verdict alone
_AXIS = 44  # px below the plot, for its ticks and their meaning


@dataclass(frozen=True, slots=True)
class _Line:
    """One row of a plot: its name, what stands below the name, and its evidence; in points from here on."""

    name: str
    about: str
    row: ComparisonRow
    word: str

    @property
    def strong(self) -> bool:
        return self.row.primary

    @property
    def numbers(self) -> str:
        return f"{fmt.points(self.row.delta)} ({fmt.points_interval(self.row.low, self.row.high)})"

    def told(self) -> str:
        """The line as a sentence's part, for who cannot see it."""
        word = f", {self.word}" if self.strong and self.word else ""
        return f"{self.name}{'' if self.strong or not self.about else f', {self.about}'}: {self.numbers}{word}"


def forest(comparison: Comparison, width: int) -> str:
    """A comparison's differences, ``width`` px wide.

    Target tasks have a panel of their own, because their differences are of another size. Metrics that are
    no fractions are left out. Returns "" where nothing is left to draw.
    """
    lines = [_Line(task_title(r.task), metric_title(r.metric, r.filter), r, row_label(r, comparison.lineage))
             for r in comparison.rows if _drawable(r)]
    panels = [[x for x in lines if not x.row.target], [x for x in lines if x.row.target]]
    return _draw(f"forest {comparison.id}", f"Differences of {comparison.tuned_name} against {comparison.base_name}",
                 [p for p in panels if p], width)


def contrast_forest(contrast: Contrast, width: int) -> str:
    """The differences between two recipes over all their seeds; "" where nothing is left to draw."""
    lines = [_Line(task_title(r.task), metric_title(r.metric, r.filter), r, row_label(r, lineage=False))
             for r in contrast.rows if _drawable(r)]
    return _draw(f"contrast {contrast.id}", f"Differences of {contrast.right} against {contrast.left}",
                 [lines] if lines else [], width)


def task_forest(task: str, comparisons: Sequence[Comparison], width: int) -> str:
    """One task's primary metric over several comparisons; "" where fewer than two can be drawn."""
    lines = [_Line(c.tuned_name, "", r, row_label(r, c.lineage)) for c in comparisons
             for r in c.rows if r.task == task and r.primary and _drawable(r)]
    if len(lines) < 2:
        return ""
    return _draw(f"task {task} {[c.id for c in comparisons]}", f"Differences on {task_title(task)}", [lines], width)


def _drawable(row: ComparisonRow) -> bool:
    return is_fraction(row.metric) and fmt.known(row.low) and fmt.known(row.high) and fmt.known(row.delta)


def _draw(name: str, title: str, panels: Sequence[Sequence[_Line]], width: int) -> str:
    if not panels:
        return ""
    lines = [line for panel in panels for line in panel]
    above = any(line.about for line in lines)
    step = 58 if width < WIDE else 36 if above else 24
    height = sum(step * len(panel) + _AXIS + 8 for panel in panels)
    with sheet(name, width, height) as s:
        left, right = (0.32 * width, 0.69 * width) if s.wide else (6, width - 6)
        top = 0
        for panel in panels:
            axes = s.axes(left, top, right - left, step * len(panel))
            _panel(axes, s, panel)
            top += step * len(panel) + _AXIS + 8
        return s.svg(title, "Differences in percentage points with 95 % intervals. "
                     + "; ".join(line.told() for line in lines) + ".")


def _panel(axes: Any, s: Sheet, lines: Sequence[_Line]) -> None:
    """Draw the lines from top to bottom on one scale, in points."""
    ends = [100 * v for x in lines for v in (x.row.low, x.row.high, -x.row.margin, x.row.margin)]
    room = 0.05 * (max(ends) - min(ends))
    axes.set_xlim(min(ends) - room, max(ends) + room)
    axes.set_ylim(len(lines) - 0.5, -0.5)
    axes.plot([0, 0], [-0.5, len(lines) - 0.5], color=INK["muted"], linewidth=0.8, zorder=1)
    for y, line in enumerate(lines):
        row = line.row
        verdict = shown_verdict(row)
        colour = INK[badge(verdict).colour]
        offset, half = (0.0, 0.51) if s.wide else (0.2, 0.15)
        axes.fill_betweenx([y + offset - half, y + offset + half], -100 * row.margin, 100 * row.margin,
                           color=INK["band"], linewidth=0, zorder=0)
        axes.plot([100 * row.low, 100 * row.high], [y + offset] * 2, color=colour,
                  linewidth=2.4 if line.strong else 1.2, zorder=2)
        axes.plot([100 * row.delta], [y + offset], color=colour, zorder=3, **mark(verdict, 8 if line.strong else 5))
        _labels(axes, s, line, y)
    axes.set_yticks([])
    axes.set_xlabel("difference in percentage points (positive is better)", color=INK["muted"], fontsize=10)


def _labels(axes: Any, s: Sheet, line: _Line, y: int) -> None:
    """Name of the line, its numbers and its verdict: beside the interval, or above it on a narrow chart."""
    where = axes.get_yaxis_transform()
    strong, quiet, colour = INK["ink"], INK["muted"], INK[badge(shown_verdict(line.row)).colour]
    name = {"transform": where, "va": "center", "color": strong if line.strong else quiet,
            "fontsize": 12 if line.strong else 11}
    word = {"transform": where, "va": "center", "color": colour, "weight": "bold", "fontsize": 11}
    numbers = {"transform": where, "va": "center", "color": strong if line.strong else quiet, "fontsize": 10.5}
    if not line.about and s.wide:
        axes.text(-0.86, y, short(line.name, _COLUMN), **name)
        axes.text(1.03, y, line.word, **word)
        axes.text(1.83, y, line.numbers, ha="right", **numbers)
        return
    left, upper, lower = (-0.86, y - 0.16, y + 0.22) if s.wide else (0.0, y - 0.38, y - 0.12)
    axes.text(left, upper, short(line.name, _COLUMN if s.wide else _NARROW), **name)
    axes.text(left, lower, short(line.about, _COLUMN), transform=where, color=quiet, va="center", fontsize=10)
    right, side = (1.03, "left") if s.wide else (1.0, "right")
    if line.word:
        axes.text(right, upper, line.word, ha=side, **word)
        axes.text(right, lower, line.numbers, ha=side, **numbers)
    else:
        axes.text(right, upper, line.numbers, ha=side, **numbers)
