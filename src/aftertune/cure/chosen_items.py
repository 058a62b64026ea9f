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
                unknown.add(name)
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


def _choosing_half(tuning: Tuning, name: str, specs: Sequence[TaskSpec], options: LoadOptions) -> frozenset[str] | None:
    """The hashes of the items of a task that the rule saw; None where they cannot be found."""
    watched = tuning.settings.get("watched") or {}
    halves = [watched[half][name] for half in ("choice", "report") if name in watched.get(half, {})]
    if len(halves) < 2:
        return None
    count = sum(int(half["items"]) for half in halves)
    files = [spec.model_copy(update={"sample": count, "limit": None, "apply_chat_template": False}) for spec in specs
             if spec.target is not None]
    for spec in (checked(TaskSpec, name=name, sample=count), *files):
        with suppress(AftertuneError, ValueError):  # another task, or without data here
            [loaded] = tasks.load([spec], options)
            items = [loaded.items[index].hash for index in split_halves(item_clusters(loaded), HALVES_SEED)[0]]
            if digest(items) == halves[0]["digest"]:
                return frozenset(items)
    return None
