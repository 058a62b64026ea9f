"""Checks what a task's config says, before lm-eval builds the task: known fields, plain values, registered names.

    check_config({"task": "mine", "output_type": "multiple", …}, "tasks/mine.yaml")
        TaskError: tasks/mine.yaml: output_type is 'multiple'; allowed: …

`refuse_code` is for a task folder whose code is not allowed. It allows what is known to be data, and refuses
everything else. `NamedFunction` stands for a ``!function`` of the file, which was not imported.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from aftertune.errors import TaskError, nearest
from aftertune.paths import exists, expanded, is_dir


@dataclass(frozen=True)
class NamedFunction:
    """A Python function or class that a task file names. name: as written; folder: of the file."""

    name: str
    folder: Path

    @property
    def file(self) -> Path | None:
        """The Python file that lm-eval would run, or None for a module that is installed."""
        module = self.name.rpartition(".")[0].replace(".", "/")
        file = (self.folder / f"{module}.py").resolve()
        return file if exists(file) else None


FLAG = "read the code, then pass --allow-task-code to allow it"
#: The loaders of `datasets` that read plain data.
LOADERS = ("json", "csv", "parquet", "text", "arrow")
_DATA_FILES = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".arrow", ".txt", ".md", ".gz", ".zst", ".yaml", "")
#: Arguments of a loader that choose files and columns.
_LOADER_FIELDS = frozenset((
    "data_files", "data_dir", "cache_dir", "revision", "trust_remote_code", "split", "name", "verification_mode",
    "keep_in_memory", "field", "sep", "delimiter", "names", "column_names", "columns", "header", "skiprows", "nrows",
    "quotechar", "quoting", "escapechar", "encoding", "encoding_errors", "keep_linebreaks", "sample_by", "streaming"))
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_URL = re.compile(r"[A-Za-z][\w+.-]*:")
_PLAIN = (str, int, float, bool, type(None), bytes, datetime.date, list, dict)
_CODE_SETTINGS = ("custom_generate", "trust_remote_code")


def functions(config: Any) -> Iterator[NamedFunction]:
    """The functions that a config names, anywhere in it."""
    return (value for value in _values(config) if isinstance(value, NamedFunction))


def _values(config: Any) -> Iterator[Any]:
    """All values in a structure; a part that several aliases name is visited once."""
    stack, seen = [config], set()
    while stack:
        value = stack.pop()
        yield value
        if isinstance(value, dict | list):
            if id(value) in seen:
                continue
            seen.add(id(value))
            stack += [*value.keys(), *value.values()] if isinstance(value, dict) else value


# --- Code ---

def refuse_code(config: Mapping[str, Any], where: Path) -> None:
    """Raise TaskError if lm-eval would run code for this config, or read something that is no plain data."""
    found = next(functions(config), None)
    if found is not None or "class" in config:
        named = f" ({found.name})" if found else ""
        raise TaskError(f"{where}: this task file runs Python code in its folder{named}; {FLAG}")
    strange = next((v for v in _values(config) if not isinstance(v, _PLAIN)), None)
    if strange is not None:
        raise TaskError(f"{where}: a value is of the type {type(strange).__name__}; use text, numbers, lists and "
                        "mappings alone")
    for part in _configs(config):
        _refuse_metrics(part, where)
        _refuse_data(part, where)
        if part.get("use_prompt") is not None:
            raise TaskError(f"{where}: use_prompt {_short(part['use_prompt'])} is read by another program; write the "
                            f"prompt as doc_to_text, or {FLAG}")
        for chain in _mappings(part.get("filter_list")):
            for step in _mappings(chain.get("filter")):
                if step.get("function") == "custom":
                    raise TaskError(f"{where}: the filter 'custom' runs Python code; {FLAG}")


def _configs(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """A config, and the configs of tasks and groups that a group has inside."""
    stack, seen = [config], set()
    while stack:
        part = stack.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        yield part
        stack += _mappings(part.get("task"))


def _mappings(value: Any) -> list[Any]:
    return [v for v in value if isinstance(v, dict)] if isinstance(value, list) else []


def _refuse_metrics(config: Mapping[str, Any], where: Path | str) -> None:
    """Raise TaskError for a metric that lm-eval would load with the package `evaluate`, which imports Python code."""
    from lm_eval.api.registry import metric_registry

    if callable(config.get("process_results")):
        return  # lm-eval then loads no metric
    for entry in _mappings(config.get("metric_list")):
        name = entry.get("metric")
        if isinstance(name, NamedFunction) or callable(name):
            continue
        if entry.get("hf_evaluate"):
            raise TaskError(f"{where}: hf_evaluate loads the metric {_short(name)} as Python code from a folder or the "
                            f"Hub; use a metric of lm-eval, or {FLAG}")
        if not isinstance(name, str) or name not in metric_registry:
            names = list(metric_registry)
            raise TaskError(f"{where}: metric {_short(name)} is none of lm-eval's"
                            f"{nearest(name, names) if isinstance(name, str) else ''}; allowed: {', '.join(names)} "
                            "(lm-eval would look for it as Python code in a folder and on the Hub; --allow-task-code "
                            "allows that)")


def _refuse_data(config: Mapping[str, Any], where: Path) -> None:
    """Raise TaskError for data that is not read by a loader of plain data, from files, the Hub or https."""
    path, options = config.get("dataset_path"), config.get("dataset_kwargs") or {}
    if path is not None and not (isinstance(path, str) and (path in LOADERS or _is_hub_id(path) or _is_data(path))):
        raise TaskError(f"{where}: dataset_path {_short(path)} is not allowed without --allow-task-code; use "
                        f"{', '.join(LOADERS)}, a data set of the Hub, or a folder with data files alone")
    for key in options if isinstance(options, dict) else ():
        if key not in _LOADER_FIELDS:
            raise TaskError(f"{where}: dataset_kwargs has {_short(key)}, which is not allowed without "
                            f"--allow-task-code; allowed: {', '.join(sorted(_LOADER_FIELDS))}")
    places = [options.get(k) for k in ("data_files", "data_dir")] if isinstance(options, dict) else []
    for text in _values([path, *places]):
        if isinstance(text, str) and (("::" in text) or (_URL.match(text) and not text.startswith(("https:", "hf:")))):
            raise TaskError(f"{where}: {_short(text)} is not allowed without --allow-task-code; data may be local "
                            "files, https://… and hf://…")


def _is_hub_id(path: str) -> bool:
    """True for a name on the Hub that is no folder, no file and none of the other loaders of `datasets`."""
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

    return _HUB_ID.fullmatch(path) is not None and path not in _PACKAGED_DATASETS_MODULES and not exists(Path(path)) \
        and not path.endswith(".py")


def _is_data(path: str) -> bool:
    """True for a folder that has data files alone, by their names."""
    folder = expanded(path)
    return is_dir(folder) and all(f.suffix.lower() in _DATA_FILES for f in folder.rglob("*") if not f.is_dir())


def refuse_evaluate(config: Mapping[str, Any], name: str) -> None:
    """Raise TaskError if one of lm-eval's own tasks needs a metric that is Python code from the Hub."""
    _refuse_metrics(config, f"task {name!r}")


def refuse_generation_code(settings: Mapping[str, Any], name: str) -> None:
    """Raise TaskError for generation settings that let transformers run code from the Hub."""
    found = next((key for key in _CODE_SETTINGS if key in settings), None)
    if found is not None:
        raise TaskError(f"task {name!r}: the generation setting {found} makes transformers run Python code from the "
                        "Hub, which aftertune never does; leave it out")


# --- Fields ---

_TEXT, _TEXTS = (str,), (str, list)
_SOURCE = (str, int, list, dict, NamedFunction)
#: Field -> allowed types of its value; every field may be empty (null).
_TYPES: dict[str, tuple[type, ...]] = {
    "task": _TEXT, "task_alias": _TEXT, "tag": _TEXTS, "dataset_path": _TEXT, "dataset_name": (str, int),
    "dataset_kwargs": (dict,), "training_split": _TEXT, "validation_split": _TEXT, "test_split": _TEXT,
    "fewshot_split": _TEXT, "process_docs": (NamedFunction,), "custom_dataset": (NamedFunction,),
    "doc_to_text": _SOURCE,
    "doc_to_target": _SOURCE, "doc_to_choice": _SOURCE, "process_results": (NamedFunction,), "use_prompt": _TEXT,
    "description": _TEXT, "target_delimiter": _TEXT, "fewshot_delimiter": _TEXT, "fewshot_config": (dict,),
    "num_fewshot": (int,), "metric_list": (list,), "output_type": _TEXT, "generation_kwargs": (dict,),
    "repeats": (int,), "filter_list": (list,), "should_decontaminate": (bool,), "gen_prefix": _TEXT,
    "metadata": (dict, list, int, float, str), "unsafe_code": (bool,)}
#: Fields of a file that are not those of a task.
_OTHER_FIELDS = ("group", "task_list", "include", "class")
_NAMES = {str: "text", list: "a list", dict: "a mapping", int: "a number", float: "a number", bool: "true or false",
          NamedFunction: "a !function"}


def check_config(config: Mapping[str, Any], where: Path) -> None:
    """Raise TaskError for a field that lm-eval does not know, or a value that it cannot use.

    config: of a task, with its functions as `NamedFunction`.
    """
    known = _known_fields()
    for key, value in config.items():
        if not isinstance(key, str) or key not in known:
            raise TaskError(f"{where}: unknown field {_short(key)}{nearest(str(key), list(known))}; fields are those "
                            "of lm-eval's task files")
        allowed = _TYPES.get(key)
        if value is not None and allowed and (not isinstance(value, allowed) or
                                              (isinstance(value, bool) and bool not in allowed)):
            raise _wrong(where, key, value, " or ".join(dict.fromkeys(_NAMES[t] for t in allowed)))
    _check_numbers(config, where)
    _check_prompt(config, where)
    _check_metrics(config, where)
    _check_filters(config, where)
    _check_generation(config, where)
    _check_examples(config, where)


def _known_fields() -> tuple[str, ...]:
    from lm_eval.config.task import TaskConfig

    return (*(f.name for f in fields(TaskConfig)), *_OTHER_FIELDS)


def _wrong(where: Path, field: str, value: Any, allowed: str) -> TaskError:
    return TaskError(f"{where}: {field} is {_short(value)}; allowed: {allowed}")


def _short(value: Any) -> str:
    """A value in at most 60 characters; a structure by its type alone, because it may be very large."""
    if isinstance(value, NamedFunction):
        return f"!function {value.name[:60]}"
    if isinstance(value, dict | list):
        return f"a {'mapping' if isinstance(value, dict) else 'list'} of {len(value)}"
    if isinstance(value, int) and abs(value) > 10**20:
        return "a very large number"
    text = repr(value if not isinstance(value, str) else value[:60])
    return text if not isinstance(value, str) or len(value) <= 60 else f"{text}…"


def _check_numbers(config: Mapping[str, Any], where: Path) -> None:
    from lm_eval.api.task import ALL_OUTPUT_TYPES

    kind = config.get("output_type")
    if kind is not None and kind not in ALL_OUTPUT_TYPES:
        raise _wrong(where, "output_type", kind, ", ".join(ALL_OUTPUT_TYPES))
    for field, low, high in (("num_fewshot", 0, 1000), ("repeats", 1, 1000)):
        value = config.get(field)
        if value is not None and not low <= value <= high:
            raise _wrong(where, field, value, f"{low} to {high}")
    if "class" in config:
        return
    if "task" in config and not config["task"]:
        raise _wrong(where, "task", config["task"], "the task's name")
    if config.get("test_split") is None and config.get("validation_split") is None:
        raise TaskError(f"{where}: neither test_split nor validation_split is set, so there is nothing to evaluate; "
                        "set one of them")
    if config.get("dataset_path") is None and config.get("custom_dataset") is None:
        raise TaskError(f"{where}: dataset_path is missing; set it to {', '.join(LOADERS)} with data_files in "
                        "dataset_kwargs, or to a data set of the Hub")


def _check_prompt(config: Mapping[str, Any], where: Path) -> None:
    if "class" in config or config.get("use_prompt") is not None:
        return
    kind = config.get("output_type") or "generate_until"
    needed = ("doc_to_text", "doc_to_target", *(("doc_to_choice",) if kind == "multiple_choice" else ()))
    missing = next((field for field in needed if config.get(field) is None), None)
    if missing is not None:
        raise TaskError(f"{where}: {missing} is missing, and {kind} tasks need it; set it to a column of the data or "
                        "to a template")
    choices = config.get("doc_to_choice")
    listed = list(choices.values()) if isinstance(choices, dict) else choices
    if isinstance(listed, int) or (isinstance(listed, list) and not all(isinstance(c, str) and c for c in listed)):
        raise _wrong(where, "doc_to_choice", choices, "a column of the data, a template that gives a list, or a list "
                                                      "of texts that are not empty")


def _check_metrics(config: Mapping[str, Any], where: Path) -> None:
    from lm_eval.api.registry import aggregation_registry

    metrics = config.get("metric_list")
    if metrics is None:
        return
    if not metrics:
        raise TaskError(f"{where}: metric_list is empty; name a metric, or leave metric_list out for lm-eval's default")
    for number, entry in enumerate(metrics, 1):
        field = f"metric_list, entry {number}"
        name = entry.get("metric") if isinstance(entry, dict) else None
        if not isinstance(name, str | NamedFunction) or not name:
            raise _wrong(where, field, entry, "a mapping with the name of a metric, such as {metric: acc}")
        aggregation = entry.get("aggregation")
        if aggregation is not None and not isinstance(aggregation, NamedFunction) and \
                (not isinstance(aggregation, str) or aggregation not in aggregation_registry):
            raise _wrong(where, f"{field}: aggregation", aggregation, ", ".join(aggregation_registry))
        if not isinstance(entry.get("higher_is_better", True), bool):
            raise _wrong(where, f"{field}: higher_is_better", entry["higher_is_better"], "true or false")


def _check_filters(config: Mapping[str, Any], where: Path) -> None:
    import lm_eval.filters  # noqa: F401 (registers the filters)
    from lm_eval.api.registry import filter_registry

    chains = config.get("filter_list")
    if chains is None:
        return
    if not chains:
        raise TaskError(f"{where}: filter_list is empty; leave it out, or name a filter")
    for number, chain in enumerate(chains, 1):
        field = f"filter_list, entry {number}"
        if not isinstance(chain, dict) or not isinstance(chain.get("name"), str) or not chain.get("filter") or \
                not isinstance(chain["filter"], list):
            raise _wrong(where, field, chain, "a mapping with name, and filter: a list of steps")
        for step in chain["filter"]:
            if not isinstance(step, dict) or not isinstance(step.get("function"), str | NamedFunction):
                raise _wrong(where, f"{field}: a step", step, "a mapping such as {function: take_first}")
            if isinstance(step["function"], str) and step["function"] not in filter_registry:
                raise _wrong(where, f"{field}: function", step["function"], ", ".join(filter_registry))
            pattern = step.get("regex_pattern")
            if pattern is not None:
                _check_pattern(pattern, f"{field}: regex_pattern", where)


def _check_pattern(pattern: Any, field: str, where: Path) -> None:
    if not isinstance(pattern, str):
        raise _wrong(where, field, pattern, "a regular expression")
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise _wrong(where, field, pattern, f"a regular expression ({error})") from None


def _check_generation(config: Mapping[str, Any], where: Path) -> None:
    settings = config.get("generation_kwargs") or {}
    until = settings.get("until")
    if until is not None and not isinstance(until, str) and \
            not (isinstance(until, list) and all(isinstance(u, str) for u in until)):
        raise _wrong(where, "generation_kwargs: until", until, "a text or a list of texts")
    for key in ("max_gen_toks", "max_new_tokens", "max_tokens"):
        value = settings.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 10**7):
            raise _wrong(where, f"generation_kwargs: {key}", value, "a number of tokens above 0")
    value = settings.get("temperature")
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e6):
        raise _wrong(where, "generation_kwargs: temperature", value, "a number from 0")
    if not all(isinstance(key, str) for key in settings):
        raise _wrong(where, "generation_kwargs", settings, "names of settings")


def _check_examples(config: Mapping[str, Any], where: Path) -> None:
    from lm_eval.api.samplers import SAMPLER_REGISTRY
    from lm_eval.config.task import FewshotConfig

    examples = config.get("fewshot_config") or {}
    known = [f.name for f in fields(FewshotConfig)]
    unknown = next((k for k in examples if k not in known), None)
    if unknown is not None:
        raise TaskError(f"{where}: fewshot_config has the unknown field {_short(unknown)}"
                        f"{nearest(str(unknown), known)}; allowed: {', '.join(known)}")
    sampler = examples.get("sampler")
    if sampler is not None and not isinstance(sampler, NamedFunction) and \
            (not isinstance(sampler, str) or sampler not in SAMPLER_REGISTRY):
        raise _wrong(where, "fewshot_config: sampler", sampler, ", ".join(SAMPLER_REGISTRY))
    samples = examples.get("samples")
    if samples is not None and not isinstance(samples, NamedFunction) and \
            not (isinstance(samples, list) and samples and all(isinstance(s, dict) for s in samples)):
        raise _wrong(where, "fewshot_config: samples", samples, "a list of examples")


def check_group(config: Mapping[str, Any], where: Path) -> None:
    """Raise TaskError for a group whose name, members or metrics cannot be used."""
    if not isinstance(config["group"], str) or not config["group"]:
        raise _wrong(where, "group", config["group"], "the group's name")
    members = config.get("task")
    if not isinstance(members, list) or not members:
        raise _wrong(where, "task", members, "a list of tasks")
    for member in members:
        if not (isinstance(member, str) or (isinstance(member, dict) and
                                            isinstance(member.get("task", member.get("group")), str | list))):
            raise _wrong(where, "task: a member", member, "the name of a task, or a mapping with task or group")
    metrics = config.get("aggregate_metric_list")
    for entry in metrics if isinstance(metrics, list) else [metrics] if metrics is not None else []:
        if not isinstance(entry, dict) or not isinstance(entry.get("metric"), str):
            raise _wrong(where, "aggregate_metric_list", entry, "a list of mappings such as {metric: acc}")
        if entry.get("aggregation", "mean") != "mean" and not isinstance(entry["aggregation"], NamedFunction):
            raise _wrong(where, "aggregate_metric_list: aggregation", entry["aggregation"], "mean")
