"""Owns the training loop: TRL's SFTTrainer on rows that are already encoded and masked.

    steps = train(model, tokenizer, rows, Plan(…), watch)      ({"step": 1, "loss": 1.93, …}, …)

The loop is the same for every method. Each optimizer step is told to the watcher as it happens; a loss that
is not a number ends the run at that step.
"""

from __future__ import annotations

import contextlib
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from aftertune.errors import AftertuneError
from aftertune.tuning.encode import Row
from aftertune.tuning.loss import completion_nll

#: Called after each optimizer step with (step, total steps, metrics).
Watch = Callable[[int, int, Mapping[str, float]], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """The resolved settings of one training run. warmup: share of the steps; dtype: of the computation."""

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


def train(model: Any, tokenizer: Any, rows: list[Row], plan: Plan,
          watch: Watch) -> tuple[dict[str, float], ...]:
    """Train ``model`` in place; returns its log, a mapping per optimizer step.

    Raises AftertuneError, naming the step, where the loss is no longer a finite number.
    """
    from datasets import Dataset

    data = Dataset.from_list([{"input_ids": r.ids, "labels": r.labels, "length": len(r.ids)}
                              for r in rows])
    log: list[dict[str, float]] = []
    with TemporaryDirectory(prefix="aftertune-") as folder:
        trainer = _trainer_class()(
            model=model, args=_arguments(plan, Path(folder)), train_dataset=data, processing_class=tokenizer,
            callbacks=[_watcher(log, watch, plan)])
        for callback in ("PrinterCallback", "ProgressCallback"):
            trainer.callback_handler.callbacks = [
                c for c in trainer.callback_handler.callbacks if type(c).__name__ != callback]
        trainer.train()
    return tuple(log)


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
        dataset_kwargs={"skip_prepare_dataset": True}, train_sampling_strategy="group_by_length",
        length_column_name="length", dataloader_pin_memory=plan.device.startswith("cuda"),
    )


def _trainer_class() -> Any:
    """SFTTrainer; off CUDA with the completion's loss alone.

    There TRL projects every position of the prompt onto the vocabulary too, and once more in the backward
    pass: about 40 % of a step for a small model with a large vocabulary.
    """
    from trl import SFTTrainer

    class CompletionTrainer(SFTTrainer):  # type: ignore[misc]
        """SFTTrainer whose head sees only what the loss counts."""

        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False,
                         num_items_in_batch: Any = None) -> Any:
            if return_outputs or self.aux_loss_enabled or model.device.type == "cuda":
                return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            nll, _ = completion_nll(model, inputs["input_ids"], inputs["attention_mask"], inputs["labels"])
            return nll.sum() / (nll.numel() if num_items_in_batch is None else num_items_in_batch)

    return CompletionTrainer


def _watcher(log: list[dict[str, float]], watch: Watch, plan: Plan) -> Any:
    from transformers import TrainerCallback

    class Watcher(TrainerCallback):  # type: ignore[misc]
        """Keeps the log, tells the watcher, and stops at a loss that is no number."""

        def on_log(self, *given: Any, logs: Any = None, **_: Any) -> None:
            if not logs or "loss" not in logs:  # the summary at the end
                return
            state = given[1]
            loss, norm = float(logs["loss"]), float(logs.get("grad_norm") or 0.0)
            if not math.isfinite(loss) or not math.isfinite(norm):
                raise AftertuneError(f"the loss at step {state.global_step} of {state.max_steps} is {loss} "
                                     f"(gradient norm {norm}); nothing was saved; lower learning_rate, "
                                     f"now {plan.learning_rate:g}, or train in float32")
            rate = float(logs.get("learning_rate") or 0.0)
            metrics = {"loss": loss, "learning_rate": rate, "grad_norm": norm}
            log.append({"step": float(state.global_step), **metrics})
            watch(state.global_step, state.max_steps, metrics)

    return Watcher()
