"""Provides the documents of tasks that do not come from the Hub: offline packs, the user's files and target tasks.

    pack_data("arc_easy").splits["validation"]()    the 570 documents of the pack instead of the Hub's 2,376

Packs and files replace only the documents of an lm-eval task; its prompts, filters and metrics stay. Splits that the
pack does not have are turned off. The split used is recorded and shown.

A target task is an lm-eval task made from a JSONL file of held-out prompts and completions. It tests whether the model
learned what it was tuned for, and is evaluated like every other task.

    {"prompt": "Turn this order into JSON: two red mugs", "completion": "{\\"item\\": \\"mug\\"}"}

Its metrics with ``match: json`` are ``exact_match`` (the first JSON object in the answer equals the reference),
``valid_json`` (the whole answer is JSON) and ``field_accuracy`` (share of the reference's keys with the right value).
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

from aftertune import bounds
from aftertune.catalog import BENCHMARKS, Pack, Source
from aftertune.errors import TaskError
from aftertune.paths import is_file
from aftertune.sources import installed_version, is_pack_installed, pack_path
from aftertune.sources.hub import reachable
from aftertune.study import TargetSpec, TaskSpec

# --- Offline packs and the user's files ---

@dataclass(frozen=True, slots=True)
class LocalData:
    """Documents of one task.

    label: where the documents come from, for the record.
    splits: name of a split -> function that reads it.
    config: values that replace those of the task's YAML file.
    """

    label: str
    splits: Mapping[str, Callable[[], Any]]
    config: Mapping[str, Any] = field(default_factory=dict)


def covered_benchmarks() -> list[str]:
    """Names of the benchmarks and groups of the catalog whose documents are all in an installed pack."""
    complete = {b.name for b in BENCHMARKS.values() if _is_complete(b.pack)}
    return [b.name for b in BENCHMARKS.values() if complete.issuperset(b.leaves)]


def _is_complete(pack: Pack | None) -> bool:
    """True if a pack is installed and has all splits that its task reads."""
    return pack is not None and not pack.lacks and is_pack_installed(pack)


def choose_source(name: str, source: str = "auto") -> Source:
    """Where a task's documents come from: "pack" or "hub". source: the user's choice, "auto", "hub" or "pack".

    A pack is used if the user chose it or the Hub cannot be reached, and only if it has all documents of the task.
    """
    if source == "hub" or name not in BENCHMARKS or \
            not all(_is_complete(BENCHMARKS[leaf].pack) for leaf in BENCHMARKS[name].leaves):
        return "hub"
    return "pack" if source == "pack" or not reachable() else "hub"


def pack_data(task: str) -> LocalData | None:
    """The documents of a task from its pack; None if no installed pack has all of them."""
    row = BENCHMARKS.get(task)
    if row is None or row.pack is None or not _is_complete(row.pack):
        return None
    names = {"training": "train", "validation": "validation", "test": "test"}
    disabled = {f"{kind}_split": None for kind, split in names.items() if split not in row.pack.splits}
    return LocalData(_pack_label(row.pack), _readers(row.pack), disabled | dict(row.pack.config))


def file_data(task: str, path: Path, config: Mapping[str, Any]) -> LocalData:
    """The documents of a task from a user's file.

    The file replaces the split of few-shot examples if the task's pack lacks it (``gsm8k``), else the split that is
    evaluated. config: the values of the task's YAML file. Raises TaskError if there is no such file.
    """
    if not is_file(path):
        raise TaskError(f"--task-data {task}={path}: no such file")
    label = f"file:{path.name}"
    pack = BENCHMARKS[task].pack if task in BENCHMARKS else None
    if pack is not None and pack.lacks:
        return LocalData(f"{label} ({pack.lacks}) + {_pack_label(pack)} ({', '.join(pack.splits)})",
                         {pack.lacks: partial(read_rows, path), **_readers(pack)})
    return _only_split(label, partial(read_rows, path), config)


def stored_data(documents: Sequence[Mapping[str, Any]], config: Mapping[str, Any]) -> LocalData:
    """The documents of a task as the ledger has them: the task has processed them already."""
    import datasets

    local = _only_split("stored", lambda: datasets.Dataset.from_list([dict(d) for d in documents]), config)
    return replace(local, config={**local.config, "process_docs": None})


def _only_split(label: str, read: Callable[[], Any], config: Mapping[str, Any]) -> LocalData:
    """Documents for the split that is evaluated, in place of all splits."""
    split = config.get("test_split") or config.get("validation_split") or "test"
    disabled = {f"{s}_split": None for s in ("training", "validation", "test")}
    return LocalData(label, {split: read},
                     disabled | {"test_split": split, "fewshot_split": split, "dataset_name": None})


def _pack_label(pack: Pack) -> str:
    return f"pack:{pack.distribution} {installed_version(pack.distribution)} {pack.path}"


def _readers(pack: Pack) -> dict[str, Callable[[], Any]]:
    """Name of a split -> function that reads it."""
    path = pack_path(pack.path, module=pack.module)
    if path.is_dir():
        return {s: partial(_read_arrow, pack_path(pack.path, s, module=pack.module)) for s in pack.splits}
    return {s: partial(_read_jsonl, path, pack) for s in pack.splits}


@lru_cache(maxsize=8)
def _read_arrow(folder: Path) -> Any:
    """A saved split as an in-memory data set, so that nothing is written into the pack's folder. The same object again
    for a further evaluation, for which `seeding` has its processed documents."""
    import datasets
    import pyarrow as pa

    tables = []
    for file in sorted(folder.glob("data-*.arrow")):
        with pa.memory_map(str(file)) as source:
            tables.append(pa.ipc.open_stream(source).read_all())
    if not tables:
        raise TaskError(f"{folder}: the pack has no data-*.arrow file in this folder; install it again")
    return datasets.Dataset(pa.concat_tables(tables))


def _read_jsonl(path: Path, pack: Pack) -> Any:
    """The documents of a pack's JSON Lines file, in order."""
    import datasets

    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    documents = [row[pack.document] for row in rows] if pack.document else rows
    return datasets.Dataset.from_list([{k: d[k] for k in pack.fields or d} for d in documents])


def read_rows(path: Path) -> Any:
    """Read a Parquet, JSONL, JSON or CSV file as a data set. Raises TaskError if it cannot be read."""
    import datasets

    kinds = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv"}
    kind = kinds.get(path.suffix.lower())
    if kind is None:
        raise TaskError(f"{path}: unknown type of data file; use one of {', '.join(kinds)}")
    try:
        return datasets.load_dataset(kind, data_files=str(path), split="train")
    except Exception as error:  # datasets raises many types of errors
        raise TaskError(f"{path}: cannot be read as {kind}: {' '.join(str(error).split())[:200]}") from error


def local_task(sources: Mapping[str, LocalData]) -> type:
    """A subclass of lm-eval's ConfigurableTask that reads the documents of tasks from ``sources``, by task name."""
    import datasets
    from lm_eval.api.task import ConfigurableTask

    class LocalTask(ConfigurableTask):  # type: ignore[misc]
        """An lm-eval task whose documents come from this machine."""

        def __init__(self, config: dict[str, Any]) -> None:
            values = {k: v for k, v in config.items() if k != "class"}
            self.local = sources.get(values["task"])
            super().__init__(config=values | dict(self.local.config) if self.local else values)

        @cached_property
        def eval_docs(self) -> Any:
            """The processed documents, cached because lm-eval would process them again at every access."""
            return super().eval_docs

        def doc_iterator(self, *, samples: Collection[int] | None = None, **options: Any) -> Any:
            """lm-eval reads all documents to choose some; here only the chosen ones are read."""
            if not samples or options.get("world_size", 1) > 1:
                return super().doc_iterator(samples=samples, **options)
            return ((n, self.eval_docs[index]) for n, index in enumerate(sorted(set(samples))))

        def download(self, dataset_kwargs: Any = None, **kwargs: Any) -> None:
            if self.local is None:
                super().download(dataset_kwargs, **kwargs)
            else:
                self.dataset = datasets.DatasetDict({s: read() for s, read in self.local.splits.items()})

    return LocalTask


# --- Target tasks ---

def target_config(spec: TaskSpec) -> dict[str, Any]:
    """lm-eval's config for the target task ``spec``. Raises TaskError if its files are missing or wrong."""
    target = spec.target
    assert target is not None
    rows = read_pairs(target.file, target.cluster)
    shots = read_pairs(target.shots_file) if target.shots_file else []
    count = spec.num_fewshot if spec.num_fewshot is not None else 0
    if count > len(shots):
        raise TaskError(f"task {spec.name}: num_fewshot is {count}, but shots_file has {len(shots)} examples; use "
                        f"{len(shots)} at most")
    metrics = ("exact_match", "valid_json", "field_accuracy") if target.match == "json" else ("exact_match",)
    return {
        "task": spec.name,
        "custom_dataset": partial(_dataset, rows),
        "output_type": "generate_until",
        "test_split": "test",
        "doc_to_text": "prompt",
        "doc_to_target": "completion",
        "target_delimiter": "",
        "process_results": partial(_process_results, target),
        "generation_kwargs": {"until": list(target.stop), "max_gen_toks": target.max_tokens,
                              "do_sample": False},
        "metric_list": [{"metric": m, "aggregation": "mean", "higher_is_better": True} for m in metrics],
        "num_fewshot": count,
        "fewshot_config": {"sampler": "first_n", "samples": shots},
        "metadata": {"version": 1.0},
    }


def read_pairs(path: Path, cluster: str | None = None) -> list[dict[str, str]]:
    """Read a JSONL file of rows with ``prompt`` and ``completion``. Raises TaskError with the file and line.

    cluster: a field that every row must have too, a text or a number; it becomes a text.
    """
    rows: list[dict[str, str]] = []
    for number, line in _target_lines(path):
        if len(rows) >= bounds.TARGET_ROWS:
            raise TaskError(f"{path}:{number}: a target file has at most {bounds.TARGET_ROWS:,} rows; use fewer")
        try:
            row = json.loads(line)
            pair = {k: row[k] for k in ("prompt", "completion")}
        except (ValueError, KeyError, TypeError, RecursionError):
            raise TaskError(f"{path}:{number}: expected a JSON object with the strings `prompt` and "
                            "`completion`") from None
        if not all(isinstance(v, str) and v for v in pair.values()):
            raise TaskError(f"{path}:{number}: `prompt` and `completion` must be strings that are not empty")
        if cluster is not None:
            value = row.get(cluster)
            if not isinstance(value, str | int | float):
                raise TaskError(f"{path}:{number}: `{cluster}`, which the task's `cluster` names, must be a text or a "
                                "number; add it to every row, or leave `cluster` out")
            pair[cluster] = str(value)
        rows.append(pair)
    if not rows:
        raise TaskError(f"{path}: the target file has no rows; add one JSON object per line")
    return rows


def _target_lines(path: Path) -> Iterator[tuple[int, str]]:
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


def _dataset(rows: list[dict[str, str]], **_: Any) -> Any:
    import datasets

    return datasets.DatasetDict({"test": datasets.Dataset.from_list(rows)})


def _process_results(target: TargetSpec, doc: dict[str, str], results: list[str]) -> dict[str, float]:
    """The metrics of one answer, as lm-eval's ``process_results`` returns them."""
    answer, reference = results[0], doc["completion"]
    if target.match == "json":
        return json_metrics(answer, reference)
    if target.match == "regex":
        assert target.pattern is not None
        extracted, expected = (_extract(target.pattern, t) for t in (answer, reference))
        return {"exact_match": float(extracted is not None and extracted == expected)}
    return {"exact_match": float(answer.strip() == reference.strip())}


def json_metrics(answer: str, reference: str) -> dict[str, float]:
    """``exact_match``, ``valid_json`` and ``field_accuracy`` of an answer that should be the JSON ``reference``."""
    expected = json.loads(reference)
    answered = _first_object(answer)
    expected_fields = expected if isinstance(expected, dict) else {}
    answered_fields = answered if isinstance(answered, dict) else {}
    correct = sum(k in answered_fields and _equal_json(answered_fields[k], v) for k, v in expected_fields.items())
    exact = float(_equal_json(answered, expected))
    return {"exact_match": exact, "valid_json": float(_is_json(answer)),
            "field_accuracy": correct / len(expected_fields) if expected_fields else exact}


def _equal_json(a: Any, b: Any) -> bool:
    """Equal as JSON: true is not 1, but 2 is 2.0."""
    if isinstance(a, bool) != isinstance(b, bool):
        return False
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_equal_json(a[k], b[k]) for k in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(_equal_json(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _first_object(text: str) -> Any:
    """The JSON object that begins at the first brace in ``text``, or None."""
    start = text.find("{")
    try:
        return json.JSONDecoder().raw_decode(text[start:])[0] if start >= 0 else None
    except (ValueError, RecursionError):
        return None


def _extract(pattern: str, text: str) -> str | None:
    """The first group of the first match of ``pattern``, or the match if there is no group; None without a match."""
    match = re.search(pattern, text)
    if match is None:
        return None
    return match[1] if match.groups() else match[0]
