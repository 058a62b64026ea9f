"""Curves over what was varied: a panel for each measure, a line for each recipe, a small mark for each seed.

    factor_chart(factor, 760)

What happened while a model was trained: the loss over the steps, and what was seen of tasks on the way.

    loss_curve(tuning, 760)         training loss, validation loss, held-out loss before and after
    watch_chart(tuning, 760)        the forgetting watch: change of each task against the base, step by step
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from aftertune.report import formatting as fmt
from aftertune.report.charts.svg import INK, WIDE, Sheet, mark, sheet, short, style
from aftertune.report.factors import Curve, Factor, Panel
from aftertune.report.names import task_title
from aftertune.values import TOLD, Tuning, WatchPoint

_MOST = 240  # points of a line; longer logs are drawn as means of stretches
ChartPoints = list[tuple[float, float]]


def loss_curve(tuning: Tuning, width: int) -> str:
    """Training and validation loss over the steps, with the held-out loss before and after; "" without logged steps."""
    steps, validated = _logged(tuning, "loss"), _logged(tuning, "validation_loss")
    if not steps:
        return ""
    drawn, held = thinned(steps), tuning.held_out
    height = 250
    with sheet(f"loss {tuning.id}", width, height) as s:
        axes = s.axes(56, 14, width - 72, height - 60)
        axes.plot(*zip(*drawn, strict=True), color=INK["accent"], linewidth=1.5, marker="." if len(drawn) < 3 else None)
        if validated:
            axes.plot(*zip(*validated, strict=True), color=INK["c2"], linewidth=1.4, linestyle=(0, (5, 2.5)),
                      marker="s", markersize=4.5)
        if held is not None:
            axes.plot([0, steps[-1][0]], [held.before, held.after], color=INK["higher"], linewidth=0, marker="D",
                      markersize=7, markeredgecolor=INK["paper"], markeredgewidth=0.8, clip_on=False)
        axes.set_ylim(bottom=0)
        _over_steps(axes, s, steps[-1][0], "loss, nats per token")
        axes.grid(axis="y", color=INK["line"], linewidth=0.6)
        said = f"Training loss: {_ends(steps)}"
        if validated:
            said += f"; validation loss: {_ends(validated)}"
        if held is not None:
            said += f"; held-out loss {fmt.raw(held.before, 3)} before, {fmt.raw(held.after, 3)} after"
        return s.svg(f"Loss of {tuning.name}", f"{said}.")


def watch_chart(tuning: Tuning, width: int) -> str:
    """A line for each watched task with the 95 % intervals of the looks and a mark for each verdict; "" without any."""
    points = [p for p in tuning.watch if all(map(fmt.known, (p.delta, p.low, p.high)))]
    if not points:
        return ""
    height = 250
    tasks = watched(tuning)
    last = max([p.step for p in points] + [int(step) for step, _ in _logged(tuning, "loss")])
    with sheet(f"watch {tuning.id}", width, height) as s:
        axes = s.axes(56, 14, width - 72, height - 60)
        axes.axhline(0, color=INK["muted"], linewidth=0.8, zorder=1)
        if margin := (tuning.settings.get("watch") or {}).get("margin"):
            axes.axhspan(-margin, margin, color=INK["band"], linewidth=0, zorder=0)
        for number, task in enumerate(tasks):
            own = [p for p in points if p.task == task]
            _look(axes, own, number, (number - (len(tasks) - 1) / 2) * 0.008 * last)
        _over_steps(axes, s, last, "change against the base, points")
        said = " ".join(f"{task_title(t)}: " + "; ".join(
            f"step {p.step} {fmt.points(p.delta)} ({fmt.points_interval(p.low, p.high)}), {TOLD[p.verdict]}"
            for p in points if p.task == t) + "." for t in tasks)
        return s.svg(f"Forgetting watch of {tuning.name}", said)


def watched(tuning: Tuning) -> list[str]:
    """The tasks of a tuning's watch, in the order of the lines that stand for them."""
    return list(dict.fromkeys(p.task for p in tuning.watch))


def thinned(line: ChartPoints) -> ChartPoints:
    """A line of at most 240 points, each the mean of a stretch."""
    if len(line) <= _MOST:
        return line
    edges = [round(at * len(line) / _MOST) for at in range(_MOST + 1)]
    parts = [line[a:b] for a, b in pairwise(edges)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]


def _logged(tuning: Tuning, name: str) -> ChartPoints:
    return [(s["step"], s[name]) for s in tuning.steps if fmt.known(s.get("step")) and fmt.known(s.get(name))]


def _ends(line: ChartPoints) -> str:
    return ", ".join(f"{fmt.raw(value, 3)} at step {fmt.count(step)}" for step, value in (line[0], line[-1]))


def _over_steps(axes: Any, s: Sheet, last: float, label: str) -> None:
    axes.set_xlim(-0.015 * last, 1.015 * last)
    axes.xaxis.get_major_locator().set_params(integer=True, nbins=8 if s.wide else 4)
    axes.set_xlabel("step", color=INK["muted"], fontsize=10)
    axes.set_ylabel(label, color=INK["muted"], fontsize=10)
    axes.tick_params(axis="y", length=0)


def _look(axes: Any, points: Sequence[WatchPoint], number: int, shift: float) -> None:
    """One task: a line from the base on, each look with its interval and the mark of its verdict."""
    look = style(number)
    xs, ys = [p.step + shift for p in points], [100 * p.delta for p in points]
    axes.plot([0, *xs], [0, *ys], zorder=2.5, **look.line)
    for p, x, y in zip(points, xs, ys, strict=True):
        axes.plot([x, x], [100 * p.low, 100 * p.high], color=INK[look.ink], linewidth=1.1, alpha=0.7, zorder=2)
        axes.plot([x], [y], color=INK[look.ink], zorder=3, **mark(p.verdict, 7.5))


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
