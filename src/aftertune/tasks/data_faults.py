"""Says why the documents of a task cannot be read or used: which file, line, column or split.

    data_fault({"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": "rows.jsonl"}}, …}, error)
        "rows.jsonl:3: column 'gold' is text here, and a number in line 1"
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from aftertune import bounds
from aftertune.paths import exists, expanded, is_file
from aftertune.sources.limits import template_fault
from aftertune.tasks.task_fields import LOADERS

#: Lines and bytes of a file that are searched for the fault.
MAX_LINES, MAX_BYTES = bounds.TASK_FAULT_LINES, bounds.TASK_FAULT_BYTES
_SPLITS = ("training_split", "validation_split", "test_split", "fewshot_split")
_TYPES = {str: "text", bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "a mapping"}


def data_fault(config: Mapping[str, Any], error: BaseException) -> str | None:
    """The fault in one line, or None if the data of this task are not local files or the fault is another one.

    config: the values of the task's file. error: what lm-eval or `datasets` raised.
    """
    if config.get("dataset_path") not in LOADERS:
        return None
    files = list(_files(config.get("dataset_kwargs") or {}))
    if not files:
        return "dataset_kwargs names no data_files; write data_files: {test: FILE}"
    for split, file in files:
        if not any(c in file for c in "*?[") and not exists(expanded(file)):
            return f"{file}: no such file (data_files, split {split!r}); check the path"
    error = _root(error)
    if isinstance(error, KeyError) and error.args and error.args[0] in {config.get(s) for s in _SPLITS}:
        return (f"the data have no split {error.args[0]!r}; data_files has: "
                f"{', '.join(dict.fromkeys(s for s, _ in files))}")
    if _module(error).startswith(("jinja2", "lm_eval")):
        return None
    for _, file in files:
        found = _json_fault(expanded(file)) if config["dataset_path"] == "json" else None
        if found:
            return f"{file}{found}"
    if _module(error).startswith(("datasets", "pyarrow", "pandas")) or isinstance(error, UnicodeError):
        return f"{', '.join(dict.fromkeys(f for _, f in files))}: cannot be read as {config['dataset_path']}: " \
               f"{template_fault(error)}"
    return None


def columns_hint(config: Mapping[str, Any], error: BaseException) -> str:
    """The columns of the data, if the fault is a name that the data do not have; else an empty text."""
    error = _root(error)
    if type(error).__name__ != "UndefinedError" and not isinstance(error, KeyError):
        return ""
    import datasets

    options = {k: v for k, v in (config.get("dataset_kwargs") or {}).items() if k != "trust_remote_code"}
    with contextlib.suppress(Exception), contextlib.redirect_stderr(io.StringIO()):  # it is only a hint
        loaded = datasets.load_dataset(config["dataset_path"], config.get("dataset_name"), **options)
        names = dict.fromkeys(name for split in loaded.values() for name in split.column_names)
        return f"; the data have the columns {', '.join(names)}"
    return ""


def _root(error: BaseException) -> BaseException:
    """The first cause of an error."""
    seen: set[int] = set()
    while id(error) not in seen:
        seen.add(id(error))
        error = error.__cause__ or error
    return error


def _module(error: BaseException) -> str:
    return type(error).__module__


def _files(options: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(split, local file) of each file of a loader's arguments."""
    found = options.get("data_files")
    splits = found if isinstance(found, Mapping) else {"train": found}
    folder = options.get("data_dir")
    for split, names in splits.items():
        for name in names if isinstance(names, list) else [names]:
            if isinstance(name, str) and "://" not in name:
                yield str(split), str(Path(folder) / name) if isinstance(folder, str) else name


def _json_fault(path: Path) -> str | None:
    """Where a JSON Lines file is damaged or a column changes its type, as ``:LINE: …``; None if it is right."""
    if not is_file(path) or path.suffix.lower() in (".gz", ".zst", ".xz", ".bz2"):
        return None
    types: dict[str, tuple[str, int]] = {}
    size = 0
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            size += len(line)
            if number > MAX_LINES or size > MAX_BYTES:
                return None
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except UnicodeDecodeError as error:
                return f":{number}: byte {error.start + 1} of the line is not UTF-8; save the file as UTF-8"
            except (ValueError, RecursionError) as error:
                if number == 1 and line.lstrip().startswith((b"[", b"{")) and _is_json(path):
                    return None  # one JSON document over several lines
                return f":{number}: not valid JSON ({template_fault(error)}); write one object per line"
            if isinstance(row, list) and number == 1:
                return None
            if not isinstance(row, dict):
                return f":{number}: {_type(row)}, where an object is needed"
            for column, value in row.items():
                if value is None:
                    continue
                kind, first = types.setdefault(column, (_type(value), number))
                if kind != _type(value):
                    return (f":{number}: column {column!r} is {_type(value)} here, and {kind} in line {first}; a "
                            "column must have one type")
    return None if types else ": the file has no rows"


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return False
    return True


def _type(value: Any) -> str:
    return _TYPES.get(type(value), "nothing")
