"""Provides the documents of tasks that do not come from the Hub: offline packs and the user's files.

    pack_data("arc_easy").splits["validation"]()    the 570 documents of the pack instead of the Hub's 2,376

Packs and files replace only the documents of an lm-eval task; its prompts, filters and metrics stay. Splits that the
pack does not have are turned off. The split used is recorded and shown.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

from aftertune.catalog import BENCHMARKS, Pack, Source
from aftertune.errors import TaskError
from aftertune.paths import is_file
from aftertune.sources import installed_version, is_pack_installed, pack_path
from aftertune.sources.hub import reachable


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
