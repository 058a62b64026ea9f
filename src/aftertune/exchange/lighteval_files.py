"""Reads the files that lighteval writes: ``results_STAMP.json``, and ``details_TASK_STAMP.parquet`` with the answers.

    run = lighteval_run(path, value)             the same kind of value as for lm-eval's files
    list(run.scores("arc:challenge"))            from ``leaderboard|arc:challenge|25`` (suite, task, few-shot examples)

The Open LLM Leaderboard of 2023 wrote the same files. Up to lighteval 0.7 the details hold every cell as the text of a
Python value; 0.8 to 0.10 hold the values; since 0.11 a row has three parts: ``doc``, ``model_response`` and ``metric``.
Older versions keep the details below ``STAMP/`` beside the results, newer ones in ``details/MODEL/STAMP/``.
"""

from __future__ import annotations

import ast
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from aftertune import bounds
from aftertune.catalog import MetricKey
from aftertune.errors import InputError
from aftertune.exchange.lm_eval_files import LmEvalRun, stamp_in
from aftertune.sources.parquet_check import batch_rows, check_parquet
from aftertune.values import canonical, json_ready

_DETAILS = re.compile(r"details_(.+)_(\d{4}-\d{2}-\d{2}T[\d.:\-]+)\.parquet$", re.DOTALL)
#: The most rows of a details file, and the longest text of a Python value in it.
_ROWS, _TEXT = bounds.DETAILS_ROWS, bounds.DETAILS_CELL
#: Columns that hold text in every version.
_TEXTS = frozenset({"example", "full_prompt", "instruction"})
#: The row of results over all tasks, which belongs to no benchmark.
_ALL = "all"


def is_lighteval(value: Mapping[str, Any]) -> bool:
    """True for the JSON of a results file of lighteval."""
    return isinstance(value.get("config_general"), dict) or any("|" in str(task) for task in value["results"])


def lighteval_run(path: Path, value: Mapping[str, Any], root: Path | None = None) -> LmEvalRun:
    """The run of one results file, with its details where they are found. root: a folder to look for them in."""
    names = _short_names([t for t in value["results"] if t != _ALL])
    details = {task: file for task, file in _details(path, root).items() if task in names}
    current: dict[str, Any] = {
        "results": {}, "configs": {}, "versions": {}, "n-shot": {}, "n-samples": {}, "higher_is_better": {},
        "group_subtasks": {}, "groups": {}, "config": _model(value), "model_source": "lighteval"}
    general = _mapping(value.get("config_general")) or _mapping(value.get("config"))
    current["model_name"] = general.get("model_name")
    current["date"] = _iso(stamp_in(path.name))
    current["total_evaluation_time_seconds"] = general.get("total_evaluation_time_secondes")
    for task, name in names.items():
        row = _mapping(value["results"][task])
        section = "groups" if _is_average(task) else "results"
        current[section][name] = {_key(k): v for k, v in row.items()}
        if section == "groups":
            current["group_subtasks"][name] = [n for t, n in names.items() if _is_part(t, task)]
            continue
        config = _task_config(value, task)
        kind = _output_type(details[task]) if task in details else ""
        current["configs"][name] = _settings(config, kind)
        current["versions"][name] = _mapping(value.get("versions")).get(task, config.get("version", ""))
        current["n-shot"][name] = _parts(task)[1]
        current["n-samples"][name] = {"original": config.get("original_num_docs"),
                                      "effective": config.get("effective_num_docs")}
        current["higher_is_better"][name] = {m: b for m, b in _directions(config).items() if m in row}
    rows = {names[task]: (str(file), lambda file=file: _lines(file)) for task, file in details.items()}
    notes = ("`all`, the mean over all tasks of the file, is no score of a benchmark and was left out",) \
        if _ALL in value["results"] else ()
    return LmEvalRun(path, current, tool="lighteval", rows=rows, notes=notes)


# --- Results ---

def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _iso(stamp: str) -> str:
    """The time in a file's name as ISO 8601: ``2023-09-13T12-40-30.19`` is ``2023-09-13T12:40:30.19``."""
    day, _, time = stamp.partition("T")
    return f"{day}T{time.replace('-', ':')}" if time else ""


def _key(metric: str) -> str:
    """lm-eval's key of a metric; a comma would end its name."""
    return str(MetricKey.of(metric.replace(",", ";")))


def _parts(task: str) -> tuple[str, int]:
    """(name, few-shot examples) of ``suite|name|shots``, ``suite|name|shots|truncate`` or ``name|shots``."""
    parts = task.split("|")
    numbers = [p for p in parts[1:] if p.isascii() and p.isdigit() and len(p) < 6]
    words = [p for p in parts if p not in numbers]
    return words[-1] if words else task, int(numbers[0]) if numbers else 0


def _short_names(tasks: list[str]) -> dict[str, str]:
    """Task -> its name without suite and examples, or the whole name where that is not unique."""
    short = {task: _parts(task)[0] for task in tasks}
    counts = Counter(short.values())
    return {task: name if counts[name] == 1 else task for task, name in short.items()}


def _is_average(task: str) -> bool:
    return _parts(task)[0].endswith(":_average")


def _is_part(task: str, group: str) -> bool:
    """True for a task of the group ``suite|mmlu:_average|5``."""
    return not _is_average(task) and task.startswith(group.partition(":_average")[0] + ":") and \
        _parts(task)[1] == _parts(group)[1]


def _model(value: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of the model, under lm-eval's keys."""
    general = _mapping(value.get("config_general")) or _mapping(value.get("config"))
    config = _mapping(general.get("model_config"))
    return {"model": "lighteval", "model_sha": general.get("model_sha") or config.get("revision"),
            "model_dtype": general.get("model_dtype") or config.get("dtype"), "model_revision": config.get("revision"),
            "limit": general.get("max_samples")}


def _task_config(value: Mapping[str, Any], task: str) -> dict[str, Any]:
    """The configuration of a task, which is listed with or without the number of examples."""
    configs = _mapping(value.get("config_tasks"))
    return next((c for name in (task, task.rpartition("|")[0], _parts(task)[0])
                 if isinstance(c := configs.get(name), dict)), {})


def _settings(config: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """A task's configuration under lm-eval's keys."""
    splits = config.get("evaluation_splits")
    generation = {"until": config.get("stop_sequence"), "max_gen_toks": config.get("generation_size")}
    return {"output_type": kind or None, "dataset_path": config.get("hf_repo"),
            "test_split": splits[0] if isinstance(splits, list) and splits else None,
            "generation_kwargs": {k: v for k, v in generation.items() if v is not None},
            "metric_list": _metrics(config)}


def _metrics(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """lm-eval's list of metrics; one entry of lighteval may stand for several."""
    listed = config.get("metrics") or config.get("metric")
    entries = [m for m in listed if isinstance(m, dict)] if isinstance(listed, list) else []
    out = []
    for entry in entries:
        names = entry.get("metric_name")
        for name in names if isinstance(names, list) else [names]:
            better, how = (v.get(name) if isinstance(v, dict) else v
                           for v in (entry.get("higher_is_better"), entry.get("corpus_level_fn")))
            if isinstance(name, str):
                out.append({"metric": name.replace(",", ";"), "aggregation": how, "higher_is_better": better})
    return out


def _directions(config: Mapping[str, Any]) -> dict[str, bool]:
    return {m["metric"]: m["higher_is_better"] for m in _metrics(config) if isinstance(m["higher_is_better"], bool)}


# --- Details ---

def _details(path: Path, root: Path | None) -> dict[str, Path]:
    """Task, as the results name it -> the file with its answers."""
    stamp = stamp_in(path.name)
    if not stamp:
        return {}
    folders = [path.parent, path.parent / stamp]
    for parent in path.parents:
        if parent.name == "results":
            beside = parent.parent / "details" / path.parent.relative_to(parent)
            folders += [beside / stamp, beside]
    files = [file for folder in folders if folder.is_dir() for file in sorted(folder.glob("details_*.parquet"))]
    if not files and root is not None and root.is_dir():
        files = sorted(root.rglob("details_*.parquet"))
    found: dict[str, Path] = {}
    for file in files:
        match = _DETAILS.search(file.name)
        if match and match[2].replace(":", "-") == stamp:
            found.setdefault(match[1], file)
    return found


def _output_type(path: Path) -> str:
    """lm-eval's type of the requests, from the first row."""
    for line in _lines(path):
        first = line[1]["resps"][0][0]
        return "generate_until" if isinstance(first, str) else \
            "multiple_choice" if len(line[1]["resps"]) > 1 else "loglikelihood"
    return ""


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(location, line) for each row, the line in the form of lm-eval's samples. Raises InputError."""
    for number, row in enumerate(_rows(path)):
        location = f"{path}, row {number + 1}"
        try:
            yield location, _line(number, row)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            raise InputError(f"{location}: not a row of lighteval's details ({error}); check that it is the right "
                             "file") from None


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a details file, texts of Python values read as these values."""
    from pyarrow import ArrowException, parquet

    try:
        metadata = check_parquet(path)
        if metadata.num_rows > _ROWS:
            raise InputError(f"{path}: {metadata.num_rows:,} rows, but the limit is {_ROWS:,}; check that it is the "
                             "right file")
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=batch_rows(metadata, bounds.DETAILS_TEXT)):
                yield from batch.to_pylist()
    except (ArrowException, OSError, ValueError, OverflowError, MemoryError) as error:
        raise InputError(f"{path}: not a Parquet file that can be read ({' '.join(str(error).split())[:120]}); copy it "
                         "again") from None


def _line(number: int, row: Mapping[str, Any]) -> dict[str, Any]:
    """One row in the form of lm-eval's samples."""
    if isinstance(row.get("doc"), dict):
        doc, response = row["doc"], row["model_response"]
        metrics, prompt = row["metric"], response.get("input")
        answers = response.get("logprobs") or response.get("text") or []
        greedy, lost = response.get("argmax_logits_eq_gold") or [], response.get("truncated_tokens_count")
        texts = bool(response.get("text")) and not (response.get("logprobs") and doc.get("choices"))
        answers = response["text"] if texts else answers
        if texts and not all(isinstance(t, str) for t in answers):
            raise ValueError("`model_response.text` holds something else than texts")
    else:
        flat = {k: v if k in _TEXTS else _value(v) for k, v in row.items()}
        doc = {"query": flat.get("example") or flat.get("full_prompt"), "choices": flat.get("choices"),
               "gold_index": flat.get("gold_index"), "gold": flat.get("gold")}
        metrics, prompt = _flat_metrics(flat), flat.get("full_prompt")
        answers, greedy = _pairs(flat.get("predictions"))
        cut = flat.get("truncated")
        lost = max((c for c in cut if isinstance(c, int)), default=None) if isinstance(cut, list) else cut
    question = {k: json_ready(doc[k]) for k in ("query", "choices", "gold_index", "gold") if doc.get(k)}
    choices = [str(c) for c in doc.get("choices") or []]
    context = prompt if isinstance(prompt, str) else canonical(json_ready(prompt)) if prompt else str(doc.get("query"))
    scored = {k.replace(",", ";"): float(v) for k, v in metrics.items() if _is_number(v)}
    line: dict[str, Any] = {"doc_id": number, "doc": question, "filter": "none", "metrics": list(scored),
                            "target": json_ready(doc.get("gold_index")), **scored}
    if answers and all(isinstance(a, str) for a in answers):
        line |= {"arguments": [[context, {}]], "resps": [list(answers)], "filtered_resps": list(answers)}
    else:
        ends = choices if len(choices) == len(answers) else [""] * len(answers)
        pairs = [[float(a), *([bool(greedy[i])] if i < len(greedy) else [])] for i, a in enumerate(answers)]
        line |= {"arguments": [[context, end] for end in ends], "resps": [[p] for p in pairs]}
    count = len(answers)
    return line | {"aftertune": {"truncated": [lost] * count if isinstance(lost, int) else []}}


def _flat_metrics(flat: Mapping[str, Any]) -> Mapping[str, Any]:
    """The metrics of a row: in one column, or in a column each."""
    inside = flat.get("metrics", flat.get("metric"))
    return inside if isinstance(inside, dict) else {k: v for k, v in flat.items() if _is_number(v)
                                                    and not k.startswith("num_") and k not in ("truncated", "padded")}


def _pairs(predictions: Any) -> tuple[list[Any], list[Any]]:
    """(log-likelihoods or texts, whether each is the most likely text) of the cell ``predictions``."""
    listed = list(predictions) if isinstance(predictions, list | tuple) else [predictions]
    answers, greedy = [], []
    for entry in listed:
        inner = list(entry) if isinstance(entry, list | tuple) else [entry]
        if all(isinstance(x, str) for x in inner):
            answers += inner
        else:
            answers.append(inner[0])
            greedy += inner[1:2]
    return answers, greedy


def _value(cell: Any) -> Any:
    """The Python value that a text shows; the text itself where it shows none."""
    if not isinstance(cell, str) or not cell[:1] or cell[0] not in "[({-0123456789" or len(cell) > _TEXT:
        return cell
    for text in (cell, re.sub(r"\b(?:nan|inf)\b", "None", cell)):
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
    return cell


def _is_number(value: Any) -> bool:
    return isinstance(value, bool | int | float) and math.isfinite(value)
