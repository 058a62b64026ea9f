"""Fine-tunes a model on a file, a data set of the Hub, or rows that are in memory; evaluates the checkpoints that
another trainer left behind."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from aftertune.api.counted_tasks import counted_task
from aftertune.api.evaluating import Task, task_specs
from aftertune.api.parameters import LedgerPlace, alone, opened, specification, with_settings
from aftertune.api.progress import shown_progress
from aftertune.api.rows import stored_rows
from aftertune.errors import InputError
from aftertune.study import TargetSpec, TaskSpec, TuneSpec
from aftertune.study.checkpoints import CheckpointSpec
from aftertune.values import Progress

if TYPE_CHECKING:
    from aftertune.api.settings import CheckpointSettings, TuneSettings
    from aftertune.trainer_checkpoints import CheckpointSeries
    from aftertune.values import Question, Tuning


@with_settings(TuneSpec)
def tune(model: str | Path | TuneSpec, data: Any = None, *, tasks: Task | Iterable[Task] = (),
         ledger: LedgerPlace = None, progress: Progress | bool | None = None, **settings: Unpack[TuneSettings]
         ) -> Tuning:
    """Fine-tune a model, and return the tuning; its folder is ``tuning.output``. What is done is not done again, and an
    interrupted training continues.

    model: a Hub id, a folder, a .gguf file, ``package:NAME/FILE``, or a preset such as "tinyllama". data: a file, a
    data set of the Hub, or rows: a `datasets.Dataset`, a pandas or polars DataFrame, or dicts. Rows are written to a
    file beside the ledger that is named by their digest, so the same rows in any of these forms, or in a file of yours,
    are the same data. tasks: evaluation tasks, or .jsonl files of held-out rows, to search for in the training data.
    ledger, progress: as of `evaluate`.

    Raises InputError (data, recipe), SourceError (model), ResourceError (device, memory) and StorageError.
    """
    if not isinstance(model, str | Path | TuneSpec):
        raise InputError(f"the model is a {type(model).__name__}; tune loads the model by itself: give its id or "
                         "folder (model.save_pretrained(FOLDER) writes one)")
    from aftertune.engine.devices import caller_state
    from aftertune.tuning import tune as run

    with opened(ledger) as stored, shown_progress(progress) as update, caller_state():
        if isinstance(model, TuneSpec):
            spec = model
            alone("a TuneSpec", data=data, **settings)
        elif data is None:
            raise InputError("data is missing; give a file, a data set of the Hub, or rows such as "
                             '[{"prompt": "…", "completion": "…"}]')
        else:
            file = stored_rows(data, stored.database.folder / "data")
            spec = specification(TuneSpec, {"data": file, **settings}, model=str(model))
        update(0, 0, "reading the data")
        return run(spec, ledger=stored, progress=update, questions=_questions(tasks, spec), look=_watch(spec))


def _watch(spec: TuneSpec) -> Any:
    """What evaluates the watched tasks during training; None where none is watched."""
    if spec.watch is None:
        return None
    from aftertune.forgetting_watch import ForgettingWatch

    return ForgettingWatch(spec)


def _questions(names: Task | Iterable[Task], spec: TuneSpec) -> list[Question]:
    """The questions of the tasks, and of the target that is measured during training; a .jsonl file of prompts and
    completions counts as a task."""
    listed: list[Task] = [names] if isinstance(names, str | TaskSpec | Mapping) else list(names)
    files = [Path(name) for name in listed if isinstance(name, str) and name.endswith(".jsonl")]
    others = [name for name in listed if not (isinstance(name, str) and name.endswith(".jsonl"))]
    specs = [*(task_specs(others, {}) if others else ()),
             *(TaskSpec(name=file.name, target=TargetSpec(file=file)) for file in files)]
    if spec.watch and spec.watch.target:
        specs.append(TaskSpec(name=spec.watch.target.name, target=TargetSpec(file=spec.watch.target.file)))
    if not specs:
        return []
    from aftertune.tasks import LoadOptions, questions

    return questions(specs, LoadOptions())


@with_settings(CheckpointSpec)
def checkpoints(folder: str | Path, base: str | Path, *, tasks: Task | Iterable[Task] = (),
                watch: Mapping[str, int] | None = None, ledger: LedgerPlace = None,
                progress: Progress | bool | None = None, **settings: Unpack[CheckpointSettings]) -> CheckpointSeries:
    """Evaluate the checkpoints that a trainer left in a folder, and compare each with the base. What the ledger has is
    read from there, so an interrupted call continues.

    folder: with checkpoint-STEP folders, such as the output_dir of a Trainer; each is a PEFT adapter or a whole model.
    base: the model that was trained: Hub id, folder or package:NAME/FILE. tasks: evaluated whole, as of `evaluate`.
    watch: tasks with so many random items, such as ``{"hellaswag": 200}``. ledger, progress: as of `evaluate`.

    ``tuning`` of the value has what each step learned and forgot (``watch``) and the ``choice`` of keep_best;
    ``evaluations`` are those of the steps, and ``failed`` says why a step is missing. Raises InputError, SourceError
    where no checkpoint can be used, and TasksFailed.
    """
    from aftertune.engine.devices import caller_state
    from aftertune.trainer_checkpoints import CheckpointRequest, evaluate_checkpoints

    spec = specification(CheckpointSpec, settings)
    aims = [counted_task("--target", spec.target, spec.match, spec.scorer)] if spec.target else []
    listed = [*aims, *(counted_task("--watch", f"{task}={n}") for task, n in (watch or {}).items()),
              *(task_specs(tasks, {}) if tasks else ())]
    if not listed:
        raise InputError('there are no tasks to evaluate; add for example watch={"hellaswag": 200}, or '
                         'tasks="hellaswag"')
    request = CheckpointRequest(
        folder=Path(folder), base=str(base), tasks=tuple(listed), targets=frozenset(task.name for task in aims),
        rule=spec.keep_best, margin=spec.margin, steps=spec.steps,
        settings=spec.model_dump(include={"apply_chat_template", "dtype", "device", "threads"}))
    with opened(ledger) as stored, shown_progress(progress) as update, caller_state():
        return evaluate_checkpoints(request, ledger=stored, progress=update)
