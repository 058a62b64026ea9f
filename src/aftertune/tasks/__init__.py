"""Tasks: lm-eval's tasks as items and requests, and model responses as answers and scores.

    loaded = load(specs, LoadOptions(...))       # LoadedTask each: settings, items, requests, instances
    answers, scores = outcome(loaded, responses)
    [few] = part(loaded, {"hellaswag": [0, 7, 31]})

Prompts, few-shot examples, filters and metrics are lm-eval's own, through its Python API.
"""

from aftertune.tasks.load import LoadedTask, LoadOptions, load
from aftertune.tasks.notes import notes, of_items
from aftertune.tasks.outcome import answers, outcome
from aftertune.tasks.part import part
from aftertune.tasks.questions import questions

__all__ = ["LoadOptions", "LoadedTask", "answers", "load", "notes", "of_items", "outcome", "part", "questions"]
