"""Runs the cells of a study that are missing, in an order that shares bases; then compares and writes.

Every cell is looked up by content first, so a study that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aftertune.comparison import compare
from aftertune.comparison.across_seeds import contrasts
from aftertune.comparison.flips import flips_of
from aftertune.errors import AftertuneError, InputError
from aftertune.evaluation import evaluate
from aftertune.forgetting_watch import ForgettingWatch
from aftertune.ledger import Ledger
from aftertune.methods import writes_adapter
from aftertune.pipeline.alone import alone
from aftertune.pipeline.cells import Cell, cells_of, changed, chosen
from aftertune.pipeline.planning import unevaluated
from aftertune.report import Results, make_folder, write_document, write_page, write_record
from aftertune.sources import BaseModelCache
from aftertune.study import EvalSpec, Study, TaskSpec
from aftertune.tasks import LoadOptions, questions
from aftertune.tuning import tune
from aftertune.values import Evaluation, Progress, Question, Tuning

#: (cell, status): called when a cell begins ("running") and when it ends ("done", "failed", "skipped").
CellCallback = Callable[[str, str], None]


@dataclass(frozen=True, slots=True)
class CellChoice:
    """Which cells are run. only: names or patterns, all where empty; keep_going: a failed cell stops only what needs
    it; file: the study's, for the commands of what is not run."""

    only: tuple[str, ...] = ()
    keep_going: bool = False
    file: str = ""


@dataclass(frozen=True, slots=True)
class Result:
    """What a study came to, and where its record and page lie. failed: (cell, why) of those that could not be run."""

    results: Results
    record: Path
    page: Path
    failed: tuple[tuple[str, str], ...] = ()


def run(study: Study, *, ledger: Ledger, out: Path, choice: CellChoice | None = None, progress: Progress | None = None,
        turn: CellCallback | None = None) -> Result:
    """Run what is missing of a study and write its record and page into ``out``.

    Raises the error of the first cell that fails, once what is kept of the run is stored; with ``choice.keep_going``
    only where nothing could be run. StorageError: another process runs this study into ``out``.
    """
    choice = choice or CellChoice()
    cells = chosen(study, choice.only)
    study.check_files()
    make_folder(out)
    with alone(out):
        return _Run(study, ledger, out, progress or (lambda *_: None), turn or (lambda *_: None)).whole(cells, choice)


class _Run:
    """One study on its way through its cells."""

    def __init__(self, study: Study, ledger: Ledger, out: Path, progress: Progress, turn: CellCallback) -> None:
        self.study, self.ledger, self.out = study, ledger, out
        self.progress, self.turn = progress, turn
        self.asked: dict[str, list[Question]] = {}
        self.values: dict[str, Any] = {}
        self.failed: dict[str, str] = {}
        self.shared: tuple[str, BaseModelCache] | None = None

    def whole(self, cells: list[Cell], choice: CellChoice) -> Result:
        self._save()
        first: AftertuneError | None = None
        for place, cell in enumerate(cells, 1):
            missing = [name for name in cell.needs if name in self.failed]
            if missing:
                self._end(cell, "skipped", f"needs {missing[0]}, which failed")
                continue
            try:
                self._cell(cell, f"[{place}/{len(cells)}] {cell.name}")
            except AftertuneError as error:
                if not choice.keep_going:
                    raise
                first = first or error
        if first is not None and not self.values:
            raise first
        self._recall()
        return self._write(choice.file)

    def _recall(self) -> None:
        """What earlier runs made of the other cells."""
        for cell in self.ledger.cells(self.study.study):
            if cell.status == "done" and cell.ref and cell.name not in self.values:
                find = self.ledger.find_tuning if cell.name.startswith("tune ") else self.ledger.find_evaluation
                with contextlib.suppress(InputError):  # deleted since
                    self.values[cell.name] = find(cell.ref)

    def _save(self) -> None:
        """The study as it is now; cells of which it says something else than before are planned again."""
        study, name = self.study, self.study.study
        now = cells_of(study)
        before = next((s for s in self.ledger.studies() if s.name == name), None)
        then: dict[str, str] | None = None
        if before is not None:
            with contextlib.suppress(ValueError):
                then = {c.name: c.digest for c in cells_of(Study.model_validate_json(before.yaml))}
        self.ledger.save_study(name, study.hash, study.model_dump_json())
        known = {c.name for c in self.ledger.cells(name)}
        for cell in {*changed(then, now)} | {c.name for c in now} - known:
            self.ledger.save_cell(name, cell, "planned")

    def _cell(self, cell: Cell, head: str) -> None:
        """Run one cell and keep its state; its failure is kept too, and raised."""
        def told(done: int, total: int, text: str) -> None:
            self.progress(done, total, f"{head}: {text}")

        self.ledger.save_cell(self.study.study, cell.name, "running")
        self.turn(cell.name, "running")
        try:
            value = self._work(cell, told)
        except AftertuneError as error:
            self._end(cell, "failed", str(error))
            raise
        except KeyboardInterrupt:
            self.ledger.save_cell(self.study.study, cell.name, "planned")
            raise
        self.values[cell.name] = value
        self.ledger.save_cell(self.study.study, cell.name, "done", ref=value.id)
        self.turn(cell.name, "done")

    def _end(self, cell: Cell, status: str, why: str) -> None:
        self.failed[cell.name] = why
        self.ledger.save_cell(self.study.study, cell.name, "failed" if status == "failed" else "planned", error=why)
        self.turn(cell.name, status)

    def _work(self, cell: Cell, progress: Progress) -> Evaluation | Tuning:
        if cell.kind == "tuning":
            self.shared = None  # its memory is needed
            return self._tune(cell.subject, progress)
        if cell.kind == "base":
            return self._evaluate_base(cell.subject, progress)
        return self._evaluate_tuned(cell.subject, self.values[f"tune {cell.subject}"], progress)

    def _evaluate_base(self, name: str, progress: Progress) -> Evaluation:
        base = self.study.bases[name]
        return self._evaluate(EvalSpec(
            model=base.model, revision=base.revision, trust_remote_code=base.trust_remote_code, name=name,
            quantize=base.quantize, tasks=self._tasks(name), **self._settings()), progress)

    def _evaluate_tuned(self, name: str, tuning: Tuning, progress: Progress) -> Evaluation:
        base = self.study.bases[self.study.tunings[name].base]
        adapter = writes_adapter(tuning.method)
        return self._evaluate(EvalSpec(
            model=base.model if adapter else tuning.output, adapter=tuning.output if adapter else None,
            revision=base.revision if adapter else None, trust_remote_code=base.trust_remote_code, name=name,
            tasks=self._tasks(name), **self._settings()), progress)

    def _evaluate(self, spec: EvalSpec, progress: Progress) -> Evaluation:
        """Adapters of one base, one after the other, load it once."""
        if self.shared is None or self.shared[0] != spec.model:
            self.shared = (spec.model, BaseModelCache())
        return evaluate(spec, ledger=self.ledger, progress=progress, bases=self.shared[1])

    def _tune(self, name: str, progress: Progress) -> Tuning:
        recipe, study = self.study.tunings[name], self.study
        spec = recipe.spec(study.bases[recipe.base], name=name, dtype=study.dtype, device=study.device,
                           out=self.out / "tunings" / name)
        progress(0, 0, "reading the tasks")
        look = ForgettingWatch(spec, task_source=study.task_source) if spec.watch else None
        return tune(spec, ledger=self.ledger, progress=progress, questions=self._questions(name), look=look)

    def _questions(self, name: str) -> list[Question]:
        """What the tasks of a tuning ask, read once each."""
        for task in self._tasks(name):
            if task.name not in self.asked:
                self.asked[task.name] = questions((task,), LoadOptions(source=self.study.task_source))
        return [question for task in self._tasks(name) for question in self.asked[task.name]]

    def _tasks(self, name: str) -> tuple[TaskSpec, ...]:
        return tuple(t for t in self.study.tasks if t.asks(name))

    def _settings(self) -> dict[str, Any]:
        study = self.study
        return {"dtype": study.dtype, "device": study.device, "engine": study.engine,
                "apply_chat_template": study.apply_chat_template, "task_source": study.task_source}

    def _write(self, file: str) -> Result:
        """Compare what was evaluated, bases first in the order of the study, and write."""
        study = self.study
        bases = {name: self.values[f"evaluate {name}"] for name in study.bases if f"evaluate {name}" in self.values}
        made = {name: self.values[f"tune {name}"] for name in study.tunings if f"tune {name}" in self.values}
        tuned = {name: self.values[f"evaluate {name}"] for name in study.tunings if f"evaluate {name}" in self.values}
        comparisons = tuple(compare(bases[study.tunings[name].base], after, margins=study.margins(),
                                    ledger=self.ledger)
                            for name, after in tuned.items() if study.tunings[name].base in bases)
        evaluations, tunings = (*bases.values(), *tuned.values()), tuple(made.values())
        answers = {e.id: self.ledger.answers(e.id) for e in evaluations}
        results = Results(
            evaluations=evaluations, tunings=tunings, comparisons=comparisons, answers=answers,
            contrasts=tuple(contrasts(evaluations, tunings, margins=study.margins(), ledger=self.ledger)),
            flips=flips_of(comparisons, answers, ledger=self.ledger),
            planned=unevaluated(study, ledger=self.ledger, file=file), cells=self.ledger.cells(study.study))
        title = f"Study: {study.study}"
        record, page = self.out / "record.md", self.out / "report.html"
        write_document(record, write_record(results, title=title))
        write_document(page, write_page(results, title=title))
        return Result(results, record, page, tuple(self.failed.items()))
