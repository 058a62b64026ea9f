"""Keeps the answers of an evaluation some of whose tasks fail, so that the same command later continues.

    earlier_answers(ledger, evaluation, loaded)        {"arc_easy": {0: Response(…), …}}, from an evaluation without …
    moved_responses(loaded, kept, responses)           the responses of the tasks that are kept, at their new positions
    failure({"mine": "its prompts …"}, evaluation)     the error at the end, with the reasons

A task fails where its data cannot be loaded, its texts cannot be tokenized or its answers cannot be scored. The other
tasks are then an evaluation of their own, which lists the failed ones in ``failed``. Once all tasks can be used, they
are a new evaluation. It takes the answers of the tasks that were finished before from there. So does an evaluation that
judges the answers to a target task in another way: the model need not answer again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from aftertune.errors import TaskError, TasksFailed
from aftertune.ledger import EntryLabel, Ledger
from aftertune.tasks import LoadedTask, positions_of_items
from aftertune.values import Evaluation, Response, TaskSettings

#: Fields of a task's settings that say nothing about its answers.
_NOT_COMPARED = ("groups", "data")
#: Fields that say how the answers to a target task are judged.
_JUDGED = ("scorers", "code", "primary", "higher_is_better", "chance")
#: Reasons that a message lists.
_LISTED = 3
_REASON = 300


def earlier_answers(ledger: Ledger, evaluation: Evaluation, loaded: Sequence[LoadedTask]
                    ) -> tuple[dict[str, dict[int, Response]], list[str]]:
    """Task -> position -> response, of the tasks that an evaluation with failed tasks has answered, and of target tasks
    whose answers any evaluation has judged in another way; and notes.

    evaluation: the new one, of the tasks ``loaded``.
    """
    found: dict[str, dict[int, Response]] = {}
    notes: list[str] = []
    for earlier in reversed(ledger.evaluations()):
        if earlier.status != "done" or not _same_model(earlier, evaluation):
            continue
        for task in loaded:
            name, stored = task.settings.task, earlier.task(task.settings.task)
            judged = stored is not None and stored.target and task.settings.target
            if not earlier.failed and not judged:
                continue
            if name not in found and stored is not None and _same_task(
                    stored, task.settings, _JUDGED if judged else ()) and (
                    task.settings.output_type != "generate_until" or earlier.defaults == evaluation.defaults):
                answers = ledger.answers(earlier.id, name)
                found[name] = {position: response for positions, answer in
                               zip(positions_of_items(task), answers, strict=True)
                               for position, response in zip(positions, answer.responses, strict=True)}
                reason = "which judges them in another way" if judged and not earlier.failed else \
                    "in which other tasks of the command failed"
                notes.append(f"{name}: its answers were taken from evaluation {earlier.id}, {reason}")
                notes += [w for w in earlier.warnings if w.startswith(f"{name}: ") and "encoded alone" in w]
    return found, notes


def _same_model(a: Evaluation, b: Evaluation) -> bool:
    names = ("dtype", "device", "engine", "code_digest", "stated")
    return all(getattr(a, name) == getattr(b, name) for name in names) and \
        (a.model.fingerprint, a.model.tokenizer) == (b.model.fingerprint, b.model.tokenizer)


def _same_task(a: TaskSettings, b: TaskSettings, but: Sequence[str] = ()) -> bool:
    """Whether two tasks ask the same. but: further fields in which they may differ."""
    left, right = ({k: v for k, v in s.hashed().items() if k not in (*_NOT_COMPARED, *but)} for s in (a, b))
    return left == right


def moved_responses(loaded: Sequence[LoadedTask], kept: Sequence[LoadedTask], responses: Mapping[int, Response]
                    ) -> dict[int, Response]:
    """The responses of the tasks ``kept``, which are a part of ``loaded``, at the positions that they have alone."""
    before = {task.settings.task: task for task in loaded}
    return {new.position: responses[old.position] for task in kept
            for old, new in zip(before[task.settings.task].requests, task.requests, strict=True)
            if old.position in responses}


def moved_positions(loaded: Sequence[LoadedTask], kept: Sequence[LoadedTask], positions: Sequence[int]) -> list[int]:
    """The positions that requests of the tasks ``kept`` have alone."""
    before = {task.settings.task: task for task in loaded}
    new_position = {old.position: new.position for task in kept
                    for old, new in zip(before[task.settings.task].requests, task.requests, strict=True)}
    return [new_position[p] for p in positions if p in new_position]


def remove_replaced(ledger: Ledger, evaluation: Evaluation) -> None:
    """Delete the evaluations with failed tasks that are a part of this one, unless a comparison uses them.

    All their answers are also in this one, and two evaluations of one name would be ambiguous.
    """
    used = {e for c in ledger.comparisons() for e in (c.base, c.tuned)}
    for earlier in ledger.evaluations():
        complete = all((task := evaluation.task(t.task)) and _same_task(t, task) for t in earlier.tasks)
        if earlier.failed and earlier.id not in {evaluation.id, *used} and earlier.name == evaluation.name and \
                earlier.status == "done" and _same_model(earlier, evaluation) and complete:
            labels = ledger.labels()
            if earlier.id in labels and evaluation.id not in labels:
                ledger.save_label(evaluation.id, labels[earlier.id])
            ledger.save_label(earlier.id, EntryLabel())
            ledger.delete_evaluation(earlier.id)


def failure(failed: Mapping[str, str], evaluation: Evaluation | None) -> TaskError:
    """The error at the end of an evaluation. evaluation: of the other tasks; None if all tasks failed."""
    reasons = [f"{name}: {reason}" if f"'{name}'" not in reason else reason for name, reason in failed.items()]
    reasons = [r if len(r) <= _REASON or len(reasons) == 1 else f"{r[:_REASON]}…" for r in reasons]
    more = f"; and {len(reasons) - _LISTED} more" if len(reasons) > _LISTED else ""
    text = "; ".join(reasons[:_LISTED]) + more
    if evaluation is None:
        return TaskError(text)
    total = len(failed) + len(evaluation.tasks)
    return TasksFailed(f"{len(failed)} of {total} tasks failed: {text}. The others are stored as {evaluation.id}; when "
                       "this is fixed, the same command continues", (evaluation,))
