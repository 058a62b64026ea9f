"""Tasks: lm-eval's tasks as items and requests, and model responses as answers and scores.

    loaded = load(specs, LoadOptions(...))       # LoadedTask each: settings, items, requests, instances
    answers, scores = outcome(loaded, responses)

Prompts, few-shot examples, filters and metrics are lm-eval's own, through its Python API.
"""

from aftertune.tasks.load import LoadedTask, LoadOptions, load
from aftertune.tasks.outcome import outcome
from aftertune.tasks.questions import questions

__all__ = ["LoadOptions", "LoadedTask", "load", "outcome", "questions"]
