"""Owns the completion loss of examples: how surprised a model is by the right answer, in nats per token.

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
    from aftertune.tuning.batching import Lines


@dataclass(frozen=True, slots=True)
class Batching:
    """How rows go through the model. pad: token id that fills short rows; dtype: that of the computation; lines: the
    way they go, padded rows where none is given."""

    pad: int
    dtype: str
    size: int = 8
    lines: Lines | None = None


#: So many examples are named.
NAMED = 8


def example_losses(model: Any, rows: Sequence[EncodedRow], batching: Batching) -> list[float]:
    """Loss of each example, in their order. Raises AftertuneError, naming the examples, where one is no number."""
    losses = completion_losses(model, rows, batching)
    bad = list(dict.fromkeys(row.where or f"example {row.example}" for row, loss in zip(rows, losses, strict=True)
                             if not math.isfinite(loss)))
    if bad:
        more = f" and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
        raise AftertuneError(f"the loss that is measured is no number for {', '.join(bad[:NAMED])}{more}; look for "
                             "damaged weights in the model, compute in float32 (--dtype), or lower learning_rate")
    return by_example(losses, rows)


def completion_losses(model: Any, rows: Sequence[EncodedRow], batching: Batching) -> list[float]:
    """Mean negative log-likelihood of each row's completion, in nats per token, in the order of ``rows``.

    The head sees only the positions that predict a completion token. The model's mode is left as it was.
    """
    import torch

    from aftertune.tuning.batching import Padded, per_token

    lines = batching.lines or Padded(batching.pad, batching.dtype)
    losses = [0.0] * len(rows)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
    for start in range(0, len(order), batching.size):
        batch = order[start:start + batching.size]
        nats, row_of = per_token(lines, model, [rows[i] for i in batch])
        for number, place in enumerate(batch):
            losses[place] = float(nats[row_of == number].mean(dtype=torch.float32))
    return losses


def by_example(losses: Sequence[float], rows: Sequence[EncodedRow]) -> list[float]:
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
