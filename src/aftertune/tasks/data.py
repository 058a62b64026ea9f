"""Target tasks: did the model learn what it was tuned for? Held-out prompts with reference completions.

A target task is an lm-eval task made from a JSONL file, so it takes the same way as every other: few-shot
examples, chat template, stop strings, filters, answers in the ledger.

    {"prompt": "Turn this order into JSON: two red mugs", "completion": "{\\"item\\": \\"mug\\"}"}

Matched as JSON: ``exact_match`` (the same object, wherever it stands in the answer), ``valid_json`` (the
whole answer is JSON), ``field_accuracy`` (share of the reference's keys with the right value).

Task data without the Hub: the offline packs of the catalog, and files that the user gives.

A task of lm-eval keeps its prompts, filters and metrics; only its documents come from elsewhere, and splits
that the pack does not have are switched off. The split used is recorded and shown.

    pack_data("arc_easy").splits["validation"]()    the 570 documents of the pack, instead of the Hub's 2,376 ones
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from aftertune.catalog import BENCHMARKS, Pack, Source
from aftertune.errors import TaskError
from aftertune.sources import installed_version, pack_holds, pack_path
from aftertune.sources.hub import reachable
from aftertune.study import TargetSpec, TaskSpec


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
