"""Brings the files of lm-eval's older versions into the form that the newer ones have.

    current_form({"results": {"piqa": {"acc": 0.6}}, "config": {"num_fewshot": 5}})
        {"results": {"piqa": {"acc,none": 0.6}}, "n-shot": {"piqa": 5}, …}
    samples_names("piqa", stamp="", model_args="pretrained=org/m")         ["pretrained__org__m_piqa.jsonl", …]

What differed:

- 0.3: the keys of scores have no filter (``acc``), and the number of few-shot examples is one for all tasks.
- 0.4.0 to 0.4.2: ``results.json`` in any folder, with answers in ``pretrained__org__m_TASK.jsonl``, each a JSON array.
  Nothing says how many items were used, nor whether higher is better. Before 0.4.2 only the indentation of ``alias``
  says which tasks are in a group.
- 0.4.3 and the Open LLM Leaderboard: ``samples_TASK_STAMP.json``.
- What ``lm_eval.simple_evaluate`` returns holds the answers in ``samples``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from aftertune.catalog import MetricKey

#: Keys of a row of results that are no scores.
_NO_SCORES = frozenset({"alias", "samples", "sample_len", "sample_count", "name"})
#: Endings of a file with answers; the newest form comes first.
_ENDINGS = (".jsonl", ".json", ".jsonl.gz", ".json.gz")


def current_form(value: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON of a results file as lm-eval 0.4.13 would write it; parts that fit already stay as they are."""
    rows = {task: _row(row) for task, row in value["results"].items()}
    new = {**value, "results": rows}
    config = value.get("config")
    shots = config.get("num_fewshot") if isinstance(config, dict) else None
    if "n-shot" not in value and isinstance(shots, int) and not isinstance(shots, bool):
        new["n-shot"] = dict.fromkeys(rows, shots)
    if isinstance(value.get("groups"), dict) and "group_subtasks" not in value:
        new["group_subtasks"] = _children(rows, value["groups"])
    return new


def _row(row: Any) -> Any:
    """A row of results whose scores have a filter."""
    if not isinstance(row, dict) or any("," in key for key in row):
        return row
    return {key if key in _NO_SCORES or not key.strip() else str(MetricKey.of(key)): value
            for key, value in row.items()}


def _children(rows: Mapping[str, Any], groups: Mapping[str, Any]) -> dict[str, list[str]]:
    """Group -> its direct children, from the indentation of the aliases (`` - name``), in the order of the results."""
    children: dict[str, list[str]] = {}
    above: list[tuple[int, str]] = []
    for name, row in rows.items():
        alias = str(row.get("alias", "")) if isinstance(row, dict) else ""
        depth = len(alias) - len(alias.lstrip(" ")) if alias.lstrip(" ").startswith("- ") else 0
        above = [(d, n) for d, n in above if d < depth]
        if above and above[-1][1] in groups:
            children.setdefault(above[-1][1], []).append(name)
        above.append((depth, name))
    return children


def samples_name(task: str, stamp: str) -> str:
    """The name of a task's samples file: a single path component, whatever the task is called."""
    return re.sub(r"[/\\\x00-\x1f]", "_", f"samples_{task}_{stamp}.jsonl")


def samples_names(task: str, *, stamp: str, model_args: str) -> Iterator[str]:
    """The names that a task's answers can have beside the results, the newest form first.

    stamp: the time in the name of the results file, "" for none. model_args: of the run, as text.
    """
    stems = [samples_name(task, stamp).removesuffix(".jsonl")] if stamp else []
    if model_args:
        stems.append(re.sub(r"[/\\\x00-\x1f]", "_", f"{re.sub('/|=', '__', model_args)}_{task}"))
    return (stem + ending for stem in stems for ending in _ENDINGS)
