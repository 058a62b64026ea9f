"""Responses in, answers and scores out, by lm-eval's own filters, metrics and aggregations."""

from __future__ import annotations

import contextlib
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from aftertune.catalog import MetricKey
from aftertune.errors import TaskError
from aftertune.tasks import patience
from aftertune.tasks.load import LoadedTask
from aftertune.values import Answer, Item, Response, Score
from aftertune.values.compared import OUT_OF_TIME

#: Draws of lm-eval's seeded bootstrap, for metrics that have no closed-form error.
BOOTSTRAP = 1000


def outcome(loaded: Sequence[LoadedTask], responses: Mapping[int, Response]
            ) -> tuple[list[Answer], list[tuple[int, ...]], list[Score]]:
    """Answers of every item, the request positions of each answer, and the scores of tasks and groups.

    ``responses`` holds every request position of ``loaded``.
    """
    found: list[Answer] = []
    positions: list[tuple[int, ...]] = []
    scores: list[Score] = []
    table: dict[str, dict[str, Any]] = {}
    groups: dict[str, Any] = {}
    for one in loaded:
        values, own, own_positions = _answers(one, responses)
        found += own
        positions += own_positions
        scores += _scores(one, values, table)
        groups |= one.groups
    return found, positions, scores + _group_scores(groups, table)


def answers(one: LoadedTask, responses: Mapping[int, Response]) -> list[Answer]:
    """The answers of one task alone, in the order of its items."""
    return _answers(one, responses)[1]


def _raw(response: Response, kind: str) -> Any:
    """A response in lm-eval's form."""
    if kind == "generate_until":
        return response.text
    return response.logprob if kind == "loglikelihood_rolling" else (response.logprob, response.greedy)


def _answers(one: LoadedTask, responses: Mapping[int, Response]
             ) -> tuple[dict[tuple[str, str], list[Any]], list[Answer], list[tuple[int, ...]]]:
    """Per-metric values in item order, the answers, and their request positions."""
    task, by_doc = one.task, defaultdict(list)
    for instance, places in zip(task.instances, one.positions, strict=True):
        instance.resps = [_raw(responses[p], instance.request_type) for p in places]
        by_doc[instance.doc_id].append((instance, places))
    late = _filter(task)
    values: dict[tuple[str, str], list[Any]] = defaultdict(list)
    found, positions = [], []
    for item, pairs in zip(one.items, by_doc.values(), strict=True):
        pairs.sort(key=lambda pair: pair[0].idx)
        instances = [i for i, _ in pairs]
        shown: dict[str, float] = {}
        extracted: dict[str, str] = {}
        for name in instances[0].filtered_resps:
            results = [i.filtered_resps[name] for i in instances]
            judged, slow = _judged(task, item, instances[0].doc, results)
            for metric, value in judged.items():
                values[metric, name].append(value)
                number = _number(metric, value)
                if number is not None:
                    shown[MetricKey.of(metric, name)] = number
            if isinstance(results[0], str):
                extracted[name] = OUT_OF_TIME if slow or (instances[0].doc_id, name) in late else results[0]
        places = tuple(p for _, ps in pairs for p in ps)
        positions.append(places)
        found.append(Answer(task=item.task, index=item.index, item=item.hash, metrics=shown,
                              responses=tuple(responses[p] for p in places), extracted=extracted,
                              cluster=item.cluster))
    return values, found, positions


def _filter(task: Any) -> set[tuple[int, str]]:
    """Apply the task's filters; (doc_id, filter) of the answers that took one too long, which are as empty ones."""
    try:
        with patience.limited(patience.ANSWER + patience.EACH * len(task.instances)):
            task.apply_filters()
    except patience.OutOfTime:
        return {(i.doc_id, chain.name) for chain in task._filters for i in task.instances if _too_slow(chain, i)}
    return set()


def _too_slow(chain: Any, instance: Any) -> bool:
    """Apply the filters of one name to one instance; True where that took too long, as it then does to empty texts."""
    try:
        with patience.limited(patience.ANSWER):
            chain.apply([instance])
    except patience.OutOfTime:
        given, instance.resps = instance.resps, [""] * len(instance.resps)
        chain.apply([instance])
        instance.resps = given
        return True
    return False


def _judged(task: Any, item: Item, doc: Any, results: list[Any]) -> tuple[dict[str, Any], bool]:
    """The metrics of one item; True where judging the text took too long: they are those of an empty one then."""
    for given in [results, [""]] if isinstance(results[0], str) else [results]:
        with contextlib.suppress(patience.OutOfTime), patience.limited(patience.ANSWER):
            return task.process_results(doc, given), given is not results
    raise TaskError(f"task {item.task!r}, item {item.index}: judging its answer takes more than {patience.ANSWER:g} s; "
                    "mend the task's pattern or metric")


def _number(metric: str, value: Any) -> float | None:
    """A metric of one item as a number; bits per byte of a document from its log-likelihood and size."""
    if metric == "bits_per_byte" and isinstance(value, tuple):
        logprob, size = value
        return -float(logprob) / (float(size) * math.log(2)) if size else None
    return float(value) if isinstance(value, bool | int | float) and math.isfinite(value) else None


def _scores(one: LoadedTask, values: dict[tuple[str, str], list[Any]], table: dict[str, dict[str, Any]]
            ) -> list[Score]:
    """Aggregated metrics of one task; ``table`` gets them in the form that lm-eval's groups read."""
    from lm_eval.api.metrics import mean, stderr_for_metric

    task, settings = one.task, one.settings
    row: dict[str, Any] = {"alias": settings.task, "name": settings.task, "sample_len": len(one.items)}
    scores = []
    for (metric, name), items in values.items():
        aggregate = task.aggregation().get(metric, mean)
        value = float(aggregate(items))
        make = stderr_for_metric(metric=aggregate, bootstrap_iters=BOOTSTRAP)
        error = float(make(items)) if make and len(items) > 1 else None
        key = MetricKey.of(metric, name)
        row[key] = value
        row[key.stderr] = "N/A" if error is None else error
        scores.append(Score(task=settings.task, metric=metric, filter=name, value=value, stderr=error,
                            n=len(items), higher_is_better=settings.higher_is_better.get(metric, True),
                            primary=key == settings.primary))
    table[settings.task] = row
    return scores


def _group_scores(groups: Mapping[str, Any], table: dict[str, dict[str, Any]]) -> list[Score]:
    """Scores of lm-eval's groups that aggregate, from the leaf tasks' scores."""
    scores = []
    for name, group in groups.items():
        if not group.has_aggregation:
            continue
        row = group.aggregate(table)
        for key, value in ((MetricKey(k), v) for k, v in row.items()):
            if not key.is_score:
                continue
            error = row.get(key.stderr)
            scores.append(Score(task=name, metric=key.metric, filter=key.filter, value=float(value),
                                stderr=float(error) if isinstance(error, int | float) else None,
                                n=int(row["sample_len"]), group=True))
    return scores
