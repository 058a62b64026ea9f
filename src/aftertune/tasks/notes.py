"""What a reader has to know of a task's answers beside the scores: owns the counts of what was cut, late or alike.

    list(notes(loaded, responses, answers))   ["gsm8k_cot: 2 contexts did not fit into the window and were cut …"]
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from aftertune.tasks import patience
from aftertune.tasks.load import LoadedTask
from aftertune.values import Answer, Response
from aftertune.values.compared import OUT_OF_TIME


def notes(loaded: Sequence[LoadedTask], responses: Mapping[int, Response], answers: Sequence[Answer]) -> Iterator[str]:
    """Of each task: contexts that were cut off on the left, and answers that took a filter too long."""
    for one in loaded:
        name = one.settings.task
        cut = sum(1 for places in one.positions for p in places if responses[p].truncated)
        if cut:
            yield f"{name}: {cut} contexts did not fit into the window and were cut on the left"
        late = sum(a.task == name and OUT_OF_TIME in a.extracted.values() for a in answers)
        if late:
            yield (f"{name}: {late} of {len(one.items)} answers took the task's filters more than "
                   f"{patience.ANSWER:g} s each and were judged as empty ones; mend the filter's pattern")


def of_items(loaded: Sequence[LoadedTask]) -> Iterator[str]:
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
