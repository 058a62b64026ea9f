"""Reads Every Eval Ever's files: one JSON of results, with a JSON Lines file of answers beside it.

    run, with_answers = every_eval_ever_run(path, value)       the same kind of value as for lm-eval's files
    list(run.scores("gsm8k"))                    from ``evaluation_results``

The schema (evaleval, versions 0.0.1 to 0.3.0) has one entry for each metric of each benchmark, and one row of answers
for each sample and entry. Since 0.2.2 ``evaluation_result_id`` joins the two; before, the name of the evaluation does.
Rows that our own export wrote also hold the document and the responses, so they pair with our own evaluations.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aftertune import bounds
from aftertune.catalog import NO_FILTER, MetricKey, metric_named
from aftertune.errors import InputError
from aftertune.exchange.files import json_rows, parse_json
from aftertune.exchange.lm_eval_files import LmEvalRun
from aftertune.values import json_ready

if TYPE_CHECKING:
    from aftertune.ledger import StagedRows, Staging

#: The longest description that is taken for the name of a metric.
_NAME = 40
#: The key of a row's metadata under which our own export keeps what the schema has no field for.
OWN = "aftertune"


@dataclass(frozen=True, slots=True)
class _Result:
    """One entry of ``evaluation_results``. name, id: what rows of answers call it."""

    entry: Mapping[str, Any]
    name: str
    id: str
    task: str
    key: MetricKey


def every_eval_ever_run(path: Path, value: Mapping[str, Any]) -> tuple[LmEvalRun, Callable[[Staging], LmEvalRun]]:
    """The run of one file without its answers, and what puts these into a staging table and returns the run with them.

    Raises InputError.
    """
    results = [_result(path, n, entry) for n, entry in enumerate(value["evaluation_results"], 1)]
    current: dict[str, Any] = {
        "results": {}, "configs": {}, "n-shot": {}, "n-samples": {}, "higher_is_better": {}, "versions": {},
        **_run_facts(value), "run": _run(value)}
    library = _mapping(_mapping(value.get("eval_library")).get("additional_details"))
    current[OWN] = _parsed(library.get(OWN))
    for r in results:
        details = _mapping(r.entry.get("score_details"))
        error = _mapping(_mapping(details.get("uncertainty")).get("standard_error")).get("value")
        current["results"].setdefault(r.task, {}).update({r.key: details.get("score"), r.key.stderr: error})
        lower = _mapping(r.entry.get("metric_config")).get("lower_is_better")
        current["higher_is_better"].setdefault(r.task, {})[r.key.metric] = lower is not True
        current["configs"][r.task], current["n-shot"][r.task] = _config(r.entry)
        current["versions"][r.task] = ""
        n = _mapping(details.get("uncertainty")).get("num_samples")
        total = _mapping(r.entry.get("source_data")).get("samples_number")
        current["n-samples"][r.task] = {"effective": n, "original": total}
    answers = _answers_file(path, value)
    if answers is None:
        missing = ("the file with its answers is not beside it, so only its scores are imported",) \
            if value.get("detailed_evaluation_results") else ()
        run = LmEvalRun(path, current, tool="every-eval-ever", notes=missing)
        return run, lambda _: run

    def with_answers(staging: Staging) -> LmEvalRun:
        samples, notes = _samples(answers, results, staging)
        for task, rows in samples.items():
            own = _own(next(rows.values()))
            current["configs"][task]["output_type"] = own.get("output_type", "generate_until")
        lines = {task: (str(answers), lambda rows=rows: _lines(answers, rows)) for task, rows in samples.items()}
        return LmEvalRun(path, current, tool="every-eval-ever", rows=lines, notes=tuple(notes))

    return LmEvalRun(path, current, tool="every-eval-ever"), with_answers


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _result(path: Path, number: int, entry: Any) -> _Result:
    """One entry, with lm-eval's names of its task and score. ``gsm8k/strict`` with the id ``exact_match:strict`` is
    the filter ``strict`` of ``gsm8k``."""
    if not isinstance(entry, dict) or not isinstance(entry.get("evaluation_name"), str):
        raise InputError(f"{path}: `evaluation_results`, entry {number}: no `evaluation_name`; check that it is a file "
                         "of Every Eval Ever")
    name, id_ = entry["evaluation_name"], str(entry.get("evaluation_result_id") or "")
    config = _mapping(entry.get("metric_config"))
    filter_ = id_.partition(":")[2]
    filtered = bool(filter_) and name.endswith(f"/{filter_}")
    task = name.removesuffix(f"/{filter_}") if filtered else name
    words = config.get("metric_name") or str(config.get("evaluation_description") or "").partition(" on ")[0]
    if not words or len(str(words)) > _NAME or words == name:
        words = config.get("metric_kind") or "score"
    metric = metric_named(str(words))[0].replace(",", ";")
    return _Result(entry, name, id_, task, MetricKey.of(metric, filter_ if filtered else NO_FILTER))


def _run(value: Mapping[str, Any]) -> str:
    """What the files of one run of one model share; "" where that is not known. Scraped scores are no run."""
    stamp, kind = value.get("evaluation_timestamp"), _mapping(value.get("source_metadata")).get("source_type")
    model = _mapping(value.get("model_info"))
    return f"{model.get('id')} {stamp}" if stamp and kind == "evaluation_run" else ""


def _run_facts(value: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of the run, under lm-eval's keys."""
    model, library = _mapping(value.get("model_info")), _mapping(value.get("eval_library"))
    about = _mapping(model.get("additional_details"))
    engine = _mapping(model.get("inference_engine")).get("name") or model.get("inference_platform")
    parameters = str(about.get("num_parameters") or "")
    return {"model_name": model.get("id") or model.get("name"), "model_source": library.get("name") or engine,
            "date": _iso(value.get("evaluation_timestamp") or value.get("retrieved_timestamp")),
            "lm_eval_version": value.get("schema_version"),
            "config": {"model": engine, "model_dtype": about.get("dtype") or about.get("precision"),
                       "model_revision": about.get("revision"), "model_sha": about.get("sha"),
                       "model_num_parameters": int(parameters) if parameters.isascii() and parameters.isdigit()
                       and len(parameters) < 18 else None}}


def _iso(stamp: Any) -> str:
    """A time in seconds since 1970, or already as ISO 8601, as ISO 8601; "" where it is neither."""
    try:
        return datetime.fromtimestamp(float(stamp), UTC).isoformat(timespec="seconds")
    except (TypeError, ValueError, OverflowError, OSError):
        return str(stamp) if isinstance(stamp, str) and stamp[:4].isdigit() and "T" in stamp else ""


def _config(entry: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
    """(a task's configuration under lm-eval's keys, few-shot examples)."""
    source, generation = _mapping(entry.get("source_data")), _mapping(entry.get("generation_config"))
    arguments = _mapping(generation.get("generation_args"))
    settings = {"temperature": arguments.get("temperature"), "top_p": arguments.get("top_p"),
                "top_k": arguments.get("top_k"), "max_gen_toks": arguments.get("max_tokens")}
    shots = str(_mapping(generation.get("additional_details")).get("num_fewshot") or "")
    return {"dataset_path": source.get("hf_repo"), "test_split": source.get("hf_split"),
            "generation_kwargs": {k: v for k, v in settings.items() if v is not None}}, \
        int(shots) if shots.isascii() and shots.isdigit() and len(shots) < 6 else 0


# --- Answers ---

def _answers_file(path: Path, value: Mapping[str, Any]) -> Path | None:
    """The file with the answers beside the results, or None. Only its name counts, wherever the results say it is."""
    named = _mapping(value.get("detailed_evaluation_results")).get("file_path")
    stem = path.name.removesuffix(".gz").removesuffix(".json")
    names = [str(named).replace("\\", "/").rpartition("/")[2]] if isinstance(named, str) else []
    names += [f"{stem}_samples.jsonl", f"{stem}_samples.jsonl.gz", f"{stem}.jsonl"]
    return next((p for n in names if n and len(n) < 256 and (p := path.with_name(n)).is_file()), None)


def _samples(path: Path, results: list[_Result], staging: Staging) -> tuple[dict[str, StagedRows], list[str]]:
    """(task -> its samples in order, notes on rows that belong to no result).

    The value of a sample is its first row; its state is filter -> metric -> score, and the answer by filter. A row with
    a score that the sample has already is the next sample with this id.
    """
    by_id = {(r.name, r.id): r for r in results}
    by_name: dict[str, list[_Result]] = {}
    for r in results:
        by_name.setdefault(r.name, []).append(r)
    samples: dict[str, StagedRows] = {}
    turns = staging.part()
    stray = 0
    for location, row in json_rows(path, limit=bounds.RESULTS_LINE):
        name, own = str(row.get("evaluation_name")), by_name.get(str(row.get("evaluation_name")), [])
        result = by_id.get((name, str(row.get("evaluation_result_id") or "")))
        result = result or (own[0] if len(own) == 1 else results[0] if len(results) == 1 else None)
        score = _mapping(row.get("evaluation")).get("score")
        if "sample_id" not in row or not isinstance(row.get("input"), dict):
            raise InputError(f"{location}: no `sample_id` or no `input`; check that it is a file of Every Eval Ever")
        if result is None or not isinstance(score, int | float) or not math.isfinite(score):
            stray += 1
            continue
        id_ = str(row["sample_id"])
        if result.task not in samples:
            samples[result.task] = staging.part()
        rows, key = samples[result.task], json.dumps([id_, _next(turns, json.dumps([result.task, id_, result.key]))])
        there = rows.find(key)
        scores, extracted = there[1] if there else ({}, {})
        scores.setdefault(result.key.filter, {})[result.key.metric] = float(score)
        for answer in row.get("answer_attribution") or ():
            if isinstance(answer, dict) and answer.get("is_terminal", True) and "extracted_value" in answer:
                extracted.setdefault(result.key.filter, str(answer["extracted_value"]))
        if there:
            rows.change(there[0], [scores, extracted])
        else:
            rows.add(key, row, [scores, extracted])
    notes = [f"{path.name}: {stray} rows belong to no score of the results, or have no score, and were left out"] \
        if stray else []
    return samples, notes


def _next(counts: StagedRows, key: str) -> int:
    """How often ``key`` was asked for before."""
    there = counts.find(key)
    if there is None:
        counts.add(key, None, 0)
        return 0
    count: int = there[1] + 1
    counts.change(there[0], count)
    return count


def _own(row: Mapping[str, Any]) -> dict[str, Any]:
    """What our own export keeps in the metadata of a row; {} for a row of another tool."""
    return _parsed(_mapping(row.get("metadata")).get(OWN))


def _parsed(text: Any) -> dict[str, Any]:
    """The JSON object that our own export wrote as text; {} where there is none."""
    try:
        return _mapping(parse_json(text, OWN)) if isinstance(text, str) else {}
    except InputError:
        return {}


def _lines(path: Path, samples: StagedRows) -> Iterator[tuple[str, dict[str, Any]]]:
    """The samples in the form of lm-eval's, one line for each filter."""
    for number, (row, (scores, extracted)) in enumerate(samples):
        base = _own_line(row) or _line(number, row)
        for name, values in scores.items():
            yield f"{path}, sample {row['sample_id']}", {
                **base, "filter": name, "metrics": list(values), **values,
                "filtered_resps": [extracted[name]] if name in extracted else []}


def _own_line(row: Mapping[str, Any]) -> dict[str, Any] | None:
    """The line of a row that our own export wrote, with its document and responses."""
    own = _own(row)
    return {k: own[k] for k in ("doc_id", "doc", "target", "arguments", "resps", "aftertune") if k in own} \
        if {"doc_id", "doc", "arguments", "resps"} <= own.keys() else None


def _line(number: int, row: Mapping[str, Any]) -> dict[str, Any]:
    asked = {k: json_ready(v) for k in ("raw", "reference", "choices") if (v := row["input"].get(k))}
    reference = row["input"].get("reference")
    texts = _mapping(row.get("output")).get("raw")
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, list):
        replies = [m.get("content") for m in row.get("messages") or () if isinstance(m, dict)
                   and m.get("role") == "assistant"]
        texts = replies[-1:]
    prompt = row["input"].get("formatted") or row["input"].get("raw") or ""
    return {"doc_id": number, "doc": asked, "arguments": [[str(prompt), {}]], "resps": [[str(t or "") for t in texts]],
            "target": reference[0] if isinstance(reference, list) and len(reference) == 1 else json_ready(reference)}
