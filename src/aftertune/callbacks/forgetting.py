"""Evaluates tasks while a trainer of transformers or TRL trains, and compares the model with its base.

    trainer = SFTTrainer(model, args=SFTConfig(output_dir="out"), train_dataset=data)
    trainer.add_callback(ForgettingCallback(trainer, {"hellaswag": 200}, every=100))
    trainer.train()
        watch, step 100: hellaswag 41.5% → 36.0%, -5.5 points (-9.8 to -1.2) on 200 items: forgot

The base is the model before the first step; of a PEFT model it is the base without the adapter, so that an adapter that
was trained before is compared with its base too, and a training that goes on from a checkpoint needs no other run. Only
where the adapter's start or its training changes the base (PiSSA, OLoRA, trained biases) it is the model before the
first step.

The ledger gets an evaluation of the base and one of each step that was measured, with the fingerprints that the model's
files would have, and a tuning with all analyses: `aftertune runs`, `compare` and `record` show them. The trainer's log
gets the points that each task lost, as ``forgetting/TASK``.

In distributed data-parallel training the first process measures and the others wait for it. Models whose weights are
split between processes (FSDP, DeepSpeed, tensor parallel) or devices are refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from transformers import Trainer, TrainerCallback

from aftertune.callbacks.live_evaluation import SETTINGS, LiveAnswers, LiveEvaluations
from aftertune.callbacks.training_record import begun_tuning, stored_tuning
from aftertune.errors import AftertuneError, InputError, nearest
from aftertune.forgetting_watch import primary_values, print_line, question_point, refuse_own_unit
from aftertune.ledger import Ledger, locate
from aftertune.provenance import finish
from aftertune.report import watch_text
from aftertune.study import EvalSpec, TaskSpec, checked
from aftertune.tasks.pools import pools
from aftertune.tuning.callbacks import evaluation_mode, step_metrics
from aftertune.values import Tuning, WatchPoint

When = int | Literal["evaluate", "save"]
#: The name under which the trainer's state keeps the id of the tuning.
STATE = "aftertune"


class ForgettingCallback(TrainerCallback):  # type: ignore[misc]
    """A callback of a trainer that measures what its model forgets.

    trainer: a `transformers.Trainer`, such as TRL's `SFTTrainer`, whose log gets the results. tasks: name -> number of
    random items, or `TaskSpec`s, a target task among them. every: steps between two analyses; or "evaluate" or "save",
    for an analysis after each evaluation or checkpoint of the trainer. The last step is always analysed.
    margin: points; a drop within them is no forgetting. stop: end the training when a task is proven to be forgotten.
    ledger: its path or address; None: AFTERTUNE_LEDGER, else .aftertune/ledger.db. report: called with a line for each
    task, by default prints it on stderr. settings: further settings of the evaluation, as of `aftertune.evaluate`.

    Raises InputError for a wrong argument; at the start of the training also for a task that cannot be evaluated or a
    model that is not supported. A later analysis that fails is reported, and the training goes on.
    """

    def __init__(self, trainer: Any, tasks: Mapping[str, int] | Sequence[TaskSpec] | None = None, *,
                 every: When = 50, margin: float = 2.0, stop: bool = False, ledger: str | Path | None = None,
                 report: Callable[[str], None] | None = None, **settings: Any) -> None:
        if not isinstance(trainer, Trainer):
            raise InputError(f"the first argument is the trainer, found {type(trainer).__name__}: make the trainer "
                             'first, then trainer.add_callback(ForgettingCallback(trainer, {"hellaswag": 200}))')
        if not tasks:
            raise InputError('no tasks to watch; give names with numbers of items, for example {"hellaswag": 200}')
        if every not in ("evaluate", "save") and (not isinstance(every, int) or every < 1):
            raise InputError(f'every is {every!r}; allowed are a number of steps, "evaluate" and "save"')
        if not 0 < margin <= 100:
            raise InputError(f"margin is {margin!r}; allowed are points above 0, up to 100")
        for name in settings.keys() - set(SETTINGS):
            raise InputError(f"unknown setting {name!r}{nearest(name, list(SETTINGS))}; allowed: {', '.join(SETTINGS)}")
        if settings.get("engine", "packed") not in ("packed", "plain"):
            raise InputError(f"engine is {settings['engine']!r}; a model in memory is evaluated with packed or plain")
        specs = tuple(checked(TaskSpec, name=name, sample=count) for name, count in tasks.items()) if isinstance(
            tasks, Mapping) else tuple(tasks)
        self.trainer, self.every, self.margin, self.stop = trainer, every, margin, stop
        self.report = report or print_line
        self.ledger = None if ledger is None else locate(ledger)
        self.spec = checked(EvalSpec, model="the model in training", tasks=specs, **settings)
        self.steps: list[int] = []
        self.looks = 0
        self.evaluations: LiveEvaluations
        self.base: LiveAnswers
        self.last: LiveAnswers
        self.tuning: Tuning

    # --- Events of the trainer ---

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Evaluate the base."""
        self.looks = planned_looks(self.trainer, self.every)
        _check_supported(self.trainer)
        self.steps = self._on_first_process(self._begin, default=[])

    def on_step_end(self, _args: Any, state: Any, control: Any, **_: Any) -> None:
        """Analyse at every so many steps, and at the last one."""
        if isinstance(self.every, int) and (state.global_step % self.every == 0 or
                                            state.global_step >= state.max_steps):
            self._look(state.global_step, control)

    def on_evaluate(self, _args: Any, state: Any, control: Any, **_: Any) -> None:
        """Analyse after an evaluation of the trainer during the training."""
        if self.every == "evaluate" and self.trainer.is_in_train and state.global_step:
            self._look(state.global_step, control)

    def on_save(self, _args: Any, state: Any, control: Any, **_: Any) -> None:
        """Analyse after a checkpoint was saved."""
        if self.every == "save":
            self._look(state.global_step, control)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Analyse the weights at the end, which may be those of the best checkpoint, and finish the tuning."""
        best = args.load_best_model_at_end and state.best_model_checkpoint is not None
        step = (state.best_global_step if best else None) or state.global_step
        self._look(step, control)
        self._on_first_process(lambda: self._end(step))

    # --- What they do ---

    def _begin(self) -> list[int]:
        """Evaluate the base, and store the tuning; returns the steps that were analysed before the checkpoint."""
        trainer = self.trainer
        begun = trainer.state.stateful_callbacks.get(STATE) if trainer.state.global_step else None
        with Ledger(self.ledger) as ledger:
            resumed = stored_tuning(ledger, begun["attributes"]["tuning"] if begun else None)
        self.evaluations = LiveEvaluations(trainer, self.spec, self.ledger)
        with evaluation_mode(trainer.model):
            self.base = self.last = self.evaluations.start(resumed.base if resumed else None)
            for task in self.evaluations.tasks:
                refuse_own_unit(task, primary_values(task, self.base.answers[task.settings.task]))
            self.tuning = begun_tuning(trainer, self.base.identity, resumed, watch={
                "tasks": {task.settings.task: task.settings.n for task in self.evaluations.tasks},
                "every": self.every, "margin": self.margin, "stop": self.stop})
        trainer.state.stateful_callbacks[STATE] = {"args": {}, "attributes": {"tuning": self.tuning.id}}
        self._save()
        return sorted({point.step for point in self.tuning.watch})

    def _look(self, step: int, control: Any) -> None:
        """Analyse the model after ``step`` steps, once."""
        if step in self.steps:
            return
        self.steps.append(step)
        forgotten: list[str] = self._on_first_process(lambda: self._measure(step), default=[])
        if self.stop and forgotten:
            control.should_training_stop = True

    def _measure(self, step: int) -> list[str]:
        """Evaluate, report, log and store; returns the tasks that are proven to be forgotten.

        A failure is reported and stored as a note: it must not end a training of hours.
        """
        trainer = self.trainer
        try:
            with evaluation_mode(trainer.model):
                self.last = self.evaluations.model(f"{trainer.args.output_dir}/checkpoint-{step}")
        except AftertuneError as error:
            note = f"step {step} was not analysed: {error}"
            self.report(f"watch, {note}")
            self.tuning = replace(self.tuning, notes=(*self.tuning.notes, note))
            return []
        questions = list(pools(self.evaluations.tasks))
        points = [question_point(name, members, self.base.answers, self.last.answers, step=step, margin=self.margin,
                                 family=self.looks * len(questions)) for name, members in questions]
        if len(self.steps) > self.looks:  # the verdicts of the planned analyses have used up the error level
            points = [replace(point, verdict="undecided") for point in points]
            self.report(f"watch, step {step}: not tested, because all {self.looks} planned analyses were made before")
        for point in points:
            self.report(watch_text(point))
        self._log({name: value for point in points for name, value in _lost(point).items()})
        forgotten = [point.task for point in points if point.verdict == "lower"]
        notes = [f"stopped at step {step}: {', '.join(forgotten)} is proven to be forgotten by more than "
                 f"{self.margin:g} points"] if self.stop and forgotten and step < trainer.state.max_steps else []
        self.tuning = replace(self.tuning, watch=(*self.tuning.watch, *points), notes=(*self.tuning.notes, *notes),
                              states=(*self.tuning.states, self.last.identity.fingerprint))
        try:
            self._save()
        except AftertuneError as error:  # the next analysis, or the end, stores this one too
            self.report(f"watch, step {step} is not stored yet: {error}")
        return forgotten

    def _log(self, metrics: dict[str, float]) -> None:
        """Log at this step, beside the trainer's own log, which may still be due."""
        due = self.trainer.control.should_log
        Trainer.log(self.trainer, metrics)  # SFTTrainer.log would add its averages so far and start new ones
        self.trainer.control.should_log = due

    def _end(self, step: int) -> None:
        """Finish the tuning. A failure is reported: the weights are not saved yet, and must not be lost by it."""
        try:
            self._finish(step)
        except AftertuneError as error:
            self.report(f"watch: tuning {self.tuning.id} is not stored as done: {error}")

    def _finish(self, step: int) -> None:
        """Store the tuning as done, with the fingerprint of the weights at the end."""
        measured = self.last.identity.fingerprint
        if step not in {point.step for point in self.tuning.watch}:
            with evaluation_mode(self.trainer.model):
                measured = self.evaluations.identity(f"{self.trainer.args.output_dir}/checkpoint-{step}").fingerprint
        self.tuning = replace(self.tuning, status="done", result=measured,
                              provenance=finish(self.tuning.provenance) if self.tuning.provenance else None)
        self._save()
        if self.tuning.watch:
            self.report(f"watch: stored as tuning {self.tuning.id}; `aftertune compare {self.base.evaluation} "
                        f"{self.last.evaluation}` compares the last analysed step item by item")

    def _save(self) -> None:
        log = self.trainer.state.log_history
        steps = tuple({"step": float(entry["step"]), **step_metrics(entry)} for entry in log if "loss" in entry)
        with Ledger(self.ledger) as ledger:
            self.tuning = ledger.save_tuning(replace(self.tuning, steps=steps))

    def _on_first_process(self, work: Callable[[], Any], default: Any = None) -> Any:
        """Do this in the first process alone; the others wait for what it returns or raises."""
        import torch.distributed as processes

        several = processes.is_available() and processes.is_initialized() and processes.get_world_size() > 1
        result, error = default, None
        if self.trainer.is_world_process_zero():
            try:
                result = work()
            except AftertuneError as caught:
                if not several:
                    raise
                error = caught
        if not several:
            return result
        shared = [result, None if error is None else (type(error).__name__, str(error))]
        processes.broadcast_object_list(shared, src=0)
        if error is not None:
            raise error
        if shared[1] is not None:
            raise AftertuneError(f"the first process failed ({shared[1][0]}): {shared[1][1]}")
        return shared[0]


def _lost(point: WatchPoint) -> dict[str, float]:
    """What the trainer's log gets of an analysis: the points that were lost, with the ends of the interval. A change
    below 0 is a loss, also of a metric whose lower values are better."""
    name = f"forgetting/{point.task}"
    return {name: -100 * point.delta + 0.0, f"{name}/low": -100 * point.high, f"{name}/high": -100 * point.low}


def planned_looks(trainer: Any, every: When) -> int:
    """The largest number of analyses of a training that is not broken off, over which the verdicts are corrected.

    Raises InputError where the trainer never does what ``every`` waits for.
    """
    args, state = trainer.args, trainer.state
    extra = 1 if args.load_best_model_at_end else 0
    if isinstance(every, int):
        return math.ceil(int(state.max_steps) / every) + extra
    strategy, interval = str(args.eval_strategy.value), state.eval_steps
    if every == "save" and args.save_strategy.value != "best":
        strategy, interval = str(args.save_strategy.value), state.save_steps
    if strategy == "no":
        option = "eval_strategy" if every == "evaluate" else "save_strategy"
        raise InputError(f'every="{every}", but the trainer\'s {option} is "no", so nothing would be analysed; set it '
                         "to steps or epoch, or give every a number of steps")
    count = math.ceil(float(state.num_train_epochs)) if strategy == "epoch" else \
        int(state.max_steps) // max(int(interval), 1)
    return count + 1 + extra


def _check_supported(trainer: Any) -> None:
    """Raise InputError for a model whose weights are not whole on one device of the first process."""
    model = trainer.model
    devices = set((getattr(model, "hf_device_map", None) or {}).values())
    split = ("FSDP" if trainer.is_fsdp_enabled else "DeepSpeed" if trainer.is_deepspeed_enabled else
             "tensor parallelism" if getattr(model, "_tp_size", None) else
             f"a device map with {len(devices)} devices" if len(devices) > 1 else "")
    if split:
        raise InputError(f"ForgettingCallback cannot evaluate a model that {split} splits; train on one device or with "
                         "distributed data parallel, or evaluate the checkpoints afterwards: `aftertune checkpoints "
                         f"{trainer.args.output_dir} --base MODEL`")
