"""Measures the completion loss of examples: nats per learned token, before and after a fine-tune.

    before = example_losses(model, rows, Batching(pad=2, dtype="bfloat16"))        one float per example
    held_out = compare_losses(before, after)         HeldOut(n=71, before=1.9, after=0.1, low=-1.9, high=-1.7)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aftertune.errors import AftertuneError
from aftertune.stats import paired_mean
from aftertune.tuning.tokenize import IGNORED, EncodedRow
from aftertune.values import HeldOut

if TYPE_CHECKING:
    from aftertune.tuning.batching import BatchLayout


@dataclass(frozen=True, slots=True)
class Batching:
    """How rows run through the model. pad: token id of the padding; dtype: of the computation; size: rows in a batch;
    layout: padded rows if None."""

    pad: int
    dtype: str
    size: int = 8
    layout: BatchLayout | None = None


#: An error names at most this many examples.
MAX_NAMED = 8


def example_losses(model: Any, rows: Sequence[EncodedRow], batching: Batching) -> list[float]:
    """The loss of each example, in their order.

    Raises AftertuneError, with the names of the examples, if a loss is not a finite number.
    """
    losses = completion_losses(model, rows, batching)
    bad = list(dict.fromkeys(row.where or f"example {row.example}" for row, loss in zip(rows, losses, strict=True)
                             if not math.isfinite(loss)))
    if bad:
        more = f" and {len(bad) - MAX_NAMED} more" if len(bad) > MAX_NAMED else ""
        raise AftertuneError(f"the measured loss is not a finite number for {', '.join(bad[:MAX_NAMED])}{more}; check "
                             "the model for damaged weights, compute in float32 (--dtype), or lower learning_rate")
    return by_example(losses, rows)


def completion_losses(model: Any, rows: Sequence[EncodedRow], batching: Batching) -> list[float]:
    """Mean negative log-likelihood of each row's learned tokens, in nats per token, in the order of ``rows``.

    The head sees only the positions that predict a learned token. The model's mode is restored.
    """
    import torch

    from aftertune.tuning.batching import Padded, token_losses

    layout = batching.layout or Padded(batching.pad, batching.dtype)
    losses = [0.0] * len(rows)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
    for start in range(0, len(order), batching.size):
        batch = order[start:start + batching.size]
        nats, row_of = token_losses(layout, model, [rows[i] for i in batch])
        for number, index in enumerate(batch):
            losses[index] = float(nats[row_of == number].mean(dtype=torch.float32))
    return losses


def by_example(losses: Sequence[float], rows: Sequence[EncodedRow]) -> list[float]:
    """The losses of examples from those of their rows, in order: the mean over all learned tokens of an example."""
    sums: dict[int, list[float]] = {}
    for loss, row in zip(losses, rows, strict=True):
        count = sum(label != IGNORED for label in row.labels[1:])
        total = sums.setdefault(row.example, [0.0, 0.0])
        total[0] += loss * count
        total[1] += count
    return [total / count for total, count in sums.values()]


def compare_losses(before: Sequence[float], after: Sequence[float]) -> HeldOut:
    """Mean losses over examples, and the 95 % paired t interval of after minus before."""
    change = paired_mean([a - b for a, b in zip(after, before, strict=True)])
    low, high = change.interval()
    return HeldOut(n=len(before), before=sum(before) / len(before), after=sum(after) / len(after),
                   low=low, high=high)
