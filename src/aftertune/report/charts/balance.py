"""Draws learned against forgotten: one mark for each fine-tune, with what it learned on x and what it changed on y.

    balance_chart(balance, 760)         the mean over the benchmarks; the marks are numbered as in the table beside it
    balance_panels(balance, 760)        a panel for each benchmark

Shape and colour of a mark are those of its verdict. A mark is hollow if it is not proven that the fine-tune learned
anything. The shaded band is the margin; the dashed line is the Pareto front. A grey line joins a fine-tune to what was
made of it without training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from aftertune.report import formatting as fmt
from aftertune.report.badges import badge
from aftertune.report.charts.svg import INK, WIDE, mark, sheet
from aftertune.report.learned_vs_forgotten import LOSS, Balance, Point
from aftertune.report.names import task_title
from aftertune.values import VERDICT_LABELS, Comparison

#: With at least this many points the intervals are drawn lighter.
_CROWD = 12
#: (left, bottom, right, top) in px.
Box = tuple[float, float, float, float]
#: The address of a comparison.
AddressOf = Callable[[Comparison], str]


def balance_chart(balance: Balance, width: int, link: AddressOf | None = None) -> str:
    """The mean over the benchmarks, in one panel ``width`` px wide. link: makes each mark a link."""
    height = 430 if width >= WIDE else 380
    with sheet(f"balance {balance.base} {balance.measure} {balance.tasks}", width, height) as s:
        axes = s.axes(58, 14, width - 74, height - 66)
        _draw(axes, balance, link)
        _number(axes, balance.points, width - 74, height - 66)
        axes.set_xlabel(balance.learned, color=INK["muted"], fontsize=10.5)
        axes.set_ylabel(balance.changed, color=INK["muted"], fontsize=10.5)
        return s.svg(f"Learned against forgotten: fine-tunes of {balance.base_name}", _description(balance))


def balance_panels(balance: Balance, width: int) -> str:
    """A panel for each benchmark; "" if there is only one."""
    if len(balance.tasks) < 2:
        return ""
    columns = 2 if width >= WIDE else 1
    panel_width, panel_height, gap = width / columns, 250, 14
    rows = -(-len(balance.tasks) // columns)
    with sheet(f"balances {balance.base} {balance.measure} {balance.tasks}", width, rows * (panel_height + gap)) as s:
        for i, task in enumerate(balance.tasks):
            left, top = i % columns * panel_width, i // columns * (panel_height + gap)
            panel = balance.on(task)
            axes = s.axes(left + 58, top + 28, panel_width - 74, panel_height - 76)
            _draw(axes, panel)
            s.text(left + 8, top + 14, task_title(task), color=INK["ink"], fontsize=11.5, weight="bold", va="center")
            axes.set_xlabel(balance.learned.removeprefix("learned: "), color=INK["muted"], fontsize=10)
            axes.set_ylabel("change, points", color=INK["muted"], fontsize=10)
        description = " ".join(f"{task_title(t)}: {_description(balance.on(t))}" for t in balance.tasks)
        return s.svg(f"Learned against forgotten on each benchmark: fine-tunes of {balance.base_name}", description)


def _draw(axes: Any, balance: Balance, link: AddressOf | None = None) -> None:
    """Band, zero lines, front, intervals and marks."""
    points = balance.points
    _limits(axes, balance)
    left, right = axes.get_xlim()
    low, high = axes.get_ylim()
    if balance.margin is not None:
        axes.fill_between([left, right], max(low, -balance.margin), min(high, balance.margin), color=INK["band"],
                          linewidth=0, zorder=0)
    axes.plot([left, right], [0, 0], color=INK["muted"], linewidth=0.8, zorder=1)
    if left < 0 < right:
        axes.plot([0, 0], [low, high], color=INK["muted"], linewidth=0.8, zorder=1)
    front = sorted((p.learned.value, p.changed.value) for p in points if p.front)
    if len(front) > 1:
        axes.plot(*zip(*_steps(front), strict=True), color=INK["accent"], linewidth=1.4, linestyle=(0, (5, 3)),
                  zorder=1.5)
    numbered = {p.number: p for p in points}
    for p in points:
        for source in (numbered[n] for n in p.made_from):
            axes.plot([source.learned.value, p.learned.value], [source.changed.value, p.changed.value],
                      color=INK["muted"], linewidth=1.2, alpha=0.7, zorder=1.8)
    thin = {"linewidth": 1.0 if len(points) < _CROWD else 0.7, "alpha": 0.8 if len(points) < _CROWD else 0.4}
    for p in points:
        colour = INK[badge(p.verdict).colour]
        axes.plot([p.learned.low, p.learned.high], [p.changed.value] * 2, color=colour, zorder=2, **thin)
        axes.plot([p.learned.value] * 2, [p.changed.low, p.changed.high], color=colour, zorder=2, **thin)
        style = mark(p.verdict, 8.5)
        if not p.proven:
            style |= {"markerfacecolor": INK["paper"], "markeredgecolor": colour, "markeredgewidth": 1.5}
        [drawn] = axes.plot([p.learned.value], [p.changed.value], color=colour, zorder=3, **style)
        if link is not None:
            drawn.set_linestyle("none")  # the line of a single point would be an empty link
            drawn.set_url(link(p.outcome.comparison))
    axes.tick_params(axis="y", length=0)


def _limits(axes: Any, balance: Balance) -> None:
    """Set the limits so that every interval, zero and the margin fit."""
    xs = [v for p in balance.points for v in (p.learned.low, p.learned.high, 0.0)]
    ys = [v for p in balance.points for v in (p.changed.low, p.changed.high, 0.0)]
    ys += [-balance.margin, balance.margin] if balance.margin is not None else []
    for values, limit in ((xs, axes.set_xlim), (ys, axes.set_ylim)):
        room = 0.06 * ((max(values) - min(values)) or 1.0)
        limit(min(values) - room, max(values) + room)


def _steps(front: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The corners of the front's staircase: every point below it is beaten by one on the front."""
    path = [front[0]]
    for (_, before), (x, y) in pairwise(front):
        path += [(x, before), (x, y)] if before > y else [(x, y)]
    return path


def _number(axes: Any, points: Sequence[Point], width: float, height: float) -> None:
    """Write the number of each point beside it, where it overlaps marks and other numbers least.

    width, height: of the axes in px.
    """
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    centres = [((p.learned.value - left) / (right - left) * width, (p.changed.value - low) / (high - low) * height)
               for p in points]
    occupied: list[Box] = [(x - 5, y - 5, x + 5, y + 5) for x, y in centres]
    for p, (x, y) in zip(points, centres, strict=True):
        size = 7.0 * len(str(p.number))
        candidates = [(x + dx * (6 + size / 2), y + dy) for dy in (9, -9, 0, 18, -18) for dx in (1, -1, 0)
                      if (dx, dy) != (0, 0)]
        boxes = [(u - size / 2, v - 6, u + size / 2, v + 6) for u, v in candidates]
        best = min(boxes, key=lambda box: sum(_shared_area(box, b) for b in occupied) + _outside(box, width, height))
        occupied.append(best)
        axes.annotate(str(p.number), ((best[0] + best[2]) / 2 / width, (best[1] + best[3]) / 2 / height),
                      xycoords="axes fraction", color=INK["ink"], ha="center", va="center", fontsize=10,
                      weight="bold" if p.front else "normal")


def _shared_area(a: Box, b: Box) -> float:
    """The area that two boxes share, in px²."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _outside(box: Box, width: float, height: float) -> float:
    """A large penalty for a box that is not inside the axes."""
    return 1000.0 * (box[0] < 0 or box[1] < 0 or box[2] > width or box[3] > height)


def _description(balance: Balance) -> str:
    """What the chart shows, as text for screen readers."""
    unit = "nats per token" if balance.measure == LOSS else "points"
    points = "; ".join(
        f"{p.number} {p.outcome.comparison.tuned_name}: learned {fmt.change(p.learned.value, 2)} {unit}"
        f"{'' if p.proven else ' (not proven)'}, {'on the front, ' if p.front else ''}{_made_from(p)}changed "
        f"{fmt.change(p.changed.value, 2)} points, {VERDICT_LABELS[p.verdict] if p.verdict else 'nothing to forget'}"
        for p in balance.points)
    return f"Horizontal axis: {balance.learned}. Vertical axis: {balance.changed}. {points}."


def _made_from(point: Point) -> str:
    return f"made from {' and '.join(map(str, point.made_from))} without training, " if point.made_from else ""
