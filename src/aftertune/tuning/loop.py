"""Owns the training loop: TRL's SFTTrainer on rows that are already encoded and masked.

    trained = train(model, tokenizer, Feed(rows, lines), Plan(…), Checkpoints(…), Hooks(told))
    trained.steps                                          ({"step": 1, "loss": 1.93, …}, …)

The loop is the same for every method. Each optimizer step is told to the watcher as it happens. A run that was broken
goes on from its newest sealed checkpoint: the order of the examples depends on seed and epoch alone, and the random
numbers of dropout are in the checkpoint, so that on a CPU with as many threads the weights come out bit by bit as those
of an unbroken run.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aftertune.errors import ResourceError
from aftertune.tuning.checkpoints import Checkpoints
from aftertune.tuning.course import Course, Hooks, Plan, metrics_of
from aftertune.tuning.encode import Row
from aftertune.values import WatchPoint

if TYPE_CHECKING:
    from aftertune.tuning.lines import Lines


@dataclass(frozen=True, slots=True)
class Feed:
    """What is trained on, and how it goes through the model."""

    rows: Sequence[Row]
    lines: Lines


@dataclass(frozen=True, slots=True)
class Trained:
    """What a run came to: a mapping per optimizer step; what is to be told of memory and of its end; looks at tasks."""

    steps: tuple[dict[str, float], ...]
    notes: tuple[str, ...]
    points: tuple[WatchPoint, ...] = ()


def train(model: Any, tokenizer: Any, feed: Feed, plan: Plan, checkpoints: Checkpoints, hooks: Hooks) -> Trained:
    """Train ``model`` in place, from the newest checkpoint on where there is one.

    Raises AftertuneError, naming step and examples, where the loss is no longer a finite number; the last checkpoint
    stays. Raises ResourceError where one example does not fit into memory, and KeyboardInterrupt after a checkpoint.
    """
    from aftertune.tuning.trainer import CompletionTrainer

    course = Course(plan, hooks, checkpoints)
    trainer = CompletionTrainer(
        list(feed.rows), feed.lines, course.after, lambda tokens: _short(plan, tokens), model=model,
        args=_arguments(plan, checkpoints.folder), processing_class=tokenizer, callbacks=[course.callback()])
    trainer.own_loss = plan.backend == "unsloth" or not plan.device.startswith("cuda")
    for callback in ("PrinterCallback", "ProgressCallback"):
        trainer.callback_handler.callbacks = [
            c for c in trainer.callback_handler.callbacks if type(c).__name__ != callback]
    newest = checkpoints.newest()
    course.join(trainer, newest)
    with course.interruptible():
        trainer.train(resume_from_checkpoint=str(newest) if newest else None)
    course.end()
    steps = tuple({"step": float(entry["step"]), **metrics_of(entry)} for entry in trainer.state.log_history
                  if "loss" in entry)
    return Trained(steps, tuple(course.notes()), tuple(course.points))


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Without the libraries' own warnings and notices meanwhile: errors still come through."""
    loggers = [logging.getLogger(name) for name in ("bitsandbytes", "transformers", "trl", "accelerate")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _arguments(plan: Plan, folder: Path) -> Any:
    from trl import SFTConfig

    mixed = plan.dtype if plan.device != "cpu" else ""  # on a CPU `lines` sees to the dtype
    return SFTConfig(
        output_dir=str(folder), report_to=[], save_strategy="no", logging_steps=1,
        logging_nan_inf_filter=False, disable_tqdm=True, seed=plan.seed, data_seed=plan.seed,
        num_train_epochs=plan.epochs, max_steps=plan.max_steps or -1, learning_rate=plan.learning_rate,
        per_device_train_batch_size=plan.batch_size, gradient_accumulation_steps=plan.accumulation,
        warmup_steps=plan.warmup, weight_decay=plan.weight_decay, lr_scheduler_type=plan.schedule,
        optim="adamw_torch_fused" if plan.device.startswith(("cpu", "cuda")) else "adamw_torch",
        max_grad_norm=plan.max_grad_norm, use_cpu=plan.device == "cpu", bf16=mixed == "bfloat16",
        fp16=mixed == "float16", gradient_checkpointing=plan.checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if plan.checkpointing else None,
        packing=False, max_length=None, dataset_kwargs={"skip_prepare_dataset": True}, save_total_limit=2,
        dataloader_pin_memory=plan.device.startswith("cuda"),
    )


def _short(plan: Plan, tokens: int) -> ResourceError:
    """The error of a run in which one example does not fit into memory."""
    from aftertune.engine.devices import free_memory

    ways = ["a smaller --max-length", "--method lora or qlora instead of full", "a smaller model"]
    if not plan.checkpointing:
        ways.insert(0, "--gradient-checkpointing")
    return ResourceError(f"out of memory with one example of up to {tokens} tokens in a batch ("
                         f"{free_memory(plan.device) / 2**30:.1f} GiB are free on {plan.device}); try "
                         f"{', '.join(ways)}")
