"""Turns the rows of a batch into tensors and runs a model on them: end to end without padding, or padded.

    layout = choose_layout(model, rows, pad=2, dtype="bfloat16")    EndToEnd(note="rows end to end (verified …)")
    batch = layout.collate([{"input_ids": …, "labels": …}, …])
    with layout.forward_context(model, batch):                      covers the backward pass too
        total, nats, row_of = layout.loss(model, batch)
        predictions = layout.predict(model, batch, wanted)           of the tokens that ``wanted`` marks

"End to end" is what TRL calls padding-free: all rows of a batch form one sequence, positions start at 0 with every row,
attention stays within a row, and the head computes logits only where a token is learned. It is used on a CPU. The
model's config decides whether a family can run this way, and two real rows must get the loss that they get alone.
Otherwise the rows are padded, and the note says why. On a CUDA device TRL's own loss runs on padded rows.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from aftertune.engine.attention import Call, attending
from aftertune.engine.cpu import availability, ops
from aftertune.engine.cpu.autograd import RowAttention, fused, head_loss
from aftertune.engine.cpu.lora import is_plain_lora
from aftertune.engine.memory import is_out_of_memory
from aftertune.engine.scorer import text_config, unwrapped
from aftertune.engine.verify import TOLERANCE, decide
from aftertune.tuning.tokenize import IGNORED, EncodedRow

#: Largest mean difference of a token's loss, end to end and alone, below float32: about half a rounding step of a
#: logit in bfloat16.
HALF_PRECISION_TOLERANCE = 0.1

Batch = Mapping[str, Any]

#: The part of a batch that marks the tokens whose prediction an anchor keeps near the base's, where there is one.
ANCHORED = "anchored"


class BatchLayout(Protocol):
    """How the rows of a batch are laid out in tensors.

    note: the layout in words, and why it was chosen. It is stored with the tuning.
    """

    @property
    def note(self) -> str: ...
    def collate(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]: ...
    def forward_context(self, model: Any, batch: Batch, /) -> contextlib.AbstractContextManager[Any]: ...
    def loss(self, model: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]: ...
    def predict(self, model: Any, batch: Batch, wanted: torch.Tensor) -> Predictions: ...


class Predictions(Protocol):
    """What a model predicts for some tokens of a batch, in their order.

    nll: the sum of the nats of labels [tokens], with gradient, and each of them [tokens], without. select: the
    predictions that a mask [tokens] marks. logits: float32 [tokens, vocabulary] of a range of them. detach: the same
    without gradient; they stay what they are when the weights change.
    """

    def __len__(self) -> int: ...
    def nll(self, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]: ...
    def select(self, mask: torch.Tensor) -> Predictions: ...
    def logits(self, start: int, end: int) -> torch.Tensor: ...
    def detach(self) -> Predictions: ...


@dataclass(frozen=True, slots=True)
class Logits:
    """Predictions as logits. values: float32 [tokens, vocabulary]."""

    values: torch.Tensor

    def __len__(self) -> int:
        return len(self.values)

    def nll(self, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As `Predictions`."""
        nats = torch.nn.functional.cross_entropy(self.values, labels, reduction="none")
        return nats.sum(), nats.detach()

    def select(self, mask: torch.Tensor) -> Logits:
        """As `Predictions`."""
        return Logits(self.values[mask])

    def logits(self, start: int, end: int) -> torch.Tensor:
        """As `Predictions`."""
        return self.values[start:end]

    def detach(self) -> Logits:
        """As `Predictions`."""
        return Logits(self.values.detach())


@dataclass(frozen=True, slots=True)
class HiddenStates:
    """Predictions as the inputs of a linear head, so that not all logits are in memory at once. hidden [tokens,
    columns]; weight [vocabulary, columns] and bias of the head."""

    hidden: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None

    def __len__(self) -> int:
        return len(self.hidden)

    def nll(self, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As `Predictions`; in chunks."""
        return head_loss(self.hidden, self, labels)

    def select(self, mask: torch.Tensor) -> HiddenStates:
        """As `Predictions`."""
        return replace(self, hidden=self.hidden[mask])

    def logits(self, start: int, end: int) -> torch.Tensor:
        """As `Predictions`."""
        dtype = self.hidden.dtype
        bias = None if self.bias is None else self.bias.to(dtype)
        return torch.nn.functional.linear(self.hidden[start:end], self.weight.to(dtype), bias).float()

    def detach(self) -> HiddenStates:
        """As `Predictions`. The weight is that of now, also where the parameter gets other data later."""
        return HiddenStates(self.hidden.detach(), self.weight.detach(),
                            None if self.bias is None else self.bias.detach())


@dataclass(frozen=True, slots=True)
class Padded:
    """Rows side by side, padded on the right. pad: token id of the padding; autocast: the dtype to compute in, None for
    the model's own."""

    pad: int
    autocast: str | None
    note: str = "padded rows"

    def collate(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """input_ids, labels, attention_mask and, where the rows have it, anchored [rows, longest]."""
        longest = max(len(r["input_ids"]) for r in rows)

        def padded(values: Sequence[Sequence[int]], fill: int) -> torch.Tensor:
            return torch.tensor([[*v, *[fill] * (longest - len(v))] for v in values])

        batch = {"input_ids": padded([r["input_ids"] for r in rows], self.pad),
                 "labels": padded([[IGNORED, *r["labels"][1:]] for r in rows], IGNORED),
                 "attention_mask": padded([[1] * len(r["input_ids"]) for r in rows], 0)}
        return batch | ({ANCHORED: padded([r[ANCHORED] for r in rows], 0)} if ANCHORED in rows[0] else {})

    def forward_context(self, _model: Any, _batch: Batch) -> contextlib.AbstractContextManager[Any]:
        """Nothing has to be set up."""
        return contextlib.nullcontext()

    def loss(self, model: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The sum over all learned tokens in nats, with gradient; the nats of each [learned tokens], without; and the
        row of each [learned tokens]."""
        learned = batch["labels"] != IGNORED
        total, nats = self.predict(model, batch, learned).nll(batch["labels"][learned])
        return total, nats, learned.nonzero()[:, 0]

    def predict(self, model: Any, batch: Batch, wanted: torch.Tensor) -> Logits:
        """The logits of the tokens that ``wanted`` [rows, longest] marks, of which none is the first of its row."""
        keep = torch.zeros_like(wanted)
        keep[:, :-1] = wanted[:, 1:]
        with autocast_context(model.device.type, self.autocast):
            return Logits(selected_logits(model, batch["input_ids"], batch["attention_mask"], keep))


@dataclass(frozen=True, slots=True)
class EndToEnd:
    """All rows of a batch as one sequence, without padding. autocast: as for `Padded`."""

    autocast: str | None
    note: str = "rows end to end"

    def collate(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """input_ids, labels, position_ids and, where the rows have it, anchored [1, tokens of all rows]."""
        batch = {"input_ids": torch.tensor([[i for r in rows for i in r["input_ids"]]]),
                 "labels": torch.tensor([[i for r in rows for i in (IGNORED, *r["labels"][1:])]]),
                 "position_ids": torch.tensor([[i for r in rows for i in range(len(r["input_ids"]))]])}
        return batch | ({ANCHORED: torch.tensor([[i for r in rows for i in r[ANCHORED]]])} if ANCHORED in rows[0]
                        else {})

    @contextlib.contextmanager
    def forward_context(self, model: Any, batch: Batch) -> Iterator[None]:
        """Restrict attention to rows, and use the fused layers; autocast does not work with them."""
        with attending(unwrapped(model), _RowLayout(batch["position_ids"][0])), \
                contextlib.nullcontext() if self.autocast else fused(model):
            yield

    def loss(self, model: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """As `Padded.loss`; the head's loss is computed in chunks, so that not all logits are in memory at once."""
        learned = batch["labels"] != IGNORED
        total, nats = self.predict(model, batch, learned).nll(batch["labels"][learned])
        return total, nats, (batch["position_ids"][0] == 0).cumsum(0)[learned[0]] - 1

    def predict(self, model: Any, batch: Batch, wanted: torch.Tensor) -> HiddenStates:
        """The inputs of the head for the tokens that ``wanted`` [1, tokens] marks, of which none is the first of its
        row."""
        keep = wanted[0, 1:].nonzero()[:, 0]
        head = unwrapped(model).get_output_embeddings()
        captured: list[torch.Tensor] = []

        def capture(hidden: torch.Tensor) -> torch.Tensor:
            captured.append(hidden[0, keep])
            return hidden.new_zeros(1, 1, 1)

        head.forward = capture
        try:
            with autocast_context(model.device.type, self.autocast):
                model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False)
        finally:
            del head.forward
        hidden = captured[0] if self.autocast is None else captured[0].to(getattr(torch, self.autocast))
        return HiddenStates(hidden, head.weight, head.bias)


class _RowLayout:
    """The attention layout of rows end to end: every token sees its own row up to itself."""

    def __init__(self, positions: torch.Tensor) -> None:
        starts = (positions == 0).nonzero()[:, 0]
        self.starts = torch.cat([starts, torch.tensor([len(positions)])])
        lengths = self.starts.diff()
        self.shape = ops.RowShape(self.starts, lengths.repeat_interleave(lengths), positions)

    def attend(self, _layer: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, call: Call
               ) -> torch.Tensor:
        """Queries [tokens, heads, size], keys and values [tokens, fewer heads, size] -> [tokens, heads, size]."""
        query, key = query.to(value.dtype), key.to(value.dtype)
        if value.dtype in ops.DTYPES and query.shape[2] == value.shape[2] and query.shape[2] % ops.TILE == 0 \
                and call.softcap is None and not availability.why_unavailable():
            query, key, value = (x.contiguous() for x in (query, key, value))
            output: torch.Tensor = RowAttention.apply(query, key, value, self.shape, call)
            return output
        if call.softcap is not None:
            raise NotImplementedError("capped scores")
        return torch.cat([self._attend_row([x[a:b] for x in (query, key, value)], call)
                          for a, b in itertools.pairwise(self.starts.tolist())])

    def _attend_row(self, row: Sequence[torch.Tensor], call: Call) -> torch.Tensor:
        """torch's attention of one row: queries, keys and values [length, heads, size] -> [length, heads, size]."""
        query, key, value = (x.transpose(0, 1)[None] for x in row)
        length, mask = query.shape[2], None
        if call.window and call.window < length:
            positions = torch.arange(length)
            distance = positions[:, None] - positions
            mask = (distance >= 0) & (distance < call.window)
        output = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None, scale=call.scaling, enable_gqa=True)
        return output[0].transpose(0, 1)


def loss_and_predictions(layout: BatchLayout, model: Any, batch: Batch, wanted: torch.Tensor
                         ) -> tuple[tuple[torch.Tensor, torch.Tensor], Predictions]:
    """`Predictions.nll` of the learned tokens of a batch, and the predictions of the tokens that ``wanted`` marks, from
    one forward pass."""
    learned = batch["labels"] != IGNORED
    either = learned | wanted
    predictions = layout.predict(model, batch, either)
    return predictions.select(learned[either]).nll(batch["labels"][learned]), predictions.select(wanted[either])


def rows_with(batch: Batch, name: str) -> dict[str, torch.Tensor]:
    """The rows of a batch in which ``batch[name]`` marks a token, as a batch of the same layout."""
    marks = batch[name].bool()
    if "position_ids" not in batch:
        return {key: part[marks.any(1)] for key, part in batch.items()}
    row_of = (batch["position_ids"][0] == 0).cumsum(0)
    keep = torch.isin(row_of, row_of[marks[0]])
    return {key: part[:, keep] for key, part in batch.items()}


def autocast_context(device: str, dtype: str | None) -> contextlib.AbstractContextManager[Any]:
    """Autocast to ``dtype`` if it is below float32; nothing for float32, and for None, the model's own dtype."""
    if dtype in (None, "float32"):
        return contextlib.nullcontext()
    context: contextlib.AbstractContextManager[Any] = torch.autocast(device, dtype=getattr(torch, str(dtype)))
    return context


def selected_logits(model: Any, ids: torch.Tensor, mask: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """Token ids [rows, length] -> the logits at the positions that ``keep`` marks, row by row: float32 [N, vocabulary].

    Only these positions reach the head. A hook before the head selects them, which keeps the logits small for every
    architecture, also under PEFT.
    """
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda _, args: (args[0][keep][None],))
    try:
        logits: torch.Tensor = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[0].float()
    finally:
        hook.remove()
    return logits


# --- Choosing the layout ---


def choose_layout(model: Any, rows: Sequence[EncodedRow], *, pad: int, dtype: str) -> BatchLayout:
    """End to end if the model's config allows it and two of these rows prove it, else padded; the note says why.

    pad: token id of the padding; dtype: of the computation.
    """
    adapted = [m for m in model.modules() if hasattr(m, "lora_A")]
    plain = all(is_plain_lora(m, trained=True) for m in adapted)
    fusible = str(model.dtype) == f"torch.{dtype}" and plain and _trains_adapters_only(model)
    padded = Padded(pad, None if dtype == "float32" else dtype)
    end_to_end = EndToEnd(None if fusible or dtype == "float32" else dtype)
    reason = _why_padded(model, max(len(r.ids) for r in rows))
    if reason:
        return replace(padded, note=f"padded rows: {reason}")
    by_length = sorted(rows, key=lambda r: len(r.ids))
    sample = [by_length[-1], by_length[(len(by_length) - 1) // 2]]
    alone = torch.cat([token_losses(padded, model, [row])[0] for row in sample])
    try:
        together = token_losses(end_to_end, model, sample)[0]
    except (ValueError, TypeError, RuntimeError, LookupError, AttributeError) as error:
        if is_out_of_memory(error):
            raise
        return replace(padded, note=f"padded rows: {' '.join(str(error).split())[:120]}")
    differences = (alone - together).abs()
    gap, bound = (differences.max(), TOLERANCE) if dtype == "float32" else (differences.mean(),
                                                                           HALF_PRECISION_TOLERANCE)
    if not gap <= bound:
        return replace(padded, note=f"padded rows: end to end the loss of a token differs by {gap:.2g} nats, "
                                    f"{bound:g} allowed")
    reach = "at most" if dtype == "float32" else "on average"
    return replace(end_to_end, note=f"rows end to end (verified: the loss of a token differs from that in a row alone "
                                    f"by {reach} {gap:.2g} nats; up to {bound:g} is allowed)")


def token_losses(layout: BatchLayout, model: Any, rows: Sequence[EncodedRow]) -> tuple[torch.Tensor, torch.Tensor]:
    """Nats of each learned token of one batch of rows [N], and the row of each [N]; without gradient and dropout.

    The model's mode (training or evaluation) is restored.
    """
    was_training = model.training
    model.eval()
    batch = {k: v.to(model.device) for k, v in
             layout.collate([{"input_ids": r.ids, "labels": r.labels} for r in rows]).items()}
    try:
        with torch.no_grad(), layout.forward_context(model, batch):
            return layout.loss(model, batch)[1:]
    finally:
        model.train(was_training)


def _trains_adapters_only(model: Any) -> bool:
    return hasattr(model, "peft_config") and not any(
        p.requires_grad and "lora_" not in name for name, p in model.named_parameters())


def _why_padded(model: Any, longest: int) -> str:
    """Why the rows of this model must be padded; "" if its config allows rows end to end."""
    if model.device.type != "cpu":
        return f"rows end to end are for a CPU, not {model.device.type}"
    if getattr(text_config(model), "attention_dropout", 0.0):
        return "the model uses attention dropout"
    decision = decide(model, longest)
    return "" if decision.packed else decision.note.removeprefix("plain rows: ")
