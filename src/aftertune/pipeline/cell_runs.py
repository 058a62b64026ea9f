"""Runs single cells of a study: an evaluation, a fine-tune, or a form of a deployed fine-tune.

    runs = CellRuns(study, ledger, Path("runs/orders"))
    runs.run(cell, progress)                   the evaluation or tuning of the cell; its state is stored in the ledger
    runs.load_needed(cell)                     what earlier cells made, from the ledger, also where others ran them

The base of the last evaluation stays loaded for the next one.
"""

from __future__ import annotations

import contextlib
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

from aftertune.deploy import Chain, CheckedLink
from aftertune.early_stopping import until_decided
from aftertune.engine.memory import release_memory
from aftertune.errors import AftertuneError, FolderInUse, InputError, InUse
from aftertune.evaluation import evaluate
from aftertune.forgetting_watch import ForgettingWatch
from aftertune.ledger import Ledger, StoredCell
from aftertune.methods import writes_adapter
from aftertune.pipeline.cells import Cell, cells_of
from aftertune.pipeline.shared_root import SharedRoot
from aftertune.sources import BaseModelCache
from aftertune.study import EvalSpec, Study, TaskSpec
from aftertune.study.cured import made_from
from aftertune.study.links import Link, deploy_links
from aftertune.tasks import LoadOptions, questions
from aftertune.tuning import tune
from aftertune.tuning.cured import make_cured
from aftertune.values import Evaluation, Progress, Question, Tuning


class CellRuns:
    """Runs cells of one study, one after another, in this process.

    out: folder of the run; root: shared place of the fine-tunes, None for ``out``.
    """

    def __init__(self, study: Study, ledger: Ledger, out: Path, root: SharedRoot | None = None) -> None:
        self.study, self.ledger, self.out = study, ledger, out
        self.root = root or SharedRoot(out / "tunings")
        self.cured = made_from(study.tunings)
        self.cells = {cell.name: cell for cell in cells_of(study)}
        self.join = False  # whether evaluations may be shared with other processes
        self.questions: dict[str, list[Question]] = {}  # by task
        self.values: dict[str, Any] = {}  # evaluation or tuning by cell
        self.bases: tuple[str, BaseModelCache] | None = None  # the loaded base with its model source
        self.chains: dict[str, Chain] = {}  # by deployed fine-tune
        self.linked: set[str] = set()  # cells of links that are in their chain
        self.before: dict[str, StoredCell] = {}  # cells as earlier runs left them, by name

    @property
    def loaded_base(self) -> str:
        """The model source of the base that is loaded; "" for none."""
        return "" if self.bases is None else self.bases[0]

    def run(self, cell: Cell, progress: Progress) -> Evaluation | Tuning:
        """Run one cell and store its state and value. A failure is stored and raised; an interruption leaves the cell
        planned. One that another process works on now stays as that one says. Raises InUse or FolderInUse for it."""
        self.ledger.save_cell(self.study.study, cell.name, "running")
        try:
            value = self._evaluate_or_tune(cell, progress)
        except (InUse, FolderInUse) as error:
            _clear_frames(error)
            raise
        except AftertuneError as error:
            _clear_frames(error)
            self.ledger.save_cell(self.study.study, cell.name, "failed", error=str(error))
            raise
        except KeyboardInterrupt:
            self.ledger.save_cell(self.study.study, cell.name, "planned")
            raise
        finally:
            release_memory()
        if cell.kind == "tuning":
            self.root.store(cell.subject)
        self.values[cell.name] = value
        self.ledger.save_cell(self.study.study, cell.name, "done", ref=value.id, error=self._fault(cell))
        return value

    def help(self, cell: Cell, progress: Progress) -> None:
        """Help the process that runs an evaluation now: compute batches of it until it is complete. The state of the
        cell stays that of the other process."""
        try:
            self._evaluate_or_tune(cell, progress)
        except AftertuneError as error:
            _clear_frames(error)
            raise
        finally:
            release_memory()

    def load_needed(self, cell: Cell) -> None:
        """Load the values of the cells that a cell needs, which another process may have run. Raises InputError where
        one is not in the ledger."""
        stored = self.before = {c.name: c for c in self.ledger.cells(self.study.study)}
        for name in cell.needs:
            needed = self.cells[name]
            if name not in self.values:
                self.load(name, stored.get(name))
            if name not in self.values:
                raise InputError(f"{cell.name} needs {name}, which the ledger does not have; run the study again")
            if needed.link is not None:
                for link in self._links_until(needed):
                    if link.link is not None and link.name not in self.linked:
                        self._stored_link(link, link.link)

    def _links_until(self, last: Cell) -> list[Cell]:
        """The links of a fine-tune up to one of them, in their order."""
        links = [c for c in self.cells.values() if c.link is not None and c.subject == last.subject]
        return links[:links.index(last) + 1]

    def load(self, name: str, stored: StoredCell | None) -> None:
        """Load the value of a cell that is done, if it is still in the ledger."""
        if stored is None or stored.status != "done" or not stored.ref:
            return
        find = self.ledger.find_tuning if name.startswith("tune ") else self.ledger.find_evaluation
        with contextlib.suppress(InputError):  # deleted since
            value = find(stored.ref)
            self.values[name] = self._here(name.removeprefix("tune "), value) if isinstance(value, Tuning) else value

    def _here(self, name: str, tuning: Tuning) -> Tuning:
        """A fine-tune that may have been made on another machine, with the folder that it has on this one."""
        return tuning if self.root.files is None else replace(tuning, output=str(self.root.fetch(name)))

    def folder(self, cell: Cell) -> Path:
        """The folder that a cell writes into."""
        return self.root.folder(cell.subject) if cell.kind == "tuning" else self.out

    def load_finished(self) -> None:
        """Load the values of all other cells that are done."""
        stored = {c.name: c for c in self.ledger.cells(self.study.study)}
        self.before = {**stored, **self.before}
        for name, cell in stored.items():
            if name not in self.values:
                self.load(name, cell)
        for planned in self.cells.values():
            finished = planned.name in self.values and f"tune {planned.subject}" in self.values
            if planned.link is not None and finished and planned.name not in self.linked:
                self._stored_link(planned, planned.link)

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
                             progress=progress, bases=self._loaded(spec.model), join=self.join).tuned

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
        return evaluate(spec, ledger=self.ledger, progress=progress, bases=self._loaded(spec.model),
                        join=self.join)

    def _loaded(self, model: str) -> BaseModelCache:
        """The base, which stays loaded for the next adapter of it."""
        if self.bases is None or self.bases[0] != model:
            self.bases = (model, BaseModelCache())
        return self.bases[1]

    def _tune(self, name: str, progress: Progress) -> Tuning:
        recipe, study = self.study.tunings[name], self.study
        before = self.before.get(f"tune {name}")
        if before is not None and before.status == "done":
            self.root.fetch(name)  # another machine made it; what is in its folder is not trained again
        if name in self.cured:
            cured = make_cured(self.values[f"tune {self.cured[name]}"], self.root.folder(name), name=name,
                               soften=recipe.soften, rollback=recipe.rollback)
            return self.ledger.save_tuning(cured)
        spec = recipe.spec(study.bases[recipe.base], name=name, dtype=study.dtype, device=study.device,
                           out=self.root.folder(name))
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


def _clear_frames(error: BaseException | None) -> None:
    """Let go of what the functions that an error left had in use, such as a model: the error of a cell outlives it.
    Its lines stay for --debug."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
