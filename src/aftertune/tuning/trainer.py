"""Owns the training loop: TRL's SFTTrainer on rows that are already encoded and masked.

    trained = train(model, tokenizer, Feed(rows, lines), Plan(…), Checkpoints(…), Hooks(told))
    trained.steps                                          ({"step": 1, "loss": 1.93, …}, …)

The loop is the same for every method. Each optimizer step is told to the watcher as it happens. A run that was broken
goes on from its newest sealed checkpoint: the order of the examples depends on seed and epoch alone, and the random
numbers of dropout are in the checkpoint, so that on a CPU with as many threads the weights come out bit by bit as those
of an unbroken run.

Owns the trainer: TRL's SFTTrainer on rows that are already encoded, with our loss, order and answer to short memory.

Its batches go through a model as `aftertune.tuning.batching` says. Their order depends on seed and epoch alone. A loss
that is no number ends the run and names its examples. Where memory runs out, the micro-batch is halved, the gradient of
the whole step made again, and the halves kept from then on: the weights move as they would have.
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

from aftertune.engine.memory import out_of_memory
from aftertune.errors import AftertuneError, ResourceError
from aftertune.tuning.batching import Lines, Padded
from aftertune.tuning.callbacks import Checkpoints, Hooks, RunControl, TrainingPlan, metrics_of
from aftertune.tuning.tokenize import EncodedRow
from aftertune.values import WatchPoint

#: After each optimizer step, with its metrics; what it returns is kept with them.
After = Callable[[int, Mapping[str, float]], Mapping[str, float]]


class CompletionTrainer(SFTTrainer):  # type: ignore[misc]
    """SFTTrainer on these rows. parts: in how many a micro-batch is cut, 1 until memory runs out; own_loss: that of the
    lines, not TRL's."""

    own_loss = True

    def __init__(self, rows: Sequence[EncodedRow], lines: Lines, after: After, short: Callable[[int], AftertuneError],
                 **others: Any) -> None:
        from datasets import Dataset

        data = Dataset.from_list([{"input_ids": r.ids, "labels": r.labels} for r in rows])
        super().__init__(train_dataset=data, data_collator=lines.collate, **others)
        self.rows, self.lines, self.after, self.short = rows, lines, after, short
        self.model_accepts_loss_kwargs = True  # ours is scaled by the tokens of the whole step
        self.parts = 1
        self._step: list[Any] = []
        self._tokens, self._begun = 0, time.monotonic()

    def get_batch_samples(self, *given: Any) -> Any:
        """The micro-batches of one step, and the learned tokens in all of them."""
        found = super().get_batch_samples(*given)
        self._step, self._done = list(found[0]), 0
        self._tokens += sum(_size(batch) for batch in self._step)
        return found

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        """Loss and gradient of one micro-batch, in as many parts as memory asks for."""
        self._done += 1
        while True:
            try:
                return self._in_parts(model, inputs, num_items_in_batch)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
            rows = max(len(_cut(batch, len(self.rows))) for batch in self._step)
            if self.parts >= rows:
                raise self.short(max(int(batch["input_ids"].shape[-1]) for batch in self._step))
            self.parts *= 2
            self._again(model, num_items_in_batch)

    def _in_parts(self, model: Any, inputs: Any, items: Any) -> Any:
        losses = []
        for part in _cut(inputs, self.parts):
            with self.lines.through(model, part):
                losses.append(super().training_step(model, part, items))
        return torch.stack(losses).sum()

    def _again(self, model: Any, items: Any) -> None:
        """The gradient of this step's finished micro-batches anew: what is there may hold half of the failed one."""
        model.zero_grad()
        for batch in self._step[:self._done - 1]:
            self._in_parts(model, batch, items)

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False,
                     num_items_in_batch: Any = None) -> Any:
        """Nats of the learned tokens over those of the whole step. Raises AftertuneError where that is no number."""
        if return_outputs or self.aux_loss_enabled or not self.own_loss:
            found = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        else:
            total, each, _ = self.lines.loss(model, inputs)
            found = total / (len(each) if num_items_in_batch is None else num_items_in_batch)
        loss = float(found[0] if return_outputs else found)
        if not math.isfinite(loss):
            raise AftertuneError(f"the loss at step {self.state.global_step + 1} of {self.state.max_steps} is "
                                 f"{loss}, in {self._places([inputs])}; {after_failure(self.args)}")
        return found

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """A step's metrics, with those that are ours."""
        if "loss" in logs:
            now = time.monotonic()
            logs |= {"tokens": self._tokens, "tokens_per_second": self._tokens / max(now - self._begun, 1e-9)}
            norm = logs.get("grad_norm", 0.0)
            if not math.isfinite(logs["loss"]) or not math.isfinite(norm):
                raise AftertuneError(f"the loss at step {self.state.global_step} of {self.state.max_steps} is "
                                     f"{logs['loss']} (gradient norm {norm}), in {self._places(self._step)}; "
                                     f"{after_failure(self.args)}")
            logs |= self.after(self.state.global_step, logs)
            self._tokens, self._begun = 0, time.monotonic()
        super().log(logs, start_time)

    def _get_train_sampler(self, *_: Any) -> Any:
        return EpochOrder([len(row.ids) for row in self.rows], self.args, grouped=isinstance(self.lines, Padded))

    def _places(self, batches: Sequence[Any]) -> str:
        """Which training examples these batches hold, by their tokens: file and line, or the number from 1."""
        held = {tuple(part["input_ids"][0][part["keep"]].tolist()) for batch in batches for part in _single(batch)}
        found = dict.fromkeys(row.where or str(n) for n, row in enumerate(self.rows, 1) if tuple(row.ids) in held)
        return f"training example{'s' if len(found) > 1 else ''} {', '.join(found)}"


class EpochOrder(torch.utils.data.Sampler):  # type: ignore[misc]
    """Examples in another order in every epoch, the same in every process; those of like length together where rows
    are padded."""

    epoch = 0

    def __init__(self, lengths: list[int], arguments: Any, *, grouped: bool) -> None:
        self.lengths, self.arguments, self.grouped = lengths, arguments, grouped

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        drawn = torch.Generator().manual_seed(self.arguments.seed * 1_000_003 + self.epoch)
        if not self.grouped:
            return iter(torch.randperm(len(self.lengths), generator=drawn).tolist())
        batch = self.arguments.train_batch_size * self.arguments.gradient_accumulation_steps
        return iter(get_length_grouped_indices(self.lengths, batch, generator=drawn))

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


def after_failure(arguments: Any) -> str:
    """What is left of a failed run, and what to do."""
    kept = sorted(Path(arguments.output_dir).glob("checkpoint-*"))
    where = f"the last good checkpoint is in {arguments.output_dir}" if kept else "there is no checkpoint yet"
    return f"{where}; lower learning_rate, now {arguments.learning_rate:g}, or train in float32"


def _size(batch: Mapping[str, Any]) -> int:
    """Tokens of real text in a batch."""
    mask = batch.get("attention_mask")
    return int(batch["input_ids"].numel() if mask is None else mask.sum())


def _edges(batch: Mapping[str, Any]) -> list[int]:
    """Where the rows of a batch begin, and its end: along its only dimension that has rows."""
    if "position_ids" not in batch:
        return list(range(len(batch["input_ids"]) + 1))
    starts = (batch["position_ids"][0] == 0).nonzero()[:, 0].tolist()
    return [*starts, batch["position_ids"].shape[1]]


def _cut(batch: Mapping[str, Any], parts: int) -> list[dict[str, Any]]:
    """A batch as ``parts`` smaller ones, of as many rows each as can be; fewer where it has fewer rows."""
    edges = _edges(batch)
    rows = len(edges) - 1
    parts = min(parts, rows)
    ends = [edges[rows * n // parts] for n in range(parts + 1)]
    flat = "position_ids" in batch
    return [{k: v[:, a:b] if flat else v[a:b] for k, v in batch.items() if torch.is_tensor(v)}
            for a, b in itertools.pairwise(ends)]


def _single(batch: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Its rows alone, with ``keep``: which of a row's places hold a token."""
    rows = _cut(batch, len(_edges(batch)) - 1)
    return [{**row, "keep": row["attention_mask"][0].bool() if "attention_mask" in row
             else torch.ones(row["input_ids"].shape[1], dtype=torch.bool)} for row in rows]


@dataclass(frozen=True, slots=True)
class Feed:
    """What is trained on, and how it goes through the model."""

    rows: Sequence[EncodedRow]
    lines: Lines


@dataclass(frozen=True, slots=True)
class Trained:
    """What a run came to: a mapping per optimizer step; what is to be told of memory and of its end; looks at tasks."""

    steps: tuple[dict[str, float], ...]
    notes: tuple[str, ...]
    points: tuple[WatchPoint, ...] = ()


def train(model: Any, tokenizer: Any, feed: Feed, plan: TrainingPlan, checkpoints: Checkpoints,
          hooks: Hooks) -> Trained:
    """Train ``model`` in place, from the newest checkpoint on where there is one.

    Raises AftertuneError, naming step and examples, where the loss is no longer a finite number; the last checkpoint
    stays. Raises ResourceError where one example does not fit into memory, and KeyboardInterrupt after a checkpoint.
    """

    course = RunControl(plan, hooks, checkpoints)
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


def _arguments(plan: TrainingPlan, folder: Path) -> Any:
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


def _short(plan: TrainingPlan, tokens: int) -> ResourceError:
    """The error of a run in which one example does not fit into memory."""
    from aftertune.engine.devices import free_memory

    ways = ["a smaller --max-length", "--method lora or qlora instead of full", "a smaller model"]
    if not plan.checkpointing:
        ways.insert(0, "--gradient-checkpointing")
    return ResourceError(f"out of memory with one example of up to {tokens} tokens in a batch ("
                         f"{free_memory(plan.device) / 2**30:.1f} GiB are free on {plan.device}); try "
                         f"{', '.join(ways)}")
