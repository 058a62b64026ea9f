"""Draws forest plots: differences with their 95 % intervals, on a band that shows the margin.

    forest(comparison, 760)                            the tasks and metrics of one comparison
    task_forest("hellaswag", comparisons, 760)         one task, with a row for each fine-tune of the base
    contrast_forest(contrast, 760)                     two recipes over several seeds

Each verdict has a marker shape beside its colour.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from aftertune.report import formatting as fmt
from aftertune.report.badges import badge
from aftertune.report.charts.svg import INK, WIDE, Sheet, mark, sheet, short
from aftertune.report.names import metric_title
from aftertune.report.table import (
    difference_text,
    interval_text,
    row_label,
    row_metric,
    row_title,
    shown_verdict,
)
from aftertune.values import Comparison, ComparisonRow, Contrast

_WIDE_CHARS = 36  # characters of a name that fit beside the plot of a wide chart
_NARROW_CHARS = 31  # the same on a narrow chart, where the name is above the interval and the label beside it
_AXIS_HEIGHT = 44  # px below the plot, for ticks and axis label


@dataclass(frozen=True, slots=True)
class _Line:
    """One row of a plot. about: the text below the name; label: of the verdict."""

    name: str
    about: str
    row: ComparisonRow
    label: str

    @property
    def primary(self) -> bool:
        """A row of a secondary metric is drawn smaller."""
        return self.row.primary

    @property
    def numbers(self) -> str:
        """Difference and interval, in points or in the metric's own unit."""
        return f"{difference_text(self.row, self.row.delta)} ({interval_text(self.row)})"

    @property
    def description(self) -> str:
        """The row as text for screen readers."""
        label = f", {self.label}" if self.primary and self.label else ""
        return f"{self.name}{'' if self.primary or not self.about else f', {self.about}'}: {self.numbers}{label}"


def forest(comparison: Comparison, width: int) -> str:
    """The differences of a comparison, ``width`` px wide.

    Target tasks have their own panel, because their differences are much larger, and so has each metric in its own
    unit. Returns "" if nothing can be drawn.
    """
    lines = [_Line(row_title(r), row_metric(r), r, row_label(r, comparison.lineage))
             for r in comparison.rows if _drawable(r)]
    panels = [p for side in (False, True) for p in _panels([x for x in lines if x.row.target is side])]
    return _draw(f"forest {comparison.id}", f"Differences of {comparison.tuned_name} against {comparison.base_name}",
                 panels, width)


def _panels(lines: Sequence[_Line]) -> list[list[_Line]]:
    """The lines of shares, which have one scale, and those of each metric in its own unit."""
    units = dict.fromkeys("" if x.row.fraction else x.row.metric for x in lines)
    return [[x for x in lines if ("" if x.row.fraction else x.row.metric) == unit] for unit in
            sorted(units, key=bool)]


def contrast_forest(contrast: Contrast, width: int) -> str:
    """The differences between two recipes over all their seeds; "" if nothing can be drawn."""
    lines = [_Line(row_title(r), row_metric(r), r, row_label(r, lineage=False))
             for r in contrast.rows if _drawable(r)]
    return _draw(f"contrast {contrast.id}", f"Differences of {contrast.right} against {contrast.left}",
                 _panels(lines), width)


def task_forest(task: str, comparisons: Sequence[Comparison], width: int, average_of: tuple[str, ...] = ()) -> str:
    """One task's primary metric, or the average of these tasks, over several comparisons; "" if fewer than two can be
    drawn."""
    lines = [_Line(c.tuned_name, "", r, row_label(r, c.lineage)) for c in comparisons
             for r in c.rows if r.task == task and r.average_of == average_of and r.primary and _drawable(r)]
    if len(lines) < 2:
        return ""
    return _draw(f"task {task} {[c.id for c in comparisons]}", f"Differences on {row_title(lines[0].row)}",
                 _panels(lines), width)


def _drawable(row: ComparisonRow) -> bool:
    return fmt.is_finite(row.low) and fmt.is_finite(row.high) and fmt.is_finite(row.delta)


def _draw(name: str, title: str, panels: Sequence[Sequence[_Line]], width: int) -> str:
    if not panels:
        return ""
    lines = [line for panel in panels for line in panel]
    two_lines = any(line.about for line in lines)
    row_height = 58 if width < WIDE else 36 if two_lines else 24
    height = sum(row_height * len(panel) + _AXIS_HEIGHT + 8 for panel in panels)
    with sheet(name, width, height) as s:
        left, right = (0.32 * width, 0.69 * width) if s.wide else (6, width - 6)
        top = 0
        for panel in panels:
            axes = s.axes(left, top, right - left, row_height * len(panel))
            _panel(axes, s, panel)
            top += row_height * len(panel) + _AXIS_HEIGHT + 8
        unit = "percentage points" if all(line.row.fraction for line in lines) else \
            "percentage points, or in the metric's own unit,"
        return s.svg(title, f"Differences in {unit} with 95 % intervals. "
                     + "; ".join(line.description for line in lines) + ".")


def _panel(axes: Any, s: Sheet, lines: Sequence[_Line]) -> None:
    """Draw the rows from top to bottom on one scale, in points or in the metric's own unit."""
    scale = 100 if lines[0].row.fraction else 1
    ends = [scale * v for x in lines for v in (x.row.low, x.row.high, -(x.row.margin or 0), x.row.margin or 0)]
    room = 0.05 * ((max(ends) - min(ends)) or 1)
    axes.set_xlim(min(ends) - room, max(ends) + room)
    axes.set_ylim(len(lines) - 0.5, -0.5)
    axes.plot([0, 0], [-0.5, len(lines) - 0.5], color=INK["muted"], linewidth=0.8, zorder=1)
    for y, line in enumerate(lines):
        row = line.row
        verdict = shown_verdict(row)
        colour = INK[badge(verdict).colour]
        offset, half = (0.0, 0.51) if s.wide else (0.2, 0.15)
        margin = scale * (row.margin or 0)
        axes.fill_betweenx([y + offset - half, y + offset + half], -margin, margin, color=INK["band"],
                           linewidth=0, zorder=0)
        axes.plot([scale * row.low, scale * row.high], [y + offset] * 2, color=colour,
                  linewidth=2.4 if line.primary else 1.2, zorder=2)
        axes.plot([scale * row.delta], [y + offset], color=colour, zorder=3, **mark(verdict, 8 if line.primary else 5))
        _labels(axes, s, line, y)
    axes.set_yticks([])
    unit = "percentage points" if scale == 100 else f"the unit of {metric_title(lines[0].row.metric, '')}"
    axes.set_xlabel(f"difference in {unit} (positive is better)", color=INK["muted"], fontsize=10)


def _labels(axes: Any, s: Sheet, line: _Line, y: int) -> None:
    """Write the name, numbers and label of a row: beside the interval, or above it on a narrow chart."""
    transform = axes.get_yaxis_transform()
    ink, muted, colour = INK["ink"], INK["muted"], INK[badge(shown_verdict(line.row)).colour]
    name = {"transform": transform, "va": "center", "color": ink if line.primary else muted,
            "fontsize": 12 if line.primary else 11}
    label = {"transform": transform, "va": "center", "color": colour, "weight": "bold", "fontsize": 11}
    numbers = {"transform": transform, "va": "center", "color": ink if line.primary else muted, "fontsize": 10.5}
    if not line.about and s.wide:
        axes.text(-0.86, y, short(line.name, _WIDE_CHARS), **name)
        axes.text(1.03, y, line.label, **label)
        axes.text(1.83, y, line.numbers, ha="right", **numbers)
        return
    left, upper, lower = (-0.86, y - 0.16, y + 0.22) if s.wide else (0.0, y - 0.38, y - 0.12)
    axes.text(left, upper, short(line.name, _WIDE_CHARS if s.wide else _NARROW_CHARS), **name)
    axes.text(left, lower, short(line.about, _WIDE_CHARS), transform=transform, color=muted, va="center", fontsize=10)
    right, align = (1.03, "left") if s.wide else (1.0, "right")
    if line.label:
        axes.text(right, upper, line.label, ha=align, **label)
        axes.text(right, lower, line.numbers, ha=align, **numbers)
    else:
        axes.text(right, upper, line.numbers, ha=align, **numbers)
