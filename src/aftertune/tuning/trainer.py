"""Owns the trainer: TRL's SFTTrainer on rows that are already encoded, with our loss, order and answer to short memory.

Its batches go through a model as `aftertune.tuning.lines` says. Their order depends on seed and epoch alone. A loss
that is no number ends the run and names its examples. Where memory runs out, the micro-batch is halved, the gradient of
the whole step made again, and the halves kept from then on: the weights move as they would have.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers.trainer_pt_utils import get_length_grouped_indices
from trl import SFTTrainer

from aftertune.engine.memory import out_of_memory
from aftertune.errors import AftertuneError
from aftertune.tuning.encode import Row
from aftertune.tuning.lines import Lines, Padded

#: After each optimizer step, with its metrics; what it returns is kept with them.
After = Callable[[int, Mapping[str, float]], Mapping[str, float]]


class CompletionTrainer(SFTTrainer):  # type: ignore[misc]
    """SFTTrainer on these rows. parts: in how many a micro-batch is cut, 1 until memory runs out; own_loss: that of the
    lines, not TRL's."""

    own_loss = True

    def __init__(self, rows: Sequence[Row], lines: Lines, after: After, short: Callable[[int], AftertuneError],
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
        return Order([len(row.ids) for row in self.rows], self.args, grouped=isinstance(self.lines, Padded))

    def _places(self, batches: Sequence[Any]) -> str:
        """Which training examples these batches hold, by their tokens: file and line, or the number from 1."""
        held = {tuple(part["input_ids"][0][part["keep"]].tolist()) for batch in batches for part in _single(batch)}
        found = dict.fromkeys(row.where or str(n) for n, row in enumerate(self.rows, 1) if tuple(row.ids) in held)
        return f"training example{'s' if len(found) > 1 else ''} {', '.join(found)}"


class Order(torch.utils.data.Sampler):  # type: ignore[misc]
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
