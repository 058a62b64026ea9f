"""Owns how examples of a batch become tensors, and how a model goes through them: end to end, or padded.

    lines = choose(model, rows, plan)              EndToEnd(note="rows end to end …"), or Padded(…) and why
    batch = lines.collate([{"input_ids": …, "labels": …}, …])
    with lines.through(model, batch):              covers the way back too
        total, each, row_of = lines.loss(model, batch)          nats: all together, of each token, and its row

End to end no token is padding: positions begin anew with every example, attention stays within it, and the head sees
only what is learned. It is for a CPU; the config decides whether a family may go that way, and two real examples must
get the loss that they get alone. On a CUDA device TRL's own loss runs on padded rows.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from aftertune.engine.attention import Call, attending
from aftertune.engine.cpu import availability, ops
from aftertune.engine.cpu.autograd import RowAttention, fused, head_loss
from aftertune.engine.cpu.lora import is_plain_lora
from aftertune.engine.memory import out_of_memory
from aftertune.engine.scorer import text_config, unwrapped
from aftertune.engine.verify import TOLERANCE, decide
from aftertune.tuning.tokenize import IGNORED, EncodedRow

#: Mean difference of a token's loss, end to end against alone, in less than float32: about half a step of a logit.
COARSE = 0.1

Batch = Mapping[str, Any]


class Lines(Protocol):
    """One way for a batch to go."""

    @property
    def note(self) -> str: ...
    def collate(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]: ...
    def through(self, model: Any, batch: Batch, /) -> contextlib.AbstractContextManager[Any]: ...
    def loss(self, model: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]: ...


@dataclass(frozen=True, slots=True)
class Padded:
    """Rows side by side, padded on the right. pad: the token's id; autocast: dtype of the computation, or None."""

    pad: int
    autocast: str | None
    note: str = "padded rows"

    def collate(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """input_ids, labels and attention_mask [rows, longest]."""
        longest = max(len(r["input_ids"]) for r in rows)

        def filled(values: Sequence[Sequence[int]], fill: int) -> torch.Tensor:
            return torch.tensor([[*v, *[fill] * (longest - len(v))] for v in values])

        return {"input_ids": filled([r["input_ids"] for r in rows], self.pad),
                "labels": filled([[IGNORED, *r["labels"][1:]] for r in rows], IGNORED),
                "attention_mask": filled([[1] * len(r["input_ids"]) for r in rows], 0)}

    def through(self, _model: Any, _batch: Batch) -> contextlib.AbstractContextManager[Any]:
        """Nothing is needed."""
        return contextlib.nullcontext()

    def loss(self, model: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Nats of all learned tokens together; of each [tokens]; and the row of each [tokens]."""
        with computing(model.device.type, self.autocast):
            nats, row_of = completion_nll(model, batch["input_ids"], batch["attention_mask"], batch["labels"])
        return nats.sum(), nats.detach(), row_of


@dataclass(frozen=True, slots=True)
class EndToEnd:
    """Rows one after the other in one line."""

    autocast: str | None
    note: str = "rows end to end"

    def collate(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """input_ids, labels and position_ids [1, tokens of all rows]."""
        return {"input_ids": torch.tensor([[i for r in rows for i in r["input_ids"]]]),
                "labels": torch.tensor([[i for r in rows for i in (IGNORED, *r["labels"][1:])]]),
                "position_ids": torch.tensor([[i for r in rows for i in range(len(r["input_ids"]))]])}

    @contextlib.contextmanager
    def through(self, model: Any, batch: Batch) -> Iterator[None]:
        """Attention within rows, and fused layers where no autocast is in their way."""
        with attending(unwrapped(model), _Rows(batch["position_ids"][0])), \
                contextlib.nullcontext() if self.autocast else fused(model):
            yield

    def loss(self, model: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The same three, with the head's loss in chunks."""
        labels, places = batch["labels"][0], batch["position_ids"][0]
        keep = (labels[1:] != IGNORED).nonzero()[:, 0]
        head, found = unwrapped(model).get_output_embeddings(), []

        def taken(hidden: torch.Tensor) -> torch.Tensor:
            found.append(hidden[0, keep])
            return hidden.new_zeros(1, 1, 1)

        head.forward = taken
        try:
            with computing(model.device.type, self.autocast):
                model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False)
        finally:
            del head.forward
        hidden = found[0] if self.autocast is None else found[0].to(getattr(torch, self.autocast))
        total, nats = head_loss(hidden, head, labels[1:][keep])
        return total, nats, (places == 0).cumsum(0)[keep] - 1


class _Rows:
    """The layout of such a line: every token sees its own row up to itself."""

    def __init__(self, places: torch.Tensor) -> None:
        starts = (places == 0).nonzero()[:, 0]
        self.starts = torch.cat([starts, torch.tensor([len(places)])])
        lengths = self.starts.diff()
        self.shape = ops.RowShape(self.starts, lengths.repeat_interleave(lengths), places)

    def attend(self, _layer: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, call: Call
               ) -> torch.Tensor:
        """[tokens, heads, size] of queries, and of keys and values with fewer heads -> as the queries."""
        query, key = query.to(value.dtype), key.to(value.dtype)
        if value.dtype in ops.DTYPES and query.shape[2] == value.shape[2] and query.shape[2] % ops.TILE == 0 \
                and call.softcap is None and not availability.why_unavailable():
            query, key, value = (x.contiguous() for x in (query, key, value))
            made: torch.Tensor = RowAttention.apply(query, key, value, self.shape, call)
            return made
        if call.softcap is not None:
            raise NotImplementedError("capped scores")
        return torch.cat([self._one([x[a:b] for x in (query, key, value)], call)
                          for a, b in itertools.pairwise(self.starts.tolist())])

    def _one(self, row: Sequence[torch.Tensor], call: Call) -> torch.Tensor:
        """torch's attention of one row: queries, keys and values [length, heads, size] -> [length, heads, size]."""
        query, key, value = (x.transpose(0, 1)[None] for x in row)
        length, mask = query.shape[2], None
        if call.window and call.window < length:
            places = torch.arange(length)
            back = places[:, None] - places
            mask = (back >= 0) & (back < call.window)
        found = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None, scale=call.scaling, enable_gqa=True)
        return found[0].transpose(0, 1)


def computing(device: str, dtype: str | None) -> contextlib.AbstractContextManager[Any]:
    """The context in which a model computes in ``dtype``: autocast below float32; None: in its own."""
    if dtype in (None, "float32"):
        return contextlib.nullcontext()
    context: contextlib.AbstractContextManager[Any] = torch.autocast(device, dtype=getattr(torch, str(dtype)))
    return context


def completion_nll(model: Any, ids: Any, mask: Any, labels: Any) -> tuple[Any, Any]:
    """Tensors [B, L] -> nats per completion token [N], row by row, and the row of each [N].

    Only positions whose next label counts reach the head: a hook in front of it keeps the logits small, for
    every architecture and under PEFT too.
    """
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


def choose(model: Any, rows: Sequence[EncodedRow], *, pad: int, dtype: str) -> Lines:
    """End to end where that is right for this model and these rows, else padded; the note says why."""
    adapted = [m for m in model.modules() if hasattr(m, "lora_A")]
    plain = all(is_plain_lora(m, trained=True) for m in adapted)
    own = str(model.dtype) == f"torch.{dtype}" and plain and _frozen(model)
    padded = Padded(pad, None if dtype == "float32" else dtype)
    line = EndToEnd(None if own or dtype == "float32" else dtype)
    reason = _against(model, max(len(r.ids) for r in rows))
    if reason:
        return Padded(padded.pad, padded.autocast, f"padded rows: {reason}")
    sizes = sorted(rows, key=lambda r: len(r.ids))
    sample = [sizes[-1], sizes[(len(sizes) - 1) // 2]]
    alone = torch.cat([per_token(padded, model, [row])[0] for row in sample])
    try:
        together = per_token(line, model, sample)[0]
    except (ValueError, TypeError, RuntimeError, LookupError, AttributeError) as error:
        if out_of_memory(error):
            raise
        return Padded(padded.pad, padded.autocast, f"padded rows: {' '.join(str(error).split())[:120]}")
    differences = (alone - together).abs()
    gap, bound = (differences.max(), TOLERANCE) if dtype == "float32" else (differences.mean(), COARSE)
    if not gap <= bound:
        return Padded(padded.pad, padded.autocast, f"padded rows: end to end a token's loss moved by {gap:.2g}")
    return EndToEnd(line.autocast, f"rows end to end (verified: {gap:.1e} nats against rows alone, {bound:g} allowed)")


def per_token(lines: Lines, model: Any, rows: Sequence[EncodedRow]) -> tuple[torch.Tensor, torch.Tensor]:
    """Nats of each learned token of rows that go through together, and the row of each; without gradient and dropout.
    The model's mode is left as it was."""
    was_training = model.training
    model.eval()
    batch = {k: v.to(model.device) for k, v in
             lines.collate([{"input_ids": r.ids, "labels": r.labels} for r in rows]).items()}
    try:
        with torch.no_grad(), lines.through(model, batch):
            return lines.loss(model, batch)[1:]
    finally:
        model.train(was_training)


def _frozen(model: Any) -> bool:
    """True where only adapters are trained."""
    return hasattr(model, "peft_config") and not any(
        p.requires_grad and "lora_" not in name for name, p in model.named_parameters())


def _against(model: Any, longest: int) -> str:
    """Why a model must not go end to end; "" where its config has nothing against it."""
    if model.device.type != "cpu":
        return f"end to end is for a CPU, not {model.device.type}"
    if getattr(text_config(model), "attention_dropout", 0.0):
        return "the family drops attention weights"
    decision = decide(model, longest)
    return "" if decision.packed else decision.note.removeprefix("plain rows: ")
