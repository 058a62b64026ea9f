"""Evaluates the checkpoints that a trainer of transformers or TRL left in a folder, and compares each with the base.

    request = CheckpointRequest(folder=Path("out"), base="Qwen/Qwen2.5-0.5B", tasks=(TaskSpec(name="hellaswag"),))
    series = evaluate_checkpoints(request, ledger=ledger)
    series.tuning.watch          (WatchPoint(step=50, task="hellaswag", delta=-0.035, …), …)
    series.failed                {150: "…: adapter_model.safetensors: truncated …"}

Each ``checkpoint-STEP`` is a PEFT adapter or a whole model. The evaluations go into the ledger, so a run that was
stopped goes on, and so does a tuning with all analyses and the losses of ``trainer_state.json``; `aftertune report`
draws its chart. All analyses of all tasks are one family, as in a forgetting watch.

With a rule (`aftertune.study.keep_best`) one half of the items of each task chooses a checkpoint, and the other half
reports on it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from aftertune.errors import AftertuneError, InputError, SourceError, TasksFailed
from aftertune.evaluation import EvaluationRun
from aftertune.forgetting_watch import primary_values, question_point, refuse_own_unit, task_halves, watched_items
from aftertune.ledger import Ledger
from aftertune.provenance import capture, finish
from aftertune.sources import BaseModelCache, resolve_model
from aftertune.sources.loading import has_tokenizer
from aftertune.sources.resolve import read_json
from aftertune.study import EvalSpec, TaskSpec, checked
from aftertune.study.keep_best import VALIDATION_LOSS, KeepBest
from aftertune.tasks import LoadedTask
from aftertune.tasks.pools import pools
from aftertune.values import Answer, Evaluation, Half, Progress, Tuning, WatchPoint, digest

_NAME = re.compile(r"checkpoint-(\d+)")
_STATE = "trainer_state.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointRequest:
    """What to evaluate. folder: with the checkpoints. targets: names of the tasks that show what was learned. rule:
    chooses a checkpoint. margin: in points. steps: only these; empty: all. settings: other fields of EvalSpec."""

    folder: Path
    base: str
    tasks: tuple[TaskSpec, ...]
    targets: frozenset[str] = frozenset()
    rule: str | None = None
    margin: float = 2.0
    steps: tuple[int, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointSeries:
    """The result. tuning: with the analyses of all steps, the losses and the choice. losses: step -> validation loss.
    failed: step -> why it could not be evaluated. notes: a sentence each."""

    tuning: Tuning
    base: Evaluation
    evaluations: Mapping[int, Evaluation]
    losses: Mapping[int, float]
    failed: Mapping[int, str]
    notes: tuple[str, ...] = ()


def find_checkpoints(folder: Path, steps: Sequence[int] = ()) -> dict[int, Path]:
    """Step -> folder of a checkpoint, in ascending order. steps: only these.

    Raises InputError if there is none, or none of a step.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give the trainer's output_dir, which has its checkpoint-STEP "
                         "folders")
    found = {int(match[1]): path for path in folder.iterdir()
             if path.is_dir() and (match := _NAME.fullmatch(path.name))}
    if not found:
        names = ", ".join(sorted(path.name for path in folder.iterdir())[:6]) or "nothing"
        hint = f"give {folder.parent}" if _NAME.fullmatch(folder.resolve().name) else "give the trainer's output_dir"
        raise InputError(f"{folder}: no checkpoints; looked for folders named checkpoint-STEP, such as checkpoint-500, "
                         f"found {names}; {hint}")
    for step in steps:
        if step not in found:
            raise InputError(f"{folder}: no checkpoint of step {step}; there are {', '.join(map(str, sorted(found)))}")
    return {step: found[step] for step in sorted(found) if not steps or step in steps}


def evaluate_checkpoints(request: CheckpointRequest, *, ledger: Ledger, progress: Progress | None = None
                         ) -> CheckpointSeries:
    """Evaluate the base and each checkpoint, and store the analyses. A damaged checkpoint is left out, with its reason.

    Raises InputError for a folder without checkpoints, a rule that cannot be used, and tasks whose metric is no share;
    SourceError if no checkpoint can be used; TasksFailed for a task that cannot be evaluated.
    """
    checkpoints, provenance = find_checkpoints(request.folder, request.steps), capture()
    cache = BaseModelCache()
    spec = checked(EvalSpec, model=request.base, tasks=request.tasks, **request.settings)
    losses = _validation_losses(checkpoints)
    rule = None if request.rule is None else _rule(request, checkpoints, losses)
    first = EvaluationRun(spec, ledger, progress, cache)
    base = first.run()
    base_answers = first.answers(base)
    for task in first.loaded:
        refuse_own_unit(task, primary_values(task, base_answers[task.settings.task]))
    halves: dict[Half, list[LoadedTask]] = task_halves(first.loaded, rule) if rule else {"all": first.loaded}
    evaluations: dict[int, Evaluation] = {}
    answers: dict[int, dict[str, list[Answer]]] = {}
    failed: dict[int, str] = {}
    for step, folder in checkpoints.items():
        try:
            run = EvaluationRun(_spec(spec, folder), ledger, progress, cache)
            evaluations[step] = run.run(first)
            answers[step] = run.answers(evaluations[step])
        except TasksFailed:
            raise
        except AftertuneError as error:
            failed[step] = str(error)
    if not evaluations:
        raise SourceError(f"{request.folder}: none of its {len(checkpoints)} checkpoints can be evaluated; the first: "
                          f"{next(iter(failed.values()))}")
    looks = _Looks(request, base_answers, answers, len(answers) * len(list(pools(first.loaded))))
    points = looks.points(next(iter(halves.values())), "choice" if rule else "all")
    choice = rule.choose(points, {step: loss for step, loss in losses.items() if step in answers}) if rule else None
    if rule and choice is None:
        raise InputError(f'--keep-best "{request.rule}": no checkpoint that could be evaluated has all numbers that '
                         "the rule reads; name a task as the goal")
    if choice is not None:
        limits = rule.limits if rule else {}
        choice = replace(choice, report=looks.report(halves["report"], choice.step, limits))
    tuning = replace(_tuning(request, base, evaluations, checkpoints), watch=points, choice=choice,
                     provenance=finish(provenance))
    tuning = replace(tuning, settings={**tuning.settings, "watched": watched_items(halves)})
    notes = tuple(f"checkpoint {step} was left out: {reason}" for step, reason in failed.items())
    if any(e.model.adapter is None for e in evaluations.values()):
        notes += (f"nothing in a whole checkpoint proves that it was made from {request.base}; that is your statement",)
    return CheckpointSeries(tuning=ledger.save_tuning(replace(tuning, notes=notes)), base=base,
                            evaluations=evaluations, losses=losses, failed=failed, notes=notes)


def _rule(request: CheckpointRequest, checkpoints: Mapping[int, Path], losses: Mapping[int, float]) -> KeepBest:
    """The rule that chooses. Raises InputError, also where it reads a loss that no checkpoint has."""
    names = sorted((t.name for t in request.tasks), key=lambda name: name not in request.targets)
    try:
        rule = KeepBest.parse(request.rule or "", tasks=names, validated=True)
    except ValueError as error:
        raise InputError(f"--keep-best: {error}") from None
    if rule.goal == VALIDATION_LOSS and not losses.keys() & checkpoints.keys():
        raise InputError(f'--keep-best "{request.rule}": {_STATE} has no eval_loss of the steps '
                         f"{', '.join(map(str, checkpoints))}, so no checkpoint has a validation loss; name a task as "
                         "the goal, or train with eval_strategy")
    return rule


def _spec(spec: EvalSpec, folder: Path) -> EvalSpec:
    """The evaluation of a checkpoint. Raises SourceError for a folder with neither an adapter nor a model."""
    if (folder / "adapter_config.json").is_file():
        return spec.model_copy(update={"adapter": str(folder)})
    if not (folder / "config.json").is_file():
        raise SourceError(f"{folder}: neither adapter_config.json nor config.json is there; remove the folder, or copy "
                          "the checkpoint again")
    tokenizer = spec.tokenizer
    if tokenizer is None and not has_tokenizer(folder):  # a Trainer without processing_class saves none
        source = resolve_model(spec.model, revision=spec.revision, trust_remote_code=spec.trust_remote_code)
        tokenizer = str(source.path)
    return spec.model_copy(update={"model": str(folder), "revision": None, "tokenizer": tokenizer})


@dataclass(frozen=True, slots=True)
class _Looks:
    """Analyses of checkpoints. family: of all steps and tasks."""

    request: CheckpointRequest
    base: Mapping[str, list[Answer]]
    tuned: Mapping[int, Mapping[str, list[Answer]]]
    family: int

    def points(self, loaded: Sequence[LoadedTask], half: Half) -> tuple[WatchPoint, ...]:
        """One for each step and task."""
        return tuple(self._point(name, members, step, half, margin=self.request.margin, family=self.family)
                     for step in self.tuned for name, members in pools(loaded))

    def report(self, loaded: Sequence[LoadedTask], step: int, limits: Mapping[str, float]) -> tuple[WatchPoint, ...]:
        """Of the chosen step; a task with a limit is tested with its limit as the margin."""
        questions = list(pools(loaded))
        return tuple(self._point(name, members, step, "report", margin=limits.get(name, self.request.margin),
                                 family=len(questions)) for name, members in questions)

    def _point(self, name: str, members: Sequence[LoadedTask], step: int, half: Half, *, margin: float, family: int
               ) -> WatchPoint:
        sides: list[dict[str, list[Answer]]] = [{}, {}]
        for task in members:
            for chosen, side in zip(sides, (self.base, self.tuned[step]), strict=True):
                of_item = {a.index: a for a in side[task.settings.task]}
                chosen[task.settings.task] = [of_item[item.index] for item in task.items]
        point = question_point(name, members, *sides, step=step, margin=margin, family=family)
        return replace(point, half=half, is_target=name in self.request.targets)


# --- The record ---


def _log(checkpoints: Mapping[int, Path]) -> list[dict[str, Any]]:
    """The trainer's log, from the last checkpoint that has a readable one."""
    for path in reversed([*checkpoints.values()]):
        try:
            log = read_json(path / _STATE).get("log_history")
        except (AftertuneError, OSError):
            continue
        if isinstance(log, list):
            return [entry for entry in log if isinstance(entry, dict) and isinstance(entry.get("step"), int)]
    return []


def _validation_losses(checkpoints: Mapping[int, Path]) -> dict[int, float]:
    """Step -> validation loss, without those of a training that diverged (NaN)."""
    return {entry["step"]: float(entry["eval_loss"]) for entry in _log(checkpoints)
            if isinstance(entry.get("eval_loss"), int | float) and math.isfinite(entry["eval_loss"])}


def _steps(checkpoints: Mapping[int, Path]) -> Iterator[dict[str, float]]:
    """The losses of the trainer's log under the names of a tuning."""
    losses = _validation_losses(checkpoints)
    logged = {e["step"]: float(e["loss"]) for e in _log(checkpoints) if isinstance(e.get("loss"), int | float)}
    for step in sorted({*losses, *logged}):
        yield {"step": step, **({"loss": logged[step]} if step in logged else {}),
               **({"validation_loss": losses[step]} if step in losses else {})}


def _tuning(request: CheckpointRequest, base: Evaluation, evaluations: Mapping[int, Evaluation],
            checkpoints: Mapping[int, Path]) -> Tuning:
    """The training as a tuning. Its results are the adapters that were evaluated: an adapter belongs to its base, but
    of a whole checkpoint only the user says what it was made from."""
    adapters = [e.model.fingerprint for e in evaluations.values() if e.model.adapter]
    watch = {"tasks": {t.task: t.n for t in base.tasks}, "margin": request.margin,
             **({"keep_best": request.rule} if request.rule else {})}
    settings = {"checkpoints": sorted(evaluations), "watch": watch}
    made = [e.model.fingerprint for e in evaluations.values()]
    name = request.folder.resolve().name
    return Tuning(
        id="t-" + digest([base.id, made, settings, request.rule])[:10], name=name, base=base.model,
        method="adapter" if adapters else "full", data="", data_source="not recorded by the trainer", examples=0,
        seed=0, settings=settings, output=str(request.folder), status="done", result=adapters[-1] if adapters else None,
        states=tuple(adapters), steps=tuple(_steps(checkpoints)))
