"""A study from file to findings: evaluate the bases, tune, evaluate again, compare, write the record.

    result = run(Study.load("study.yaml"), ledger=ledger, out=Path("runs/orders"))
    result.record, result.page          runs/orders/record.md, runs/orders/report.html

Every cell is looked up by content first, so a study that was interrupted goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from aftertune.comparison import compare
from aftertune.comparison.flips import flips_of
from aftertune.errors import AftertuneError
from aftertune.evaluation import evaluate
from aftertune.ledger import Ledger
from aftertune.report import make_folder, write_document, write_page, write_record
from aftertune.study import EvalSpec, Study, TaskSpec
from aftertune.tasks import LoadOptions, questions
from aftertune.tuning import tune
from aftertune.values import Comparison, Evaluation, Question, Tuning
from aftertune.watching import Watch

#: (done, total, text), as in `aftertune.evaluation`; the cell's name stands before the text.
Progress = Callable[[int, int, str], None]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Result:
    """What a study came to, and where its record and page lie."""

    evaluations: tuple[Evaluation, ...]
    tunings: tuple[Tuning, ...]
    comparisons: tuple[Comparison, ...]
    record: Path
    page: Path


def run(study: Study, *, ledger: Ledger, out: Path, progress: Progress | None = None) -> Result:
    """Run what is missing of a study and write its record and page into ``out``."""
    study.check_files()
    make_folder(out)
    return _Run(study, ledger, out, progress or (lambda *_: None)).whole()


class _Run:
    """One study on its way through its cells."""

    def __init__(self, study: Study, ledger: Ledger, out: Path, progress: Progress) -> None:
        self.study = study
        self.ledger = ledger
        self.out = out
        self.progress = progress
        self.count = len(study.bases) + 2 * len(study.tunings)
        self.at = 0
        self.asked: dict[str, list[Question]] = {}

    def whole(self) -> Result:
        study = self.study
        self.ledger.save_study(study.study, study.hash, study.model_dump_json())
        bases = {name: self._cell(f"evaluate {name}", partial(self._evaluate_base, name)) for name in study.bases}
        tunings: list[Tuning] = []
        tuned: list[Evaluation] = []
        comparisons: list[Comparison] = []
        for name, recipe in study.tunings.items():
            made = self._cell(f"tune {name}", partial(self._tune, name))
            after = self._cell(f"evaluate {name}", partial(self._evaluate_tuned, name, made))
            tunings.append(made)
            tuned.append(after)
            comparisons.append(compare(bases[recipe.base], after, margins=study.margins(), ledger=self.ledger))
        return self._write((*bases.values(), *tuned), tuple(tunings), tuple(comparisons))

    def _cell(self, name: str, work: Callable[[Progress], T]) -> T:
        """Run one cell and keep its state; its failure is kept too, and raised."""
        self.at += 1
        head = f"[{self.at}/{self.count}] {name}"

        def told(done: int, total: int, text: str) -> None:
            self.progress(done, total, f"{head}: {text}")

        self.ledger.save_cell(self.study.study, name, "running")
        try:
            value = work(told)
        except AftertuneError as error:
            self.ledger.save_cell(self.study.study, name, "failed", error=str(error))
            raise
        self.ledger.save_cell(self.study.study, name, "done", ref=getattr(value, "id", None))
        return value

    def _evaluate_base(self, name: str, progress: Progress) -> Evaluation:
        base = self.study.bases[name]
        return self._evaluate(EvalSpec(
            model=base.model, revision=base.revision, trust_remote_code=base.trust_remote_code, name=name,
            quantize=base.quantize, tasks=tuple(self._tasks(name)), **self._shared()), progress)

    def _evaluate_tuned(self, name: str, tuning: Tuning, progress: Progress) -> Evaluation:
        base = self.study.bases[self.study.tunings[name].base]
        adapter = tuning.method != "full"
        return self._evaluate(EvalSpec(
            model=base.model if adapter else tuning.output, adapter=tuning.output if adapter else None,
            revision=base.revision if adapter else None, trust_remote_code=base.trust_remote_code, name=name,
            tasks=tuple(self._tasks(name)), **self._shared()), progress)

    def _evaluate(self, spec: EvalSpec, progress: Progress) -> Evaluation:
        return evaluate(spec, ledger=self.ledger, progress=progress)

    def _tune(self, name: str, progress: Progress) -> Tuning:
        recipe, study = self.study.tunings[name], self.study
        spec = recipe.spec(study.bases[recipe.base], name=name, dtype=study.dtype, device=study.device,
                           out=self.out / "tunings" / name)
        progress(0, 0, "reading the tasks")
        look = Watch(spec, task_source=study.task_source) if spec.watch else None
        return tune(spec, ledger=self.ledger, progress=progress, questions=self._questions(name), look=look)

    def _questions(self, name: str) -> list[Question]:
        """What the tasks of a tuning ask, read once each."""
        for task in self._tasks(name):
            if task.name not in self.asked:
                self.asked[task.name] = questions((task,), LoadOptions(source=self.study.task_source))
        return [question for task in self._tasks(name) for question in self.asked[task.name]]

    def _tasks(self, name: str) -> Iterator[TaskSpec]:
        return (t for t in self.study.tasks if t.asks(name))

    def _shared(self) -> dict[str, Any]:
        study = self.study
        return {"dtype": study.dtype, "device": study.device, "engine": study.engine,
                "apply_chat_template": study.apply_chat_template, "task_source": study.task_source}

    def _write(self, evaluations: tuple[Evaluation, ...], tunings: tuple[Tuning, ...],
               comparisons: tuple[Comparison, ...]) -> Result:
        answers = {e.id: self.ledger.answers(e.id) for e in evaluations}
        title = f"Study: {self.study.study}"
        record, page = self.out / "record.md", self.out / "report.html"
        write_document(record, write_record(evaluations, tunings, comparisons, title=title, answers=answers))
        flips = flips_of(comparisons, answers, ledger=self.ledger)
        write_document(page, write_page(evaluations, tunings, comparisons, title=title, answers=answers, flips=flips))
        return Result(evaluations, tunings, comparisons, record, page)
