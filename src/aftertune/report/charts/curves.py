"""Draws line charts: the loss and the forgetting watch over the steps of a fine-tune, and curves over a factor.

    loss_curve(tuning, 760)         training loss, validation loss, held-out loss before and after
    strength_chart(tuning, 760)     what a fine-tune at less strength gains and loses
    watch_chart(tuning, 760)        the forgetting watch: the change of each task against the base at each step
    checkpoint_chart("orders", LookCurves(points=points, losses={50: 0.31}), 760)      the same from plain values
    factor_chart(factor, 760)       a panel for each measure, a line for each recipe, a small mark for each seed
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from aftertune.report import formatting as fmt
from aftertune.report.charts.svg import INK, WIDE, Sheet, mark, sheet, short, style
from aftertune.report.cures import strength_points
from aftertune.report.factors import Curve, Factor, Panel
from aftertune.report.names import task_title
from aftertune.values import VERDICT_LABELS, Tuning, WatchPoint

_MAX_POINTS = 240  # of a line; a longer log is averaged over equal segments
#: (step, value).
ChartPoints = list[tuple[float, float]]

# --- Charts over the steps of a fine-tune ---


def loss_curve(tuning: Tuning, width: int) -> str:
    """Training and validation loss over the steps, with the held-out loss before and after; "" without a log."""
    steps, validated = _logged(tuning, "loss"), _logged(tuning, "validation_loss")
    if not steps:
        return ""
    points, held_out = downsampled(steps), tuning.held_out
    height = 250
    with sheet(f"loss {tuning.id}", width, height) as s:
        axes = s.axes(56, 14, width - 72, height - 60)
        axes.plot(*zip(*points, strict=True), color=INK["accent"], linewidth=1.5,
                  marker="." if len(points) < 3 else None)
        if validated:
            axes.plot(*zip(*validated, strict=True), color=INK["c2"], linewidth=1.4, linestyle=(0, (5, 2.5)),
                      marker="s", markersize=4.5)
        if held_out is not None:
            axes.plot([0, steps[-1][0]], [held_out.before, held_out.after], color=INK["higher"], linewidth=0,
                      marker="D", markersize=7, markeredgecolor=INK["paper"], markeredgewidth=0.8, clip_on=False)
        axes.set_ylim(bottom=0)
        _format_axes(axes, s, steps[-1][0], "loss, nats per token")
        axes.grid(axis="y", color=INK["line"], linewidth=0.6)
        description = f"Training loss: {_ends(steps)}"
        if validated:
            description += f"; validation loss: {_ends(validated)}"
        if held_out is not None:
            description += f"; held-out loss {fmt.raw(held_out.before, 3)} before, {fmt.raw(held_out.after, 3)} after"
        return s.svg(f"Loss of {tuning.name}", f"{description}.")


def watch_chart(tuning: Tuning, width: int) -> str:
    """The forgetting watch of a fine-tune as a `checkpoint_chart`; "" without a watch."""
    return checkpoint_chart(tuning.name, LookCurves(
        points=tuning.watch, losses={int(step): loss for step, loss in _logged(tuning, "validation_loss")},
        last=max((int(step) for step, _ in _logged(tuning, "loss")), default=0), final=tuning.final_step,
        margin=(tuning.settings.get("watch") or {}).get("margin")), width, key=tuning.id)


@dataclass(frozen=True, slots=True, kw_only=True)
class LookCurves:
    """What was measured at the steps of a training. losses: step -> validation loss; last: the last step; final: the
    step whose weights are handed on; margin: in points, drawn as a band. title, axis: of the chart and
    of its x axis, on which ``step`` is; chosen: a sentence with ``final``."""

    points: Sequence[WatchPoint]
    losses: Mapping[int, float] = field(default_factory=dict)
    last: int = 0
    final: int | None = None
    margin: float | None = None
    title: str = "Forgetting watch"
    axis: str = "step"
    chosen: str = "The weights that are handed on are those of step {}."


def strength_chart(tuning: Tuning, width: int) -> str:
    """What a fine-tune gains and loses at less strength, on the items that choose; "" where no strength was tried."""
    if tuning.cure is None:
        return ""
    points, chosen = strength_points(tuning.cure)
    margins = set(tuning.cure.keep.values())
    return checkpoint_chart(tuning.name, LookCurves(
        points=points, last=100, final=chosen, margin=margins.pop() if len(margins) == 1 else None,
        title="Gain and loss against strength", axis="strength, % of the fine-tune",
        chosen="The strength that was chosen is {} %."), width, key=f"strength {tuning.id}")


def checkpoint_chart(name: str, curves: LookCurves, width: int, *, key: str = "") -> str:
    """What was learned and forgotten at each step, in up to three panels over the same steps: the validation loss, the
    target tasks, and the watched tasks. Each task has a line, with a mark for each verdict and its 95 % interval.

    key: makes the ids of the chart unique in a page; by default the name. "" without points.
    """
    points = [p for p in curves.points if p.fraction and all(map(fmt.is_finite, (p.delta, p.low, p.high)))]
    if not points:
        return ""
    tasks = watched(curves.points)
    panels: list[tuple[int, str, list[WatchPoint]]] = [(90, "validation loss", [])] if curves.losses else []
    for height, label, target in ((130, "learned, points", True), (190, "change against the base, points", False)):
        own = [p for p in points if p.is_target == target]
        panels += [(height, label, own)] if own else []
    last = max([p.step for p in points] + [curves.last])
    total = sum(height + 14 for height, _, _ in panels) + 46
    with sheet(f"watch {key or name}", width, total) as s:
        top = 14
        for height, label, own in panels:
            axes = s.axes(56, top, width - 72, height)
            if not own:
                axes.plot(*zip(*sorted(curves.losses.items()), strict=True), color=INK["c2"], linewidth=1.4,
                          linestyle=(0, (5, 2.5)), marker="s", markersize=4.5)
            else:
                _task_lines(axes, own, tasks, curves.margin, last)
            if curves.final is not None:
                axes.axvline(curves.final, color=INK["accent"], linewidth=1, linestyle=(0, (3, 2)), zorder=0.5)
            _format_axes(axes, s, last, label, curves.axis)
            top += height + 14
            if top < total - 46:  # only the lowest panel names the steps
                axes.set_xlabel("")
                axes.tick_params(axis="x", labelbottom=False)
        return s.svg(f"{curves.title} of {name}", _looks_text(curves, points, tasks))


def _looks_text(curves: LookCurves, points: Sequence[WatchPoint], tasks: Sequence[str]) -> str:
    """All figures of a chart of looks, for screen readers."""
    word = curves.axis.split()[0].rstrip(",")
    sentences = [f"{task_title(t)}: " + "; ".join(
        f"{word} {p.step} {fmt.points(p.delta)} ({fmt.points_interval(p.low, p.high)}), {VERDICT_LABELS[p.verdict]}"
        for p in points if p.task == t) + "." for t in tasks]
    if curves.losses:
        sentences.append("Validation loss: " + "; ".join(
            f"step {step} {fmt.raw(loss, 3)}" for step, loss in sorted(curves.losses.items())) + ".")
    if curves.final is not None:
        sentences.append(curves.chosen.format(curves.final))
    return " ".join(sentences)


def watched(points: Sequence[WatchPoint]) -> list[str]:
    """The tasks of a forgetting watch, in the order of their lines."""
    return list(dict.fromkeys(p.task for p in points))


def downsampled(line: ChartPoints) -> ChartPoints:
    """A line of at most 240 points; each is the mean of a segment of the given line."""
    if len(line) <= _MAX_POINTS:
        return line
    edges = [round(i * len(line) / _MAX_POINTS) for i in range(_MAX_POINTS + 1)]
    segments = [line[a:b] for a, b in pairwise(edges)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in segments]


def _logged(tuning: Tuning, name: str) -> ChartPoints:
    """The logged steps that have a finite value of this name."""
    return [(s["step"], s[name]) for s in tuning.steps if fmt.is_finite(s.get("step")) and fmt.is_finite(s.get(name))]


def _ends(line: ChartPoints) -> str:
    """The first and the last value as text."""
    return ", ".join(f"{fmt.raw(value, 3)} at step {fmt.count(step)}" for step, value in (line[0], line[-1]))


def _format_axes(axes: Any, s: Sheet, last: float, label: str, along: str = "step") -> None:
    """Limits, ticks and labels of axes over the steps. last: the last step; label, along: of the y and the x axis."""
    axes.set_xlim(-0.015 * last, 1.015 * last)
    axes.xaxis.get_major_locator().set_params(integer=True, nbins=8 if s.wide else 4)
    axes.set_xlabel(along, color=INK["muted"], fontsize=10)
    axes.set_ylabel(label, color=INK["muted"], fontsize=10)
    axes.tick_params(axis="y", length=0)


def _task_lines(axes: Any, points: Sequence[WatchPoint], tasks: Sequence[str], margin: float | None, last: float
                ) -> None:
    """Draw the zero line, the margin as a band, and a line for each task that has points. tasks: of all panels, in the
    order of their styles."""
    axes.axhline(0, color=INK["muted"], linewidth=0.8, zorder=1)
    if margin:
        axes.axhspan(-margin, margin, color=INK["band"], linewidth=0, zorder=0)
    for number, task in enumerate(tasks):
        own = [p for p in points if p.task == task]
        if own:
            _watch_line(axes, own, number, (number - (len(tasks) - 1) / 2) * 0.008 * last)


def _watch_line(axes: Any, points: Sequence[WatchPoint], number: int, shift: float) -> None:
    """Draw one task: a line that starts at the base, and at each step the interval and the mark of its verdict."""
    line = style(number)
    xs, ys = [p.step + shift for p in points], [100 * p.delta for p in points]
    axes.plot([0, *xs], [0, *ys], zorder=2.5, **line.plot_options)
    for p, x, y in zip(points, xs, ys, strict=True):
        axes.plot([x, x], [100 * p.low, 100 * p.high], color=INK[line.ink], linewidth=1.1, alpha=0.7, zorder=2)
        axes.plot([x], [y], color=INK[line.ink], zorder=3, **mark(p.verdict, 7.5))


# --- Curves over a factor ---

_PANEL_HEIGHT, _GAP = 232, 12  # px


def factor_chart(factor: Factor, width: int) -> str:
    """All panels of a factor: two in a row on a wide chart, else one."""
    columns = 2 if width >= WIDE else 1
    panel_width, rows = width / columns, -(-len(factor.panels) // columns)
    log = not factor.shares and factor.ticks[0] > 0 and factor.ticks[-1] >= 4 * factor.ticks[0]
    with sheet(f"factor {factor.base} {factor.name} {factor.labels}", width, rows * (_PANEL_HEIGHT + _GAP)) as s:
        for i, panel in enumerate(factor.panels):
            left, top = i % columns * panel_width, i // columns * (_PANEL_HEIGHT + _GAP)
            axes = s.axes(left + 52, top + 28, panel_width - 72, _PANEL_HEIGHT - 70)
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
                     " ".join(_description(factor, panel) for panel in factor.panels))


@dataclass(frozen=True, slots=True)
class _Dodge:
    """Shifts each line a little along x, so that marks with the same x do not cover each other."""

    factor: Factor
    log: bool

    def __call__(self, x: float, style: int) -> float:
        first, last = self.factor.ticks[0], self.factor.ticks[-1]
        step = (style - (len(self.factor.labels) - 1) / 2) * 0.018
        return x * (last / first) ** step if self.log else x + step * (last - first)


def _panel(axes: Any, panel: Panel, dodge: _Dodge) -> None:
    """Draw the margin as a band, the zero line and the curves."""
    if panel.margin is not None:
        axes.axhspan(-panel.margin, panel.margin, color=INK["band"], linewidth=0, zorder=0)
    axes.axhline(0, color=INK["muted"], linewidth=0.8, zorder=1)
    for curve in panel.curves:
        _curve(axes, curve, dodge)
    values = [v for c in panel.curves for p in c.points for s in p.spans
              for v in ((s.low, s.high) if len(p.spans) == 1 else (s.value,))]
    values += [0.0, *((-panel.margin, panel.margin) if panel.margin is not None else ())]
    room = 0.07 * ((max(values) - min(values)) or 1.0)
    axes.set_ylim(min(values) - room, max(values) + room)
    axes.margins(x=0.07)
    axes.tick_params(axis="y", length=0)


def _curve(axes: Any, curve: Curve, dodge: _Dodge) -> None:
    """Draw a line through the means over the seeds, and at each x the seeds, or the interval of a single seed."""
    line = style(curve.style)
    for point in curve.points:
        x = dodge(point.x, curve.style)
        if len(point.spans) == 1:
            span = point.spans[0]
            axes.plot([x] * 2, [span.low, span.high], color=INK[line.ink], linewidth=1.0, alpha=0.7, zorder=2)
        else:
            axes.plot([x] * len(point.spans), [s.value for s in point.spans], linewidth=0, marker=line.marker,
                      markersize=3.6, color=INK[line.ink], markeredgewidth=0, alpha=0.6, zorder=2)
    axes.plot([dodge(p.x, curve.style) for p in curve.points], [p.mean for p in curve.points], marker=line.marker,
              markersize=6.5, markeredgecolor=INK["paper"], markeredgewidth=0.8, zorder=3, **line.plot_options)


def _description(factor: Factor, panel: Panel) -> str:
    """The means of a panel, as text for screen readers."""
    lines = "; ".join(f"{c.label}: " + ", ".join(f"{fmt.change(p.mean, 2)} at {factor.tick(p.x)}" for p in c.points)
                      for c in panel.curves)
    return f"{panel.title}, {panel.unit}: {lines}."
