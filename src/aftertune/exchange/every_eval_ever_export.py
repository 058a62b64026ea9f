"""Exports an evaluation in the schema of Every Eval Ever (evaleval, version 0.3.0), which its validator accepts.

    files = export_every_eval_ever(evaluation, stored_answers(ledger, evaluation), folder=Path("out"), prompts={})
    files.results      out/data/aftertune/org/model/8e9….json, and 8e9…_samples.jsonl with the answers

There is one pair of files for each task, as Every Eval Ever's own converter of lm-eval's files writes them. What the
schema has no field for (settings, documents, log-likelihoods) is kept as JSON text under the key ``aftertune``, so that
`aftertune import` gives back what was exported. Local paths, commands and host names are not written.
"""

from __future__ import annotations

import hashlib
import json
import math
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from aftertune import __version__, catalog
from aftertune.errors import StorageError
from aftertune.exchange.every_eval_ever import OWN
from aftertune.exchange.exporting import AnswersOf, complete_part, sample_line, started_at, with_prompts
from aftertune.redaction import public_source
from aftertune.sources.cache import path_part, write_atomic
from aftertune.values import (
    Answer,
    Asked,
    Evaluation,
    Item,
    Request,
    Score,
    TaskSettings,
    canonical,
    digest,
    json_ready,
)
from aftertune.values.reported import proven

SCHEMA_VERSION = "0.3.0"
#: What a file says about who evaluated the model, which the ledger does not know.
_UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class ExportedPair:
    """The files of one task."""

    results: Path
    samples: Path


def export_every_eval_ever(evaluation: Evaluation, answers: AnswersOf, *, folder: Path,
                           prompts: Mapping[str, Sequence[Request]]) -> tuple[list[ExportedPair], tuple[str, ...]]:
    """Write a finished evaluation below ``folder``; returns the files of each task, and the tasks that were left out.

    Exporting it again writes the same files. answers: see `stored_answers`; prompts: by task. Raises InputError if no
    task has a score of all its items, and StorageError if a file cannot be written.
    """
    exported, left_out = complete_part(evaluation)
    organization, _, name = _model_id(exported).rpartition("/")
    target = folder / "data" / OWN / path_part(organization) / path_part(name)
    pairs = []
    try:
        for task in exported.tasks:
            stem = str(uuid.UUID(digest([evaluation.id, task.task])[:32], version=4))
            lines = _Lines(_rows(exported, task, answers, prompts.get(task.task, ())))
            pair = ExportedPair(target / f"{stem}.json", target / f"{stem}_samples.jsonl")
            write_atomic(pair.samples, iter(lines))
            write_atomic(pair.results, json.dumps(
                {**_results(exported, task), "detailed_evaluation_results": {
                    "format": "jsonl", "file_path": pair.samples.relative_to(folder).as_posix(),
                    "hash_algorithm": "sha256", "checksum": lines.sha256.hexdigest(),
                    "total_rows": lines.count}}, ensure_ascii=False, indent=2) + "\n")
            pairs.append(pair)
    except OSError as error:
        raise StorageError(f"{target}: cannot be written ({error.strerror}); choose another folder with "
                           "--out") from None
    return pairs, left_out


class _Lines:
    """Rows as the lines of a JSONL file, one after another; count and sha256 are of those that were written."""

    def __init__(self, rows: Iterator[dict[str, Any]]) -> None:
        self.rows, self.count, self.sha256 = rows, 0, hashlib.sha256()

    def __iter__(self) -> Iterator[str]:
        for row in self.rows:
            line = json.dumps(row, ensure_ascii=False) + "\n"
            self.count += 1
            self.sha256.update(line.encode())
            yield line


# --- Results ---

def _model_id(evaluation: Evaluation) -> str:
    """``organization/name``, as the schema wants it; the organization of a local model is not known."""
    source = public_source(evaluation.model.source)
    return source if source.count("/") == 1 else f"{_UNKNOWN}/{evaluation.name.replace('/', '__')}"


def _time(evaluation: Evaluation) -> str:
    """The start in seconds since 1970, "0" where it is not known."""
    started = started_at(evaluation)
    return f"{started.timestamp():.0f}" if started else "0"


def _evaluation_id(evaluation: Evaluation, task: TaskSettings) -> str:
    return f"{task.task}/{_model_id(evaluation)}/{_time(evaluation)}"


def _results(evaluation: Evaluation, task: TaskSettings) -> dict[str, Any]:
    """The JSON of the results of one task."""
    versions = evaluation.provenance.versions if evaluation.provenance else {}
    own = {"evaluation": evaluation.id, "name": evaluation.name, "tasks": [asdict(task)]}
    return {
        "schema_version": SCHEMA_VERSION, "evaluation_id": _evaluation_id(evaluation, task),
        "evaluation_timestamp": _time(evaluation), "retrieved_timestamp": _time(evaluation),
        "source_metadata": {"source_name": "aftertune", "source_type": "evaluation_run",
                            "source_organization_name": _UNKNOWN, "evaluator_relationship": "other"},
        "eval_library": {"name": "aftertune", "version": __version__, "additional_details": {
            **{k: v for k, v in versions.items() if k == "lm-eval"}, OWN: canonical(json_ready(own))}},
        "model_info": _model(evaluation),
        "evaluation_results": [_result(evaluation, task, s) for s in evaluation.scores
                               if s.task == task.task and math.isfinite(s.value)]}


def _model(evaluation: Evaluation) -> dict[str, Any]:
    model = evaluation.model
    deployment = "self_deployed" if proven(model) else _UNKNOWN
    details = {"deployment_type": deployment, "model_availability": _UNKNOWN, "dtype": evaluation.dtype,
               "num_parameters": model.parameters, "revision": model.revision, "fingerprint": model.fingerprint,
               "quantization": model.quantization}
    return {"name": evaluation.name, "id": _model_id(evaluation),
            "inference_engine": {"name": evaluation.engine},
            "additional_details": {k: str(v) for k, v in details.items() if v is not None}}


def _result(evaluation: Evaluation, task: TaskSettings, score: Score) -> dict[str, Any]:
    """One score. The names are those of Every Eval Ever's converter of lm-eval's files."""
    filtered = score.filter != catalog.NO_FILTER
    uncertainty: dict[str, Any] = {"num_samples": score.n}
    if score.stderr is not None and math.isfinite(score.stderr):
        uncertainty["standard_error"] = {"value": score.stderr}
    return {"evaluation_result_id": _result_id(score.metric, score.filter),
            "evaluation_name": f"{task.task}/{score.filter}" if filtered else task.task,
            "source_data": _source(task), "evaluation_timestamp": _time(evaluation),
            "metric_config": {"evaluation_description": score.key if filtered else score.metric,
                              "metric_name": score.metric, "lower_is_better": not score.higher_is_better,
                              **_bounds(score.metric)},
            "score_details": {"score": score.value, "uncertainty": uncertainty},
            "generation_config": _generation(task)}


def _result_id(metric: str, filter_: str) -> str:
    return metric if filter_ == catalog.NO_FILTER else f"{metric}:{filter_}"


def _bounds(metric: str) -> dict[str, Any]:
    """The unit and range of a metric that the catalog lists; {} for any other one."""
    unit = catalog.METRICS[metric].unit if metric in catalog.METRICS else "unbounded"
    highest = {"share": 1.0, "mean of shares": 1.0, "percent": 100.0}.get(unit)
    return {} if highest is None else {"score_type": "continuous", "min_score": 0.0, "max_score": highest,
                                       "metric_unit": "percent" if unit == "percent" else "proportion"}


def _source(task: TaskSettings) -> dict[str, Any]:
    details = {"version": task.version, "data": task.data, "items": task.items}
    details = {k: str(v) for k, v in details.items() if not str(v).startswith("file:")}
    if not task.data.startswith("hub:"):
        return {"dataset_name": task.task, "source_type": "other", "additional_details": details}
    return {"dataset_name": task.task, "source_type": "hf_dataset", "hf_repo": task.data.removeprefix("hub:"),
            "hf_split": task.split, "samples_number": task.n_total, "additional_details": details}


def _generation(task: TaskSettings) -> dict[str, Any]:
    """The generation settings, those that the schema names and the others."""
    settings = dict(task.generation)
    limit = settings.pop("max_gen_toks", None)
    arguments = {k: settings.pop(k) for k in ("temperature", "top_p", "top_k")
                 if isinstance(settings.get(k), int | float) and not isinstance(settings.get(k), bool)}
    if isinstance(limit, int) and limit > 0:
        arguments["max_tokens"] = limit
    details = {"num_fewshot": str(task.num_fewshot), **{k: canonical(json_ready(v)) for k, v in settings.items()}}
    return {"generation_args": arguments, "additional_details": details}


# --- Answers ---

def _rows(evaluation: Evaluation, task: TaskSettings, answers: AnswersOf,
          requests: Sequence[Request]) -> Iterator[dict[str, Any]]:
    """One row for each answer and score."""
    scores = [s for s in evaluation.scores if s.task == task.task]
    for answer, item, texts in with_prompts(task.task, answers, requests):
        own = {k: v for k, v in sample_line(task, answer, item, catalog.NO_FILTER, texts).items()
               if k in ("doc_id", "doc", "target", "arguments", "resps", "aftertune")}
        metadata = {"item": item.hash, OWN: canonical(json_ready({**own, "output_type": task.output_type}))}
        for score in scores:
            value = answer.metrics.get(score.key)
            if value is not None and math.isfinite(value):
                yield {**_row(evaluation, task, answer, item, score), "metadata": metadata}
                metadata = {"item": item.hash}  # the rest is in the first row of the answer


def _row(evaluation: Evaluation, task: TaskSettings, answer: Answer, item: Item, score: Score) -> dict[str, Any]:
    asked = item.asked or Asked(question=canonical(json_ready(dict(item.doc))))
    reference = [asked.choices[g] for g in asked.gold if g < len(asked.choices)] or \
        ([asked.reference] if asked.reference else [])
    hashed = json.dumps({"raw": asked.question, "reference": reference}, sort_keys=True)
    value, texts = answer.metrics[score.key], _texts(answer, asked)
    extracted = answer.extracted.get(score.filter, texts[0] if texts else "")
    return {
        "schema_version": SCHEMA_VERSION, "evaluation_id": _evaluation_id(evaluation, task),
        "model_id": _model_id(evaluation),
        "evaluation_name": f"{task.task}/{score.filter}" if score.filter != catalog.NO_FILTER else task.task,
        "evaluation_result_id": _result_id(score.metric, score.filter), "sample_id": str(answer.index),
        "sample_hash": hashlib.sha256(hashed.encode("utf-8", "surrogatepass")).hexdigest(),
        "interaction_type": "single_turn",
        "input": {"raw": asked.question, "reference": reference, "choices": list(asked.choices) or None},
        "output": {"raw": texts},
        "answer_attribution": [{"turn_idx": 0, "source": "output.raw", "extracted_value": extracted,
                                "extraction_method": score.filter, "is_terminal": True}],
        "evaluation": {"score": value, "is_correct": value == 1.0}}


def _texts(answer: Answer, asked: Asked) -> list[str]:
    """The generated texts, or the choice with the highest log-likelihood (its number where its text is not known)."""
    texts = [r.text for r in answer.responses if r.text is not None]
    scores = [r.logprob for r in answer.responses if r.logprob is not None]
    if texts or len(scores) < 2:
        return texts
    best = max(range(len(scores)), key=scores.__getitem__)
    return [asked.choices[best] if best < len(asked.choices) else str(best)]
