"""What happened while a model was trained: the loss over the steps, and what was seen of tasks on the way.

    loss_curve(tuning, 760)         training loss, validation loss, held-out loss before and after
    watch_chart(tuning, 760)        the forgetting watch: change of each task against the base, step by step
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from aftertune.report import format as fmt
from aftertune.report.charts.marks import style
from aftertune.report.charts.sheet import INK, Sheet, mark, sheet
from aftertune.report.names import task_title
from aftertune.values import TOLD, Tuning, WatchPoint

_MOST = 240  # points of a line; longer logs are drawn as means of stretches
Line = list[tuple[float, float]]


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


def thinned(line: Line) -> Line:
    """A line of at most 240 points, each the mean of a stretch."""
    if len(line) <= _MOST:
        return line
    edges = [round(at * len(line) / _MOST) for at in range(_MOST + 1)]
    parts = [line[a:b] for a, b in pairwise(edges)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]


def _logged(tuning: Tuning, name: str) -> Line:
    return [(s["step"], s[name]) for s in tuning.steps if fmt.known(s.get("step")) and fmt.known(s.get(name))]


def _ends(line: Line) -> str:
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
