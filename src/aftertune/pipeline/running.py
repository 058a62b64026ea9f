"""Runs the cells of a study that are missing, then compares the results and writes the record and the page.

    result = run(study, ledger=ledger, out=Path("runs/orders"), choice=CellChoice(only=("careful",)))
    result.results.comparisons, result.record, result.page, result.failed

Every evaluation and fine-tune is first looked up in the ledger by its content, so an interrupted study continues where
it stopped.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aftertune.actions import Shown
from aftertune.comparison import compare
from aftertune.comparison.across_seeds import contrasts_across_seeds
from aftertune.comparison.flips import flips_by_comparison
from aftertune.deploy import Chain, CheckedLink
from aftertune.deploy.findings import summary
from aftertune.early_stopping import until_decided
from aftertune.engine.memory import release_memory
from aftertune.errors import AftertuneError, InputError
from aftertune.evaluation import evaluate
from aftertune.forgetting_watch import ForgettingWatch
from aftertune.ledger import Ledger, StoredCell
from aftertune.methods import writes_adapter
from aftertune.pipeline.cells import Cell, cells_of, changed_cells, digests_of, select_cells
from aftertune.pipeline.planning import unevaluated
from aftertune.pipeline.study_verdicts import over_studies, with_study_primary
from aftertune.report import (
    Results,
    StoredAnswers,
    make_folder,
    study_lines,
    write_document,
    write_page,
    write_record,
)
from aftertune.sources import BaseModelCache
from aftertune.sources.folder_lock import folder_lock
from aftertune.study import EvalSpec, Study, TaskSpec
from aftertune.study.cured import made_from
from aftertune.study.links import Link, deploy_links
from aftertune.tasks import LoadOptions, questions
from aftertune.tuning import tune
from aftertune.tuning.cured import make_cured
from aftertune.values import Comparison, Evaluation, Progress, Question, Tuning

#: (cell, status): called when a cell starts ("running") and when it ends ("done", "failed", "skipped").
CellCallback = Callable[[str, str], None]


@dataclass(frozen=True, slots=True)
class CellChoice:
    """Which cells to run.

    only: names or patterns, empty for all cells; keep_going: after a failure, skip only the cells that need the failed
    one; file: of the study, for the commands of cells that are not run.
    """

    only: tuple[str, ...] = ()
    keep_going: bool = False
    file: str = ""


@dataclass(frozen=True, slots=True)
class Result(Shown):
    """The results of a study, and the paths of its record and page. failed: (cell, reason) for each cell not run.
    chains: a sentence for each deployed fine-tune."""

    results: Results
    record: Path
    page: Path
    failed: tuple[tuple[str, str], ...] = ()
    chains: tuple[str, ...] = ()

    @property
    def comparisons(self) -> Sequence[Comparison]:
        """The comparisons of the fine-tunes with their bases."""
        return self.results.comparisons

    @property
    def headlines(self) -> list[str]:
        """A line for each fine-tune or recipe."""
        return [*study_lines(self.results), *self.chains]


def run(study: Study, *, ledger: Ledger, out: Path, choice: CellChoice | None = None, progress: Progress | None = None,
        on_cell: CellCallback | None = None) -> Result:
    """Run the missing cells of a study, and write its record and page to ``out``.

    progress: called with (done, total, text) of the running cell; on_cell: called when a cell starts and ends.

    Raises the error of the first cell that fails, after the finished cells are stored; with ``choice.keep_going`` only
    if no cell could be run. Raises StorageError if another process is running a study into ``out``.
    """
    choice = choice or CellChoice()
    cells = select_cells(study, choice.only)
    study.check_files()
    make_folder(out)
    with folder_lock(out, "runs a study"):
        runner = _StudyRun(study, ledger, out, progress or (lambda *_: None), on_cell or (lambda *_: None))
        return runner.run(cells, choice)


class _StudyRun:
    """One run of a study."""

    def __init__(self, study: Study, ledger: Ledger, out: Path, progress: Progress, on_cell: CellCallback) -> None:
        self.study, self.ledger, self.out = study, ledger, out
        self.cured = made_from(study.tunings)
        self.progress, self.on_cell = progress, on_cell
        self.questions: dict[str, list[Question]] = {}  # by task
        self.values: dict[str, Any] = {}  # evaluation or tuning by cell
        self.failed: dict[str, str] = {}  # reason by cell
        self.bases: tuple[str, BaseModelCache] | None = None  # the loaded base with its model source
        self.chains: dict[str, Chain] = {}  # by deployed fine-tune
        self.linked: set[str] = set()  # cells of links that are in their chain
        self.before: dict[str, StoredCell] = {}  # cells as earlier runs left them, by name

    def run(self, cells: list[Cell], choice: CellChoice) -> Result:
        """Run the cells in order, then write the record and the page."""
        self._save_study()
        first_error: AftertuneError | None = None
        for number, cell in enumerate(cells, 1):
            missing = [name for name in cell.needs if name in self.failed]
            if missing:
                self._end(cell, "skipped", f"needs {missing[0]}, which failed")
                continue
            try:
                self._run_cell(cell, f"[{number}/{len(cells)}] {cell.name}")
            except AftertuneError as error:
                if not choice.keep_going:
                    raise
                first_error = first_error or error
        if first_error is not None and not self.values:
            raise first_error
        self._load_finished()
        return self._write(choice.file)

    def _load_finished(self) -> None:
        """Load the results of the other cells that earlier runs finished."""
        for cell in self.ledger.cells(self.study.study):
            if cell.status == "done" and cell.ref and cell.name not in self.values:
                find = self.ledger.find_tuning if cell.name.startswith("tune ") else self.ledger.find_evaluation
                with contextlib.suppress(InputError):  # deleted since
                    self.values[cell.name] = find(cell.ref)
        for planned in cells_of(self.study):
            finished = planned.name in self.values and f"tune {planned.subject}" in self.values
            if planned.link is not None and finished and planned.name not in self.linked:
                self._stored_link(planned, planned.link)

    def _save_study(self) -> None:
        """Store the study; new cells and cells that have changed become planned."""
        study, name = self.study, self.study.study
        cells = cells_of(study)
        stored = next((s for s in self.ledger.studies() if s.name == name), None)
        before = None if stored is None else digests_of(stored.yaml)
        self.ledger.save_study(name, study.hash, study.model_dump_json())
        stored_names = {c.name for c in self.ledger.cells(name)}
        changed = {*changed_cells(before, cells)}
        for cell in cells:  # their order is that of the page
            if cell.name in changed or cell.name not in stored_names:
                self.ledger.save_cell(name, cell.name, "planned")
        self.before = {c.name: c for c in self.ledger.cells(name)}

    def _run_cell(self, cell: Cell, title: str) -> None:
        """Run one cell and store its state; a failure is stored and raised."""
        def progress(done: int, total: int, text: str) -> None:
            self.progress(done, total, f"{title}: {text}")

        self.ledger.save_cell(self.study.study, cell.name, "running")
        self.on_cell(cell.name, "running")
        try:
            value = self._evaluate_or_tune(cell, progress)
        except AftertuneError as error:
            _clear_frames(error)
            self._end(cell, "failed", str(error))
            raise
        except KeyboardInterrupt:
            self.ledger.save_cell(self.study.study, cell.name, "planned")
            raise
        finally:
            release_memory()
        self.values[cell.name] = value
        self.ledger.save_cell(self.study.study, cell.name, "done", ref=value.id, error=self._fault(cell))
        self.on_cell(cell.name, "done")

    def _end(self, cell: Cell, status: str, reason: str) -> None:
        """Store that a cell failed or was skipped."""
        self.failed[cell.name] = reason
        self.ledger.save_cell(self.study.study, cell.name, "failed" if status == "failed" else "planned", error=reason)
        self.on_cell(cell.name, status)

    def _evaluate_or_tune(self, cell: Cell, progress: Progress) -> Evaluation | Tuning:
        if cell.kind == "tuning":
            self.bases = None  # a fine-tune needs the memory of the loaded base
            return self._tune(cell.subject, progress)
        if cell.link is not None:
            return self._check_link(cell, cell.link, progress)
        if cell.kind == "base":
            return self._evaluate_base(cell.subject, progress)
        return self._evaluate_tuned(cell.subject, self.values[f"tune {cell.subject}"], progress)

    def _evaluate_base(self, name: str, progress: Progress) -> Evaluation:
        base = self.study.bases[name]
        return self._evaluate(EvalSpec(
            model=base.model, revision=base.revision, trust_remote_code=base.trust_remote_code, name=name,
            quantize=base.quantize, tokenizer=base.tokenizer, tasks=self._tasks(name), **self._settings()), progress)

    def _evaluate_tuned(self, name: str, tuning: Tuning, progress: Progress) -> Evaluation:
        base = self.study.bases[self.study.tunings[name].base]
        adapter = writes_adapter(tuning.method)
        spec = EvalSpec(
            model=base.model if adapter else tuning.output, adapter=tuning.output if adapter else None,
            revision=base.revision if adapter else None, trust_remote_code=base.trust_remote_code, name=name,
            tokenizer=base.tokenizer, tasks=self._tasks(name), **self._settings())
        rule = self.study.early_rule(name)
        if rule is None:
            return self._evaluate(spec, progress)
        tasks = tuple(t.model_copy(update={"until_decided": self.study.stops(t)}) for t in spec.tasks)
        asked = self.values[f"evaluate {self.study.tunings[name].base}"]  # all items, once for all fine-tunes
        return until_decided(spec.model_copy(update={"tasks": tasks}), asked.id, rule, ledger=self.ledger,
                             progress=progress, bases=self._loaded(spec.model)).tuned

    def _check_link(self, cell: Cell, link: Link, progress: Progress) -> Evaluation:
        """The evaluation of a form of a fine-tune. One that an earlier run checked is taken from the ledger, so that
        its server need not run again."""
        chain = self._chain(cell.subject)
        chain.progress = progress
        if (evaluation := self._stored_link(cell, link)) is not None:
            return evaluation
        self.bases = None  # a form of the fine-tune is another model
        evaluation = chain.check(link).evaluation
        self.linked.add(cell.name)
        chain.write()
        return evaluation

    def _stored_link(self, cell: Cell, link: Link) -> Evaluation | None:
        """The evaluation of a link that an earlier run checked; None where there is none."""
        stored = self.before.get(cell.name)
        if stored is None or stored.status != "done" or not stored.ref:
            return None
        try:
            evaluation = self.ledger.find_evaluation(stored.ref)
        except InputError:  # deleted since
            return None
        self.linked.add(cell.name)
        faults = (stored.error,) if stored.error else ()
        return self._chain(cell.subject).add(CheckedLink(link, evaluation, faults=faults)).evaluation

    def _chain(self, name: str) -> Chain:
        """The links of a deployed fine-tune."""
        if name not in self.chains:
            self.chains[name] = Chain(
                self.values[f"tune {name}"], deploy_links(self.study, name), self._tasks(name), ledger=self.ledger,
                out=self.out / "deploy" / name, margins=self.study.margins(), settings=self._settings())
        return self.chains[name]

    def _fault(self, cell: Cell) -> str | None:
        """What is wrong with the files or prompts of a link, for the page; None for nothing, and for other cells."""
        if cell.link is None:
            return None
        return "; ".join(self.chains[cell.subject].checked[-1].faults) or None

    def _evaluate(self, spec: EvalSpec, progress: Progress) -> Evaluation:
        return evaluate(spec, ledger=self.ledger, progress=progress, bases=self._loaded(spec.model))

    def _loaded(self, model: str) -> BaseModelCache:
        """The base, which stays loaded for the next adapter of it."""
        if self.bases is None or self.bases[0] != model:
            self.bases = (model, BaseModelCache())
        return self.bases[1]

    def _tune(self, name: str, progress: Progress) -> Tuning:
        recipe, study = self.study.tunings[name], self.study
        if name in self.cured:
            cured = make_cured(self.values[f"tune {self.cured[name]}"], self.out / "tunings" / name, name=name,
                               soften=recipe.soften, rollback=recipe.rollback)
            return self.ledger.save_tuning(cured)
        spec = recipe.spec(study.bases[recipe.base], name=name, dtype=study.dtype, device=study.device,
                           out=self.out / "tunings" / name)
        if spec.template_date is None and study.template_date is not None:
            spec = spec.model_copy(update={"template_date": study.template_date})
        progress(0, 0, "reading the tasks")
        watch = ForgettingWatch(spec, task_source=study.task_source) if spec.watch else None
        return tune(spec, ledger=self.ledger, progress=progress, questions=self._questions(name), look=watch)

    def _questions(self, name: str) -> list[Question]:
        """The questions of a tuning's tasks, to find them in its training data; each task is read once."""
        for task in self._tasks(name):
            if task.name not in self.questions:
                self.questions[task.name] = questions((task,), LoadOptions(source=self.study.task_source))
        return [question for task in self._tasks(name) for question in self.questions[task.name]]

    def _tasks(self, name: str) -> tuple[TaskSpec, ...]:
        return tuple(t for t in self.study.tasks if t.asks(name))

    def _settings(self) -> dict[str, Any]:
        study = self.study
        return {"dtype": study.dtype, "device": study.device, "engine": study.engine,
                "apply_chat_template": study.apply_chat_template, "template_date": study.template_date,
                "task_source": study.task_source, **study.later_settings()}

    def _write(self, file: str) -> Result:
        """Compare the evaluations, bases first in the order of the study, and write the record and the page."""
        study = self.study
        bases = {name: self.values[f"evaluate {name}"] for name in study.bases if f"evaluate {name}" in self.values}
        tunings = tuple(self.values[f"tune {name}"] for name in study.tunings if f"tune {name}" in self.values)
        tuned = {name: self.values[f"evaluate {name}"] for name in study.tunings if f"evaluate {name}" in self.values}
        links = [link for chain in self.chains.values() for link in chain.checked]
        evaluations = tuple({e.id: e for e in (*bases.values(), *tuned.values(), *(k.evaluation for k in links))
                             }.values())
        judged = {e.id: e for e in with_study_primary(evaluations, self.ledger)}
        comparisons = over_studies([compare(judged[bases[study.tunings[name].base].id], judged[after.id],
                                            margins=study.margins(), ledger=self.ledger)
                                    for name, after in tuned.items() if study.tunings[name].base in bases], self.ledger)
        comparisons = (*comparisons, *{c.id: c for link in links for c in (link.first, link.before) if c}.values())
        answers = StoredAnswers(self.ledger.database.place, [e.id for e in evaluations])
        results = Results(
            evaluations=evaluations, tunings=tunings, comparisons=comparisons, answers=answers,
            contrasts=tuple(contrasts_across_seeds(tuple(judged.values()), tunings, margins=study.margins(),
                                                   ledger=self.ledger)),
            flips=flips_by_comparison(comparisons, answers, ledger=self.ledger),
            planned=unevaluated(study, ledger=self.ledger, file=file), cells=self.ledger.cells(study.study),
            drifts=tuple(self.ledger.drifts()))
        title = f"Study: {study.study}"
        record, page = self.out / "record.md", self.out / "report.html"
        write_document(record, write_record(results, title=title))
        write_document(page, write_page(results, title=title))
        return Result(results, record, page, tuple(self.failed.items()),
                      tuple(f"{chain.maker.tuning.name}: {summary(chain.result)}" for chain in self.chains.values()))


def _clear_frames(error: BaseException | None) -> None:
    """Let go of what the functions that an error left had in use, such as a model: the error of a cell outlives it.
    Its lines stay for --debug."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
