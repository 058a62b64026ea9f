"""Words that an evaluation is stored with: what a reader must know about its answers, and the name of its device.

    answer_notes(loaded, answers, responses, schedule, spec)     warnings, one for each task that needs it
    device_name("cuda")                                          "cuda (Tesla T4)"
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from aftertune import tasks
from aftertune.catalog import MetricKey
from aftertune.stats.answer_format import has_no_answer, is_generated
from aftertune.study import EvalSpec
from aftertune.tasks import LoadedTask
from aftertune.values import Answer, Response


def answer_notes(loaded: Sequence[LoadedTask], answers: Sequence[Answer], responses: Mapping[int, Response],
                 schedule: Mapping[str, Any], spec: EvalSpec) -> Iterator[str]:
    """Warnings about how the answers were encoded, and what was cut off or not found in them."""
    yield from _encoded_alone(loaded, schedule.get("encoded_alone", ()))
    yield from _unextracted(loaded, answers)
    yield from _reasoning(loaded, responses, spec)


def _encoded_alone(loaded: Sequence[LoadedTask], positions: Sequence[int]) -> Iterator[str]:
    """A warning for each task with answers that were encoded without their context. positions: of their requests."""
    for task in loaded:
        item_of = {p: item.index for item, ps in zip(task.items, tasks.positions_of_items(task), strict=True)
                   for p in ps}
        items = sorted({item_of[p] for p in positions if p in item_of})
        if items:
            listed = ", ".join(map(str, items[:20])) + (f" and {len(items) - 20} more" if len(items) > 20 else "")
            yield (f"{task.settings.task}: in {len(items)} of {len(task.items)} items a token spans the context and an "
                   f"answer, which was therefore encoded alone (lm-eval 0.4.13 stops there): items {listed}")


def _unextracted(loaded: Sequence[LoadedTask], answers: Sequence[Answer]) -> Iterator[str]:
    """A warning for each task with texts from which no answer could be extracted."""
    for task in loaded:
        settings = task.settings
        texts = [a for a in answers if a.task == settings.task and is_generated(a)]
        count = sum(has_no_answer(a, MetricKey(settings.primary).filter) for a in texts)
        if count:
            share = math.floor(1000 * count / len(texts)) / 10
            yield f"{settings.task}: {count} of {len(texts)} texts ({share:g} %) have no extractable answer"


def _reasoning(loaded: Sequence[LoadedTask], responses: Mapping[int, Response], spec: EvalSpec) -> Iterator[str]:
    """A warning for each task: how many texts began with a reasoning trace, which was cut off."""
    end = spec.think_end_token
    for task in loaded if end is not None else ():
        texts = [responses[p] for repeats in task.positions for p in repeats]
        if task.settings.output_type != "generate_until":
            continue
        if spec.engine.startswith("lm-eval:"):
            yield f"{task.settings.task}: {spec.engine} cuts reasoning traces off at {end} and drops them"
            continue
        count = sum(r.reasoning is not None for r in texts)
        yield (f"{task.settings.task}: {count} of {len(texts)} texts had a reasoning trace, which was cut off at "
               f"{end} before the answer was judged; the other {len(texts) - count} were judged whole")


def device_name(device: str) -> str:
    """The device with the name of the GPU, such as ``cuda (Tesla T4)``; else ``cpu``."""
    if not device.startswith("cuda"):
        return device
    import torch

    return f"{device} ({torch.cuda.get_device_name(device)})"


def some_names(names: Sequence[str]) -> str:
    """The first four names, and how many more there are."""
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")

