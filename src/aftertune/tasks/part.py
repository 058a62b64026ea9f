"""Some items of loaded tasks: what is asked in one stage of an evaluation, or was asked before it was stopped."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from aftertune.tasks.load import LoadedTask


def part(loaded: Sequence[LoadedTask], chosen: Mapping[str, Collection[int]]) -> list[LoadedTask]:
    """The tasks with only these of their items (places in ``items``), in their own order; none without an item.

    Requests keep their positions. The settings stay those of the whole: they say what the items were drawn from.
    """
    return [_part(one, set(places)) for one in loaded if (places := chosen.get(one.settings.task))]


def _part(one: LoadedTask, places: set[int]) -> LoadedTask:
    if len(places) == len(one.items):
        return one
    number: dict[int, int] = {}  # lm-eval's doc_id -> place of the item
    pairs = [(i, p) for i, p in zip(one.task.instances, one.positions, strict=True)
             if number.setdefault(i.doc_id, len(number)) in places]
    task = copy.copy(one.task)
    task._instances = [i for i, _ in pairs]
    asked = {position for _, positions in pairs for position in positions}
    return replace(one, items=tuple(item for place, item in enumerate(one.items) if place in places), task=task,
                   requests=tuple(r for r in one.requests if r.position in asked),
                   positions=tuple(p for _, p in pairs))


