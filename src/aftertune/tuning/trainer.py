"""Trains a model with TRL's SFTTrainer on rows that are already encoded and masked.

    data = TrainingData(rows, layout)
    result = train(model, tokenizer, data, TrainingPlan(…), Checkpoints(…), Hooks(on_step))
    result.steps                                           ({"step": 1, "loss": 1.93, …}, …)

The loop is the same for every method. Batches run through the model as `aftertune.tuning.batching` says. Their order
depends on seed and epoch alone, and a checkpoint holds the random state of dropout. So a run that was interrupted, and
resumes from its newest checkpoint, ends on a CPU with the same weights, bit by bit, given the same number of threads.

A loss that is not a finite number ends the run, and the error names the training examples. When memory runs out, the
micro-batch is split in two, the gradient of the whole step is computed again, and later steps keep the split: the
weights change as they would have without it.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.trainer_pt_utils import get_length_grouped_indices
from trl import SFTTrainer

from aftertune.engine.memory import is_out_of_memory
from aftertune.errors import AftertuneError, ResourceError
from aftertune.sources.library_errors import disk_errors, quiet
from aftertune.tuning.anchor import Anchor
from aftertune.tuning.batching import ANCHORED, BatchLayout, Padded, Predictions, loss_and_predictions
from aftertune.tuning.callbacks import Hooks, RunControl, TrainingPlan, step_metrics
from aftertune.tuning.checkpoints import Checkpoints
from aftertune.tuning.tokenize import EncodedRow
from aftertune.values import CheckpointChoice, WatchPoint

#: Called after each optimizer step with its number and metrics; returns further metrics of that step.
AfterStep = Callable[[int, Mapping[str, float]], Mapping[str, float]]

# --- The trainer ---


class CompletionTrainer(SFTTrainer):  # type: ignore[misc]
    """SFTTrainer on encoded rows.

    splits: the number of parts of a micro-batch, 1 until memory runs out. own_loss: the loss is the layout's, not
    TRL's. memory_error: makes the error for one row that does not fit, from its number of tokens. anchor: keeps the
    model near its base; its term is logged apart from the loss.
    """

    own_loss = True

    def __init__(self, data: TrainingData, after_step: AfterStep, memory_error: Callable[[int], AftertuneError],
                 anchor: Anchor | None = None, **options: Any) -> None:
        from datasets import Dataset

        count_experts(options["model"].config.get_text_config())
        examples = Dataset.from_list([{"input_ids": r.ids, "labels": r.labels, **(anchor.row(r) if anchor else {})}
                                      for r in data.rows])
        super().__init__(train_dataset=examples, data_collator=data.layout.collate, **options)
        self.rows, self.layout, self.after_step, self.memory_error = data.rows, data.layout, after_step, memory_error
        self.model_accepts_loss_kwargs = True  # our loss is divided by the learned tokens of the whole step
        self.splits, self.anchor = 1, anchor
        self._step: list[Any] = []
        self._anchored, self._terms = 0, dict[int, float]()
        self._base: Predictions | None = None
        self._parts: tuple[Any, Any] = (None, None)
        self._tokens, self._started = 0, time.monotonic()

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if ANCHORED not in self._signature_columns:
            self._signature_columns.append(ANCHORED)

    def get_batch_samples(self, *arguments: Any) -> Any:
        """The micro-batches of one step, and the number of learned tokens in all of them."""
        samples = super().get_batch_samples(*arguments)
        self._step, self._done = list(samples[0]), 0
        self._tokens += sum(_token_count(batch) for batch in self._step)
        self._anchored, self._terms = sum(int(batch[ANCHORED].sum()) for batch in self._step if ANCHORED in batch), {}
        return samples

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        """Loss and gradient of one micro-batch, split into as many parts as memory requires."""
        self._done += 1
        while True:
            try:
                loss, self._terms[self._done] = self._split_step(model, inputs, num_items_in_batch)
                if self.anchor is not None and self._done == len(self._step):
                    scaler = self.accelerator.scaler
                    self._terms[0] = self.anchor.after_backward(model, scaler.get_scale() if scaler else 1.0)
                return loss
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            rows = max(len(_split_batch(batch, len(self.rows))) for batch in self._step)
            if self.splits >= rows:
                raise self.memory_error(max(int(batch["input_ids"].shape[-1]) for batch in self._step))
            self.splits *= 2
            self._recompute_gradients(model, num_items_in_batch)

    def _split_step(self, model: Any, inputs: Any, items: Any) -> tuple[Any, float]:
        """The loss of a micro-batch, and the anchor's term beside it."""
        losses, term = [], 0.0
        for part in _split_batch(inputs, self.splits):
            self._base = self.anchor.base(model, self.layout, part) if self.anchor is not None else None
            with self.layout.forward_context(model, part):
                loss = super().training_step(model, part, items)
            if self._base is not None:
                loss, term = self._parts[0], term + float(self._parts[1])
            losses.append(loss)
        self._base = None
        return torch.stack(losses).sum(), term

    def _recompute_gradients(self, model: Any, items: Any) -> None:
        """Compute the gradient of this step's finished micro-batches again: the failed one may have added to it."""
        model.zero_grad()
        for batch in self._step[:self._done - 1]:
            self._split_step(model, batch, items)

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False,
                     num_items_in_batch: Any = None) -> Any:
        """Nats of the learned tokens, divided by the learned tokens of the whole step; with an anchor, its term is
        added.

        Raises AftertuneError if that is not a finite number.
        """
        inputs = dict(inputs)
        marks = inputs.pop(ANCHORED, None)
        tuned = None
        if return_outputs or self.aux_loss_enabled or not self.own_loss:
            result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            if self._base is not None:
                tuned = self.layout.predict(model, inputs, marks.bool())
        elif self._base is None:
            total, nats, _ = self.layout.loss(model, inputs)
            result = total / (len(nats) if num_items_in_batch is None else num_items_in_batch)
        else:
            (total, nats), tuned = loss_and_predictions(self.layout, model, inputs, marks.bool())
            result = total / (len(nats) if num_items_in_batch is None else num_items_in_batch)
        if tuned is not None and self.anchor is not None:
            term = self.anchor.term(self._base, tuned, self._anchored)
            self._parts = result.detach(), term.detach()
            result = result + term
        loss = float(result[0] if return_outputs else result)
        if not math.isfinite(loss):
            raise AftertuneError(f"the loss at step {self.state.global_step + 1} of {self.state.max_steps} is "
                                 f"{loss}, in {self._example_names([inputs])}; {failure_advice(self.args)}")
        return result

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add tokens, speed and the metrics of ``after_step`` to the log of a step."""
        if "loss" in logs:
            now = time.monotonic()
            logs |= {"tokens": self._tokens, "tokens_per_second": self._tokens / max(now - self._started, 1e-9)}
            norm = logs.get("grad_norm", 0.0)
            if not math.isfinite(logs["loss"]) or not math.isfinite(norm):
                raise AftertuneError(f"the loss at step {self.state.global_step} of {self.state.max_steps} is "
                                     f"{logs['loss']} (gradient norm {norm}), in {self._example_names(self._step)}; "
                                     f"{failure_advice(self.args)}")
            if self.anchor is not None:
                logs |= self.anchor.metrics(sum(self._terms.values()), self._anchored)
            logs |= self.after_step(self.state.global_step, logs)
            self._tokens, self._started = 0, time.monotonic()
        super().log(logs, start_time)

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """No card of TRL in a checkpoint: nobody publishes it, and the card's template is compiled each time."""

    def _save(self, *arguments: Any, **settings: Any) -> None:
        """The files of a checkpoint, without PEFT's card for the same reason."""
        self.model.create_or_update_model_card = lambda *_: None
        try:
            super()._save(*arguments, **settings)
        finally:
            del self.model.create_or_update_model_card

    def _get_train_sampler(self, *_: Any) -> Any:
        return EpochOrder([len(row.ids) for row in self.rows], self.args, grouped=isinstance(self.layout, Padded))

    def _example_names(self, batches: Sequence[Any]) -> str:
        """The training examples in these batches, found by their tokens: file and line, or the number from 1."""
        texts = {tuple(row["input_ids"][0][row["keep"]].tolist()) for batch in batches for row in _single_rows(batch)}
        names = dict.fromkeys(row.where or str(n) for n, row in enumerate(self.rows, 1) if tuple(row.ids) in texts)
        return f"training example{'s' if len(names) > 1 else ''} {', '.join(names)}"


class EpochOrder(torch.utils.data.Sampler):  # type: ignore[misc]
    """Examples in a new random order in each epoch, from seed and epoch alone. grouped: examples of similar length stay
    together, which saves padding."""

    epoch = 0

    def __init__(self, lengths: list[int], arguments: Any, *, grouped: bool) -> None:
        self.lengths, self.arguments, self.grouped = lengths, arguments, grouped

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.arguments.seed * 1_000_003 + self.epoch)
        if not self.grouped:
            return iter(torch.randperm(len(self.lengths), generator=generator).tolist())
        batch = self.arguments.train_batch_size * self.arguments.gradient_accumulation_steps
        return iter(get_length_grouped_indices(self.lengths, batch, generator=generator))

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


def count_experts(config: Any) -> None:
    """Give the config of a mixture of experts the name by which TRL's load-balancing loss reads their number."""
    for other in ("num_local_experts", "n_routed_experts"):
        if getattr(config, "num_experts", None) is None and getattr(config, other, None) is not None:
            config.num_experts = getattr(config, other)


def failure_advice(arguments: Any) -> str:
    """Where the last checkpoint of a failed run is, and what to do next."""
    checkpoints = sorted(Path(arguments.output_dir).glob("checkpoint-*"))
    where = f"the last good checkpoint is in {arguments.output_dir}" if checkpoints else "there is no checkpoint yet"
    return f"{where}; lower learning_rate, now {arguments.learning_rate:g}, or train in float32"


# --- Splitting a batch into rows ---


def _token_count(batch: Mapping[str, Any]) -> int:
    """Tokens in a batch without padding."""
    mask = batch.get("attention_mask")
    return int(batch["input_ids"].numel() if mask is None else mask.sum())


def _row_boundaries(batch: Mapping[str, Any]) -> list[int]:
    """Where each row of a batch starts, and where the last one ends: token offsets for rows end to end, else row
    numbers."""
    if "position_ids" not in batch:
        return list(range(len(batch["input_ids"]) + 1))
    starts = (batch["position_ids"][0] == 0).nonzero()[:, 0].tolist()
    return [*starts, batch["position_ids"].shape[1]]


def _split_batch(batch: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    """``count`` smaller batches with about the same number of rows each; at most one per row."""
    boundaries = _row_boundaries(batch)
    rows = len(boundaries) - 1
    count = min(count, rows)
    cuts = [boundaries[rows * n // count] for n in range(count + 1)]
    end_to_end = "position_ids" in batch
    return [{k: v[:, a:b] if end_to_end else v[a:b] for k, v in batch.items() if torch.is_tensor(v)}
            for a, b in itertools.pairwise(cuts)]


def _single_rows(batch: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each row as a batch, with ``keep`` [length]: True where there is a token and no padding."""
    rows = _split_batch(batch, len(_row_boundaries(batch)) - 1)
    return [{**row, "keep": row["attention_mask"][0].bool() if "attention_mask" in row
             else torch.ones(row["input_ids"].shape[1], dtype=torch.bool)} for row in rows]


# --- A run ---


@dataclass(frozen=True, slots=True)
class TrainingData:
    """The rows to train on, how batches of them are laid out, and what keeps the model near its base."""

    rows: Sequence[EncodedRow]
    layout: BatchLayout
    anchor: Anchor | None = None


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """The result of a run. steps: the metrics of each optimizer step; notes: on memory and on how it ended; points:
    what was measured on watched tasks; choice: the checkpoint that the plan's rule chose; step: of the weights to hand
    on."""

    steps: tuple[dict[str, float], ...]
    notes: tuple[str, ...]
    points: tuple[WatchPoint, ...] = ()
    choice: CheckpointChoice | None = None
    step: int | None = None


def train(model: Any, tokenizer: Any, data: TrainingData, plan: TrainingPlan, checkpoints: Checkpoints,
          hooks: Hooks) -> TrainingResult:
    """Train ``model`` in place, from the newest checkpoint if there is one.

    A run whose checkpoint is at the end of the training takes the weights from there. Raises AftertuneError, with step
    and examples, if the loss is not a finite number; the last checkpoint is kept. Raises ResourceError if one example
    does not fit into memory, StorageError if a checkpoint cannot be written, and KeyboardInterrupt after Ctrl-C.
    """
    control = RunControl(plan, hooks, checkpoints)
    trainer = CompletionTrainer(
        data, control.after_step, lambda tokens: _memory_error(plan, tokens), data.anchor, model=model,
        args=_arguments(plan, checkpoints.folder), processing_class=tokenizer, callbacks=[control.callback()])
    trainer.own_loss = plan.backend == "unsloth" or not plan.device.startswith("cuda")
    for callback in ("PrinterCallback", "ProgressCallback"):
        trainer.callback_handler.callbacks = [
            c for c in trainer.callback_handler.callbacks if type(c).__name__ != callback]
    newest = checkpoints.newest()
    control.attach(trainer, newest)
    if newest is not None and control.finished:
        control.restore_finished(newest)
    else:
        with disk_errors(checkpoints.folder, "run the same command again: it continues from its last checkpoint"):
            try:
                with control.interruptible():
                    trainer.train(resume_from_checkpoint=str(newest) if newest else None)
                control.save_finished()
            finally:
                control.release()
    control.load_best_weights()
    steps = tuple({"step": float(entry["step"]), **step_metrics(entry)} for entry in trainer.state.log_history
                  if "loss" in entry)
    return TrainingResult(steps, tuple(control.notes()), tuple(control.points), control.choice, control.step)


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Hide the warnings, notices and progress bars of the libraries; their errors are still shown."""
    loggers = [logging.getLogger(name) for name in ("bitsandbytes", "transformers", "trl", "accelerate")]
    levels = [logger.level for logger in loggers]
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _arguments(plan: TrainingPlan, folder: Path) -> Any:
    from trl import SFTConfig

    mixed = plan.dtype if plan.device != "cpu" else ""  # on a CPU the layout sets the dtype
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


def _memory_error(plan: TrainingPlan, tokens: int) -> ResourceError:
    """The error for one example that does not fit into memory."""
    from aftertune.engine.devices import free_memory

    remedies = ["a smaller --max-length", "--method lora or qlora instead of full", "a smaller model"]
    if not plan.checkpointing:
        remedies.insert(0, "--gradient-checkpointing")
    return ResourceError(f"out of memory with one example of up to {tokens} tokens in a batch ("
                         f"{free_memory(plan.device) / 2**30:.1f} GiB are free on {plan.device}); try "
                         f"{', '.join(remedies)}")
