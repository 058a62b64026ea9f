"""Real answers for benchmarks/active.py: a base and three of its tunings on two benchmarks, kept as small files.

    for task, answers in load():                    each task of each file
        answers.outcome("careful")                  0.0 or 1.0 for each item
        answers.margin("smollm2")                   log-likelihood of the right choice less that of the best other one

``python benchmarks/active.py collect`` runs the study data/active.yaml and writes a file: the log-likelihood of each
choice, its length in characters and the right choice. Everything else is computed from them. A file has the answers of
the base in the same arithmetic as those of its tunings: active.npz is in bfloat16, active_float32.npz in float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aftertune.tasks.scoring import expected_accuracy

DATA = Path(__file__).parent / "data"
STUDY, FILES = DATA / "active.yaml", (DATA / "active.npz", DATA / "active_float32.npz")
BASE, TUNINGS = "smollm2", ("careful", "replay", "careless")
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class TaskAnswers:
    """Of one task. loglikelihoods: model -> [items, choices], -inf where an item has fewer choices, NaN where the model
    was not asked. lengths: of the choices in characters. gold: the right choice of each item."""

    loglikelihoods: dict[str, Floats]
    lengths: Floats
    gold: NDArray[np.int64]

    @property
    def items(self) -> int:
        return self.gold.size

    def of(self, model: str) -> TaskAnswers:
        """Only the items that ``model`` was asked."""
        asked = ~np.isnan(self.loglikelihoods[model]).any(axis=1)
        return TaskAnswers({m: v[asked] for m, v in self.loglikelihoods.items()}, self.lengths[asked], self.gold[asked])

    def _per_character(self, model: str) -> tuple[Floats, Floats]:
        """Log-likelihood per character of all choices, and of the right one."""
        values = self.loglikelihoods[model] / self.lengths
        return values, values[np.arange(self.items), self.gold]

    def outcome(self, model: str) -> Floats:
        """Normalized accuracy of each item."""
        return np.asarray(self._per_character(model)[0].argmax(axis=1) == self.gold, dtype=np.float64)

    def margin(self, model: str) -> Floats:
        """Log-likelihood per character of the right choice less that of the best other one."""
        values, right = self._per_character(model)
        others = values.copy()
        others[np.arange(self.items), self.gold] = -np.inf
        return np.asarray(right - others.max(axis=1))

    def share(self, model: str) -> Floats:
        """Expected accuracy of each item (`aftertune.tasks.scoring.expected_accuracy`)."""
        values = np.array(self.loglikelihoods[model])
        return np.array([expected_accuracy(row[np.isfinite(row)], gold=(int(right),), lengths=size[np.isfinite(row)])
                         for row, right, size in zip(values, self.gold, self.lengths, strict=True)])


def load(files: Sequence[Path] = FILES) -> Iterator[tuple[str, TaskAnswers]]:
    """The name and the kept answers of each task of each file, task by task; of a tuning that several files have, those
    of the first one."""
    found: dict[str, list[TaskAnswers]] = {}
    for file in (f for f in files if f.exists()):
        with np.load(file, allow_pickle=False) as stored:
            for task in map(str, stored["tasks"]):
                known = {m for part in found.get(task, ()) for m in part.loglikelihoods} - {BASE}
                answers = {m: stored[f"{task}/{m}"].astype(np.float64) for m in (BASE, *TUNINGS)
                           if f"{task}/{m}" in stored and m not in known}
                found.setdefault(task, []).append(TaskAnswers(
                    answers, np.maximum(stored[f"{task}/lengths"].astype(np.float64), 1),
                    stored[f"{task}/gold"].astype(np.int64)))
    for task, parts in found.items():
        yield from ((task, part) for part in parts if part.loglikelihoods.keys() - {BASE})


def collect(work: Path, file: Path, *, items: int | None = None, workers: int = 1, only: Sequence[str] = (),
            dtype: str = "") -> None:
    """Run the study with its ledger in ``work``, and keep the answers.

    items: so many random items of HellaSwag instead of all; workers: processes that share the machine's cores; only:
    these tunings; dtype: of the models, in place of the study's.
    """
    from aftertune.ledger import Ledger
    from aftertune.pipeline import CellChoice, WorkerChoice, run
    from aftertune.study import Study

    sets = [*([f"dtype={dtype}"] if dtype else []), *([f"tasks.hellaswag.sample={items}"] if items else [])]
    with Ledger(work / "ledger.db") as ledger:
        run(Study.load(STUDY, sets), ledger=ledger, out=work / "out", choice=CellChoice(only=tuple(only)),
            progress=_print_progress(), workers=WorkerChoice(count=workers) if workers > 1 else None)
        keep(ledger, file)


def keep(ledger: Any, file: Path) -> None:
    """Write the answers of the finished evaluations of the study: named as the model, or as "MODEL-…" for a part."""
    arrays: dict[str, Any] = {}
    done = [e for e in ledger.evaluations() if e.status == "done"]
    tasks = [t.task for t in next(e for e in done if e.name == BASE).tasks]
    for task in tasks:
        evaluations = {m: e for m in (BASE, *TUNINGS) for e in reversed(done)
                       if e.name.split("-")[0] == m and e.task(task)}
        items = ledger.items(evaluations[BASE].id, task)
        widest = max(len(i.asked.choices) for i in items)
        lengths = np.ones((len(items), widest), dtype=np.int16)
        for sizes, item in zip(lengths, items, strict=True):
            sizes[:len(item.asked.choices)] = [len(choice) for choice in item.asked.choices]
        arrays[f"{task}/lengths"] = lengths
        arrays[f"{task}/gold"] = np.array([i.asked.gold[0] for i in items], dtype=np.int8)
        for model in evaluations:
            values = np.full(lengths.shape, -np.inf, dtype=np.float32)
            answers = {a.index: a for a in ledger.answers(evaluations[model].id, task)}
            for row, item in zip(values, items, strict=True):
                answer = answers.get(item.index)
                row[:len(item.asked.choices)] = [r.logprob for r in answer.responses] if answer else np.nan
            arrays[f"{task}/{model}"] = values
    np.savez_compressed(file, tasks=np.array(tasks), **arrays)


def _print_progress() -> Any:
    """Progress, one line for each text."""
    seen: set[str] = set()

    def tell(done: int, total: int, text: str) -> None:
        del done, total
        if text not in seen:
            seen.add(text)
            print(text, flush=True)

    return tell
