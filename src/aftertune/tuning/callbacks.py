"""Owns what happens between the steps of a training run: validation with the best weights kept, early stop,
checkpoints by the clock, and an end at Ctrl-C that loses nothing.

    course = Course(plan, hooks, checkpoints)
    trainer = CompletionTrainer(…, after=course.after, callbacks=[course.callback()])
    course.join(trainer, newest)               goes on with what a checkpoint says of it
    trainer.train(…)
    course.end()                               the best weights are in the model

Its state lies in every checkpoint: ``course.json``, and the best weights as ``best.safetensors``.

Owns what a broken tuning goes on from: the trainer's checkpoints, each sealed by a manifest that is written last.

    folder = Checkpoints(Path("out/careful/checkpoints"), "t-4f2a…")
    folder.newest()                    checkpoint-120, where all its files are what the manifest says; or None
    folder.seal(Path("…/checkpoint-130"))

Only a checkpoint whose files all have the sha256 that its manifest names is read again; what was half written when the
process died, or changed since, is thrown away.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from hashlib import file_digest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aftertune.sources.cache import write_atomic
from aftertune.values import WatchPoint

if TYPE_CHECKING:
    from aftertune.study import WatchSpec

MANIFEST = "sealed.json"


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """The checkpoints of one tuning, by its id."""

    folder: Path
    tuning: str

    def newest(self) -> Path | None:
        """The newest checkpoint that is whole; the others are removed."""
        found = sorted(self.folder.glob("checkpoint-*"), key=_step)
        whole = [path for path in found if self._is_whole(path)]
        for path in found:
            if path not in whole:
                shutil.rmtree(path, ignore_errors=True)
        return whole[-1] if whole else None

    def seal(self, checkpoint: Path) -> None:
        """Write the manifest of a checkpoint that is complete."""
        files = {name: _sha256(checkpoint / name) for name in _names(checkpoint)}
        write_atomic(checkpoint / MANIFEST, json.dumps({"tuning": self.tuning, "files": files}, indent=1))

    def remove(self) -> None:
        """Take all of them away: the tuning is done."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _is_whole(self, checkpoint: Path) -> bool:
        try:
            manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
            return bool(manifest["tuning"] == self.tuning and manifest["files"] == {
                name: _sha256(checkpoint / name) for name in _names(checkpoint)})
        except (OSError, ValueError, KeyError, TypeError):
            return False


def _names(checkpoint: Path) -> list[str]:
    return sorted(str(p.relative_to(checkpoint)) for p in checkpoint.rglob("*") if p.is_file() and p.name != MANIFEST)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def _step(path: Path) -> int:
    last = path.name.rpartition("-")[2]
    return int(last) if last.isdigit() else -1


#: Called after each optimizer step with (step, total steps, metrics).
StepCallback = Callable[[int, int, Mapping[str, float]], None]
#: Called with the model in training: its mean validation loss.
Validate = Callable[[Any], float]
#: Called with the model, the step and the number of all looks: what is seen of tasks. At step 0, where the model is
#: still the base, nothing is told: that is what the others are held against.
Look = Callable[[Any, int, int], tuple[WatchPoint, ...]]


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """The resolved settings of one training run. warmup: share of the steps; dtype: of the computation; save_seconds:
    between checkpoints, at least; early_stop: (steps between validations, validations without a better loss before the
    run stops); watch: tasks to evaluate during training; backend: the package whose layers the model has."""

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
    backend: str = "peft"


@dataclass(frozen=True, slots=True)
class Hooks:
    """Who is told, and what is asked of the model on the way."""

    told: StepCallback
    validate: Validate | None = None
    look: Look | None = None


class RunControl:
    """One run between its steps. stopped: why it ended before its last step, "" where it did not."""

    def __init__(self, plan: TrainingPlan, hooks: Hooks, checkpoints: Checkpoints) -> None:
        self.plan, self.hooks, self.checkpoints = plan, hooks, checkpoints
        self.trainer: Any = None
        self.best: dict[str, Any] = {}
        self.best_loss, self.best_step, self.waited = float("inf"), 0, 0
        self.points: list[WatchPoint] = []
        self.stopped, self.interrupted = "", False
        self._saved = time.monotonic()

    def join(self, trainer: Any, checkpoint: Path | None) -> None:
        """Follow ``trainer``; with a checkpoint, from where that one was."""
        self.trainer = trainer
        if self.hooks.look is not None:
            with undisturbed(trainer.model):
                self.hooks.look(trainer.model, 0, 0)
        if checkpoint is None:
            return
        state = json.loads((checkpoint / "course.json").read_text(encoding="utf-8"))
        trainer.parts = state["parts"]
        self.best_loss = float("inf") if state["best_loss"] is None else state["best_loss"]
        self.best_step, self.waited = state["best_step"], state["waited"]
        self.points = [WatchPoint(**point) for point in state.get("points", ())]
        if (checkpoint / "best.safetensors").exists():
            from safetensors.torch import load_file

            self.best = load_file(checkpoint / "best.safetensors")

    def after(self, step: int, _metrics: Mapping[str, float]) -> dict[str, float]:
        """What validation says after a step; it runs where its turn has come, and at the last step."""
        found: dict[str, float] = {}
        early = self.plan.early_stop
        if early is not None and (step % early[0] == 0 or step >= self.trainer.state.max_steps):
            found["validation_loss"] = self._validated(step, early[1])
        watch = self.plan.watch
        if watch is not None and (step % watch.every == 0 or step >= self.trainer.state.max_steps):
            found |= self._looked(step, watch)
        if self.stopped:
            self.trainer.control.should_training_stop = True
            self.trainer.control.should_save = False  # a checkpoint here would be gone on from
        return found

    def _looked(self, step: int, watch: WatchSpec) -> dict[str, float]:
        """What is seen of each task at this step, as metrics of it."""
        assert self.hooks.look is not None
        with undisturbed(self.trainer.model):
            seen = self.hooks.look(self.trainer.model, step, -(-self.trainer.state.max_steps // watch.every))
        self.points += seen
        lost = [point.task for point in seen if point.verdict == "lower"]
        if watch.stop and lost and step < self.trainer.state.max_steps:
            self.stopped = (f"stopped at step {step}: {', '.join(lost)} is proven to be forgotten by more than "
                            f"{watch.margin:g} points; the weights are those of this step")
        return {f"watch_{point.task}": point.delta for point in seen}

    def _validated(self, step: int, patience: int) -> float:
        assert self.hooks.validate is not None
        loss = self.hooks.validate(self.trainer.model)
        if loss < self.best_loss:
            self.best_loss, self.best_step, self.waited = loss, step, 0
            self.best = {n: p.detach().cpu().clone() for n, p in self.trainer.model.named_parameters()
                         if p.requires_grad}
        else:
            self.waited += 1
        if self.waited >= patience and step < self.trainer.state.max_steps:
            self.stopped = (f"stopped early at step {step}: the validation loss did not fall in {patience} rounds; the "
                            f"weights are those of step {self.best_step}")
        return loss

    def end(self) -> None:
        """Put the best weights into the model, where validation chose some."""
        import torch

        with torch.no_grad():
            for name, parameter in self.trainer.model.named_parameters():
                if name in self.best:
                    parameter.copy_(self.best[name])

    def notes(self) -> Iterator[str]:
        """What is to be told of memory and of how the run ended."""
        if self.trainer.parts > 1:
            yield (f"memory ran out: from then on batches went through in {self.trainer.parts} parts, as many examples "
                   "to a step as before")
        if self.stopped:
            yield self.stopped
        elif self.best and self.best_step < self.trainer.state.global_step:
            yield f"the weights are those of step {self.best_step}, where the validation loss was least"

    def callback(self) -> Any:
        """The trainer's callback: time decides on checkpoints, not steps, which take milliseconds or minutes."""
        from transformers import TrainerCallback

        course = self

        class Between(TrainerCallback):  # type: ignore[misc]
            """Asks for checkpoints, seals them, and tells of steps."""

            def on_step_end(self, _arguments: Any, state: Any, control: Any, **_: Any) -> None:
                due = time.monotonic() - course._saved >= course.plan.save_seconds
                if state.global_step < state.max_steps and (due or course.interrupted):
                    control.should_save = True
                    control.should_training_stop |= course.interrupted

            def on_log(self, _arguments: Any, state: Any, _control: Any, logs: Any = None, **_: Any) -> None:
                if logs and "loss" in logs:  # not the summary at the end
                    course.hooks.told(state.global_step, state.max_steps, metrics_of(logs))

            def on_save(self, _arguments: Any, state: Any, _control: Any, **_: Any) -> None:
                course.save(course.checkpoints.folder / f"checkpoint-{state.global_step}")

        return Between()

    def save(self, checkpoint: Path) -> None:
        """Add the course's own state to a checkpoint, and seal it."""
        from safetensors.torch import save_file

        if self.best:
            save_file(self.best, checkpoint / "best.safetensors")
        write_atomic(checkpoint / "course.json", json.dumps({
            "parts": self.trainer.parts, "best_loss": self.best_loss if self.best else None,
            "best_step": self.best_step, "waited": self.waited,
            "points": [asdict(point) for point in self.points]}))
        self.checkpoints.seal(checkpoint)
        self._saved = time.monotonic()

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM end the run after the step under way, with a checkpoint; a second one at once.

        Raises KeyboardInterrupt, which says how to go on.
        """
        if threading.current_thread() is not threading.main_thread():
            yield  # only there can signals be taken
            return

        def pressed(number: int, _frame: Any) -> None:
            if self.interrupted:
                raise KeyboardInterrupt("stopped at once; the last checkpoint is kept: run the same command again to "
                                        "go on")
            self.interrupted = True
            print(f"{signal.Signals(number).name}: a checkpoint after this step, then the end; again: at once",
                  file=sys.stderr, flush=True)

        before = {number: signal.signal(number, pressed) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        state = self.trainer.state
        if self.interrupted and not self.stopped and state.global_step < state.max_steps:
            raise KeyboardInterrupt(f"stopped after step {state.global_step} of {state.max_steps}; its checkpoint is "
                                    "kept: run the same command again to go on")


@contextlib.contextmanager
def undisturbed(model: Any) -> Iterator[None]:
    """The model in evaluation mode meanwhile; mode and random numbers are as they were afterwards."""
    import random

    import numpy as np
    import torch

    training, python, numbers = model.training, random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            model.eval()
            yield
        finally:
            model.train(training)
            random.setstate(python)
            np.random.set_state(numbers)


def metrics_of(logs: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a step that are kept."""
    return {key: float(value) for key, value in logs.items()
            if key not in ("epoch", "step") and isinstance(value, int | float)}
