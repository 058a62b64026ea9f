"""Target tasks: did the model learn what it was tuned for? Held-out prompts with reference completions.

A target task is an lm-eval task made from a JSONL file, so it takes the same way as every other: few-shot
examples, chat template, stop strings, filters, answers in the ledger.

    {"prompt": "Turn this order into JSON: two red mugs", "completion": "{\\"item\\": \\"mug\\"}"}

Matched as JSON: ``exact_match`` (the same object, wherever it stands in the answer), ``valid_json`` (the
whole answer is JSON), ``field_accuracy`` (share of the reference's keys with the right value).
"""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

from aftertune.errors import TaskError
from aftertune.study import TargetSpec, TaskSpec


def target_config(spec: TaskSpec) -> dict[str, Any]:
    """lm-eval's config of the target task ``spec``."""
    target = spec.target
    assert target is not None
    rows = read_pairs(target.file)
    shots = read_pairs(target.shots_file) if target.shots_file else []
    count = spec.num_fewshot if spec.num_fewshot is not None else 0
    if count > len(shots):
        raise TaskError(f"task {spec.name}: {count} examples are asked for, but shots_file has {len(shots)}")
    metrics = ("exact_match", "valid_json", "field_accuracy") if target.match == "json" else ("exact_match",)
    return {
        "task": spec.name,
        "custom_dataset": partial(_dataset, rows),
        "output_type": "generate_until",
        "test_split": "test",
        "doc_to_text": "prompt",
        "doc_to_target": "completion",
        "target_delimiter": "",
        "process_results": partial(_judge, target),
        "generation_kwargs": {"until": list(target.stop), "max_gen_toks": target.max_tokens,
                              "do_sample": False},
        "metric_list": [{"metric": m, "aggregation": "mean", "higher_is_better": True} for m in metrics],
        "num_fewshot": count,
        "fewshot_config": {"sampler": "first_n", "samples": shots},
        "metadata": {"version": 1.0},
    }


def read_pairs(path: Path) -> list[dict[str, str]]:
    """Rows with ``prompt`` and ``completion``; errors name file and line."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise TaskError(f"{path}: no such target file") from None
    except UnicodeDecodeError as error:
        raise TaskError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            pair = {k: row[k] for k in ("prompt", "completion")}
        except (ValueError, KeyError, TypeError, RecursionError):
            raise TaskError(f"{path}:{number}: expected a JSON object with the texts `prompt` and "
                            "`completion`") from None
        if not all(isinstance(v, str) and v for v in pair.values()):
            raise TaskError(f"{path}:{number}: `prompt` and `completion` must be texts that are not empty")
        rows.append(pair)
    if not rows:
        raise TaskError(f"{path}: the target file has no rows")
    return rows


def _dataset(rows: list[dict[str, str]], **_: Any) -> Any:
    import datasets

    return datasets.DatasetDict({"test": datasets.Dataset.from_list(rows)})


def _judge(target: TargetSpec, doc: dict[str, str], results: list[str]) -> dict[str, float]:
    """Metrics of one answer."""
    answer, reference = results[0], doc["completion"]
    if target.match == "json":
        return judge_json(answer, reference)
    if target.match == "regex":
        assert target.pattern is not None
        found, wanted = (_extract(target.pattern, t) for t in (answer, reference))
        return {"exact_match": float(found is not None and found == wanted)}
    return {"exact_match": float(answer.strip() == reference.strip())}


def judge_json(answer: str, reference: str) -> dict[str, float]:
    """The three metrics of an answer that should be the JSON object ``reference``."""
    wanted = json.loads(reference)
    found = _object(answer)
    fields = wanted if isinstance(wanted, dict) else {}
    given = found if isinstance(found, dict) else {}
    right = sum(k in given and _same(given[k], v) for k, v in fields.items())
    return {"exact_match": float(_same(found, wanted)), "valid_json": float(_is_json(answer)),
            "field_accuracy": right / len(fields) if fields else float(_same(found, wanted))}


def _same(a: Any, b: Any) -> bool:
    """Equal as JSON: true is not 1, but 2 is 2.0."""
    if isinstance(a, bool) != isinstance(b, bool):
        return False
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _object(text: str) -> Any:
    """The first JSON object in ``text``, or None."""
    start = text.find("{")
    try:
        return json.JSONDecoder().raw_decode(text[start:])[0] if start >= 0 else None
    except (ValueError, RecursionError):
        return None


def _extract(pattern: str, text: str) -> str | None:
    match = re.search(pattern, text)
    if match is None:
        return None
    return match[1] if match.groups() else match[0]
