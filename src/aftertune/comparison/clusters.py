"""Finds the clusters of paired items: items of one origin, and repeated items.

    pair = with_clusters(pair, left, right, ledger)
    pair.clusters                        [("passage", "sha256 1c…"), ("passage", "sha256 1c…"), …]
    question_clusters([pair])            the labels for a verdict: on this task, or on all tasks of a group

Two items belong together if their documents have the same value in the task's cluster field (`catalog.cluster_field`,
or the field that a target task names), or if they are equal. A label is a function of the document, and paired items
have equal documents, so it may come from either evaluation. Where both were stored before the field was known, it is
read from the stored documents. An item whose label is not known, or differs between the two evaluations, has None, and
then nothing is proven.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from aftertune.catalog import cluster_field, cluster_label, has_clusters
from aftertune.comparison.pairing import Label, Pair
from aftertune.values import Evaluation

if TYPE_CHECKING:
    from aftertune.ledger import Ledger

Labels = list[Label | None]


def with_clusters(pair: Pair, left: Evaluation, right: Evaluation, ledger: Ledger) -> Pair:
    """``pair`` with the clusters of its items."""
    field = _field(pair, right)
    if field is None:
        return replace(pair, clusters=_repeated_items(pair))
    stored = [(a.cluster, b.cluster) for a, b in zip(pair.left, pair.right, strict=True)]
    documents: dict[int, str | None] = {}
    if any(a is None and b is None for a, b in stored):
        documents = {item.index: cluster_label(field, item.doc) for item in ledger.items(left.id, pair.settings.task)}
    labels: Labels = []
    for answer, (ours, theirs) in zip(pair.left, stored, strict=True):
        given = {label for label in (ours, theirs) if label is not None}
        label = given.pop() if len(given) == 1 else None if given else documents.get(answer.index)
        labels.append(None if label is None else (field, label))
    return replace(pair, clusters=labels)


def _field(pair: Pair, right: Evaluation) -> str | None:
    """The cluster field of a task: of either evaluation, else of the catalog if it is no target task."""
    other = right.task(pair.settings.task)
    stored = pair.settings.cluster or (other.cluster if other else None)
    return stored or (None if pair.settings.target else cluster_field(pair.settings.task))


def question_clusters(pairs: Sequence[Pair]) -> list[Labels] | None:
    """The clusters for one verdict on one or several tasks, for each task; None where no two items belong together.

    A group with one task is asked as this task.
    """
    if len(pairs) > 1:
        return _group_clusters(pairs)
    labels = _task_clusters(pairs[0])
    return None if labels is None else [labels]


def _task_clusters(pair: Pair) -> Labels | None:
    """The clusters for the verdict on one task. A task that has clusters only in its group has its repeated items."""
    if has_clusters(pair.settings.task) or pair.settings.target:
        return None if pair.clusters is None else list(pair.clusters)
    return _repeated_items(pair)


def _group_clusters(pairs: Sequence[Pair]) -> list[Labels] | None:
    """The clusters for the verdict on a group."""
    labels = [_item_labels(pair) if pair.clusters is None else list(pair.clusters) for pair in pairs]
    every = [label for task in labels for label in task]
    return labels if None in every or len(set(every)) < len(every) else None


def average_clusters(groups: Sequence[Sequence[Pair]]) -> list[Labels]:
    """The clusters for an average, for each task. groups: the tasks of each of its members.

    Within a member they are those of its own verdict. The same document in two tasks is one cluster.
    """
    labels: list[Labels] = []
    for pairs in groups:
        own = question_clusters(pairs)
        labels += own if own is not None else [_item_labels(pair) for pair in pairs]
    return labels


def _item_labels(pair: Pair) -> Labels:
    return [("item", answer.item) for answer in pair.left]


def _repeated_items(pair: Pair) -> Labels | None:
    labels = _item_labels(pair)
    return labels if len(set(labels)) < len(labels) else None
