"""What was asked, as people read it: owns the question, the choices and the right answer of a document.

    asked(task, doc, 12)      Asked(question="Which gas …?", choices=("oxygen", …), gold=(2,))

Items that lm-eval would score wrongly without a word are refused here, by number: no choices, an empty choice where a
metric divides by its length, and a right answer that is none of the choices.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aftertune.catalog import METRICS
from aftertune.errors import TaskError
from aftertune.values import Asked


def asked(task: Any, doc: Mapping[str, Any], index: int) -> Asked:
    """The document as it was put to a model. Raises TaskError for one that cannot be scored."""
    if task.OUTPUT_TYPE == "multiple_choice" and getattr(task, "config", None) is not None:
        return _choice(task, doc, index)
    if task.OUTPUT_TYPE == "loglikelihood_rolling":
        return Asked()
    target = task.doc_to_target(doc)
    if isinstance(target, int) and getattr(task.config, "doc_to_choice", None) is not None:
        target = task.doc_to_choice(doc)[target]
    references = target if isinstance(target, list | tuple) else [target]
    return Asked(question=str(task.doc_to_text(doc)), reference=" | ".join(map(str, references)).strip())


def _choice(task: Any, doc: Mapping[str, Any], index: int) -> Asked:
    choices = tuple(str(c) for c in task.doc_to_choice(doc))
    text, target = task.doc_to_text(doc), task.doc_to_target(doc)
    question, right = (target, text) if getattr(task, "multiple_input", 0) else (text, target)
    gold = tuple(_number(g, choices) for g in (right if isinstance(right, list | tuple) else [right]))
    name = task.config.task
    if not choices:
        raise TaskError(f"task {name!r}, item {index}: it has no choices; mend or leave out this document")
    metrics = [m.name for m in METRICS.values() if m.length and m.name in task.higher_is_better()]
    if "" in choices and metrics:
        raise TaskError(f"task {name!r}, item {index}: choice {choices.index('') + 1} of {len(choices)} is empty, and "
                        f"{metrics[0]} divides by its length; mend or leave out this document")
    wrong = [g for g in gold if not 0 <= g < len(choices)]
    if (wrong or not gold) and task.config.process_results is None:
        raise TaskError(f"task {name!r}, item {index}: the right answer {right!r} is none of its {len(choices)} "
                        f"choices (0 to {len(choices) - 1}); mend or leave out this document")
    return Asked(question=str(question), choices=choices, gold=tuple(g for g in gold if g not in wrong))


def _number(gold: Any, choices: tuple[str, ...]) -> int:
    """Number of the right choice, -1 where it is none of them."""
    if isinstance(gold, str):
        return choices.index(gold) if gold in choices else -1
    return int(gold) if isinstance(gold, int | float) else -1
