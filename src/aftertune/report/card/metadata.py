"""What the Hub reads of a model card: its YAML header with a ``model-index``, and the files of ``.eval_results``.

    header(subject).to_yaml()            base_model: Qwen/Qwen2.5-0.5B, library_name: peft, model-index: …
    entries(subject)["hellaswag.yaml"]   one result for the benchmark's own page

Values are the ledger's, as fractions. A task that was stopped early has an estimate and no score, so that it has no
place here; a part of a task is told as a part wherever its figure stands.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aftertune.catalog import BENCHMARKS, is_fraction
from aftertune.report import format as fmt
from aftertune.report.card.subject import Subject
from aftertune.report.names import metric_title, task_title
from aftertune.report.table import score_interval, score_part
from aftertune.study import HUB_NAMES, on_hub, presets
from aftertune.values import Evaluation, ModelIdentity, Score, TaskSettings, Tuning


def base_on_hub(model: ModelIdentity) -> str | None:
    """The Hub id of a model, or of the one that a pack holds; None where it is not proven to be from there."""
    packed = (preset.source for preset in presets.PRESETS.values() if preset.pack and preset.pack == model.source)
    return model.source if model.revision else next(packed, None)


def data_on_hub(tuning: Tuning) -> str | None:
    """The Hub data set that a fine-tune learned; None for a file."""
    name = HUB_NAMES.get(tuning.data_source, tuning.data_source)
    return name if "/" in name and on_hub(Path(name)) else None


def header(subject: Subject) -> Any:
    """The metadata as huggingface_hub's ModelCardData; what is not known is left out."""
    from huggingface_hub.repocard_data import ModelCardData

    base, tuning = subject.base, subject.tuning
    hub = base_on_hub(base) if base is not None else None
    data = data_on_hub(tuning) if tuning is not None else None
    results = [_result(e, s) for e, s in subject.scores()]
    return ModelCardData(
        base_model=hub, base_model_relation=("adapter" if subject.adapter else "finetune") if hub else None,
        datasets=[data] if data else None, library_name=_library(subject), pipeline_tag="text-generation",
        tags=["aftertune", *([tuning.method] if tuning is not None else [])], model_name=fmt.visible(subject.name),
        **({"model-index": [{"name": fmt.visible(subject.name), "results": results}]} if results else {}))


def _library(subject: Subject) -> str | None:
    source = "" if subject.model is None else subject.model.source
    return "peft" if subject.adapter else None if source.endswith(".gguf") else "transformers"


def _result(evaluation: Evaluation, score: Score) -> dict[str, Any]:
    """One entry of a model-index."""
    task = _settings(evaluation, score)
    data, part = _data(task, score.task)
    interval = score_interval(score)
    known = {"task": score.task, "filter": score.filter, "n": score.n, "stderr": _number(score.stderr),
             "low": interval and interval[0], "high": interval and interval[1],
             "num_fewshot": task.num_fewshot if task else None, "evaluation": evaluation.id}
    return {"task": {"type": "text-generation", "name": "Text Generation"},
            "dataset": {"type": data or score.task, "name": fmt.visible(task_title(score.task)), "config": part,
                        "split": task.split if task and data else None},
            "metrics": [{"type": score.metric, "value": score.value, "name": _metric(evaluation, score),
                         "args": {k: v for k, v in known.items() if v is not None}}]}


def _metric(evaluation: Evaluation, score: Score) -> str:
    """The metric with the task it is of, and with the part of it that was asked."""
    part = score_part(evaluation, score.task)
    title = f"{metric_title(score.metric, score.filter)} on {task_title(score.task)}"
    return fmt.visible(f"{title} (partial: {part})" if part else title)


def _settings(evaluation: Evaluation, score: Score) -> TaskSettings | None:
    """The task of a score; of a group its first one."""
    inside = (t for t in evaluation.tasks if score.task in t.groups)
    return evaluation.task(score.task) or next(inside, None)


def _data(task: TaskSettings | None, name: str) -> tuple[str | None, str | None]:
    """The data set of the Hub that a task asks about, and its part; (None, None) for documents of the user's own."""
    known = BENCHMARKS[name].hub if name in BENCHMARKS else None
    stated = task.data.removeprefix("hub:") if task is not None and task.data.startswith("hub:") else None
    if stated is not None:
        return stated, known[1] if known and known[0] == stated else None
    return known if known and task is not None and task.data.startswith("pack:") else (None, None)


def entries(subject: Subject) -> dict[str, str]:
    """File name -> YAML of a result of a benchmark's primary metric, for tasks whose data set is on the Hub."""
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml
    from huggingface_hub.utils import yaml_dump

    found: dict[str, str] = {}
    for evaluation, score in subject.scores():
        data, _ = _data(_settings(evaluation, score), score.task)
        if score.primary and data is not None and is_fraction(score.metric):
            begun = evaluation.provenance.started if evaluation.provenance else None
            entry = EvalResultEntry(dataset_id=data, task_id=_page(score.task), value=score.value,
                                    date=begun, notes="; ".join(_notes(evaluation, score)))
            name = re.sub(r"[^\w.-]+", "_", score.task)
            found[f"{name}.yaml"] = yaml_dump(eval_result_entries_to_yaml([entry]), sort_keys=False)
    return found


def _page(task: str) -> str:
    """The benchmark under whose name the Hub lists results of a task."""
    return BENCHMARKS[task].page or task if task in BENCHMARKS else task


def _notes(evaluation: Evaluation, score: Score) -> Iterator[str]:
    """How a result came to be; a part of a benchmark first of all."""
    task, part = _settings(evaluation, score), score_part(evaluation, score.task)
    yield f"partial: {part}" if part else f"all {fmt.count(score.n)} items"
    yield fmt.visible(f"lm-eval task {score.task}, {metric_title(score.metric, score.filter)}")
    if task is not None:
        yield f"{task.num_fewshot}-shot, chat template {'on' if task.chat_template else 'off'}"
    if (error := _number(score.stderr)) is not None:
        yield f"standard error {fmt.raw(error)}"


def _number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None

