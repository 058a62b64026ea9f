"""Curves over what was varied: a panel for each measure, a line for each recipe, a small mark for each seed.

    factor_chart(factor, 760)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from aftertune.report import format as fmt
from aftertune.report.charts.marks import style
from aftertune.report.charts.sheet import INK, WIDE, sheet, short
from aftertune.report.factors import Curve, Factor, Panel

_TALL, _GAP = 232, 12


def factor_chart(factor: Factor, width: int) -> str:
    """All panels of a factor, two beside each other where there is room."""
    columns = 2 if width >= WIDE else 1
    each, rows = width / columns, -(-len(factor.panels) // columns)
    log = not factor.shares and factor.ticks[0] > 0 and factor.ticks[-1] >= 4 * factor.ticks[0]
    with sheet(f"factor {factor.base} {factor.name} {factor.labels}", width, rows * (_TALL + _GAP)) as s:
        for at, panel in enumerate(factor.panels):
            left, top = at % columns * each, at // columns * (_TALL + _GAP)
            axes = s.axes(left + 52, top + 28, each - 72, _TALL - 70)
            s.text(left + 8, top + 13, short(panel.title, 44), color=INK["ink"], fontsize=11.5, weight="bold",
                   va="center")
            if log:
                axes.set_xscale("log")
            _panel(axes, panel, _Dodge(factor, log))
            axes.set_xticks(list(factor.ticks), [factor.tick(x) for x in factor.ticks], minor=False)
            axes.minorticks_off()
            axes.set_xlabel(factor.name, color=INK["muted"], fontsize=10)
            axes.set_ylabel(panel.unit, color=INK["muted"], fontsize=10)
        return s.svg(f"Curves over {factor.name}, against {factor.base_name}",
                     " ".join(_told(factor, panel) for panel in factor.panels))


@dataclass(frozen=True, slots=True)
class _Dodge:
    """Moves each line a little aside, so that marks at one place do not cover each other."""

    factor: Factor
    log: bool

    def __call__(self, x: float, style: int) -> float:
        first, last = self.factor.ticks[0], self.factor.ticks[-1]
        step = (style - (len(self.factor.labels) - 1) / 2) * 0.018
        return x * (last / first) ** step if self.log else x + step * (last - first)


def _panel(axes: Any, panel: Panel, dodge: _Dodge) -> None:
    """The margin as a band, the zero line, the lines."""
    if panel.margin is not None:
        axes.axhspan(-panel.margin, panel.margin, color=INK["band"], linewidth=0, zorder=0)
    axes.axhline(0, color=INK["muted"], linewidth=0.8, zorder=1)
    for curve in panel.curves:
        _curve(axes, curve, dodge)
    values = [v for c in panel.curves for p in c.places for s in p.spans
              for v in ((s.low, s.high) if len(p.spans) == 1 else (s.value,))]
    values += [0.0, *((-panel.margin, panel.margin) if panel.margin is not None else ())]
    room = 0.07 * ((max(values) - min(values)) or 1.0)
    axes.set_ylim(min(values) - room, max(values) + room)
    axes.margins(x=0.07)
    axes.tick_params(axis="y", length=0)


def _curve(axes: Any, curve: Curve, dodge: _Dodge) -> None:
    """A line through the means of the seeds; a model that stands alone shows its interval instead."""
    look = style(curve.style)
    for place in curve.places:
        x = dodge(place.x, curve.style)
        if len(place.spans) == 1:
            span = place.spans[0]
            axes.plot([x] * 2, [span.low, span.high], color=INK[look.ink], linewidth=1.0, alpha=0.7, zorder=2)
        else:
            axes.plot([x] * len(place.spans), [s.value for s in place.spans], linewidth=0, marker=look.marker,
                      markersize=3.6, color=INK[look.ink], markeredgewidth=0, alpha=0.6, zorder=2)
    axes.plot([dodge(p.x, curve.style) for p in curve.places], [p.mean for p in curve.places], marker=look.marker,
              markersize=6.5, markeredgecolor=INK["paper"], markeredgewidth=0.8, zorder=3, **look.line)


def _told(factor: Factor, panel: Panel) -> str:
    """The means of a panel, for who cannot see it."""
    lines = "; ".join(f"{c.label}: " + ", ".join(f"{fmt.change(p.mean, 2)} at {factor.tick(p.x)}" for p in c.places)
                      for c in panel.curves)
    return f"{panel.title}, {panel.unit}: {lines}."
