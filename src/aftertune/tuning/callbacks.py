"""Runs between the steps of a training: validation, early stopping, checkpoints and Ctrl-C.

    checkpoints = Checkpoints(Path("out/careful/checkpoints"), "t-4f2a…")
    control = RunControl(plan, hooks, checkpoints)
    trainer = CompletionTrainer(…, after_step=control.after_step, callbacks=[control.callback()])
    control.attach(trainer, checkpoints.newest())      # restores the state that a checkpoint holds
    with control.interruptible():
        trainer.train(…)
    control.save_finished()
    control.load_best_weights()

Each checkpoint (`aftertune.tuning.checkpoints`) has the trainer's files, the state of this module in ``course.json``
and, with validation, the best weights in ``best.safetensors``. The last one has no state of the optimizer: a run that
could not write its result, because the disk was full, takes the weights from there and does not train again.
"""

from __future__ import annotations

import contextlib
import json
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from aftertune.sources.cache import write_atomic
from aftertune.tuning.checkpoints import STATE, Checkpoints
from aftertune.tuning.kept import KeepPlan, KeptCheckpoints
from aftertune.values import CheckpointChoice, WatchPoint, restore

if TYPE_CHECKING:
    from aftertune.study import WatchSpec
    from aftertune.study.anchor import AnchorSetting
    from aftertune.tuning.early_warning import EarlyWarning

# --- Plan and hooks of a run ---

#: Called after each optimizer step with (step, total steps, metrics).
StepCallback = Callable[[int, int, Mapping[str, float]], None]
#: Called with the model in training; returns its mean validation loss.
Validate = Callable[[Any], float]
class Look(Protocol):
    """Evaluates the watched tasks with the model in training (`aftertune.forgetting_watch.ForgettingWatch`)."""

    def __call__(self, model: Any, step: int, looks: int) -> tuple[WatchPoint, ...]:
        """One point for each task at ``step``, one of ``looks`` looks. The call at step 0, when the model is still the
        base, returns nothing: it measures what the later looks are compared with."""
        ...

    def early(self, model: Any, step: int) -> tuple[WatchPoint, ...]:
        """One point for each task for the early warning. It is none of the looks: it is corrected for the number of
        tasks alone."""
        ...

    def report(self, model: Any, step: int) -> tuple[WatchPoint, ...]:
        """One point for each task on the half of the items that has no part in the choice of a checkpoint."""
        ...

    def settings(self) -> dict[str, Any]:
        """What decides the points: tasks, items and halves. It is part of a tuning's id if its weights depend on it."""
        ...


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """The resolved settings of one training run.

    dtype: of the computation. warmup: share of the steps. save_seconds: the least time between two checkpoints.
    early_stop: (steps between validations, validations without a better loss before the run stops). watch: tasks to
    evaluate during training. keep: which checkpoints are kept. backend: the package whose layers the model has, "peft"
    or "unsloth". anchor: what keeps the model near its base; None for nothing.
    """

    device: str
    dtype: str
    seed: int
    epochs: float
    max_steps: int | None
    learning_rate: float
    batch_size: int
    accumulation: int
    warmup: float
    weight_decay: float
    save_seconds: float = 300.0
    schedule: str = "linear"
    max_grad_norm: float = 1.0
    checkpointing: bool = False
    early_stop: tuple[int, int] | None = None
    watch: WatchSpec | None = None
    keep: KeepPlan | None = None
    backend: str = "peft"
    anchor: AnchorSetting | None = None

    @property
    def look_every(self) -> int | None:
        """Steps between two kept checkpoints: as the tasks are watched, else as the loss is validated."""
        return self.watch.every if self.watch else self.early_stop[0] if self.early_stop else None


def print_on_stderr(line: str) -> None:
    """Print a line on stderr."""
    print(line, file=sys.stderr, flush=True)


@dataclass(frozen=True, slots=True)
class Hooks:
    """Functions that a run calls: after each step, for a validation, and to evaluate tasks. kept: writes the
    checkpoints that are kept. early: warns in the first steps; say: prints its warning. on_look: gets all points of the
    watch so far, after each look and when a run continues."""

    on_step: StepCallback
    validate: Validate | None = None
    look: Look | None = None
    kept: KeptCheckpoints | None = None
    early: EarlyWarning | None = None
    say: Callable[[str], None] = print_on_stderr
    on_look: Callable[[Sequence[WatchPoint]], None] | None = None


# --- Control between steps ---


class RunControl:
    """The state of one run between its steps.

    stopped: why it ended before its last step, else "". finished: the checkpoint that it continues from is at the end
    of the training. losses: step -> validation loss. choice: the checkpoint that the plan's rule chose so far. warning:
    the early warning, "" for none.
    """

    def __init__(self, plan: TrainingPlan, hooks: Hooks, checkpoints: Checkpoints) -> None:
        from aftertune.engine.memory import HeapLimit

        self.plan, self.hooks, self.checkpoints = plan, hooks, checkpoints
        self.trainer: Any = None
        self.best: dict[str, Any] = {}
        self.best_loss, self.best_step, self.waited = float("inf"), 0, 0
        self.points: list[WatchPoint] = []
        self.losses: dict[int, float] = {}
        self.choice: CheckpointChoice | None = None
        self.stopped, self.interrupted, self.finished, self.warning = "", False, False, ""
        self._saved = time.monotonic()
        self._heap = HeapLimit()

    def attach(self, trainer: Any, checkpoint: Path | None) -> None:
        """Control ``trainer``, with the state that ``checkpoint`` holds if there is one."""
        self.trainer = trainer
        state = json.loads((checkpoint / STATE).read_text(encoding="utf-8")) if checkpoint else {}
        self.finished, self.stopped = bool(state.get("finished")), str(state.get("stopped", ""))
        self.warning = str(state.get("warning", ""))
        done = int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0
        if self.hooks.look is not None and not self.finished:
            with evaluation_mode(trainer.model):
                self.hooks.look(trainer.model, 0, 0)
        self._start_early(done)
        if self.hooks.kept is not None:
            self.hooks.kept.restore(done)
        if checkpoint is None:
            return
        trainer.splits = state["parts"]
        self.best_loss = float("inf") if state["best_loss"] is None else state["best_loss"]
        self.best_step, self.waited = state["best_step"], state["waited"]
        self.points = [restore(WatchPoint, point) for point in state.get("points", ())]
        self._report_points()
        self.losses = {int(step): loss for step, loss in state.get("losses", {}).items()}
        self.choice = restore(CheckpointChoice, state["choice"]) if state.get("choice") else None
        if (checkpoint / "best.safetensors").exists():
            from safetensors.torch import load_file

            self.best = load_file(checkpoint / "best.safetensors")

    def after_step(self, step: int, _metrics: Mapping[str, float]) -> dict[str, float]:
        """Validate and look at tasks if they are due at this step; both are due at the last step. Returns metrics."""
        metrics: dict[str, float] = {}
        early = self.plan.early_stop
        if early is not None and (step % early[0] == 0 or step >= self.trainer.state.max_steps):
            metrics["validation_loss"] = self._validate(step, early[1])
        watch = self.plan.watch
        if watch is not None and (step % watch.every == 0 or step >= self.trainer.state.max_steps):
            metrics |= self._look(step, watch)
        metrics |= self._warn(step)
        every = self.plan.look_every
        if every is not None and (step % every == 0 or step >= self.trainer.state.max_steps):
            self._keep(step)
        if self.stopped:
            self.trainer.control.should_training_stop = True
            self.trainer.control.should_save = False  # the next run would resume from a checkpoint here
        return metrics

    def _start_early(self, done: int) -> None:
        """Store what the base predicts, if the early warning still looks after ``done`` steps. The model is the
        base."""
        early, total = self.hooks.early, total_steps(self.trainer)
        if early is not None and not self.finished and (at := early.step(total)) is not None and done < at:
            with evaluation_mode(self.trainer.model):
                early.start(self.trainer.model, total)

    def _warn(self, step: int) -> dict[str, float]:
        """Look for the early warning if it is due at this step; returns the drift as a metric of the step."""
        early, look = self.hooks.early, self.hooks.look
        if early is None or step != early.step(self.trainer.state.max_steps):
            return {}
        with evaluation_mode(self.trainer.model):
            points = look.early(self.trainer.model, step) if look is not None and self.plan.watch else ()
            finding = early.check(self.trainer.model, step, points)
        if finding is None:
            return {}
        self.warning = finding.text
        if finding.text:
            self.hooks.say(finding.text)
        return {"early_kl": finding.kl}

    def _look(self, step: int, watch: WatchSpec) -> dict[str, float]:
        """Evaluate the watched tasks; returns the change of each as a metric of this step."""
        assert self.hooks.look is not None
        with evaluation_mode(self.trainer.model):
            points = self.hooks.look(self.trainer.model, step, -(-self.trainer.state.max_steps // watch.every))
        self.points += points
        self._report_points()
        forgotten = [point.task for point in points if point.verdict == "lower" and not point.is_target]
        if watch.stop and forgotten and step < self.trainer.state.max_steps:
            self.stopped = (f"stopped at step {step}: {', '.join(forgotten)} is proven to be forgotten by more than "
                            f"{watch.margin:g} points")
        return {f"watch_{point.task}": point.delta for point in points}

    def _report_points(self) -> None:
        """Hand on the points of the watch so far, if there are any."""
        if self.points and self.hooks.on_look is not None:
            self.hooks.on_look(self.points)

    def _keep(self, step: int) -> None:
        """Keep the weights of this step, if the plan says so, and choose among all that were measured. A new choice is
        measured on the other half of the items at once, while its weights are in memory."""
        plan, kept = self.plan.keep, self.hooks.kept
        if plan is None or kept is None:
            return
        with evaluation_mode(self.trainer.model):
            if plan.rule is not None and (choice := plan.rule.choose(self.points, self.losses)):
                report = self.choice.report if self.choice else ()
                if choice.step == step and self.hooks.look is not None:
                    report = self.hooks.look.report(self.trainer.model, step)
                self.choice = replace(choice, report=report)
            kept.add(self.trainer.model, step)
        kept.prune(self.choice.step if self.choice else None)

    def reserve(self) -> None:
        """Take the disk space of all checkpoints that are still to come. Raises StorageError if there is not enough."""
        plan, kept, every = self.plan.keep, self.hooks.kept, self.plan.look_every
        if plan is not None and kept is not None and every is not None:
            kept.reserve(self.trainer.model, plan.most(-(-self.trainer.state.max_steps // every)))
        self.checkpoints.reserve(self.trainer.model, copies=2 if self.plan.early_stop else 1)

    def release(self) -> None:
        """Give the reserved disk space back."""
        if self.hooks.kept is not None:
            self.hooks.kept.release()
        self.checkpoints.release()

    def _validate(self, step: int, patience: int) -> float:
        """The validation loss. Keeps a copy of the best weights, and stops the run after ``patience`` rounds without a
        better loss."""
        assert self.hooks.validate is not None
        loss = self.losses[step] = self.hooks.validate(self.trainer.model)
        if loss < self.best_loss:
            self.best_loss, self.best_step, self.waited = loss, step, 0
            self.best = {n: p.detach().cpu().clone() for n, p in self.trainer.model.named_parameters()
                         if p.requires_grad}
        else:
            self.waited += 1
        if self.waited >= patience and step < self.trainer.state.max_steps:
            self.stopped = f"stopped early at step {step}: the validation loss did not fall in {patience} rounds"
        return loss

    @property
    def step(self) -> int:
        """The step of the weights that are handed on."""
        if self.choice is not None:
            return self.choice.step
        return self.best_step if self.best else int(self.trainer.state.global_step)

    def load_best_weights(self) -> None:
        """Copy the weights with the best validation loss into the model, if there was a validation.

        The weights that a rule chose are in the folder of their checkpoint.
        """
        import torch

        with torch.no_grad():
            for name, parameter in self.trainer.model.named_parameters():
                if name in self.best:
                    parameter.copy_(self.best[name])

    def notes(self) -> Iterator[str]:
        """Notes on memory, the early warning and on how the run ended. They are stored with the tuning."""
        yield from filter(None, [self.warning, self.hooks.early.note if self.hooks.early else ""])
        if self.trainer.splits > 1:
            yield (f"out of memory: each batch was split in {self.trainer.splits}; the effective batch size is "
                   "unchanged")
        if self.choice is not None:
            if self.stopped:
                yield self.stopped
        elif self.stopped:  # a run of an older version says it already
            yield self.stopped if "the weights are" in self.stopped else \
                f"{self.stopped}; the weights are those of step {self.step}"
        elif self.best and self.best_step < self.trainer.state.global_step:
            yield f"the weights are those of step {self.best_step}, which had the lowest validation loss"

    def callback(self) -> Any:
        """The trainer's callback. Checkpoints are due by the clock, because a step takes milliseconds or minutes."""
        from transformers import TrainerCallback

        control = self

        class BetweenSteps(TrainerCallback):  # type: ignore[misc]
            """Requests and seals checkpoints, and calls the step hook."""

            def on_train_begin(self, *_: Any, **__: Any) -> None:
                control.reserve()

            def on_step_end(self, _arguments: Any, state: Any, flags: Any, **_: Any) -> None:
                control._heap.check()
                due = time.monotonic() - control._saved >= control.plan.save_seconds
                if state.global_step < state.max_steps and (due or control.interrupted):
                    flags.should_save = True
                    flags.should_training_stop |= control.interrupted

            def on_log(self, _arguments: Any, state: Any, _flags: Any, logs: Any = None, **_: Any) -> None:
                if logs and "loss" in logs:  # not the summary at the end
                    control.hooks.on_step(state.global_step, state.max_steps, step_metrics(logs))

            def on_save(self, _arguments: Any, state: Any, _flags: Any, **_: Any) -> None:
                control.save(control.checkpoints.folder / f"checkpoint-{state.global_step}")

        return BetweenSteps()

    def save_finished(self) -> None:
        """Save the weights at the end of the training as a checkpoint, in the disk space that was kept for it."""
        self.release()
        self.trainer.args.save_only_model = True
        self.trainer._save_checkpoint(self.trainer.model, trial=None)
        self.save(self.checkpoints.folder / f"checkpoint-{self.trainer.state.global_step}", finished=True)

    def restore_finished(self, checkpoint: Path) -> None:
        """Take the weights and the history of the steps from a checkpoint at the end of the training."""
        from transformers import TrainerState

        self.trainer._load_from_checkpoint(str(checkpoint))
        self.trainer.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))

    def save(self, checkpoint: Path, *, finished: bool = False) -> None:
        """Add the state of this object to a checkpoint of the trainer, and seal it."""
        from safetensors.torch import save_file

        if self.best:
            save_file(self.best, checkpoint / "best.safetensors")
        write_atomic(checkpoint / STATE, json.dumps({
            "parts": self.trainer.splits, "best_loss": self.best_loss if self.best else None,
            "best_step": self.best_step, "waited": self.waited,
            "points": [asdict(point) for point in self.points], "finished": finished, "stopped": self.stopped,
            "warning": self.warning, "losses": self.losses, "choice": asdict(self.choice) if self.choice else None}))
        self.checkpoints.seal(checkpoint, self.plan.device)
        self._saved = time.monotonic()

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Ctrl-C or SIGTERM ends the run after the current step, with a checkpoint; a second one ends it at once.

        Raises KeyboardInterrupt, whose message says how to resume.
        """
        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread can handle signals
            return

        def handle(number: int, _frame: Any) -> None:
            if self.interrupted:
                raise KeyboardInterrupt("stopped at once; the last checkpoint is kept; run the same command again to "
                                        "resume")
            self.interrupted = True
            print(f"{signal.Signals(number).name}: stopping after this step, with a checkpoint; send it again to stop "
                  "at once", file=sys.stderr, flush=True)

        previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
        state = self.trainer.state
        if self.interrupted and not self.stopped and state.global_step < state.max_steps:
            raise KeyboardInterrupt(f"stopped after step {state.global_step} of {state.max_steps}; its checkpoint is "
                                    "kept; run the same command again to resume")


def total_steps(trainer: Any) -> int:
    """The number of steps that a trainer will do, as transformers counts them."""
    arguments = trainer.args
    if arguments.max_steps > 0:
        return int(arguments.max_steps)
    batches = math.ceil(len(trainer.train_dataset) / arguments.train_batch_size)
    steps = max(math.ceil(batches / arguments.gradient_accumulation_steps), 1)
    total: int = math.ceil(arguments.num_train_epochs * steps)
    return total


@contextlib.contextmanager
def evaluation_mode(model: Any) -> Iterator[None]:
    """Put the model in evaluation mode; the mode of each module and the state of all random number generators are
    restored, and memory that is free again is returned to the system, so that the steps do not add to it."""
    import random

    import numpy as np
    import torch

    from aftertune.engine.memory import trim_heap

    modes, python, numbers = [(m, m.training) for m in model.modules()], random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            model.eval()
            yield
        finally:
            for module, training in modes:
                module.training = training
            random.setstate(python)
            np.random.set_state(numbers)
            trim_heap()


def step_metrics(logs: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a step's log that are stored."""
    return {key: float(value) for key, value in logs.items()
            if key not in ("epoch", "step") and isinstance(value, int | float)}
