"""Reads the results files that lm-eval writes (``results_*.json``), and finds the answers beside them.

    run = read_results(Path("out/org__model/results_2025-03-08T10-00-00.123456.json"))
    run.model, run.leaves, list(run.scores("hellaswag"))
    where, rows = run.answers("hellaswag")       for `aftertune.exchange.lm_eval_samples`

Versions 0.4.5 to 0.4.13 of lm-eval write the same keys in a results file; later ones add some (``lm_eval_version``
since 0.4.9). A missing key is read as an empty value; a present one must have the right type. Older versions are
brought into this form by `aftertune.exchange.lm_eval_versions`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from aftertune import bounds
from aftertune.catalog import METRICS, MetricKey, hub_items
from aftertune.errors import InputError
from aftertune.exchange.files import json_rows, parse_json, read_text
from aftertune.exchange.lm_eval_versions import current_form, samples_names

# --- Results files ---

#: The largest results file, in bytes; one with the answers in it is large.
LIMIT = bounds.RESULTS_BYTES
_STAMP = re.compile(r"(?:^|_)(\d{4}-\d{2}-\d{2}T[\d.\-]+)\.jsonl?(?:\.gz)?$")


#: (location, row) of each row of a file with answers.
Rows = Iterable[tuple[str, dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class LmEvalScore:
    """One score of a results file. key: its name there, ``metric,filter``."""

    key: MetricKey
    value: float
    stderr: float | None

    @property
    def metric(self) -> str:
        return self.key.metric

    @property
    def filter(self) -> str:
        return self.key.filter


@dataclass(frozen=True)
class LmEvalRun:
    """One run of one model, in the form of lm-eval's results files; other tools' files are brought into it.

    value: the JSON of a results file; tool: what wrote the file; rows: task -> (where, a function that gives the
    answers) for answers that are in no file of lm-eval; notes: what of the file was left out.
    """

    path: Path
    value: Mapping[str, Any]
    tool: str = "lm-eval"
    rows: Mapping[str, tuple[str, Callable[[], Rows]]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def section(self, *keys: str) -> dict[str, Any]:
        """The mapping at ``keys``; {} where it is missing. InputError where the value is not a mapping."""
        node: Any = self.value
        for depth, key in enumerate(keys, start=1):
            node = node.get(key)
            if node is None:
                return {}
            if not isinstance(node, dict):
                name = ".".join(keys[:depth])
                raise InputError(f"{self.path}: `{name}` is a {type(node).__name__}, but lm-eval writes an object; "
                                 "check that it is a results file of lm-eval")
        return dict(node)

    @property
    def stamp(self) -> str:
        """The time in the file's name, which the samples files share; "" where it has none."""
        return stamp_in(self.path.name)

    @property
    def model(self) -> str:
        """The model as it was given to lm-eval: a path or a Hub id (the adapter's if there is an adapter)."""
        config = self.section("config")
        args = config.get("model_args")
        pairs = args if isinstance(args, dict) else dict(
            p.split("=", 1) for p in str(args or "").split(",") if "=" in p)
        names = [self.value.get("model_name"), *(pairs.get(k) for k in ("peft", "delta", "pretrained", "model")),
                 config.get("model")]
        return next((str(n) for n in names if n), self.path.absolute().parent.name)

    @property
    def dtype(self) -> str:
        """The model's data type as the run reports it, else as its arguments request it, else "not stated"."""
        config = self.section("config")
        args = config.get("model_args")
        requested = args.get("dtype") if isinstance(args, dict) else re.search(r"\bdtype=([\w.]+)", str(args or ""))
        requested = requested[1] if isinstance(requested, re.Match) else requested
        return str(config.get("model_dtype") or requested or "not stated").removeprefix("torch.")

    @property
    def version(self) -> str:
        """lm-eval's version, or "" (not written before 0.4.9)."""
        return str(self.value.get("lm_eval_version") or "")

    @property
    def started(self) -> str:
        """When the run started, ISO 8601 in UTC, or ""."""
        date = self.value.get("date")
        if isinstance(date, str) and self.tool != "lm-eval":
            return date
        if not isinstance(date, int | float) or not 0 <= date < 2**33:
            return ""
        return datetime.fromtimestamp(date, UTC).isoformat(timespec="seconds")

    @cached_property
    def groups(self) -> dict[str, list[str]]:
        """Group -> its direct children, for groups that have some."""
        return {name: [str(c) for c in children] for name, children in self.section("group_subtasks").items()
                if isinstance(children, list) and children}

    @cached_property
    def leaves(self) -> list[str]:
        """The tasks that have items, without the groups."""
        scored = self.section("groups")
        return [t for t in self.section("results") if t not in self.groups and t not in scored]

    def groups_with(self, task: str) -> tuple[str, ...]:
        """The groups that have the task below them, at any depth."""
        return self._groups_by_task.get(task, ())

    @cached_property
    def _groups_by_task(self) -> dict[str, tuple[str, ...]]:
        found: dict[str, list[str]] = {}
        for group in self.groups:
            for task in self.leaves_of(group):
                found.setdefault(task, []).append(group)
        return {task: tuple(groups) for task, groups in found.items()}

    def leaves_of(self, group: str) -> list[str]:
        """The tasks below a group, at any depth."""
        leaves: dict[str, None] = {}
        todo, seen = [group], set()
        while todo:
            name = todo.pop()
            if name in seen:
                continue
            seen.add(name)
            if name in self.groups:
                todo += self.groups[name]
            else:
                leaves[name] = None
        return list(leaves)

    def scores(self, task: str) -> Iterator[LmEvalScore]:
        """The scores of a task or group, in order."""
        row = self.section("groups", task) or self.section("results", task)
        for key, value in row.items():
            name = MetricKey(key)
            if name.is_score and _is_finite(value):
                error: Any = row.get(name.stderr)
                yield LmEvalScore(name, float(value), float(error) if _is_finite(error) else None)

    def counts(self, task: str) -> tuple[int | None, int | None]:
        """(items used, items of the split); None where the file does not state it."""
        if task in self.groups:
            parts = [self.counts(leaf) for leaf in self.leaves_of(task)] or [(None, None)]  # groups in a circle
            used, total = (None if None in column else sum(n or 0 for n in column)
                           for column in zip(*parts, strict=True))
            return used, total
        row = self.section("n-samples").get(task)
        if isinstance(row, dict):
            return _count(row.get("effective")), _count(row.get("original"))
        limit, known = _count(self.limit), hub_items(task)
        return (min(limit, known), known) if limit and known else (None, None)

    def averages(self, group: str, key: str) -> Literal["items", "tasks", ""]:
        """What the score of a group is the mean over: as the scores of its tasks show; "" where they do not."""
        leaves = self.leaves_of(group)
        if not leaves:  # groups in a circle
            return ""
        value, means = self._score(group, key), [self._score(leaf, key) for leaf in leaves]
        sizes = [self.counts(leaf)[0] or math.nan for leaf in leaves]
        pooled = math.fsum(m * n for m, n in zip(means, sizes, strict=True)) / math.fsum(sizes)
        if math.isclose(value, pooled, rel_tol=1e-9):
            return "items"
        children = [self._score(child, key) for child in self.groups.get(group, ())]
        plain = (math.fsum(part) / len(part) for part in (means, children) if part)
        return "tasks" if any(math.isclose(value, mean, rel_tol=1e-9) for mean in plain) else ""

    def _score(self, task: str, key: str) -> float:
        return next((s.value for s in self.scores(task) if s.key == key), math.nan)

    def is_heading(self, task: str) -> bool:
        """True for the row of a group that only names it (``{"alias": "mmlu", " ": " "}``)."""
        row = self.section("groups", task) or self.section("results", task)
        return not any(k.strip() and k != "alias" for k in row)

    def files(self, task: str) -> tuple[Path, ...]:
        """The files with the answers to a task."""
        path = Path(self.rows[task][0]) if task in self.rows else self.answers_file(task)
        return () if path is None else (path,)

    @property
    def limit(self) -> int | float | None:
        """``--limit`` of the run: a number of items, or a fraction below 1; None for none."""
        limit: Any = self.section("config").get("limit")
        if not _is_finite(limit):
            return None
        return int(limit) if limit >= 1 and limit == int(limit) else float(limit)

    def higher_is_better(self, task: str) -> dict[str, bool]:
        """Metric -> whether higher is better, as the file, the task's configuration or the catalog says."""
        stated = {k: v for k, v in self.section("higher_is_better", task).items() if isinstance(v, bool)}
        listed = self.section("configs", task).get("metric_list")
        configured = {m["metric"]: m["higher_is_better"] for m in listed if isinstance(m, dict)
                      and isinstance(m.get("metric"), str) and isinstance(m.get("higher_is_better"), bool)} \
            if isinstance(listed, list) else {}
        return stated or {m: configured.get(m, METRICS[m].higher_is_better if m in METRICS else True)
                          for m in dict.fromkeys(s.metric for s in self.scores(task))}

    def aggregation(self, task: str, metric: str) -> str:
        """How the values of the items became the score, as the task's configuration says; "" where it does not."""
        listed = self.section("configs", task).get("metric_list")
        stated = [m.get("aggregation") for m in listed if isinstance(m, dict) and m.get("metric") == metric] \
            if isinstance(listed, list) else []
        return stated[0] if stated and isinstance(stated[0], str) else ""

    def answers(self, task: str) -> tuple[str, Rows] | None:
        """(where, (location, row) of each document and filter) of the answers to a task; None where there are none.

        They stand in the results file itself, or in a file beside it.
        """
        if task in self.rows:
            where, rows = self.rows[task]
            return where, rows()
        inside = self.section("samples").get(task)
        if isinstance(inside, list):
            where = f"{self.path}: `samples.{task}`"
            return where, ((f"{where}, entry {n}", row if isinstance(row, dict) else {})
                           for n, row in enumerate(inside, 1))
        path = self.answers_file(task)
        return None if path is None else (str(path), json_rows(path, limit=bounds.RESULTS_LINE))

    def answers_file(self, task: str) -> Path | None:
        """The file with the answers to a task beside the results file, or None."""
        args = self.section("config").get("model_args")
        names = samples_names(task, stamp=self.stamp, model_args=args if isinstance(args, str) else "")
        return next((path for name in names if len(name) < 256 and (path := self.path.with_name(name)).is_file()), None)


def stamp_in(name: str) -> str:
    """The time in the name of a results or samples file; "" where it has none."""
    match = _STAMP.search(name)
    return match[1] if match else ""


def read_results(path: Path) -> LmEvalRun:
    """Read one results file. Raises InputError where it is not one."""
    value = parse_json(read_text(path, limit=LIMIT), str(path))
    if not isinstance(value, dict) or not isinstance(value.get("results"), dict):
        raise InputError(f"{path}: not a results file of lm-eval: the JSON has no object `results`; give a "
                         "results_*.json or the folder that contains it")
    run = LmEvalRun(path, current_form(value))
    for task in run.section("results"):
        run.section("results", task)
    return run


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31 else None


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
