"""Tasks: lm-eval's tasks as items and requests, and model responses as answers and scores.

    loaded = load(specs, LoadOptions(...))       # LoadedTask each: settings, items, requests, instances
    answers, scores = outcome(loaded, responses)
    [few] = part(loaded, {"hellaswag": [0, 7, 31]})

Prompts, few-shot examples, filters and metrics are lm-eval's own, through its Python API.
"""

from aftertune.tasks.loading import LoadedTask, LoadOptions, load, questions, subset_tasks
from aftertune.tasks.scoring import answer_warnings, answers, count_of_items, outcome

__all__ = ["LoadOptions", "LoadedTask", "answer_warnings", "answers", "count_of_items", "load", "outcome", "questions",
           "subset_tasks"]
