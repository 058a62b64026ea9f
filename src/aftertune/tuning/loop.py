"""Owns the training loop: TRL's SFTTrainer on rows that are already encoded and masked.

    steps = train(model, tokenizer, rows, Plan(…), Checkpoints(…), watch)      ({"step": 1, "loss": 1.93, …}, …)

The loop is the same for every method. Each optimizer step is told to the watcher as it happens; a loss that is not a
number ends the run and names its examples. A run that was broken goes on from its newest sealed checkpoint: the order
of the examples depends on seed and epoch alone, and the random numbers of dropout are in the checkpoint, so that on a
CPU with as many threads the weights come out bit by bit as those of an unbroken run.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aftertune.errors import AftertuneError
from aftertune.tuning.checkpoints import Checkpoints
from aftertune.tuning.encode import Row
from aftertune.tuning.loss import completion_nll

#: Called after each optimizer step with (step, total steps, metrics).
Watch = Callable[[int, int, Mapping[str, float]], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """The resolved settings of one training run. warmup: share of the steps; dtype: of the computation; save_seconds:
    between checkpoints, at least."""

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


def train(model: Any, tokenizer: Any, rows: list[Row], plan: Plan, checkpoints: Checkpoints,
          watch: Watch) -> tuple[dict[str, float], ...]:
    """Train ``model`` in place, from the newest checkpoint on where there is one; returns its log, a mapping per
    optimizer step.

    Raises AftertuneError, naming step and examples, where the loss is no longer a finite number; the last checkpoint
    stays.
    """
    from datasets import Dataset

    data = Dataset.from_list([{"input_ids": r.ids, "labels": r.labels} for r in rows])
    trainer = _trainer_class(rows)(
        model=model, args=_arguments(plan, checkpoints.folder), train_dataset=data, processing_class=tokenizer,
        callbacks=[_watcher(watch), _saver(checkpoints, plan)])
    for callback in ("PrinterCallback", "ProgressCallback"):
        trainer.callback_handler.callbacks = [
            c for c in trainer.callback_handler.callbacks if type(c).__name__ != callback]
    newest = checkpoints.newest()
    trainer.train(resume_from_checkpoint=str(newest) if newest else None)
    return tuple({"step": float(entry["step"]), **_metrics(entry)} for entry in trainer.state.log_history
                 if "loss" in entry)


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

    return SFTConfig(
        output_dir=str(folder), report_to=[], save_strategy="no", logging_steps=1,
        logging_nan_inf_filter=False, disable_tqdm=True, seed=plan.seed, data_seed=plan.seed,
        num_train_epochs=plan.epochs, max_steps=plan.max_steps or -1, learning_rate=plan.learning_rate,
        per_device_train_batch_size=plan.batch_size, gradient_accumulation_steps=plan.accumulation,
        warmup_steps=plan.warmup, weight_decay=plan.weight_decay, lr_scheduler_type="linear",
        optim="adamw_torch", max_grad_norm=1.0, use_cpu=plan.device == "cpu", bf16=plan.dtype == "bfloat16",
        fp16=plan.dtype == "float16", gradient_checkpointing=False, packing=False, max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True}, save_total_limit=2,
        dataloader_pin_memory=plan.device.startswith("cuda"),
    )


def _trainer_class(rows: Sequence[Row]) -> Any:
    """SFTTrainer for these rows; off CUDA with the completion's loss alone.

    There TRL projects every position of the prompt onto the vocabulary too, and once more in the backward
    pass: about 40 % of a step for a small model with a large vocabulary.
    """
    from trl import SFTTrainer

    class CompletionTrainer(SFTTrainer):  # type: ignore[misc]
        """SFTTrainer whose head sees only what the loss counts, whose order depends on seed and epoch alone, and which
        stops at a loss that is no number."""

        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False,
                         num_items_in_batch: Any = None) -> Any:
            if return_outputs or self.aux_loss_enabled or model.device.type == "cuda":
                found = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            else:
                nll, _ = completion_nll(model, inputs["input_ids"], inputs["attention_mask"], inputs["labels"])
                found = nll.sum() / (nll.numel() if num_items_in_batch is None else num_items_in_batch)
            loss = float(found[0] if return_outputs else found)
            if not math.isfinite(loss):
                raise AftertuneError(f"the loss at step {self.state.global_step + 1} of {self.state.max_steps} is "
                                     f"{loss}, in {_numbers(inputs, rows)}; {_after_failure(self.args)}")
            return found

        def _get_train_sampler(self, *_: Any) -> Any:
            return _order([len(row.ids) for row in rows], self.args)

    return CompletionTrainer


def _order(lengths: list[int], arguments: Any) -> Any:
    """A sampler that groups examples of like length, by seed and epoch."""
    import torch
    from transformers.trainer_pt_utils import get_length_grouped_indices

    class Order(torch.utils.data.Sampler):  # type: ignore[misc]
        """Another order in every epoch, the same in every process."""

        epoch = 0

        def __len__(self) -> int:
            return len(lengths)

        def __iter__(self) -> Iterator[int]:
            drawn = torch.Generator().manual_seed(arguments.seed * 1_000_003 + self.epoch)
            batch = arguments.train_batch_size * arguments.gradient_accumulation_steps
            return iter(get_length_grouped_indices(lengths, batch, generator=drawn))

        def set_epoch(self, epoch: int) -> None:
            self.epoch = epoch

    return Order()


def _numbers(inputs: Any, rows: Sequence[Row]) -> str:
    """Which training examples a batch holds, counted from 1, by their tokens."""
    mask = inputs["attention_mask"].bool()
    held = {tuple(ids[keep].tolist()) for ids, keep in zip(inputs["input_ids"], mask, strict=True)}
    found = [str(n) for n, row in enumerate(rows, 1) if tuple(row.ids) in held]
    return f"training example{'s' if len(found) > 1 else ''} {', '.join(found)}"


def _after_failure(arguments: Any) -> str:
    kept = sorted(Path(arguments.output_dir).glob("checkpoint-*"))
    where = f"the last good checkpoint is in {arguments.output_dir}" if kept else "there is no checkpoint yet"
    return f"{where}; lower learning_rate, now {arguments.learning_rate:g}, or train in float32"


def _metrics(logs: Mapping[str, Any]) -> dict[str, float]:
    return {"loss": float(logs["loss"]), "learning_rate": float(logs.get("learning_rate") or 0.0),
            "grad_norm": float(logs.get("grad_norm") or 0.0)}


def _saver(checkpoints: Checkpoints, plan: Plan) -> Any:
    """Asks for a checkpoint after so many seconds, and seals it once it is written."""
    from transformers import TrainerCallback

    class Saver(TrainerCallback):  # type: ignore[misc]
        """Time decides, not steps: a step takes milliseconds or minutes."""

        last = time.monotonic()

        def on_step_end(self, _arguments: Any, state: Any, control: Any, **_: Any) -> None:
            if time.monotonic() - self.last >= plan.save_seconds and state.global_step < state.max_steps:
                control.should_save = True

        def on_save(self, _arguments: Any, state: Any, _control: Any, **_: Any) -> None:
            checkpoints.seal(checkpoints.folder / f"checkpoint-{state.global_step}")
            self.last = time.monotonic()

    return Saver()


def _watcher(watch: Watch) -> Any:
    from transformers import TrainerCallback

    class Watcher(TrainerCallback):  # type: ignore[misc]
        """Tells the watcher, and stops at a gradient that is no number."""

        def on_log(self, *given: Any, logs: Any = None, **_: Any) -> None:
            if not logs or "loss" not in logs:  # the summary at the end
                return
            state = given[1]
            metrics = _metrics(logs)
            if not math.isfinite(metrics["loss"]) or not math.isfinite(metrics["grad_norm"]):
                raise AftertuneError(f"the loss at step {state.global_step} of {state.max_steps} is {metrics['loss']} "
                                     f"(gradient norm {metrics['grad_norm']}); {_after_failure(given[0])}")
            watch(state.global_step, state.max_steps, metrics)

    return Watcher()
