"""Reads the logs of inspect_ai: ``.json`` as it is, ``.eval`` through inspect_ai's own reader (``aftertune[inspect]``).

    run = inspect_run(path, value)              the same kind of value as for lm-eval's files
    value = read_eval(Path("logs/2026_quiz.eval"))

A log is one task of one model. The score of a sample is that of its scorer, with C, P, I and N as 1, 0.5, 0 and 0;
samples that were run in several epochs have the reduced score that the log states, or else the mean. ``accuracy`` is
called ``acc``. With several scorers, the scorer stands where lm-eval has the filter: ``acc,match``.
"""

from __future__ import annotations

import contextlib
import io
import math
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from aftertune import bounds
from aftertune.catalog import NO_FILTER, MetricKey
from aftertune.errors import InputError, ResourceError
from aftertune.exchange.lm_eval_files import LmEvalRun
from aftertune.values import canonical, json_ready

#: The largest content of a packed log, in bytes.
_LIMIT = bounds.LOG_BYTES
_LETTERS = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0, "yes": 1.0, "true": 1.0, "no": 0.0, "false": 0.0}
#: Metrics that measure a spread, so that they are no scores.
_SPREADS = frozenset(("std", "var", "bootstrap_std"))
_NAMES = {"accuracy": "acc"}
_CUT_OFF = frozenset(("max_tokens", "model_length"))
_ATTACHED = "attachment://"
_GENERATION = ("temperature", "top_p", "top_k", "stop_seqs", "seed", "num_choices", "reasoning_effort")


def read_eval(path: Path) -> dict[str, Any]:
    """The JSON of a packed log (.eval). Raises ResourceError without inspect_ai, InputError for a broken file."""
    try:
        with zipfile.ZipFile(path) as packed:
            size = sum(member.file_size for member in packed.infolist())
    except (zipfile.BadZipFile, OSError) as error:
        raise InputError(f"{path}: not a log of inspect_ai ({error}); copy it again") from None
    if size > _LIMIT:
        raise InputError(f"{path}: {size:,} bytes unpacked, but the limit is {_LIMIT:,}; check that it is the right "
                         "file")
    try:
        from inspect_ai.log import read_eval_log
    except ImportError:
        raise ResourceError(f"{path}: reading .eval needs inspect_ai: pip install 'aftertune[inspect]'; or write the "
                            "log as JSON, which needs no package: inspect log convert --to json") from None
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            log = read_eval_log(str(path))
            value = log.model_dump(mode="json", exclude={"samples": {"__all__": {"events", "store", "events_data"}}})
    except MemoryError:
        raise
    except Exception as error:  # the reader's own errors have no common class
        raise InputError(f"{path}: inspect_ai cannot read this log ({' '.join(str(error).split())[:150]})") from None
    return dict(value)


def inspect_run(path: Path, value: Mapping[str, Any]) -> LmEvalRun:
    """The run of one log. Raises InputError where the run did not finish."""
    spec, results = _mapping(value["eval"]), _mapping(value.get("results"))
    if value.get("status") != "success" or not results:
        reason = _mapping(value.get("error")).get("message") or "no results"
        raise InputError(f"{path}: the run did not finish (status {value.get('status')!r}: "
                         f"{' '.join(str(reason).split())[:100]}); finish it with `inspect eval-retry`")
    task, samples = str(spec.get("task") or "task"), value.get("samples")
    scores = [s for s in results.get("scores") or () if isinstance(s, dict) and isinstance(s.get("name"), str)]
    scored = {str(s["name"]): name for s, name in zip(scores, _filters(scores), strict=True)}
    row, notes = _row(scores, scored)
    dataset, config = _mapping(spec.get("dataset")), _mapping(spec.get("config"))
    averaged = "mean" if config.get("epochs") in (None, 1) else f"mean over {config['epochs']} epochs"
    total = dataset.get("samples")
    current = {
        "results": {task: row}, "versions": {task: spec.get("task_version", "")},
        "n-shot": {task: _shots(spec)}, "higher_is_better": {}, **_run_facts(value, spec),
        "n-samples": {task: {"original": total, "effective": next(
            (s.get("scored_samples") for s in scores if s.get("scored_samples")), None)}},
        "configs": {task: {
            "output_type": "generate_until", "generation_kwargs": _generation(value, spec),
            "metric_list": [{"metric": "acc", "aggregation": averaged}]}}}
    if value.get("invalidated"):
        notes.append("inspect_ai marks samples of this log as invalid")
    listed = [s for s in samples if isinstance(s, dict)] if isinstance(samples, list) else []
    if not listed:
        return LmEvalRun(path, current, tool="inspect_ai", notes=tuple(notes))
    lines, unscored = _lines(path, value, listed, scored)
    if unscored:
        notes.append(f"{unscored} samples have no score (they ended with an error, or the scorer gave none) and were "
                     "left out")
    rows = {task: (str(path), lambda: iter(lines))} if lines else {}
    return LmEvalRun(path, current, tool="inspect_ai", rows=rows, notes=tuple(notes))


# --- The run ---

def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _filters(scores: Sequence[Mapping[str, Any]]) -> list[str]:
    """What stands for lm-eval's filter: the name of each scorer, or the default where there is one scorer."""
    return [NO_FILTER] if len(scores) == 1 else [str(s["name"]) for s in scores]


def _row(scores: Sequence[Mapping[str, Any]], scored: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    """(lm-eval's row of results, notes on what was left out)."""
    row: dict[str, Any] = {}
    left: list[str] = []
    for score in scores:
        metrics = {str(k): _mapping(m).get("value") for k, m in _mapping(score.get("metrics")).items()}
        errors = [k for k in metrics if k.endswith("stderr")]
        left += [f"{score['name']} {k}" for k in metrics if k in _SPREADS]
        for name in (k for k in metrics if k not in _SPREADS and k not in errors):
            key = _key(name, scored[str(score["name"])])
            row[key] = metrics[name]
            if errors and name in ("accuracy", "mean"):
                row[key.stderr] = metrics[errors[0]]
    return row, [f"spreads are no scores and were left out: {', '.join(left)}"] if left else []


def _key(metric: str, filter_: str) -> MetricKey:
    return MetricKey.of(_NAMES.get(metric, metric).replace(",", ";"), filter_)


def _shots(spec: Mapping[str, Any]) -> int:
    arguments = _mapping(spec.get("task_args"))
    shots = next((arguments[k] for k in ("fewshot", "num_fewshot", "n_shots") if k in arguments), 0)
    return shots if isinstance(shots, int) and not isinstance(shots, bool) and 0 <= shots < 10_000 else 0


def _run_facts(value: Mapping[str, Any], spec: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of the run, under lm-eval's keys."""
    provider, _, model = str(spec.get("model") or "").partition("/")
    arguments = _mapping(spec.get("model_args"))
    source = arguments.get("model_path") or model or provider
    stats = _mapping(value.get("stats"))
    return {"model_name": source, "model_source": f"inspect_ai:{provider}" if model else "inspect_ai",
            "date": str(stats.get("started_at") or spec.get("created") or ""),
            "lm_eval_version": _mapping(spec.get("packages")).get("inspect_ai"),
            "run": f"{spec.get('model')} {spec['run_id']}" if spec.get("run_id") else "",
            "config": {"model": provider, "model_dtype": arguments.get("dtype"), "device": arguments.get("device"),
                       "model_revision": arguments.get("revision"),
                       "limit": limit if isinstance(limit := _mapping(spec.get("config")).get("limit"), int) else None}}


def _generation(value: Mapping[str, Any], spec: Mapping[str, Any]) -> dict[str, Any]:
    """The generation settings that the log states."""
    stated = {**_mapping(spec.get("model_generate_config")), **{
        k: v for k, v in _mapping(_mapping(value.get("plan")).get("config")).items() if v is not None}}
    settings = {k: stated[k] for k in _GENERATION if stated.get(k) is not None}
    if stated.get("max_tokens") is not None:
        settings["max_gen_toks"] = stated["max_tokens"]
    return settings


# --- Samples ---

def _lines(path: Path, value: Mapping[str, Any], samples: Sequence[Mapping[str, Any]], scored: Mapping[str, str]
           ) -> tuple[list[tuple[str, dict[str, Any]]], int]:
    """((location, line in the form of lm-eval's samples) for each sample and scorer, samples without a score)."""
    stops = bool(_generation(value, _mapping(value["eval"])).get("stop_seqs"))
    names = {str(s["name"]): [_NAMES.get(k, k).replace(",", ";") for k in _mapping(s.get("metrics"))
                              if k in ("accuracy", "mean")]
             for s in _mapping(value.get("results")).get("scores") or () if isinstance(s, dict) and "name" in s}
    reduced = _reduced(value)
    epochs: dict[str, list[Mapping[str, Any]]] = {}
    for sample in samples:
        epochs.setdefault(str(sample.get("id")), []).append(sample)
    lines: list[tuple[str, dict[str, Any]]] = []
    unscored = 0
    for id_ in sorted(epochs, key=_natural):
        runs = sorted(epochs[id_], key=lambda s: s["epoch"] if isinstance(s.get("epoch"), int) else 0)
        values = {name: v for name in scored if (v := _value(name, id_, runs, reduced)) is not None}
        if not values:
            unscored += 1
            continue
        base = _line(len(lines) // len(scored), runs, stops=stops)
        for name, filter_ in scored.items():
            metrics = dict.fromkeys(names.get(name, ()), values[name]) if name in values else {}
            answer = _mapping(_mapping(runs[0].get("scores")).get(name)).get("answer")
            lines.append((f"{path}, sample {id_}", {
                **base, "filter": filter_, "metrics": list(metrics), **metrics,
                "filtered_resps": [answer] if isinstance(answer, str) else []}))
    return lines, unscored


def _natural(id_: str) -> tuple[int, int, str]:
    """Numbers in their order, before other ids."""
    number = id_.isascii() and id_.isdigit() and len(id_) < 18
    return (0, int(id_), "") if number else (1, 0, id_)


def _reduced(value: Mapping[str, Any]) -> dict[tuple[str, str], Any]:
    """(scorer, sample) -> the score over all epochs, where the log states it."""
    listed = value.get("reductions")
    return {(str(r.get("scorer")), str(_mapping(s).get("sample_id"))): _mapping(s).get("value")
            for r in (listed if isinstance(listed, list) else ()) if isinstance(r, dict)
            for s in r.get("samples") or ()}


def _value(name: str, id_: str, runs: Sequence[Mapping[str, Any]], reduced: Mapping[tuple[str, str], Any]
           ) -> float | None:
    """The score of a sample by a scorer (or by one part of it) over its epochs; None where it has none."""
    found = _number(reduced.get((name, id_)))
    if found is not None:
        return found
    values = []
    for run in runs:
        scores = _mapping(run.get("scores"))
        part = _mapping(scores.get(name)).get("value")
        if name not in scores:  # a scorer with several values gives each of them a name
            part = next((v[name] for s in scores.values() if name in (v := _mapping(_mapping(s).get("value")))), None)
        values.append(_number(part))
    return None if not values or None in values else math.fsum(v for v in values if v is not None) / len(values)


def _number(value: Any) -> float | None:
    """A score as a number, as inspect_ai's `value_to_float` converts it; None for what it does not convert."""
    if isinstance(value, bool | int | float):
        return float(value) if math.isfinite(value) else None
    if not isinstance(value, str):
        return None
    with contextlib.suppress(ValueError):
        return number if math.isfinite(number := float(value)) else None
    return _LETTERS.get(value, _LETTERS.get(value.lower()))


def _line(number: int, runs: Sequence[Mapping[str, Any]], *, stops: bool) -> dict[str, Any]:
    """A sample with the texts of all its epochs."""
    first = runs[0]
    attached = _mapping(first.get("attachments"))
    doc = {"input": _content(first.get("input"), attached), **{k: first.get(k) for k in ("choices", "target")}}
    outputs = [_output(run, stops=stops) for run in runs]
    return {"doc_id": number, "doc": {k: json_ready(v) for k, v in doc.items() if v},
            "arguments": [[_prompt(first, attached), {}]], "resps": [[text for text, _, _ in outputs]],
            "target": json_ready(first.get("target")),
            "aftertune": {"tokens": [tokens for _, tokens, _ in outputs], "finish": [end for _, _, end in outputs]}}


def _prompt(sample: Mapping[str, Any], attached: Mapping[str, Any]) -> str:
    """The messages before the first answer, without what differs between two runs."""
    messages: Iterator[Any] = iter(sample.get("messages") or ())
    asked = []
    for message in messages:
        if not isinstance(message, dict) or message.get("role") == "assistant":
            break
        asked.append({"role": message.get("role"), "content": _content(message.get("content"), attached)})
    return canonical(json_ready(asked)) if asked else canonical(json_ready(_content(sample.get("input"), attached)))


def _content(value: Any, attached: Mapping[str, Any]) -> Any:
    """Text, or messages and their parts without ids; long texts are taken from the log's attachments."""
    if isinstance(value, str):
        return attached.get(value.removeprefix(_ATTACHED), value) if value.startswith(_ATTACHED) else value
    if isinstance(value, list):
        return [_content(v, attached) for v in value]
    if isinstance(value, dict):
        return {k: _content(v, attached) for k, v in value.items() if k in ("role", "content", "type", "text", "image")}
    return value


def _output(sample: Mapping[str, Any], *, stops: bool) -> tuple[str, int | None, str | None]:
    """(text, tokens, end) of an answer. stops: stop strings were set, so an ordinary end may be one of them."""
    output = _mapping(sample.get("output"))
    choices = output.get("choices")
    choice = _mapping(choices[0]) if isinstance(choices, list) and choices else {}
    content = _mapping(choice.get("message")).get("content", output.get("completion"))
    if isinstance(content, list):
        content = "".join(str(_mapping(p).get("text") or "") for p in content)
    text = _content(content if isinstance(content, str) else "", _mapping(sample.get("attachments")))
    reason = choice.get("stop_reason")
    end = "length" if reason in _CUT_OFF else "eos" if reason == "stop" and not stops else None
    tokens = _mapping(output.get("usage")).get("output_tokens")
    return str(text), tokens if isinstance(tokens, int) and not isinstance(tokens, bool) else None, end
