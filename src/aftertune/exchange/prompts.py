"""Owns the prompts of a stored evaluation: built again from its settings, and kept only where they are the same.

    rebuilt(evaluation)["hellaswag"]        its requests in order; a task that cannot be built again is absent

An answer does not hold its prompt. The digest of all prompts of a task does stand in its settings, so what is built
again is proven to be what the model saw. Chat templates need the tokenizer and target tasks their file: both are
left out.
"""

from __future__ import annotations

from aftertune.errors import AftertuneError
from aftertune.study import TaskSpec
from aftertune.tasks.load import LoadOptions, load
from aftertune.values import Evaluation, Request, TaskSettings, digest


def rebuilt(evaluation: Evaluation) -> dict[str, tuple[Request, ...]]:
    """The requests of each task whose prompts could be built again, each as the digest proves."""
    found: dict[str, tuple[Request, ...]] = {}
    for task in evaluation.tasks:
        if task.target or task.chat_template or task.data.startswith("file:"):
            continue
        try:
            [loaded] = load((_spec(task),), LoadOptions(system_instruction=task.system_instruction))
        except (AftertuneError, ValueError):
            continue
        if digest([[r.context, r.continuation] for r in loaded.requests]) == task.prompts:
            found[task.task] = loaded.requests
    return found


def _spec(task: TaskSettings) -> TaskSpec:
    return TaskSpec(name=task.task, limit=task.limit, sample=task.sample, sample_seed=task.sample_seed or 0,
                    num_fewshot=task.num_fewshot)
