"""Owns lm-eval's ``results_*.json``: what it says of the run, of each task, and of the scores.

    run = read_results(Path("out/org__model/results_2025-03-08T10-00-00.123456.json"))
    run.model, run.leaves, run.scores("hellaswag")

Versions 0.4.5 to 0.4.13 write the same keys; later ones add some (``lm_eval_version`` since 0.4.9). Whatever is
missing takes an empty value; what is there must have its type.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aftertune.catalog import MetricKey
from aftertune.errors import InputError
from aftertune.exchange.reading import MIB, parse_json, read_text

LIMIT = 64 * MIB
_STAMP = re.compile(r"(?:^|_)(\d{4}-\d{2}-\d{2}T[\d.\-]+)\.json$")


@dataclass(frozen=True, slots=True)
class Figures:
    """One score of the results file, under the name that it has there."""

    key: MetricKey
    value: float
    stderr: float | None

    @property
    def metric(self) -> str:
        return self.key.metric

    @property
    def filter(self) -> str:
        return self.key.filter


@dataclass(frozen=True, slots=True)
class Run:
    """One results file. value: its JSON."""

    path: Path
    value: Mapping[str, Any]

    def part(self, *keys: str) -> dict[str, Any]:
        """The mapping below ``keys``; {} where it is absent. InputError where something else stands there."""
        found: Any = self.value
        for depth, key in enumerate(keys, start=1):
            found = found.get(key)
            if found is None:
                return {}
            if not isinstance(found, dict):
                place = ".".join(keys[:depth])
                raise InputError(f"{self.path}: `{place}` is a {type(found).__name__}, and lm-eval writes an object "
                                 "there; is it the results file of lm-eval?")
        return dict(found)

    @property
    def stamp(self) -> str:
        """The time in the file's name, which the samples files share; "" where it has none."""
        match = _STAMP.search(self.path.name)
        return match[1] if match else ""

    @property
    def model(self) -> str:
        """The model as lm-eval was told it: a path or a Hub id (of the adapter where there is one)."""
        config = self.part("config")
        args = config.get("model_args")
        pairs = args if isinstance(args, dict) else dict(
            p.split("=", 1) for p in str(args or "").split(",") if "=" in p)
        named = [self.value.get("model_name"), *(pairs.get(k) for k in ("peft", "delta", "pretrained", "model")),
                 config.get("model")]
        return next((str(n) for n in named if n), self.path.parent.name)

    @property
    def dtype(self) -> str:
        """The model's type as the run reports it, else as its arguments ask for it, else "not stated"."""
        config = self.part("config")
        args = config.get("model_args")
        asked = args.get("dtype") if isinstance(args, dict) else re.search(r"\bdtype=([\w.]+)", str(args or ""))
        asked = asked[1] if isinstance(asked, re.Match) else asked
        return str(config.get("model_dtype") or asked or "not stated").removeprefix("torch.")

    @property
    def version(self) -> str:
        """lm-eval's version, or "" (not written before 0.4.9)."""
        return str(self.value.get("lm_eval_version") or "")

    @property
    def started(self) -> str:
        """When the run began, ISO 8601 in UTC, or ""."""
        date = self.value.get("date")
        if not isinstance(date, int | float) or not 0 <= date < 2**33:
            return ""
        return datetime.fromtimestamp(date, UTC).isoformat(timespec="seconds")

    @property
    def groups(self) -> dict[str, list[str]]:
        """Group -> its direct children, for groups that have some."""
        return {name: [str(c) for c in children] for name, children in self.part("group_subtasks").items()
                if isinstance(children, list) and children}

    @property
    def leaves(self) -> list[str]:
        """The tasks with items of their own."""
        return [t for t in self.part("results") if t not in self.groups and t not in self.part("groups")]

    def leaves_of(self, group: str) -> list[str]:
        """The tasks below a group, at any depth."""
        found: dict[str, None] = {}
        todo, seen = [group], set()
        while todo:
            name = todo.pop()
            if name in seen:
                continue
            seen.add(name)
            if name in self.groups:
                todo += self.groups[name]
            else:
                found[name] = None
        return list(found)

    def scores(self, task: str) -> Iterator[Figures]:
        """The scores of a task or group, in order."""
        row = self.part("groups", task) or self.part("results", task)
        for key, value in row.items():
            name = MetricKey(key)
            if name.is_score and _finite(value):
                error: Any = row.get(name.stderr)
                yield Figures(name, float(value), float(error) if _finite(error) else None)

    def counts(self, task: str) -> tuple[int | None, int | None]:
        """(items used, items of the split), as far as they are stated."""
        row = self.part("n-samples").get(task)
        if not isinstance(row, dict):
            return None, None
        used, total = (row.get(k) for k in ("effective", "original"))
        return _count(used), _count(total)


def samples_name(task: str, stamp: str) -> str:
    """The name of the samples file of a task, one part of a path whatever the task is called."""
    return re.sub(r"[/\\\x00-\x1f]", "_", f"samples_{task}_{stamp}.jsonl")


def read_results(path: Path) -> Run:
    """Read one results file. Raises InputError where it is none."""
    value = parse_json(read_text(path, limit=LIMIT), str(path))
    if not isinstance(value, dict) or not isinstance(value.get("results"), dict):
        raise InputError(f"{path}: no results of lm-eval: the JSON has no object `results`; give a results_*.json or "
                         "the folder that holds it")
    run = Run(path, value)
    for task in run.part("results"):
        run.part("results", task)
    return run


def results_files(path: Path) -> list[Path]:
    """The results files that ``path`` stands for: itself, or all below a folder, in order of their names."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise InputError(f"{path}: no such file or folder")
    found = sorted(p for p in path.rglob("*.json") if p.is_file() and _STAMP.search(p.name))
    if not found:
        raise InputError(f"{path}: no results_*.json of lm-eval in this folder or below it; give lm-eval "
                         "--output_path, and --log_samples for the answers")
    return found


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31 else None


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
