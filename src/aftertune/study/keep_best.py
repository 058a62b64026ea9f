"""Chooses one of several checkpoints by a rule, on one half of the items, so that the other half can judge it.

    rule = KeepBest.parse("orders, no loss > 2 on hellaswag", tasks=["orders", "hellaswag"], validated=False)
    rule.choose(points, {})              CheckpointChoice(step=150, met=True, reason="…"), or None
    split_halves(["a", "a", "b", "c"])   ([0, 1], [2, 3]): equal labels stay together

The grammar is GOAL {, no loss > POINTS on TASK}. The goal is a task, whose score counts, or "validation loss". Points
are percentage points of the task's primary metric.

The best of many noisy scores is too good: its luck was chosen with it. So a rule sees the points of one half of the
items alone (``half="choice"``), and the chosen checkpoint is measured on the other half.

A step with a lower key (`KeepBest._key`) is better, and the key of a step does not depend on the other steps. So the
best step so far never comes back after a better one was found, and its weights may be deleted.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aftertune.errors import nearest
from aftertune.values import CheckpointChoice, WatchPoint

#: The goal that takes the checkpoint with the lowest validation loss.
VALIDATION_LOSS = "validation loss"
GRAMMAR = "GOAL, no loss > POINTS on TASK"
_SEPARATOR = re.compile(",")
_CONDITION = re.compile(r"no loss > (\d+(?:\.\d+)?)(?: points?)? on (\S+)")
#: A loss in points within this of its limit meets it: sums of floating-point numbers are not exact.
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class KeepBest:
    """A rule. goal: a task or `VALIDATION_LOSS`; limits: task -> the largest loss that is allowed, in points."""

    goal: str
    limits: Mapping[str, float]

    @classmethod
    def parse(cls, text: str, *, tasks: Sequence[str], validated: bool) -> KeepBest:
        """The rule that ``text`` says. tasks: that are measured, the target first; validated: whether there is a
        validation loss.

        Raises ValueError, in one line with what is allowed, for another form, an unknown task, or a task twice.
        """
        goals = [*tasks, *([VALIDATION_LOSS] if validated else [])]
        example = f'for example "{(goals or ["orders"])[0]}, no loss > 2 on {(list(tasks) or ["hellaswag"])[-1]}"'
        allowed = (f"write {GRAMMAR}, {example}; goals here: {', '.join(goals) or 'none'}; tasks here: "
                   f"{', '.join(tasks) or 'none'}")
        goal, *conditions = (" ".join(part.split()) for part in _SEPARATOR.split(text))
        if goal not in goals:
            what = f"the goal {goal!r} is not measured{nearest(goal, goals)}" if goal else "it has no goal"
            missing = "; --validation gives a validation loss" if goal in (VALIDATION_LOSS, "loss") and \
                not validated else ""
            raise ValueError(f"{what}{missing}; {allowed}")
        limits: dict[str, float] = {}
        for condition in conditions:
            match = _CONDITION.fullmatch(condition)
            if match is None:
                raise ValueError(f"{condition!r} is no condition; {allowed}")
            points, task = float(match[1]), match[2]
            if task not in tasks:
                raise ValueError(f"{task!r} is not watched{nearest(task, list(tasks))}; {allowed}")
            if task in limits:
                raise ValueError(f"{task!r} has two conditions; {allowed}")
            if not 0 < points <= 100:
                raise ValueError(f"{match[1]} points: a limit is above 0 and at most 100; {allowed}")
            limits[task] = points
        return cls(goal, limits)

    def __str__(self) -> str:
        return ", ".join([self.goal, *(f"no loss > {points:g} on {task}" for task, points in self.limits.items())])

    def choose(self, points: Sequence[WatchPoint], losses: Mapping[int, float]) -> CheckpointChoice | None:
        """The checkpoint to keep: of those that meet all conditions the one that is best at the goal. If none does, the
        one whose largest excess over a limit is smallest. Equal ones: the earliest.

        points: of all steps, on the items that choose. losses: step -> validation loss. None where no step has all
        numbers that the rule reads.
        """
        by_step: dict[int, dict[str, WatchPoint]] = {}
        for point in points:
            by_step.setdefault(point.step, {})[point.task] = point
        keys = {}
        for step in sorted({*by_step, *losses}):
            key = self._key(by_step.get(step, {}), losses.get(step))
            if key is not None:
                keys[step] = key
        if not keys:
            return None
        chosen = min(keys, key=lambda step: (*keys[step], step))
        met = sum(key[0] == 0 for key in keys.values())
        return CheckpointChoice(rule=str(self), step=chosen, met=keys[chosen][0] == 0, reason=self._reason(
            by_step.get(chosen, {}), losses.get(chosen), len(keys), met))

    def _key(self, measured: Mapping[str, WatchPoint], loss: float | None) -> tuple[float, float] | None:
        """(largest excess over a limit in points, 0 if all are met; the goal, lower is better) of one step."""
        if any(task not in measured for task in self.limits):
            return None
        goals = {VALIDATION_LOSS: loss, **{task: -point.delta for task, point in measured.items()}}
        goal = goals.get(self.goal)
        if goal is None or not math.isfinite(goal):  # a training that diverged
            return None
        excess = max((_loss(measured[task]) - limit for task, limit in self.limits.items()), default=0.0)
        return (excess if excess > _ROUNDING else 0.0), goal

    def _reason(self, measured: Mapping[str, WatchPoint], loss: float | None, steps: int, met: int) -> str:
        """Why a step was chosen, with its numbers. met: how many of ``steps`` checkpoints meet all conditions."""
        if self.goal == VALIDATION_LOSS:
            goal = f"validation loss {loss:.4f}"
        else:
            point = measured[self.goal]
            goal = f"{self.goal} {_points(point)} points on {point.n} items"
        numbers = [goal, *(f"{task} {_points(measured[task])} on {measured[task].n} items"
                           for task in self.limits if task != self.goal)]
        if not self.limits:
            how = f"the best of {steps} checkpoints"
        elif met:
            how = f"the best of {met} checkpoints that meet the rule, of {steps}"
        else:
            how = f"none of {steps} checkpoints meets the rule, and this one comes nearest"
        return f"{how} ({', '.join(numbers)})"


def _points(point: WatchPoint) -> str:
    return f"{100 * point.delta:+.1f}".replace("-", "−")


def _loss(point: WatchPoint) -> float:
    return -100 * point.delta


def split_halves(labels: Sequence[Hashable], seed: int = 0) -> tuple[list[int], list[int]]:
    """Two halves of items: the positions of those that choose and of those that report, each in ascending order.

    labels: the cluster of each item; items with the same one go to the same half. Clusters come in a random order from
    ``seed``, and each goes to the half that has fewer items. An item whose label is None counts as its own cluster.
    Raises ValueError if there are fewer than two clusters.
    """
    groups: dict[Any, list[int]] = {}
    for position, label in enumerate(labels):
        groups.setdefault(("item", position) if label is None else ("cluster", label), []).append(position)
    if len(groups) < 2:
        raise ValueError("there is one cluster of items alone, and items of one cluster cannot be split")
    order = list(groups.values())
    random.Random(seed).shuffle(order)
    halves: tuple[list[int], list[int]] = ([], [])
    for group in order:
        min(halves, key=len).extend(group)
    return sorted(halves[0]), sorted(halves[1])
