"""Computes the expected accuracy (metric ``prob``) of multiple-choice tasks from what the ledger has stored.

    ours, theirs, questions = answers_and_questions(left, right, settings, ledger)
    ours[0].metrics                            {"acc,none": 1.0, "acc_norm,none": 0.0, "prob,none": 0.4312}
    compare(choose_primary(base, "prob"), choose_primary(tuned, "prob"), margins=0.02)

Accuracy sees only whether the right choice is the most likely one. Expected accuracy is the right choice's share
(`tasks.scoring.expected_accuracy`), so it needs fewer items for the same certainty. It is computed when a comparison is
made, from the log-likelihoods of the answers and the choices of the documents. Stored evaluations, their ids and their
scores stay as they are; those without log-likelihoods, such as most imported ones, have no expected accuracy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from aftertune.catalog import EXPECTED_ACCURACY, MetricKey
from aftertune.errors import InputError, nearest
from aftertune.values import Answer, Asked, Evaluation, Item, TaskSettings

if TYPE_CHECKING:
    from aftertune.comparison.pairing import Pair
    from aftertune.ledger import Ledger

KEY = MetricKey.of(EXPECTED_ACCURACY)


def answers_and_questions(left: Evaluation, right: Evaluation, settings: TaskSettings, ledger: Ledger,
                          each: Callable[[Item], None] | None = None
                          ) -> tuple[list[Answer], list[Answer], dict[str, Asked]]:
    """The answers of both evaluations to a task, with expected accuracy where both have what it needs; and item hash ->
    the choices and the reference of each item (the questions are left out, to save memory).

    A task that was stopped early has no expected accuracy: it was stopped by its accuracy. each: gets every item whose
    document is read, the left evaluation's first; a document that both have is read once.
    """
    ours, theirs = ledger.answers(left.id, settings.task), ledger.answers(right.id, settings.task)
    questions: dict[str, Asked] = {}
    for evaluation, other in ((left, None), (right, left.id)):
        for item in ledger.each_item(evaluation.id, settings.task, beside=other):
            if each is not None:
                each(item)
            if item.asked:
                questions[item.hash] = replace(item.asked, question="")
    stopped = any(t is not None and t.used is not None for t in (left.task(settings.task), right.task(settings.task)))
    if settings.output_type != "multiple_choice" or stopped or any(KEY in a.metrics for a in (*ours[:1], *theirs[:1])):
        return ours, theirs, questions
    computed = list(_with_metric(ours, questions)), list(_with_metric(theirs, questions))
    complete = all(KEY in a.metrics for side in computed for a in side)
    if not complete and settings.primary == KEY:
        raise InputError(f"task {settings.task}: {left.name} or {right.name} has no log-likelihoods of the choices, so "
                         f"there is no {EXPECTED_ACCURACY}; evaluate both with this version, or compare by another "
                         "metric")
    return (*computed, questions) if complete else (ours, theirs, questions)


def _with_metric(answers: Sequence[Answer], questions: Mapping[str, Asked]) -> Iterator[Answer]:
    """The answers, each with its expected accuracy if it has one."""
    from aftertune.tasks.scoring import expected_accuracy

    for answer in answers:
        asked = questions.get(answer.item)
        logprobs = [r.logprob for r in answer.responses]
        known = [v for v in logprobs if v is not None]
        if asked is None or len(known) != len(asked.choices) or len(known) != len(logprobs):
            yield answer
            continue
        normalized = any(MetricKey(key).metric == "acc_norm" for key in answer.metrics)
        lengths = [len(choice) for choice in asked.choices] if normalized else None
        value = expected_accuracy(known, gold=asked.gold, lengths=lengths)
        yield answer if value is None else replace(answer, metrics={**answer.metrics, KEY: value})


def choose_primary(evaluation: Evaluation, metric: str, task: str = "") -> Evaluation:
    """The evaluation with another primary metric: the one that gets the verdict in a comparison.

    metric: a score of the task, such as ``acc`` or ``prob``. task: only of this task or group; "" for all tasks that
    have the metric. Raises InputError where none has it.
    """
    changed = {t.task: key for t in evaluation.tasks if task in ("", t.task, *t.groups)
               if (key := _key(evaluation, t, metric)) is not None}
    if not changed:
        names = sorted({s.metric for s in evaluation.scores if task in ("", s.task)} | (
            {EXPECTED_ACCURACY} if any(t.output_type == "multiple_choice" for t in evaluation.tasks) else set()))
        where = f"{evaluation.name}, task {task!r}," if task else evaluation.name
        raise InputError(f"{where} has no metric {metric!r}{nearest(metric, names)}; its metrics: {', '.join(names)}")
    stopped = next((t for t in evaluation.tasks if t.used is not None and changed.get(t.task, t.primary) != t.primary),
                   None)
    if stopped is not None:
        raise InputError(f"{evaluation.name}: task {stopped.task} was stopped early by a test of "
                         f"{MetricKey(stopped.primary).metric}, so it has no verdict by {metric}; evaluate it without "
                         "--until-decided, or leave out --primary for this task")
    tasks = tuple(replace(t, primary=changed.get(t.task, t.primary)) for t in evaluation.tasks)
    return replace(evaluation, tasks=tasks)


def _key(evaluation: Evaluation, settings: TaskSettings, metric: str) -> str | None:
    """The ``metric,filter`` of a task; with the filter of its primary metric where it has several."""
    if metric == EXPECTED_ACCURACY and settings.output_type == "multiple_choice":
        return KEY
    keys = [s.key for s in evaluation.scores if s.task == settings.task and s.metric == metric]
    own = MetricKey.of(metric, MetricKey(settings.primary).filter)
    return own if own in keys else next(iter(keys), None)


def chosen_metrics(evaluation: Evaluation, pairs: Sequence[Pair], ledger: Ledger) -> list[dict[str, str]]:
    """What a comparison's id has of its metrics: the primary ones that `choose_primary` changed; [] if none."""
    stored = ledger.find_evaluation(evaluation.id)
    changed = {p.settings.task: p.settings.primary for p in pairs
               if (own := stored.task(p.settings.task)) and own.primary != p.settings.primary}
    return [changed] if changed else []
