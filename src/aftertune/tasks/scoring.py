"""What a reader has to know of a task's answers beside the scores: owns the counts of what was cut, late or alike.

    list(notes(loaded, responses, answers))   ["gsm8k_cot: 2 contexts did not fit into the window and were cut …"]

How long others' filters and patterns may think about one answer: a regular expression can take for ever.

    with limited(5.0):          raises OutOfTime where the block takes longer
        pattern.findall(text)

The clock is a signal, which Python's and `regex`'s matchers look for; it runs in the main thread of a system that has
interval timers, elsewhere the block takes its time. A timer of somebody else goes on afterwards.

Responses in, answers and scores out, by lm-eval's own filters, metrics and aggregations.
"""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from aftertune.catalog import MetricKey
from aftertune.errors import TaskError
from aftertune.tasks.loading import LoadedTask
from aftertune.values import Answer, Item, Response, Score
from aftertune.values.comparison import OUT_OF_TIME

#: Seconds for one answer: a filter that does no harm takes less than a thousandth of it.
ANSWER = 5.0
#: Seconds more for each answer, where a filter takes all answers of a task at once.
EACH = 0.01


class OutOfTime(Exception):
    """The block took longer than it may."""


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Let the block run for so many seconds. Raises OutOfTime."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return
    before, begun = signal.signal(signal.SIGALRM, _ring), time.monotonic()
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.signal(signal.SIGALRM, before)
        if left:
            signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - begun), 0.001), interval)


def _ring(*_: object) -> None:
    raise OutOfTime


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
        with limited(ANSWER + EACH * len(task.instances)):
            task.apply_filters()
    except OutOfTime:
        return {(i.doc_id, chain.name) for chain in task._filters for i in task.instances if _too_slow(chain, i)}
    return set()


def _too_slow(chain: Any, instance: Any) -> bool:
    """Apply the filters of one name to one instance; True where that took too long, as it then does to empty texts."""
    try:
        with limited(ANSWER):
            chain.apply([instance])
    except OutOfTime:
        given, instance.resps = instance.resps, [""] * len(instance.resps)
        chain.apply([instance])
        instance.resps = given
        return True
    return False


def _judged(task: Any, item: Item, doc: Any, results: list[Any]) -> tuple[dict[str, Any], bool]:
    """The metrics of one item; True where judging the text took too long: they are those of an empty one then."""
    for given in [results, [""]] if isinstance(results[0], str) else [results]:
        with contextlib.suppress(OutOfTime), limited(ANSWER):
            return task.process_results(doc, given), given is not results
    raise TaskError(f"task {item.task!r}, item {item.index}: judging its answer takes more than {ANSWER:g} s; "
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


def answer_warnings(loaded: Sequence[LoadedTask], responses: Mapping[int, Response],
                    answers: Sequence[Answer]) -> Iterator[str]:
    """Of each task: contexts that were cut off on the left, and answers that took a filter too long."""
    for one in loaded:
        name = one.settings.task
        cut = sum(1 for places in one.positions for p in places if responses[p].truncated)
        if cut:
            yield f"{name}: {cut} contexts did not fit into the window and were cut on the left"
        late = sum(a.task == name and OUT_OF_TIME in a.extracted.values() for a in answers)
        if late:
            yield (f"{name}: {late} of {len(one.items)} answers took the task's filters more than "
                   f"{ANSWER:g} s each and were judged as empty ones; mend the filter's pattern")


def count_of_items(loaded: Sequence[LoadedTask]) -> Iterator[str]:
    """Of each task, before it is asked: items that repeat the document of an earlier one, and examples that may be the
    question itself."""
    for one in loaded:
        again = len(one.items) - len({i.hash for i in one.items})
        if again:
            yield (f"{one.settings.task}: {again} of {len(one.items)} items repeat the document of an earlier one; "
                   "each is asked and counts")
        if _exposed(one):
            yield (f"{one.settings.task}: its {one.settings.num_fewshot} examples are drawn from the questions that "
                   "are scored, now and then the question itself with its answer, since the task names no split for "
                   "them; name one (fewshot_split), or ask without (--num-fewshot 0)")


def _exposed(one: LoadedTask) -> bool:
    """True where lm-eval draws examples from the scored documents without leaving out the one that is asked."""
    task = one.task
    if not one.settings.num_fewshot or not hasattr(task, "fewshot_cfg"):
        return False
    named = task.fewshot_cfg.split is not None or task.fewshot_cfg.samples is not None
    return not named and task.config.test_split is not None and not task.has_training_docs() \
        and not task.has_validation_docs()
