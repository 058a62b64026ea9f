"""Puts loaded tasks together to questions: a group that has a score is one question, and so is a task alone.

    [(name, members)] = pools(loaded)         [("mmlu", 57 tasks)]
    weighted_by_items(name, members)          False for a group whose score gives equal weight to its tasks
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from aftertune.catalog import MetricKey
from aftertune.tasks.loading import LoadedTask


def pools(loaded: Sequence[LoadedTask]) -> Iterator[tuple[str, list[LoadedTask]]]:
    """(name, tasks) of each question: the largest group that has a score of the primary metric of all its tasks, or a
    task alone."""
    pooled: set[str] = set()
    for task in loaded:
        if task.settings.task in pooled:
            continue
        groups = {name: [t for t in loaded if name in t.groups] for name, group in task.groups.items()
                  if _has_score(group, task.settings.primary)}
        complete = {name: members for name, members in groups.items()
                    if {t.settings.primary for t in members} == {task.settings.primary}
                    and len(members) == len(task.groups[name].get_all_tasks())}
        name = max(complete, key=lambda n: len(complete[n]), default=task.settings.task)
        members = complete.get(name, [task])
        pooled |= {t.settings.task for t in members}
        yield name, members


def _has_score(group: object, primary: str) -> bool:
    """True where the group has a score of this ``metric,filter``."""
    key = MetricKey(primary)
    metrics = getattr(group, "aggregate_metric_list", None) or []
    return any(a.metric == key.metric and key.filter in (a.filter_list or [key.filter]) for a in metrics)


def weighted_by_items(name: str, members: Sequence[LoadedTask]) -> bool:
    """False for a group whose mean gives equal weight to its tasks: pooled items do not estimate such a mean."""
    group = members[0].groups.get(name)
    metric = MetricKey(members[0].settings.primary).metric
    return group is None or all(a.weight_by_size for a in group.aggregate_metric_list if a.metric == metric)
