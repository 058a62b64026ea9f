"""Evaluates a model: by its id or folder, or a model of transformers or PEFT that is in memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from aftertune.api.parameters import (
    LedgerPlace,
    alone,
    check_names,
    comma_separated,
    opened,
    specification,
    with_settings,
)
from aftertune.api.progress import shown_progress
from aftertune.errors import InputError
from aftertune.study import EarlySpec, EvalSpec, TaskSpec
from aftertune.study.own_task import LM_EVAL_ALONE, OwnTask, explain_value
from aftertune.study.spec_options import options_of
from aftertune.values import Evaluation, Progress, Tuning

if TYPE_CHECKING:
    from aftertune.api.settings import EvaluateSettings
    from aftertune.ledger import Ledger

#: One task: its lm-eval name, a specification, or the same as a dict, as a study has it.
Task = str | TaskSpec | Mapping[str, Any]
#: Settings of tasks, of which a task of its own may have others.
_OF_TASKS = tuple(option.parameter for option in options_of(TaskSpec))
#: Settings of a task of one's own.
_OF_TARGET = tuple(option.parameter for option in options_of(OwnTask))


#: The keyword that makes an evaluation stop early, beside the options of how.
UNTIL_DECIDED = {"until_decided": "Any | None"}
_EARLY = tuple(option.parameter for option in options_of(EarlySpec))


@with_settings(OwnTask, TaskSpec, EvalSpec, EarlySpec, further=UNTIL_DECIDED)
def evaluate(model: Any, tasks: Task | Iterable[Task] = (), *, tokenizer: Any = None, adapter: str | Path | None = None,
             ledger: LedgerPlace = None, progress: Progress | bool | None = None, join: bool = False,
             **settings: Unpack[EvaluateSettings]) -> Evaluation:
    """Evaluate a model on tasks, and return the evaluation. What the ledger has is read from there, and an interrupted
    evaluation continues.

    model: a Hub id, a folder, a .gguf file, ``package:NAME/FILE``, or a model of transformers or PEFT in memory. One in
    memory is evaluated as it is now, and left as it was; it is identified by its tensors and by the adapter that is
    active, with its scale. tasks: lm-eval names, `TaskSpec`s, or dicts such as
    ``{"name": "orders", "target": {"file": "test.jsonl"}}``; none are needed where ``target`` names a file of your own.
    tokenizer: of a model in memory (default: the one in its
    folder); for a model by name, a folder with another tokenizer. adapter: a PEFT adapter's folder or Hub id. ledger:
    an open `Ledger` or its path; default: AFTERTUNE_LEDGER, else .aftertune/ledger.db. progress: True or False, or a
    function; default: a bar in a notebook or a terminal. join: help other processes that compute the same evaluation
    now, instead of being refused; all of them return the finished one. Each must have as many threads, and the same
    kind of processor. until_decided: stop each task at its first safe verdict against this base: an evaluation, its id
    or name, or a model to evaluate at the same time; True is the base of the adapter. `compare` of both has
    the verdicts then. margin, stop_target, draw, batch, min_items, max_items and max_width say how it stops.

    Raises InputError for a wrong argument, SourceError for a model that cannot be used, TasksFailed after the other
    tasks are stored (its ``evaluations``), and ResourceError without memory.
    """
    given: dict[str, Any] = dict(settings)
    early = {name: given.pop(name) for name in (*UNTIL_DECIDED, *_EARLY) if name in given}
    against = early.pop("until_decided", None)
    _check_early(model, against, early)
    if isinstance(model, EvalSpec):
        spec = model
        alone("an EvalSpec", tasks=tasks, tokenizer=tokenizer, adapter=adapter, **given)
    else:
        check_settings(given)
        spec = _spec(model, tasks, tokenizer, adapter, given)
    from aftertune.engine.devices import caller_state

    with opened(ledger) as stored, shown_progress(progress) as update, caller_state():
        if against is not None and against is not False:
            return _until_decided(spec, against, specification(EarlySpec, early), stored, update, join)
        if isinstance(model, EvalSpec | str | Path):
            from aftertune.evaluation import evaluate as run

            return run(spec, ledger=stored, progress=update, join=join)
        from aftertune.callbacks.live_evaluation import evaluate_model

        if join:
            raise InputError("join is for a model by its name; a model in memory is evaluated by this process alone")
        return evaluate_model(model, tokenizer or _tokenizer_of(model), spec, stored, update)


def _check_early(model: Any, against: Any, early: Mapping[str, Any]) -> None:
    """Raise InputError for settings of early stopping that have no effect."""
    given = [name for name, value in early.items() if value is not None]
    if given and (against is None or against is False):
        raise InputError(f"{given[0]} has no effect without until_decided; add until_decided=base, or leave "
                         f"{given[0]} out")
    if against is not None and against is not False and not isinstance(model, EvalSpec | str | Path):
        raise InputError("until_decided is for a model by its name; a model in memory is asked all items")
    if not isinstance(against, Evaluation | str | Path | bool | None):
        raise InputError(f"until_decided is a {type(against).__name__}; give the base: an evaluation, its id or name, "
                         "a model, or True for the base of the adapter")


def _until_decided(spec: EvalSpec, against: Any, early: EarlySpec, ledger: Ledger, progress: Progress, join: bool
                   ) -> Evaluation:
    """The evaluation that stops at its verdicts against a base, with which it is then compared."""
    from aftertune.early_stopping import until_decided
    from aftertune.errors import NotComparable

    if against is True:
        if spec.adapter is None:
            raise InputError("until_decided=True takes the base of an adapter, and there is no adapter; name the base: "
                             "until_decided=base")
        for base in _stored_bases(spec, ledger):
            try:
                return until_decided(spec, base.id, early, ledger=ledger, progress=progress, join=join).tuned
            except NotComparable:  # asked other items, or in another way
                continue
    other = spec.model if against is True else against.id if isinstance(against, Evaluation) else str(against)
    return until_decided(spec, other, early, ledger=ledger, progress=progress, join=join).tuned


def _stored_bases(spec: EvalSpec, ledger: Ledger) -> list[Evaluation]:
    """The finished evaluations of the base of an adapter on all its tasks, the newest first."""
    from aftertune import sources

    base = sources.fingerprint_model(sources.resolve_model(
        spec.model, revision=spec.revision, trust_remote_code=spec.trust_remote_code)).fingerprint
    return [e for e in reversed(ledger.evaluations()) if e.status == "done" and e.model.fingerprint == base
            and all(any(task.name in (t.task, *t.groups) for t in e.tasks) for task in spec.tasks)]


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raise InputError for a keyword that is no setting of an evaluation or its tasks."""
    for name in settings:
        check_names(name, OwnTask, TaskSpec, EvalSpec, without=("margin", "only", "data"))


def _spec(model: Any, tasks: Task | Iterable[Task], tokenizer: Any, adapter: str | Path | None,
          settings: dict[str, Any]) -> EvalSpec:
    of_target = {name: settings.pop(name) for name in _OF_TARGET if name in settings}
    of_tasks = {name: settings.pop(name) for name in _OF_TASKS if name in settings}
    specs = _own_tasks(of_target, of_tasks, alone=not tasks)
    if tasks or not specs:
        specs += task_specs(tasks, of_tasks)
    if isinstance(model, str | Path):
        if adapter is not None and not isinstance(adapter, str | Path):
            raise InputError(f"adapter is a {type(adapter).__name__}; give its folder or Hub id"
                             + (", for example adapter=tuning.output" if isinstance(adapter, Tuning) else ""))
        if tokenizer is not None and not isinstance(tokenizer, str | Path):
            raise InputError(f"tokenizer is a {type(tokenizer).__name__}, but the model is a name; give a folder with "
                             "a tokenizer, or the model itself beside its tokenizer")
        paths = {k: str(v) for k, v in (("adapter", adapter), ("tokenizer", tokenizer)) if v is not None}
        return specification(EvalSpec, settings, model=str(model), tasks=specs, **paths)
    from aftertune.callbacks.live_evaluation import SETTINGS, check_whole

    if isinstance(model, Tuning):
        raise InputError("the model is a Tuning; give its base, and the fine-tune as adapter=tuning.output (or "
                         "tuning.output alone, if it is a whole model)")
    check_whole(model)
    if adapter is not None:
        raise InputError("adapter is for a model by its name; put the adapter on the model in memory with "
                         "peft.PeftModel.from_pretrained(model, FOLDER)")
    allowed = (*SETTINGS, "name", "threads", "fork")
    for name in settings.keys() - set(allowed):
        raise InputError(f"{name} has no effect on a model in memory, which is evaluated as it is; leave it out "
                         f"(allowed are {', '.join(allowed)} and the settings of tasks)")
    if settings.get("engine", "packed") not in ("packed", "plain"):
        raise InputError(f"engine is {settings['engine']!r}; a model in memory is evaluated with packed or plain")
    return specification(EvalSpec, settings, model="a model in memory", tasks=specs)


def _own_tasks(target: dict[str, Any], shared: Mapping[str, Any], *, alone: bool) -> tuple[TaskSpec, ...]:
    """The tasks of a target file, with the shared settings that are about items. alone: there are no other tasks."""
    if "target" in target and isinstance(target["target"], Path):
        target["target"] = str(target["target"])
    try:
        own = specification(OwnTask, target).tasks()
    except ValueError as error:
        raise InputError(explain_value(error)) from None
    unused = [name for name in LM_EVAL_ALONE if shared.get(name) is not None]
    if own and alone and unused:
        raise InputError(f"{unused[0]} is for tasks of lm-eval and has no effect on target; "
                         + ('show examples with target_shots="FILE=K"' if unused[0] == "num_fewshot" else
                            "leave it out"))
    items = {k: v for k, v in shared.items() if k not in LM_EVAL_ALONE}
    return tuple(specification(TaskSpec, items, **task) for task in own)


def task_specs(tasks: Task | Iterable[Task], shared: Mapping[str, Any]) -> tuple[TaskSpec, ...]:
    """The tasks as specifications. shared: settings of all that a task of its own does not set."""
    listed: list[Any] = [tasks] if isinstance(tasks, str | TaskSpec | Mapping) else list(tasks)
    if len(listed) == 1 and isinstance(listed[0], str):
        listed = comma_separated(listed[0])
    specs = [_task(task, shared) for task in listed if task]
    if not specs:
        raise InputError("tasks is empty; name one or more tasks of lm-eval, for example "
                         'tasks=["arc_easy", "hellaswag"], or a file of your own with target="FILE"')
    return tuple(specs)


def _task(task: Any, shared: Mapping[str, Any]) -> TaskSpec:
    if isinstance(task, str):
        return specification(TaskSpec, shared, name=task)
    if not isinstance(task, TaskSpec | Mapping):
        raise InputError(f"a task is a {type(task).__name__}; allowed are a name, a TaskSpec and a dict")
    own = task.model_dump(exclude_unset=True) if isinstance(task, TaskSpec) else dict(task)
    chosen = {"limit", "sample"} if own.keys() & {"limit", "sample"} else set()
    return specification(TaskSpec, {**{k: v for k, v in shared.items() if k not in chosen}, **own})


def _tokenizer_of(model: Any) -> Any:
    """The tokenizer in the folder or cache from which a model in memory was loaded. Raises InputError without one."""
    from aftertune import sources
    from aftertune.errors import AftertuneError

    name = str(getattr(model, "name_or_path", "") or "")
    try:
        return sources.load_tokenizer(sources.resolve_model(name, revision=getattr(model.config, "_commit_hash", None)))
    except (AftertuneError, AttributeError):
        raise InputError("the model in memory has no folder with a tokenizer; give tokenizer=…, for example "
                         "AutoTokenizer.from_pretrained(FOLDER)") from None
