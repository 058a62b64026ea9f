"""Finds the items on which a checkpoint was chosen during a training, so that they do not confirm a cure of it.

    found = items_that_chose(tunings, request.tasks, LoadOptions())
    found.hashes["colours"]              the hashes of the items of one half of the watched items
    found.unknown                        tasks whose items cannot be loaded any more

A rule such as --keep-best "orders, no loss > 2 on hellaswag" saw one half of the watched items. Which ones is computed
again, as the watch did it, and compared with the digest that the fine-tune's record has of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from aftertune import tasks
from aftertune.errors import AftertuneError
from aftertune.forgetting_watch import HALVES_SEED, item_clusters
from aftertune.study import TaskSpec, checked
from aftertune.study.keep_best import VALIDATION_LOSS, KeepBest, split_halves
from aftertune.tasks import LoadOptions
from aftertune.values import Tuning, digest


@dataclass(frozen=True, slots=True)
class ChoosingItems:
    """Hashes of the items that chose, by the task of the rule; and the tasks of a rule whose items are not known."""

    hashes: Mapping[str, frozenset[str]] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()

    @property
    def all(self) -> frozenset[str]:
        """The hashes of all tasks: a row has one hash, by whatever name its file is asked."""
        return frozenset().union(*self.hashes.values())


def items_that_chose(tunings: Iterable[Tuning], specs: Sequence[TaskSpec], options: LoadOptions) -> ChoosingItems:
    """The items on which checkpoints of these fine-tunes were chosen. specs: of the cure; the file of a watched target
    is found among them."""
    hashes: dict[str, frozenset[str]] = {}
    unknown: set[str] = set()
    for tuning in tunings:
        for name in _tasks_of_rule(tuning):
            found = _choosing_half(tuning, name, specs, options)
            if found is None:
                unknown.update(_watched_tasks(tuning, name) or [name])
            else:
                hashes[name] = hashes.get(name, frozenset()) | found
    return ChoosingItems(hashes, tuple(sorted(unknown)))


def _tasks_of_rule(tuning: Tuning) -> list[str]:
    """The tasks that the rule of a fine-tune read; none without a rule."""
    if tuning.choice is None:
        return []
    measured = sorted({point.task for point in tuning.watch})
    try:
        rule = KeepBest.parse(tuning.choice.rule, tasks=measured, validated=True)
    except ValueError:  # of a later version
        return measured
    return [task for task in measured if task in {rule.goal, *rule.limits} - {VALIDATION_LOSS}]


def _watched_tasks(tuning: Tuning, name: str) -> dict[str, int]:
    """The watched tasks of one name with their numbers of items: the task, or those of a group, which has one row."""
    watched = tuning.settings.get("watched") or {}
    choice, report = watched.get("choice", {}), watched.get("report", {})
    counts = {task: int(half["items"]) + int(report[task]["items"]) for task, half in choice.items() if task in report}
    rows = {point.task for point in tuning.watch}
    return {task: n for task, n in counts.items() if task == name or (name not in counts and task not in rows)}


def _choosing_half(tuning: Tuning, name: str, specs: Sequence[TaskSpec], options: LoadOptions) -> frozenset[str] | None:
    """The hashes of the items of a task or group that the rule saw; None where they cannot be found."""
    counts = _watched_tasks(tuning, name)
    for count in sorted({*counts.values()}, reverse=True):  # of a group: the largest of its tasks has so many
        files = [spec.model_copy(update={"sample": count, "limit": None, "apply_chat_template": False})
                 for spec in specs if spec.target is not None]
        for spec in (checked(TaskSpec, name=name, sample=count), *files):
            with suppress(AftertuneError, ValueError):  # another task, or without data here
                found = {name if name in counts else task.settings.task: [
                    task.items[i].hash for i in split_halves(item_clusters(task), HALVES_SEED)[0]]
                    for task in tasks.load([spec], options)}
                if {task: digest(items) for task, items in found.items()} == {
                        task: tuning.settings["watched"]["choice"][task]["digest"] for task in found if task in counts}:
                    return frozenset().union(*found.values())
    return None
