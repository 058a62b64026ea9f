"""Tiny models that differ, and a task on which the base is right, for the tests of early stopping."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from aftertune.early_stopping import until_decided
from aftertune.evaluation import evaluate
from aftertune.ledger import Ledger
from aftertune.study import EarlySpec, EvalSpec, TargetSpec, TaskSpec
from eval_cases import byte_folder, byte_llama, byte_tokenizer

QUIET: dict[str, Any] = {"device": "cpu", "dtype": "float32", "task_source": "pack", "threads": 1, "memory": "1MB"}


def noisy_folder(folder: Path, noise: float) -> Path:
    """The model of byte_folder with seeded noise on its weights."""
    import torch

    model = byte_llama()
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight += noise * torch.randn_like(weight)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def own_task(tmp: Path, model: Path, rows: int, name: str = "own") -> TaskSpec:
    """A target task whose references are what ``model`` itself writes: it is right on all of it."""
    prompts = [f"{name} {n}: {n * n}" for n in range(rows)]
    path = tmp / f"{name}-asked.jsonl"
    path.write_text("".join(json.dumps({"prompt": p, "completion": "x"}) + "\n" for p in prompts))
    asked = TaskSpec(name="asked", target=TargetSpec(file=path, max_tokens=3))
    with Ledger(tmp / f"{name}-asked.db") as ledger:
        done = evaluate(EvalSpec(model=str(model), tasks=(asked,), **QUIET), ledger=ledger)
        texts = [a.responses[0].text for a in ledger.answers(done.id)]
    path = tmp / f"{name}.jsonl"
    path.write_text("".join(json.dumps({"prompt": p, "completion": t}) + "\n"
                            for p, t in zip(prompts, texts, strict=True) if t and t.strip()), encoding="utf-8")
    return TaskSpec(name=name, target=TargetSpec(file=path, max_tokens=3))


def models(tmp: Path) -> dict[str, Path]:
    """base, near (some answers differ) and broken (nearly all do)."""
    return {"base": byte_folder(tmp / "base"), "near": noisy_folder(tmp / "near", 0.0003),
            "broken": noisy_folder(tmp / "broken", 0.2)}


def decide(tuned: Path, base: Path | str, tasks: list[TaskSpec], ledger: Ledger, progress: Any = None, *,
           early: EarlySpec | None = None, join: bool = False, **settings: Any) -> Any:
    spec = EvalSpec(model=str(tuned), tasks=tuple(tasks), **(QUIET | settings))
    return until_decided(spec, str(base), early or EarlySpec(margin=5), ledger=ledger, progress=progress,
                         join=join)
