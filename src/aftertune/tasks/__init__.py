"""Turns lm-eval's tasks into items and requests, and a model's responses into answers and scores.

    loaded = load(specs, LoadOptions(...))       # a LoadedTask each: settings, items, requests
    answers, positions, scores = score_responses(loaded, responses)
    [subset] = subset_tasks(loaded, {"hellaswag": [0, 7, 31]})

Prompts, few-shot examples, filters and metrics come from lm-eval, through its Python API.
"""

from aftertune.tasks.loading import (
    LoadedTask,
    LoadOptions,
    find_tasks,
    load,
    part_of_task,
    questions,
    subset_tasks,
    tasks_without,
)
from aftertune.tasks.scoring import (
    answer_warnings,
    item_warnings,
    positions_of_items,
    score_responses,
    task_answers,
)

__all__ = [
    "LoadOptions",
    "LoadedTask",
    "answer_warnings",
    "find_tasks",
    "item_warnings",
    "load",
    "part_of_task",
    "positions_of_items",
    "questions",
    "score_responses",
    "subset_tasks",
    "task_answers",
    "tasks_without",
]
