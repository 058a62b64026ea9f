"""Looks at tasks while a model is trained, in words."""

from __future__ import annotations

from collections.abc import Sequence

from aftertune.report import format as fmt
from aftertune.values import TOLD, WatchPoint


def watch_text(point: WatchPoint) -> str:
    """A look in one line; its model descends from the base, so the words of forgetting are right."""
    return (f"watch, step {point.step}: {point.task} {fmt.percent(point.base)} → {fmt.percent(point.tuned)}, "
            f"{fmt.points(point.delta)} points ({fmt.points_interval(point.low, point.high)}) on {point.n} items: "
            f"{TOLD[point.verdict]}")


def watch_facts(points: Sequence[WatchPoint]) -> list[tuple[str, str]]:
    """Of each task the last look, and where it was first proven to be forgotten."""
    facts = []
    for task in dict.fromkeys(point.task for point in points):
        own = [point for point in points if point.task == task]
        last, lost = own[-1], next((p.step for p in own if p.verdict == "lower"), None)
        first = "" if lost is None else f"; first proven forgotten at step {lost}"
        facts.append((f"Watch, {task}", f"{len(own)} looks; {watch_text(last).removeprefix('watch, ')}{first}"))
    return facts
