"""Scores responses with lm-eval's filters, metrics and aggregations, and warns about unusual items and answers.

    answers, positions, scores = score_responses(loaded, responses)
    list(answer_warnings(loaded, responses, answers))
        ["gsm8k_cot: 2 contexts did not fit into the context window and were truncated on the left"]

A pattern can take practically for ever on some answers, so filters and metrics have a time limit.
"""

from __future__ import annotations

import contextlib
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from aftertune import bounds
from aftertune.catalog import MetricKey, unit_of
from aftertune.errors import TaskError
from aftertune.sources.limits import OutOfTime, template_fault, time_limit
from aftertune.tasks.loading import LoadedTask
from aftertune.tasks.seeding import TaskRandomness
from aftertune.values import Answer, Item, Response, Score, group_unit
from aftertune.values.comparison import OUT_OF_TIME

# --- Time limits for task filters and regular expressions ---

#: Seconds for one answer. A normal filter takes less than a thousandth of it.
ANSWER_TIMEOUT = bounds.ANSWER_SECONDS
#: Additional seconds for each answer if a filter is applied to all answers of a task at once.
TIMEOUT_PER_ANSWER = bounds.ANSWER_SECONDS_EACH

# --- Answers and scores ---

#: Resamples of lm-eval's seeded bootstrap, for metrics without a formula for the standard error.
BOOTSTRAP_RESAMPLES = 1000


def score_responses(loaded: Sequence[LoadedTask], responses: Mapping[int, Response],
                    failed: dict[str, str] | None = None
                    ) -> tuple[list[Answer], list[tuple[int, ...]], list[Score]]:
    """The answers of all items, the request positions of each answer, and the scores of tasks and groups.

    responses: position -> response, for every request of ``loaded``. failed: gets the reason for each task whose
    answers cannot be scored, by name; without it, the first one raises TaskError.
    """
    all_answers: list[Answer] = []
    positions: list[tuple[int, ...]] = []
    scores: list[Score] = []
    table: dict[str, dict[str, Any]] = {}
    groups: dict[str, Any] = {}
    for task in loaded:
        try:
            with judging(task):
                values, new_answers, task_positions = _answers(task, responses)
                new_scores = _scores(task, values, table)
        except TaskError as error:
            if failed is None:
                raise
            failed[task.settings.task] = str(error)
            continue
        all_answers += new_answers
        positions += task_positions
        scores += new_scores
        groups |= task.groups
    if failed:  # they are scored again without these tasks and their groups
        return all_answers, positions, scores
    of_groups = _group_scores(groups, table, scores)
    targets = {name for task in loaded if task.settings.target for name in task.groups}
    whole = [s for s in of_groups if s.task in targets]  # a target task stands before its slices
    return all_answers, positions, whole + scores + [s for s in of_groups if s.task not in targets]


@contextlib.contextmanager
def judging(loaded: LoadedTask) -> Iterator[None]:
    """Run filters and metrics from the same seeds for each task. Raises TaskError, whatever they raise."""
    try:
        with TaskRandomness().running():
            yield
    except TaskError:
        raise
    except Exception as error:  # filters and metrics are foreign code
        raise TaskError(f"task {loaded.settings.task!r}: its answers cannot be scored: {template_fault(error)}; fix "
                        "the task's filters or metrics") from error


def positions_of_items(loaded: LoadedTask) -> list[tuple[int, ...]]:
    """The positions of each item's requests, in the order in which its answer has the responses."""
    by_doc = defaultdict(list)
    for instance, repeats in zip(loaded.task.instances, loaded.positions, strict=True):
        by_doc[instance.doc_id].append((instance.idx, repeats))
    return [tuple(p for _, repeats in sorted(pairs, key=lambda pair: pair[0]) for p in repeats)
            for pairs in by_doc.values()]


def task_answers(loaded: LoadedTask, responses: Mapping[int, Response]) -> list[Answer]:
    """The answers of one task, in the order of its items."""
    with judging(loaded):
        return _answers(loaded, responses)[1]


def _raw(response: Response, kind: str) -> Any:
    """A response in the form of lm-eval's results. kind: lm-eval's request type."""
    if kind == "generate_until":
        return response.text
    return response.logprob if kind == "loglikelihood_rolling" else (response.logprob, response.greedy)


def _answers(loaded: LoadedTask, responses: Mapping[int, Response]
             ) -> tuple[dict[tuple[str, str], list[Any]], list[Answer], list[tuple[int, ...]]]:
    """(metric, filter) -> values in the order of the items; the answers; the request positions of each answer."""
    task, by_doc = loaded.task, defaultdict(list)
    for instance, repeats in zip(task.instances, loaded.positions, strict=True):
        instance.resps = [_raw(responses[p], instance.request_type) for p in repeats]
        by_doc[instance.doc_id].append((instance, repeats))
    timed_out = _apply_filters(task)
    values: dict[tuple[str, str], list[Any]] = defaultdict(list)
    rows, positions = [], []
    for item, pairs in zip(loaded.items, by_doc.values(), strict=True):
        pairs.sort(key=lambda pair: pair[0].idx)
        instances = [i for i, _ in pairs]
        metrics: dict[str, float] = {}
        extracted: dict[str, str] = {}
        for name in instances[0].filtered_resps:
            results = [i.filtered_resps[name] for i in instances]
            computed, metric_timed_out = _item_metrics(task, item, instances[0].doc, results)
            for metric, value in computed.items():
                values[metric, name].append(value)
                number = _as_number(metric, value)
                if number is not None:
                    metrics[MetricKey.of(metric, name)] = number
            if isinstance(results[0], str):
                too_slow = metric_timed_out or (instances[0].doc_id, name) in timed_out
                extracted[name] = OUT_OF_TIME if too_slow else results[0]
        item_positions = tuple(p for _, repeats in pairs for p in repeats)
        positions.append(item_positions)
        rows.append(Answer(task=item.task, index=item.index, item=item.hash, metrics=metrics,
                           responses=tuple(responses[p] for p in item_positions), extracted=extracted,
                           cluster=item.cluster))
    return values, rows, positions


def choice_log_shares(logprobs: Sequence[float], lengths: Sequence[float] | None = None) -> list[float] | None:
    """The logarithms of a softmax over the log-likelihoods of all choices of an item; None where it has no value.

    logprobs: log-likelihood of each choice as a text. lengths: of the choices in characters, for tasks with normalized
    accuracy: then each log-likelihood is divided by the choice's length and multiplied by the mean length of the item's
    choices. So the most likely choice is the one of `acc_norm`, and the shares are as far apart as those of whole
    texts; per character alone, all shares would be close to 1 / choices, and no loss could be seen.
    """
    values = _above_top(logprobs, lengths)
    if values is None:
        return None
    total = math.log(sum(map(math.exp, values)))
    return [v - total for v in values]


def _above_top(logprobs: Sequence[float], lengths: Sequence[float] | None) -> list[float] | None:
    """The log-likelihoods of `choice_log_shares` less the largest one, before they are normalized."""
    values = [float(v) for v in logprobs]
    if lengths is not None:
        mean = sum(lengths) / max(len(lengths), 1)
        values = [v / size * mean if size else -math.inf for v, size in zip(values, lengths, strict=True)]
    if any(math.isnan(v) or v == math.inf for v in values):
        return None
    top = max(values, default=-math.inf)
    return None if top == -math.inf else [v - top for v in values]


def expected_accuracy(logprobs: Sequence[float], *, gold: Sequence[int], lengths: Sequence[float] | None = None
                      ) -> float | None:
    """The share of the right choices in a softmax over all choices (`choice_log_shares`); None where it has no value.

    gold: the right choices. lm-eval has no such metric.
    """
    values = _above_top(logprobs, lengths)
    if values is None or not gold or not all(0 <= k < len(values) for k in gold):
        return None
    weights = [math.exp(v) for v in values]
    return sum(weights[k] for k in gold) / sum(weights)


def _apply_filters(task: Any) -> set[tuple[int, str]]:
    """Apply the task's filters; return (doc_id, filter) of each answer that timed out and was scored as empty."""
    try:
        with time_limit(ANSWER_TIMEOUT + TIMEOUT_PER_ANSWER * len(task.instances)):
            task.apply_filters()
    except OutOfTime:
        return {(i.doc_id, chain.name) for chain in task._filters for i in task.instances if _times_out(chain, i)}
    return set()


def _times_out(chain: Any, instance: Any) -> bool:
    """Apply the filters of one name to one instance; True if they timed out and were applied to empty texts instead."""
    try:
        with time_limit(ANSWER_TIMEOUT):
            chain.apply([instance])
    except OutOfTime:
        texts, instance.resps = instance.resps, [""] * len(instance.resps)
        chain.apply([instance])
        instance.resps = texts
        return True
    return False


def _item_metrics(task: Any, item: Item, doc: Any, results: list[Any]) -> tuple[dict[str, Any], bool]:
    """The metrics of one item, and whether computing them timed out; then they are those of an empty answer.

    Raises TaskError if an empty answer times out as well.
    """
    for attempt in [results, [""]] if isinstance(results[0], str) else [results]:
        with contextlib.suppress(OutOfTime), time_limit(ANSWER_TIMEOUT):
            return task.process_results(doc, attempt), attempt is not results
    raise TaskError(f"task {item.task!r}, item {item.index}: scoring its answer takes more than {ANSWER_TIMEOUT:g} s; "
                    "fix the task's pattern or metric")


def _as_number(metric: str, value: Any) -> float | None:
    """A metric of one item as a number, or None. bits_per_byte is computed from (log-likelihood, bytes)."""
    if metric == "bits_per_byte" and isinstance(value, tuple):
        logprob, size = value
        return -float(logprob) / (float(size) * math.log(2)) if size else None
    return float(value) if isinstance(value, bool | int | float) and math.isfinite(value) else None


def _scores(loaded: LoadedTask, values: dict[tuple[str, str], list[Any]], table: dict[str, dict[str, Any]]
            ) -> list[Score]:
    """The aggregated metrics of one task. They are also put into ``table``, which lm-eval's groups read."""
    from lm_eval.api.metrics import mean, stderr_for_metric

    task, settings = loaded.task, loaded.settings
    row: dict[str, Any] = {"alias": settings.task, "name": settings.task, "sample_len": len(loaded.items)}
    scores = []
    for (metric, name), items in values.items():
        aggregate = task.aggregation().get(metric, mean)
        value = float(aggregate(items))
        make = stderr_for_metric(metric=aggregate, bootstrap_iters=BOOTSTRAP_RESAMPLES)
        error = float(make(items)) if make and len(items) > 1 else None
        key = MetricKey.of(metric, name)
        numbers = [v for v in items if isinstance(v, bool | int | float)]
        row[key] = value
        row[key.stderr] = "N/A" if error is None else error
        scores.append(Score(task=settings.task, metric=metric, filter=name, value=value, stderr=error,
                            n=len(items), higher_is_better=settings.higher_is_better.get(metric, True),
                            primary=key == settings.primary,
                            unit=unit_of(metric, [value, *numbers], task=settings.task,
                                         aggregation=_aggregation_name(aggregate))))
    table[settings.task] = row
    return scores


def _aggregation_name(function: Any) -> str:
    """The name of lm-eval's own aggregation; "own" for a function of a task."""
    known = getattr(function, "__module__", "") == "lm_eval.api.metrics"
    return str(function.__name__) if known else "own"


def _group_scores(groups: Mapping[str, Any], table: dict[str, dict[str, Any]], members: Sequence[Score]
                  ) -> list[Score]:
    """The scores of the groups that lm-eval aggregates, from the scores of their tasks (``members``)."""
    scores = []
    for name, group in groups.items():
        if not group.has_aggregation:
            continue
        row = group.aggregate(table)
        tasks = {t.config.task for t in group.get_all_tasks()}
        for key, value in ((MetricKey(k), v) for k, v in row.items()):
            if not key.is_score:
                continue
            error = row.get(key.stderr)
            scores.append(Score(task=name, metric=key.metric, filter=key.filter, value=float(value),
                                stderr=float(error) if isinstance(error, int | float) else None,
                                n=int(row["sample_len"]), group=True,
                                unit=group_unit(key, [m for m in members if m.task in tasks])))
    return scores


# --- Warnings ---

def answer_warnings(loaded: Sequence[LoadedTask], responses: Mapping[int, Response],
                    answers: Sequence[Answer]) -> Iterator[str]:
    """Warnings about each task: contexts that were truncated, and answers on which a filter timed out."""
    for task in loaded:
        name = task.settings.task
        truncated = sum(1 for repeats in task.positions for p in repeats if responses[p].truncated)
        if truncated:
            yield f"{name}: {truncated} contexts did not fit into the context window and were truncated on the left"
        timed_out = sum(a.task == name and OUT_OF_TIME in a.extracted.values() for a in answers)
        if timed_out:
            yield (f"{name}: the task's filters took more than {ANSWER_TIMEOUT:g} s on each of {timed_out} of "
                   f"{len(task.items)} answers, which were scored as empty; fix the filter's pattern")


def item_warnings(loaded: Sequence[LoadedTask]) -> Iterator[str]:
    """Warnings about each task before it runs: repeated documents, and few-shot examples that may be the question."""
    for task in loaded:
        yield from getattr(task.task, "notes", ())
        name, total = task.settings.task, len(task.items)
        repeated = total - len({i.hash for i in task.items})
        if repeated:
            yield f"{name}: {repeated} of {total} items repeat the document of an earlier item; all of them count"
        if _may_show_the_question(task):
            yield (f"{name}: its {task.settings.num_fewshot} examples are drawn from the scored questions, because the "
                   "task has no split for examples; an example may be the question itself with its answer; set "
                   "fewshot_split, or use no examples (--num-fewshot 0)")


def _may_show_the_question(loaded: LoadedTask) -> bool:
    """True if lm-eval draws few-shot examples from the scored documents without excluding the question itself."""
    task = loaded.task
    if not loaded.settings.num_fewshot or not hasattr(task, "fewshot_cfg"):
        return False
    has_examples = task.fewshot_cfg.split is not None or task.fewshot_cfg.samples is not None
    return not has_examples and task.config.test_split is not None and not task.has_training_docs() \
        and not task.has_validation_docs()
