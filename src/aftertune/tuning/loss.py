"""Owns the completion loss of examples: how surprised a model is by the right answer, in nats per token.

    before = completion_losses(model, rows, Batching(pad=2, dtype="bfloat16"))     one float per row
    held_out = compare_losses(before, after)         HeldOut(n=71, before=1.9, after=0.1, low=-1.9, high=-1.7)
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from aftertune.stats import paired_mean
from aftertune.tuning.encode import IGNORED, Row
from aftertune.values import HeldOut


@dataclass(frozen=True, slots=True)
class Batching:
    """How rows go through the model. pad: token id that fills short rows; dtype: that of the computation."""

    pad: int
    dtype: str
    size: int = 8


def computing(device: str, dtype: str) -> AbstractContextManager[Any]:
    """The context in which a model computes in ``dtype``: autocast below float32."""
    import torch

    if dtype == "float32":
        return nullcontext()
    context: AbstractContextManager[Any] = torch.autocast(device, dtype=getattr(torch, dtype))
    return context


def completion_losses(model: Any, rows: Sequence[Row], batching: Batching) -> list[float]:
    """Mean negative log-likelihood of each row's completion, in nats per token, in the order of ``rows``.

    The head sees only the positions that predict a completion token. The model's mode is left as it was.
    """
    import torch

    was_training = model.training
    model.eval()
    losses = [0.0] * len(rows)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
    try:
        with torch.inference_mode(), computing(model.device.type, batching.dtype):
            for start in range(0, len(order), batching.size):
                batch = order[start:start + batching.size]
                for place, loss in zip(batch, _batch_losses(model, [rows[i] for i in batch], batching.pad),
                                       strict=True):
                    losses[place] = loss
    finally:
        model.train(was_training)
    return losses


def _batch_losses(model: Any, rows: list[Row], pad: int) -> list[float]:
    """Right-padded rows [B, L] -> loss per row."""
    import torch

    longest = max(len(r.ids) for r in rows)
    ids = torch.tensor([r.ids + [pad] * (longest - len(r.ids)) for r in rows], device=model.device)
    mask = torch.tensor([[1] * len(r.ids) + [0] * (longest - len(r.ids)) for r in rows], device=model.device)
    labels = torch.tensor([r.labels + [IGNORED] * (longest - len(r.ids)) for r in rows], device=model.device)
    nll, row_of = completion_nll(model, ids, mask, labels)
    return [float(nll[row_of == i].mean()) for i in range(len(rows))]


def completion_nll(model: Any, ids: Any, mask: Any, labels: Any) -> tuple[Any, Any]:
    """Tensors [B, L] -> nats per completion token [N], row by row, and the row of each [N].

    Only positions whose next label counts reach the head: a hook in front of it keeps the logits small, for
    every architecture and under PEFT too.
    """
    import torch

    wanted = labels[:, 1:]
    keep = torch.zeros_like(labels, dtype=torch.bool)
    keep[:, :-1] = wanted != IGNORED
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda _, args: (args[0][keep][None],))
    try:
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[0].float()  # [N, V]
    finally:
        hook.remove()
    nll = torch.nn.functional.cross_entropy(logits, wanted[wanted != IGNORED], reduction="none")
    return nll, keep.nonzero()[:, 0]


def by_example(losses: Sequence[float], rows: Sequence[Row]) -> list[float]:
    """Losses of rows as losses of examples, in their order: where an example has several rows, per token of them."""
    sums: dict[int, list[float]] = {}
    for loss, row in zip(losses, rows, strict=True):
        count = sum(label != IGNORED for label in row.labels[1:])
        total = sums.setdefault(row.example, [0.0, 0.0])
        total[0] += loss * count
        total[1] += count
    return [total / count for total, count in sums.values()]


def compare_losses(before: Sequence[float], after: Sequence[float]) -> HeldOut:
    """Mean losses over examples and the 95 % paired t interval of after minus before."""
    change = paired_mean([a - b for a, b in zip(after, before, strict=True)])
    low, high = change.interval()
    return HeldOut(n=len(before), before=sum(before) / len(before), after=sum(after) / len(after),
                   low=low, high=high)
