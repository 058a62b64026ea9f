"""Runs the cells of a study that are missing, then compares the results and writes the record and the page.

    result = run(study, ledger=ledger, out=Path("runs/orders"), choice=CellChoice(only=("careful",)))
    result.results.comparisons, result.record, result.page, result.failed

Every evaluation and fine-tune is first looked up in the ledger by its content, so an interrupted study continues where
it stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from aftertune.actions import Shown
from aftertune.comparison import compare
from aftertune.comparison.across_seeds import contrasts_across_seeds
from aftertune.comparison.flips import flips_by_comparison
from aftertune.deploy.findings import summary
from aftertune.errors import AftertuneError, InputError, nearest
from aftertune.ledger import Ledger, StoredCell
from aftertune.pipeline.cell_runs import CellRuns
from aftertune.pipeline.cells import Cell, cells_of, changed_cells, digests_of, select_cells
from aftertune.pipeline.driving import Drive, Report
from aftertune.pipeline.planning import Costs, cell_jobs, unevaluated
from aftertune.pipeline.scheduling import CellQueue
from aftertune.pipeline.study_verdicts import over_studies, with_study_primary
from aftertune.pipeline.worker_choice import WorkerChoice, prepared
from aftertune.report import (
    Results,
    StoredAnswers,
    make_folder,
    study_lines,
    write_document,
    write_page,
    write_record,
)
from aftertune.sources.folder_lock import folder_lock
from aftertune.study import Study
from aftertune.values import Comparison, Progress

#: (cell, status): called when a cell starts ("running"), when it ends ("done", "failed", "skipped"), and when its
#: worker was lost ("planned").
CellCallback = Callable[[str, str], None]


#: Estimated seconds that an evaluation still takes from which on a worker without a cell helps with it.
HELP_AFTER = 30.0


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
        on_cell: CellCallback | None = None, workers: WorkerChoice | None = None) -> Result:
    """Run the missing cells of a study, and write its record and page to ``out``.

    progress: called with (done, total, text) of the running cells; on_cell: called when a cell starts and ends;
    workers: run the cells in other processes, by default in this one.

    Raises the error of the first cell that fails, after the finished cells are stored; with ``choice.keep_going`` only
    if no cell could be run. Raises StorageError if another process is running a study into ``out``.
    """
    choice = choice or CellChoice()
    cells = select_cells(study, choice.only)
    study.check_files()
    make_folder(out)
    with folder_lock(out, "runs a study"):
        runner = _StudyRun(study, ledger, out, progress or (lambda *_: None), on_cell or (lambda *_: None))
        return runner.run(cells, choice, workers)


def run_cell(study: Study, name: str, *, ledger: Ledger, out: Path, progress: Progress | None = None) -> None:
    """Run one cell, such as "tune careful". Other processes may run other cells into ``out`` at the same time.

    Raises InputError for an unknown cell, and where a cell that it needs is not done; and the errors of the cell.
    """
    cells = {cell.name: cell for cell in cells_of(study)}
    if name not in cells:
        raise InputError(f"--cell {name}: no cell of {study.study} has this name{nearest(name, list(cells))}; "
                         "`aftertune plan` lists them")
    study.check_files()
    make_folder(out)
    save_study(study, ledger)
    runs = CellRuns(study, ledger, out)
    runs.load_needed(cells[name])
    runs.run(cells[name], progress or (lambda *_: None))


def save_study(study: Study, ledger: Ledger) -> dict[str, StoredCell]:
    """Store the study; new cells and cells that have changed become planned. Returns the stored cells by name."""
    name, cells = study.study, cells_of(study)
    ledger.plan_study(name, study.hash, study.model_dump_json(), [cell.name for cell in cells],  # the page's order
                      lambda before: set(changed_cells(None if before is None else digests_of(before), cells)))
    return {c.name: c for c in ledger.cells(name)}


class _StudyRun:
    """One run of a study."""

    def __init__(self, study: Study, ledger: Ledger, out: Path, progress: Progress, on_cell: CellCallback) -> None:
        self.study, self.ledger, self.out = study, ledger, out
        self.progress, self.on_cell = progress, on_cell
        self.runs = CellRuns(study, ledger, out)
        self.failed: dict[str, str] = {}  # reason by cell

    def run(self, cells: list[Cell], choice: CellChoice, workers: WorkerChoice | None = None) -> Result:
        """Run the cells, then write the record and the page."""
        self.runs.before = save_study(self.study, self.ledger)
        if workers is None:
            first_error = self._run_here(cells, choice.keep_going)
        else:
            first_error = self._run_on(workers, cells, choice.keep_going)
        self.runs.load_finished()
        if first_error is not None and all(cell.name in self.failed for cell in cells):
            raise first_error
        return self._write(choice.file)

    def _run_here(self, cells: list[Cell], keep_going: bool) -> AftertuneError | None:
        """Run the cells one after another in this process; the first error, if others followed it."""
        first_error: AftertuneError | None = None
        for number, cell in enumerate(cells, 1):
            missing = [name for name in cell.needs if name in self.failed]
            if missing:
                self._skip(cell.name, missing[0])
                continue
            try:
                self._run_cell(cell, f"[{number}/{len(cells)}] {cell.name}")
            except AftertuneError as error:
                if not keep_going:
                    raise
                first_error = first_error or error
        return first_error

    def _run_on(self, workers: WorkerChoice, cells: list[Cell], keep_going: bool) -> AftertuneError | None:
        """Run the cells in other processes; the first error, if others followed it."""
        jobs = cell_jobs(cells, Costs(self.study, self.ledger), done=self._done_before())
        with prepared(workers, self.study, jobs, ledger=self.ledger, out=self.out) as ready:
            if ready.note:
                workers.say(ready.note)
            drive = Drive(CellQueue(jobs, ready.count), ready.workers,
                          Report(self.progress, self.on_cell, self._save_state), keep_going=keep_going,
                          help_after=HELP_AFTER if ready.may_help else None)
            drive.run(ready.count)
        self.failed |= {cell.name: drive.failed[cell.name] for cell in cells if cell.name in drive.failed}
        return drive.first_error

    def _done_before(self) -> set[str]:
        """Names of the cells that earlier runs finished, so that workers only look them up."""
        return {name for name, cell in self.runs.before.items() if cell.status == "done"}

    def _save_state(self, name: str, status: str, reason: str) -> None:
        """Store the state of a cell that no worker stores."""
        self.ledger.save_cell(self.study.study, name, status, error=reason or None)

    def _run_cell(self, cell: Cell, title: str) -> None:
        """Run one cell; a failure is kept and raised."""
        def progress(done: int, total: int, text: str) -> None:
            self.progress(done, total, f"{title}: {text}")

        self.on_cell(cell.name, "running")
        try:
            self.runs.run(cell, progress)
        except AftertuneError as error:
            self.failed[cell.name] = str(error)
            self.on_cell(cell.name, "failed")
            raise
        self.on_cell(cell.name, "done")

    def _skip(self, name: str, failed: str) -> None:
        """Store that a cell was not run because one that it needs failed."""
        self.failed[name] = reason = f"needs {failed}, which failed"
        self._save_state(name, "planned", reason)
        self.on_cell(name, "skipped")

    def _write(self, file: str) -> Result:
        """Compare the evaluations, bases first in the order of the study, and write the record and the page."""
        study = self.study
        values, chains = self.runs.values, self.runs.chains.values()
        bases = {name: values[f"evaluate {name}"] for name in study.bases if f"evaluate {name}" in values}
        tunings = tuple(values[f"tune {name}"] for name in study.tunings if f"tune {name}" in values)
        tuned = {name: values[f"evaluate {name}"] for name in study.tunings if f"evaluate {name}" in values}
        links = [link for chain in chains for link in chain.checked]
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
                      tuple(f"{chain.maker.tuning.name}: {summary(chain.result)}" for chain in chains))
