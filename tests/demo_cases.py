"""The answers of the demo (`aftertune demo`) in small: the choices, the ends of the texts, and what was right.

    python tests/demo_cases.py .aftertune/ledger.db     writes tests/data/demo_answers.json from the demo's ledger
    base, careful, careless = demo_evaluations(ledger)  stores the evaluations of that file in a ledger

A choice is kept as its position, a generated text as its first characters. Scores are those of the demo.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from aftertune.catalog import MetricKey
from aftertune.comparison.answer_changes import chosen_position
from aftertune.ledger import Ledger
from aftertune.values import Answer, Asked, Evaluation, Item, ModelIdentity, Response, Score, TaskSettings
from early_cases import ADAPTED, BASE

FILE = Path(__file__).parent / "data" / "demo_answers.json"
NAMES = ("smollm2", "careful", "careless")
#: careless is a full fine-tune, so its model has other weights; a tuning in the ledger proves where it comes from.
MODELS: tuple[ModelIdentity, ...] = (BASE, ADAPTED, replace(BASE, source="out/careless", weights="w1"))
_KEPT = 12  # characters of a text


def demo_evaluations(ledger: Ledger) -> list[Evaluation]:
    """The evaluations of the base, the careful and the careless fine-tune, stored in a ledger."""
    tasks = [(TaskSettings(**stored["settings"]), stored["items"]) for stored in json.loads(FILE.read_text())]
    return [_store(ledger, NAMES[side], MODELS[side], tasks, side) for side in range(3)]


def _store(ledger: Ledger, name: str, model: ModelIdentity, tasks: list[tuple[TaskSettings, list[Any]]], side: int
           ) -> Evaluation:
    items, answers, scores = [], [], []
    for settings, stored in tasks:
        key = MetricKey(settings.primary)
        values = []
        for index, (cluster, gold, choices, sides) in enumerate(stored):
            value, given = sides[side]
            hash_ = f"{settings.task} {index}"
            names = "abcdefgh"[:choices]
            asked = Asked(choices=tuple(names), gold=(gold,)) if choices else Asked(reference=f"answer {index}")
            items.append(Item(task=settings.task, index=index, hash=hash_, doc={}, cluster=cluster, asked=asked))
            responses = tuple(Response(logprob=-1.0 - (k != given)) for k in range(choices)) if choices else (
                Response(text=given[0], finish=given[1]),)
            answers.append(Answer(task=settings.task, index=index, item=hash_, metrics={key: value},
                                  responses=responses, cluster=cluster))
            values.append(value)
        scores.append(Score(task=settings.task, metric=key.metric, filter=key.filter, value=sum(values) / len(values),
                            stderr=None, n=len(values), primary=True))
    evaluation = Evaluation(id=f"e-{name}", name=name, model=model, tasks=tuple(t for t, _ in tasks), device="cpu",
                            dtype="bfloat16", engine="packed")
    ledger.open_evaluation(evaluation, items)
    responses_of_all = [r for a in answers for r in a.responses]
    ledger.save_batch(evaluation.id, 0, dict(enumerate(responses_of_all)))
    ends = list(accumulate(len(a.responses) for a in answers))
    positions = [tuple(range(end - len(a.responses), end)) for a, end in zip(answers, ends, strict=True)]
    return ledger.finish_evaluation(replace(evaluation, scores=tuple(scores)), answers, positions)


def _task(ledger: Ledger, settings: TaskSettings) -> dict[str, Any]:
    """One task as the file has it: of each item its cluster, right choice, number of choices, and the three answers."""
    key = MetricKey(settings.primary)
    evaluations = [ledger.find_evaluation(name) for name in NAMES]
    sides = [ledger.answers(e.id, settings.task) for e in evaluations]
    clusters: dict[str | None, str] = {}
    items = []
    for item, *answers in zip(ledger.items(evaluations[0].id, settings.task), *sides, strict=True):
        asked = item.asked or Asked()
        cluster = None if item.cluster is None else clusters.setdefault(item.cluster, str(len(clusters)))
        given: list[Any] = [chosen_position(a, asked, key.metric) if asked.choices else
                            [(a.responses[0].text or "")[:_KEPT], a.responses[0].finish] for a in answers]
        items.append([cluster, *(asked.gold or (None,))[:1], len(asked.choices),
                      [[a.metrics[key], g] for a, g in zip(answers, given, strict=True)]])
    kept = {k: v for k, v in asdict(settings).items() if k in (
        "task", "version", "output_type", "num_fewshot", "n", "n_total", "split", "data", "items", "prompts", "primary",
        "higher_is_better", "chance", "cluster", "target", "generation")}
    return {"settings": kept, "items": items}


if __name__ == "__main__":
    with Ledger(sys.argv[1], create=False) as demo:
        tuned = demo.find_evaluation(NAMES[1])
        FILE.write_text("[\n" + ",\n".join(json.dumps(_task(demo, t), separators=(",", ":"), default=dict)
                                         for t in tuned.tasks) + "\n]\n")
