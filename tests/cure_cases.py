"""A tiny base with a skill, fine-tunes of it, and tasks that show what they keep and learn, for the tests of cures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from aftertune.cure import CureRequest
from aftertune.evaluation import evaluate
from aftertune.ledger import Ledger
from aftertune.study import DataSpec, EarlyStop, LoraSpec, TargetSpec, TaskSpec, TuneSpec
from aftertune.tuning import tune
from aftertune.values import Tuning
from eval_cases import CHAT, byte_folder, write_task
from tuning_cases import easy_rows, write_rows

MORE = 'doc_to_choice: "{{choices}}"\nmetric_list: [{metric: acc}]'
#: Settings of the evaluations of a trial.
SETTINGS: dict[str, Any] = {"dtype": "float32", "device": "cpu", "threads": 1}


def cure_place(folder: Path, items: int = 80) -> Path:
    """``folder`` with a base of three layers, training data, a target, and a task ``colours`` on which the base is
    right on most of the items, because the right answers are its own."""
    byte_folder(folder / "base", template=CHAT, window=4096, num_hidden_layers=3)
    write_rows(folder / "rows.jsonl", easy_rows())
    write_rows(folder / "say.jsonl", [{"prompt": f"say w{n} twice", "completion": "w1 w2"} for n in range(50, 90)])
    questions: list[dict[str, Any]] = [
        {"question": f"say w{n} twice", "answer": 0,
         "choices": ["w1 w2", *(f"w{n * k % 9} w{n * k % 7}" for k in (2, 3, 5))]} for n in range(items)]
    write_rows(folder / "colours.jsonl", questions)
    write_task(folder / "tasks", "colours", "multiple_choice", folder / "colours.jsonl", MORE)
    with Ledger(folder / "first.db") as ledger:
        asked = evaluate(str(folder / "base"), ["colours"], ledger=ledger, include_path=folder / "tasks", **SETTINGS)
        for question, answer in zip(questions, ledger.answers(asked.id), strict=True):
            scores = [response.logprob or 0.0 for response in answer.responses]
            question["answer"] = (scores.index(max(scores)) + (answer.index % 8 == 0)) % 4
    write_rows(folder / "colours.jsonl", questions)
    return folder


def fine_tune(place: Path, name: str, ledger: Ledger | None = None, **values: Any) -> Tuning:
    """A fine-tune that learns the target within a few steps."""
    return tune(TuneSpec(**{
        "model": str(place / "base"), "data": DataSpec(file=place / "rows.jsonl"), "out": place / name, "max_steps": 8,
        "epochs": 3.0, "learning_rate": 0.02, "batch_size": 4, "lora": LoraSpec(r=4), "name": name, **SETTINGS,
        **values}), ledger=ledger)


def fine_tune_with_checkpoints(place: Path, name: str) -> Tuning:
    """A fine-tune whose adapters of the steps 3, 6 and 8 are kept."""
    return fine_tune(place, name, data=DataSpec(file=place / "rows.jsonl", validation=0.1),
                     early_stop=EarlyStop(every=3, patience=9), keep_checkpoints="all")


def asked_for(place: Path, margin: float = 40.0, **values: Any) -> CureRequest:
    """Keep the colours, and learn to say."""
    target = TaskSpec(name="say", target=TargetSpec(file=place / "say.jsonl", max_tokens=8))
    return CureRequest(**{"keep": {"colours": margin}, "items": 80, "target": target,
                          "settings": {**SETTINGS, "include_path": place / "tasks"}, **values})


def manifest(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "aftertune.json").read_text(encoding="utf-8"))
    return found
