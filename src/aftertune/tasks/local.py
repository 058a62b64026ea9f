"""Task data without the Hub: the offline packs of the catalog, and files that the user gives.

A task of lm-eval keeps its prompts, filters and metrics; only its documents come from elsewhere, and splits
that the pack does not have are switched off. The split used is recorded and shown.

    pack_data("arc_easy").splits["validation"]()    the 570 documents of the pack, instead of the Hub's 2,376 ones
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from aftertune.catalog import BENCHMARKS, Pack, Source
from aftertune.errors import TaskError
from aftertune.sources import installed_version, pack_holds, pack_path
from aftertune.sources.reach import reachable


@dataclass(frozen=True, slots=True)
class LocalData:
    """Documents of one task. splits: split -> function that reads it; config: overrides of the task's YAML;
    label: where the documents come from, for the record."""

    label: str
    splits: Mapping[str, Callable[[], Any]]
    config: Mapping[str, Any] = field(default_factory=dict)


def covered() -> list[str]:
    """Names of the catalog whose every document an installed pack holds, groups first."""
    whole = {b.name for b in BENCHMARKS.values() if _whole(b.pack)}
    return [b.name for b in BENCHMARKS.values() if whole.issuperset(b.leaves)]


def _whole(pack: Pack | None) -> bool:
    """True where a pack is installed and has all splits that its task reads."""
    return pack is not None and not pack.lacks and pack_holds(pack)


def asked_from(name: str, source: str = "auto") -> Source:
    """Whether a task's documents come from a pack or from the Hub; source: "auto", "hub" or "pack", as the user chose.

    A pack is used where the user insists on it, or where the Hub is not reached, and only if it holds all of them.
    """
    if source == "hub" or name not in BENCHMARKS or \
            not all(_whole(BENCHMARKS[leaf].pack) for leaf in BENCHMARKS[name].leaves):
        return "hub"
    return "pack" if source == "pack" or not reachable() else "hub"


def pack_data(task: str) -> LocalData | None:
    """The pack's documents for a task, None where no installed pack has all of them."""
    row = BENCHMARKS.get(task)
    if row is None or row.pack is None or not _whole(row.pack):
        return None
    names = {"training": "train", "validation": "validation", "test": "test"}
    off = {f"{kind}_split": None for kind, split in names.items() if split not in row.pack.splits}
    return LocalData(_label(row.pack), _readers(row.pack), off | dict(row.pack.config))


def file_data(task: str, path: Path, config: Mapping[str, Any]) -> LocalData:
    """A user's file as the documents that the task lacks: the split of examples that its pack lacks (``gsm8k``), else
    its evaluation split. config: the task's own YAML values."""
    if not path.is_file():
        raise TaskError(f"--task-data {task}={path}: no such file")
    label = f"file:{path.name}"
    pack = BENCHMARKS[task].pack if task in BENCHMARKS else None
    if pack is not None and pack.lacks:
        return LocalData(f"{label} ({pack.lacks}) + {_label(pack)} ({', '.join(pack.splits)})",
                         {pack.lacks: partial(read_rows, path), **_readers(pack)})
    split = config.get("test_split") or config.get("validation_split") or "test"
    off = {f"{s}_split": None for s in ("training", "validation", "test")}
    return LocalData(label, {split: partial(read_rows, path)},
                     off | {"test_split": split, "fewshot_split": split, "dataset_name": None})


def _label(pack: Pack) -> str:
    return f"pack:{pack.distribution} {installed_version(pack.distribution)} {pack.path}"


def _readers(pack: Pack) -> dict[str, Callable[[], Any]]:
    """Split -> function that reads it."""
    path = pack_path(pack.path, module=pack.module)
    if path.is_dir():
        return {s: partial(_arrow, pack_path(pack.path, s, module=pack.module)) for s in pack.splits}
    return {s: partial(_lines, path, pack) for s in pack.splits}


def _arrow(folder: Path) -> Any:
    """A saved split as an in-memory data set, so that nothing is ever written beside the pack's files."""
    import datasets
    import pyarrow as pa

    tables = []
    for file in sorted(folder.glob("data-*.arrow")):
        with pa.memory_map(str(file)) as source:
            tables.append(pa.ipc.open_stream(source).read_all())
    if not tables:
        raise TaskError(f"{folder}: the pack holds no data-*.arrow file there")
    return datasets.Dataset(pa.concat_tables(tables))


def _lines(path: Path, pack: Pack) -> Any:
    """The documents of a JSON Lines file, in order."""
    import datasets

    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    documents = [row[pack.document] for row in rows] if pack.document else rows
    return datasets.Dataset.from_list([{k: d[k] for k in pack.fields or d} for d in documents])


def read_rows(path: Path) -> Any:
    """A Parquet, JSONL, JSON or CSV file as a data set."""
    import datasets

    kinds = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv"}
    kind = kinds.get(path.suffix.lower())
    if kind is None:
        raise TaskError(f"{path}: unknown kind of data file; use one of {', '.join(kinds)}")
    try:
        return datasets.load_dataset(kind, data_files=str(path), split="train")
    except Exception as error:  # the readers of datasets raise many kinds
        raise TaskError(f"{path}: cannot be read as {kind}: {' '.join(str(error).split())[:200]}") from error


def local_task(sources: Mapping[str, LocalData]) -> type:
    """A ConfigurableTask class that takes the documents of the named tasks from ``sources``."""
    import datasets
    from lm_eval.api.task import ConfigurableTask

    class LocalTask(ConfigurableTask):  # type: ignore[misc]
        """An lm-eval task whose documents come from this machine."""

        def __init__(self, config: dict[str, Any]) -> None:
            own = {k: v for k, v in config.items() if k != "class"}
            self.local = sources.get(own["task"])
            super().__init__(config=own | dict(self.local.config) if self.local else own)

        @cached_property
        def eval_docs(self) -> Any:
            """The processed documents, made once (lm-eval makes them at every look)."""
            return super().eval_docs

        def download(self, dataset_kwargs: Any = None, **kwargs: Any) -> None:
            if self.local is None:
                super().download(dataset_kwargs, **kwargs)
            else:
                self.dataset = datasets.DatasetDict({s: read() for s, read in self.local.splits.items()})

    return LocalTask
