"""Keeps a model near its base while it trains: a term that is added to the loss, or to its gradient.

    anchor = make_anchor(setting, model, "lora", rows)      before the first step, while the model is the base
    anchor.row(rows[0])                                     what a row gives to a batch
    base = anchor.base(model, layout, batch)                what the base predicts, before the forward pass
    term = anchor.term(base, tuned, tokens)                 added to the loss of a batch
    anchor.after_backward(model, scale)                     at the last batch of a step

``kl``: weight x the mean over tokens of KL(P || Q) = sum of P log(P / Q), in nats, where P is what the base predicts
and Q what the model in training predicts. It is the loss of distillation from the base (Li and Hoiem 2016, "Learning
without Forgetting", arXiv:1606.09282), and the direction in which `aftertune.drift` measures. (RLHF has the other
one, KL(Q || P), on the model's own samples.) The tokens are all of the replayed rows, prompts and answers; without
replay those of the prompts, because the answers are what the model has to learn. The base is the model with its adapter
off, without dropout: no second copy. For PiSSA, whose start takes a part out of the weights of the base, it is the
model with its adapter as it started; for a full fine-tune it is a second copy of the weights.

``l2``: weight / 2 x ||w - w0||^2 over all trained tensors, w0 those of the base (L2-SP: Li, Grandvalet and Davoine
2018, arXiv:1802.01483, without its term for new layers). Its gradient, weight x (w - w0), is added to that of the loss,
so that the optimizer scales both.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from aftertune.errors import InputError
from aftertune.methods import METHODS
from aftertune.sources.adapter_loading import without_adapter
from aftertune.study.anchor import AnchorSetting
from aftertune.study.data import ADVISED_ANSWERS
from aftertune.tuning.batching import ANCHORED, Batch, BatchLayout, Predictions, rows_with
from aftertune.tuning.tokenize import IGNORED, EncodedRow

#: Logits of the divergence that are in memory at a time, at most (but at least 16 rows).
_LOGITS = 2**23


class Anchor:
    """A term beside the loss. This one is none; it is the start of the two kinds.

    setting: kind and weight.
    """

    def __init__(self, setting: AnchorSetting) -> None:
        self.setting = setting

    def row(self, row: EncodedRow) -> dict[str, list[int]]:
        """What a row gives to a batch besides its ids and labels."""
        del row
        return {}

    def base(self, model: Any, layout: BatchLayout, batch: Batch) -> Predictions | None:
        """What the base predicts for the anchored tokens of a batch; None if it has none."""
        del model, layout, batch
        return None

    def term(self, base: Predictions | None, tuned: Predictions | None, tokens: int) -> torch.Tensor:
        """What a batch adds to the loss of its step, in nats. tokens: anchored tokens of the whole step."""
        del base, tuned, tokens
        return torch.zeros(())

    def after_backward(self, model: Any, scale: float) -> float:
        """Add to the gradients of a step, which are multiplied by ``scale``; returns what this adds to the loss."""
        del model, scale
        return 0.0

    def metrics(self, term: float, tokens: int) -> dict[str, float]:
        """The metrics of a step. term: what the anchor added to its loss; tokens: anchored tokens of the step."""
        del tokens
        return {"anchor": term}


class KlAnchor(Anchor):
    """The divergence of the model's token probabilities from those of its base.

    start: the trained tensors as they are in the base, where the adapter cannot be turned off instead. replayed: it
    counts on the replayed rows, else on the prompts.
    """

    def __init__(self, setting: AnchorSetting, model: Any, method: str, *, replayed: bool) -> None:
        super().__init__(setting)
        self.replayed = replayed
        self.start = None if METHODS[method].adapter and METHODS[method].begin is None else _trained(model)

    def row(self, row: EncodedRow) -> dict[str, list[int]]:
        """Marks the tokens that count: 1, and 0 for all others."""
        if self.replayed:
            marks = [1] * len(row.ids) if row.replayed else [0] * len(row.ids)
        else:
            last = max((n for n, label in enumerate(row.labels) if label != IGNORED), default=0)
            marks = [int(label == IGNORED and n < last) for n, label in enumerate(row.labels)]
        return {ANCHORED: [0, *marks[1:]]}  # nothing predicts the first token

    def base(self, model: Any, layout: BatchLayout, batch: Batch) -> Predictions | None:
        """What the base predicts, without gradient and dropout. The random state stays as it is."""
        if not batch[ANCHORED].any():
            return None
        marked = rows_with({name: part.to(model.device) for name, part in batch.items()}, ANCHORED)
        was_training = model.training
        with torch.no_grad(), self._as_base(model):
            model.eval()
            try:
                with layout.forward_context(model, marked):
                    return layout.predict(model, marked, marked[ANCHORED].bool()).detach()
            finally:
                model.train(was_training)

    def term(self, base: Predictions | None, tuned: Predictions | None, tokens: int) -> torch.Tensor:
        """The weighted sum of the divergences of these tokens, divided by the tokens of the whole step."""
        if base is None or tuned is None:
            return torch.zeros(())
        return self.setting.weight * divergence(base, tuned) / tokens

    def metrics(self, term: float, tokens: int) -> dict[str, float]:
        """The term, and the mean divergence in nats per token if a token was anchored."""
        return {"anchor": term, **({"anchor_kl": term / self.setting.weight} if tokens else {})}

    @contextlib.contextmanager
    def _as_base(self, model: Any) -> Iterator[None]:
        """While active, the model computes as its base."""
        if self.start is None:
            with without_adapter(model):
                yield
            return
        tuned = {name: p.data for name, p in model.named_parameters() if name in self.start}
        try:
            for name, parameter in model.named_parameters():
                if name in tuned:
                    parameter.data = self.start[name]
            yield
        finally:
            for name, parameter in model.named_parameters():
                if name in tuned:
                    parameter.data = tuned[name]


class L2Anchor(Anchor):
    """The squared distance of the trained weights from those of the base."""

    def __init__(self, setting: AnchorSetting, model: Any) -> None:
        super().__init__(setting)
        self.start = _trained(model)

    @torch.no_grad()
    def after_backward(self, model: Any, scale: float) -> float:
        """Add weight x (w - w0) to each gradient; returns weight / 2 x ||w - w0||^2."""
        squares = 0.0
        for name, parameter in model.named_parameters():
            if name not in self.start:
                continue
            change = parameter - self.start[name]
            squares += float(change.double().square().sum())
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad.add_(change, alpha=self.setting.weight * scale)
        return self.setting.weight / 2 * squares

    def metrics(self, term: float, tokens: int) -> dict[str, float]:
        """The term, and the distance of the weights from those of the base."""
        del tokens
        return {"anchor": term, "anchor_distance": (2 * term / self.setting.weight) ** 0.5}


def make_anchor(setting: AnchorSetting | None, model: Any, method: str, rows: Sequence[EncodedRow]) -> Anchor | None:
    """The anchor of a training that has not begun; None without one.

    rows: to train on. Raises InputError if kl has no token to count on.
    """
    if setting is None:
        return None
    if setting.kind == "l2":
        return L2Anchor(setting, model)
    anchor = KlAnchor(setting, model, method, replayed=any(row.replayed for row in rows))
    if not any(any(anchor.row(row)[ANCHORED]) for row in rows):
        raise InputError(f"--anchor {setting}: the rows have no prompts on which the base and the model could be "
                         f"compared; add replay (--replay base:{ADVISED_ANSWERS}, or --replay FILE)")
    return anchor


def divergence(base: Predictions, tuned: Predictions) -> torch.Tensor:
    """The sum over tokens of KL(base || tuned) in nats, with gradient for ``tuned``. The logits are computed in chunks,
    and again in the backward pass, so that not all of them are in memory at once."""
    total = torch.zeros(())
    if not len(base):
        return total
    step = max(_LOGITS // base.logits(0, 1).shape[1], 16)
    for start in range(0, len(base), step):
        part = checkpoint(partial(_chunk_divergence, base, tuned, start, start + step), use_reentrant=False,
                          preserve_rng_state=False)
        total = total.to(part.device) + part
    return total


def _chunk_divergence(base: Predictions, tuned: Predictions, start: int, end: int) -> torch.Tensor:
    before = base.logits(start, end).log_softmax(-1)
    after = tuned.logits(start, end).log_softmax(-1)
    return (before.exp() * (before - after)).sum()


def _trained(model: Any) -> dict[str, torch.Tensor]:
    """Copies of the trained tensors."""
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
