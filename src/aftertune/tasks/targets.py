"""Makes target tasks: lm-eval tasks from a JSON Lines file of held-out prompts and completions.

    {"prompt": "Turn this order into JSON: two red mugs", "completion": "{\\"item\\": \\"mug\\"}"}

A target task tests whether the model learned what it was tuned for, and is evaluated like every other task. Its answers
are judged by `tasks.scorers`. With ``slice: kind``, each value of the column ``kind`` is a task of its own, and the
target is the group of them, whose score is the mean over all items:

    [task.config.task for task in target_tasks(spec)[0]]           ["orders:mugs", "orders:shelves"]
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from aftertune import bounds
from aftertune.errors import TaskError, shown
from aftertune.sources.limits import OutOfTime, time_limit
from aftertune.study import TaskSpec
from aftertune.study.scorer import AnswerScorer
from aftertune.tasks.scorers import ROW, Judge, judges
from aftertune.tasks.seeding import sample_indices

#: Field of a row with the name of its slice, which is not part of its document. No column can have this name.
_SLICE = "\0slice"
_LONGEST_SLICE = 80


def target_tasks(spec: TaskSpec, *, allow_code: bool = False) -> tuple[list[Any], dict[str, Any]]:
    """lm-eval's tasks for the target task ``spec``, and its group by name: one task without a group, or one for each
    slice. Each has the ``code`` that its scorers run, and its ``judges``.

    Raises TaskError if its files are missing or wrong, or if it runs code that is not allowed.
    """
    from lm_eval.api.group import Group
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.config.group import AggMetricConfig

    target = spec.target
    assert target is not None
    judged = judges(target.scorers, allow_code=allow_code)
    rows = read_pairs(target.file, target.cluster, slice_by=target.slice, judged=judged)
    parts: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        parts.setdefault(row.pop(_SLICE, ""), []).append(index)
    names = {value: f"{spec.name}:{_slug(value)}" if target.slice else spec.name for value in sorted(parts)}
    _check_slices(target.file, target.slice, names)
    shots = read_pairs(target.shots_file) if target.shots_file else []
    tasks = []
    for value, name in names.items():
        task = ConfigurableTask(config=_config(spec, name, [rows[i] for i in parts[value]], judged, shots))
        task.code = {file: digest for judge in judged for file, digest in judge.code.items()}
        task.scorers = stored_scorers(target.scorers)
        tasks.append(task)
    if not target.slice:
        return tasks, {}
    tasks = _with_chosen(tasks, spec, [parts[value] for value in names], len(rows))
    group = Group(name=spec.name, aggregate_metric_list=[
        AggMetricConfig(metric=metric, aggregation="mean", weight_by_size=True)
        for judge in judged for metric in judge.metrics])
    for task in tasks:
        group.add(task)
    return tasks, {spec.name: group}


def stored_scorers(scorers: Sequence[AnswerScorer]) -> tuple[str, ...]:
    """The scorers as the settings of a task have them: none where its metrics say all, as for exact and for json."""
    texts = tuple(s.text if s.kind != "python" else f"python:{Path(s.file).name}:{s.function}" for s in scorers)
    return () if texts in (("exact",), ("json",)) else texts


def _config(spec: TaskSpec, name: str, rows: list[dict[str, str]], judged: Sequence[Judge],
            shots: list[dict[str, str]]) -> dict[str, Any]:
    """lm-eval's config of a target task, or of one of its slices."""
    target, count = spec.target, spec.num_fewshot or 0
    assert target is not None
    if count > len(shots):
        raise TaskError(f"task {spec.name}: num_fewshot is {count}, but shots_file has {len(shots)} examples; use "
                        f"{len(shots)} at most")
    return {
        "task": name,
        "custom_dataset": partial(_dataset, rows),
        "output_type": "generate_until",
        "test_split": "test",
        "doc_to_text": "prompt",
        "doc_to_target": "completion",
        "target_delimiter": "",
        "process_results": partial(_process_results, judged),
        "generation_kwargs": {"until": list(target.stop), "max_gen_toks": target.max_tokens,
                              "do_sample": False},
        "metric_list": [{"metric": metric, "aggregation": "mean", "higher_is_better": True}
                        for judge in judged for metric in judge.metrics],
        "num_fewshot": count,
        "fewshot_config": {"sampler": "first_n", "samples": shots},
        "metadata": {"version": 1.0},
    }


def _dataset(rows: list[dict[str, str]], **_: Any) -> Any:
    import datasets

    return datasets.DatasetDict({"test": datasets.Dataset.from_list(rows)})


def _process_results(judged: Sequence[Judge], doc: dict[str, str], results: list[str]) -> dict[str, float]:
    """The metrics of one answer, as lm-eval's ``process_results`` returns them."""
    return {metric: value for judge in judged for metric, value in judge.values(results[0], doc).items()}


# --- Slices ---

def _slug(value: str) -> str:
    """The value of a slice as a part of a task's name, in which options and files allow fewer characters."""
    return re.sub(r"[^\w.+-]+", "-", value).strip("-") or "-"


def _check_slices(path: Path, column: str | None, names: Mapping[str, str]) -> None:
    """Raise TaskError for a column that does not part the rows into a few slices with names of their own."""
    if column is None:
        return
    if len(names) < 2:
        raise TaskError(f"{path}: every row has the same `{column}` ({shown(next(iter(names)))}), so there is nothing "
                        "to slice; choose another column, or leave the slice out")
    if len(names) > bounds.TARGET_SLICES:
        raise TaskError(f"{path}: `{column}` has {len(names):,} values, and {bounds.TARGET_SLICES} slices are allowed; "
                        "choose a column with a few values, such as a kind")
    values: dict[str, str] = {}
    for value, name in names.items():
        if name in values:
            raise TaskError(f"{path}: the slices {shown(values[name])} and {shown(value)} of `{column}` would both be "
                            f"named {name}; rename one of them")
        values[name] = value


def _with_chosen(tasks: Sequence[Any], spec: TaskSpec, indices: Sequence[Sequence[int]], total: int) -> list[Any]:
    """The slices that have items among the first or the random items of the whole file. Each gets the positions of its
    own as ``chosen``; a note names those without items.

    indices: of each slice's rows in the file.
    """
    chosen = sample_indices(total, spec)
    if chosen is None:
        chosen = set(range(min(spec.limit or total, total)))
    kept: list[Any] = []
    empty: list[Any] = []
    for task, rows in zip(tasks, indices, strict=True):
        task.chosen = {position for position, index in enumerate(rows) if index in chosen}
        (kept if task.chosen else empty).append(task)
    if empty:
        kept[0].notes = (f"{spec.name}: none of the {len(chosen)} items that were chosen is in the slices "
                         f"{', '.join(t.config.task for t in empty)}; ask more items for them",)
    return kept


# --- Rows ---

def read_pairs(path: Path, cluster: str | None = None, *, slice_by: str | None = None, judged: Sequence[Judge] = ()
               ) -> list[dict[str, str]]:
    """Read a JSONL file of rows with ``prompt`` and ``completion``. Raises TaskError with the file and line.

    cluster, slice_by: a field that every row must have too, a text or a number; it becomes a text. judged: judges that
    must be able to judge an answer to every row.
    """
    with_row = any(judge.takes_row for judge in judged)
    if with_row and cluster == ROW:
        raise TaskError(f"{path}: the cluster column is called `{ROW}`, as the field in which a scorer in Python gets "
                        "the whole row; give the column another name")
    rows: list[dict[str, str]] = []
    for number, line in _lines(path):
        if len(rows) >= bounds.TARGET_ROWS:
            raise TaskError(f"{path}:{number}: a target file has at most {bounds.TARGET_ROWS:,} rows; use fewer")
        row, pair = _pair(path, number, line)
        for field, use in ((cluster, "cluster"), (slice_by, "slice")):
            if field is not None:
                pair[_SLICE if use == "slice" else field] = _column(path, number, row, field, use)
        if with_row:
            pair[ROW] = json.dumps({k: v for k, v in row.items() if k not in ("prompt", "completion")},
                                   ensure_ascii=False)
        for judge in judged:
            if fault := _fault(judge, pair):
                raise TaskError(f"{path}:{number}: {fault}; fix this row, or choose another scorer")
        rows.append(pair)
    if not rows:
        raise TaskError(f"{path}: the target file has no rows; add one JSON object per line")
    for judge in judged:
        if judge.scorer.kind == "python":  # before the model answers anything
            _try(judge, rows[0])
    return rows


def _try(judge: Judge, row: Mapping[str, str]) -> None:
    """Judge the reference of a row as if it was the answer. Raises TaskError for a function that takes too long."""
    try:
        with time_limit(bounds.ANSWER_SECONDS):
            judge.values(row["completion"], row)
    except OutOfTime:
        raise TaskError(f"{judge.scorer.text} takes more than {bounds.ANSWER_SECONDS:g} s for one answer; make the "
                        "function faster") from None


def _pair(path: Path, number: int, line: str) -> tuple[dict[str, Any], dict[str, str]]:
    """A row, and its prompt and completion."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict) or not all(isinstance(row.get(k), str) for k in ("prompt", "completion")):
        has = f"; it has: {', '.join(map(str, row))}"[:200] if isinstance(row, dict) and row else ""
        raise TaskError(f"{path}:{number}: expected a JSON object with the strings `prompt` and `completion`, which is "
                        f"the reference{has}")
    pair = {k: row[k] for k in ("prompt", "completion")}
    if not all(v.strip() for v in pair.values()):
        raise TaskError(f"{path}:{number}: `prompt` and `completion` must be strings that are not empty")
    return row, pair


def _column(path: Path, number: int, row: Mapping[str, Any], field: str, use: str) -> str:
    """The value of a further column as text. use: "cluster" or "slice"."""
    value = row.get(field)
    if isinstance(value, bool):
        value = str(value).lower()
    if not isinstance(value, str | int | float) or (use == "slice" and not str(value).strip()):
        more = "leave `cluster` out" if use == "cluster" else "choose another column"
        has = f"; the row has: {', '.join(map(str, row))}"[:200] if field not in row else ""
        raise TaskError(f"{path}:{number}: `{field}`, which the task's `{use}` names, must be a text or a number; add "
                        f"it to every row, or {more}{has}")
    if use == "slice" and len(str(value)) > _LONGEST_SLICE:
        raise TaskError(f"{path}:{number}: `{field}` has {len(str(value)):,} characters, and a slice at most "
                        f"{_LONGEST_SLICE}; choose a column with short values, such as a kind")
    return str(value)


def _fault(judge: Judge, pair: Mapping[str, str]) -> str:
    """Why no answer to a row could be right; "" if one can."""
    try:
        with time_limit(bounds.ANSWER_SECONDS):
            return judge.fault(pair)
    except OutOfTime:
        return (f"the pattern {shown(judge.scorer.argument)} takes more than {bounds.ANSWER_SECONDS:g} s on its "
                "completion, because it can match a text in very many ways")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number, text) of each line of a target file that is not empty. Raises TaskError."""
    try:
        with path.open("rb") as file:
            number = 0
            while raw := file.readline(bounds.TARGET_ROW + 1):
                number += 1
                if len(raw) > bounds.TARGET_ROW:
                    raise TaskError(f"{path}:{number}: the row is longer than {bounds.TARGET_ROW // 2**20} MiB; check "
                                    "that the file has one JSON object per line")
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                if line.strip():
                    yield number, line
    except FileNotFoundError:
        raise TaskError(f"{path}: no such target file") from None
    except UnicodeDecodeError as error:
        raise TaskError(f"{path}:{number}: byte {error.start} of the line is not UTF-8; save the file as "
                        "UTF-8") from None
    except OSError as error:
        raise TaskError(f"{path}: cannot be read ({error.strerror or type(error).__name__})") from None
