"""Computes attention over flat batches: concatenated rows without padding, and a layout of which keys each token sees.

    backend = TorchBackend(model)
    with attending(model, backend.rows(rows)):
        model(input_ids=tokens[None], position_ids=depths[None], use_cache=False)

transformers calls a model's attention function by name. The one registered here gets the queries, keys and values of a
flat batch [1, heads, tokens, size] and passes them to the current layout. So every linear layer of any model family
computes each token once. Masks and caches of transformers are not used: layouts store keys and values by layer module.

An `AttentionBackend` makes the layouts. `TorchBackend` makes them from torch operators and runs on every device. Its
scores are batched matrix products. On a CPU these take half the time of torch's fused attention with a mask for rows of
a few hundred tokens, and far less for few queries over a long cache. engine/cpu has the backends for a CPU.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from aftertune.engine.dora import constant_gains
from aftertune.engine.packing import PackedRow, attention_mask

ATTENTION_NAME = "aftertune"
#: Scores in one block of queries, at most, on a CPU: they stay in its cache.
CPU_BLOCK = 2**20
#: The same on an accelerator, where many small products take more time than one large one.
ACCELERATOR_BLOCK = 2**26

#: Stores keys and values of a flat batch; called with the layer, keys and values [tokens, kv heads, size].
Keep = Callable[[Any, torch.Tensor, torch.Tensor], None]


@dataclass(frozen=True, slots=True)
class Call:
    """How a layer computes its attention scores.

    scaling: factor of the products of queries and keys; window: number of positions that a token sees, counted back
    from itself, None for all; softcap: tanh limits scores to (-softcap, softcap), None for no limit.
    """

    scaling: float
    window: int | None = None
    softcap: float | None = None

    def scores(self, products: torch.Tensor) -> torch.Tensor:
        """Scaled, capped scores from the products of queries and keys, in place."""
        products *= self.scaling
        if self.softcap is not None:
            products.div_(self.softcap).tanh_().mul_(self.softcap)
        return products


class Layout(Protocol):
    """Which keys each token of a flat batch sees."""

    def attend(self, layer: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, call: Call
               ) -> torch.Tensor:
        """query [tokens, heads, size], key and value [tokens, kv heads, size] -> [tokens, heads, size]."""


class Prefix(Protocol):
    """Keys and values of a prefix that many sequences share, by layer. length: its tokens."""

    length: int

    def keep(self, layer: Any, key: torch.Tensor, value: torch.Tensor) -> None:
        """Store the keys and values of a layer [tokens, kv heads, size]."""


class Slots(Protocol):
    """Keys and values of sequences that are being continued, one per slot. lengths: tokens in each slot [slots], not
    counting a shared prefix."""

    lengths: torch.Tensor

    def fill(self, slots: Sequence[int], rows: Sequence[PackedRow]) -> Keep:
        """A function that stores each of the rows in its slot."""

    def move(self, source: int, target: int) -> None:
        """Copy one slot into another."""


class StepLayout(Layout, Protocol):
    """One new token for each of the first slots, in their order. lengths: tokens in these slots before it [slots]."""

    lengths: torch.Tensor


class AttentionBackend(Protocol):
    """Computes packed rows for one model: the attention, and with the CPU kernels also other operators.

    name: "torch" or "cpu", as in `Budget.backend`.
    """

    name: str

    def rows(self, rows: Sequence[PackedRow], *, prefix: Any = None, keep: Keep | None = None) -> Layout:
        """The layout of packed rows, to score them or to fill slots with them. Depths of rows after a prefix start at
        its length. keep: called with the keys and values of each layer."""

    def prefix(self, length: int) -> Prefix:
        """An empty prefix of ``length`` tokens."""

    def slots(self, count: int, room: int) -> Slots:
        """``count`` empty slots of ``room`` tokens each."""

    def step(self, slots: Any, active: int, prefix: Any = None) -> StepLayout:
        """The layout of a step of decoding: token i of the batch belongs to slot i."""

    def summarize(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
        """For logits [rows, vocabulary]: log of the sum of exponentials, largest logit, index of the largest, each
        [rows]. None where the backend has nothing better than torch's operators."""

    def computing(self, *, free_weights: bool = False) -> contextlib.AbstractContextManager[None]:
        """While active, the model computes with the backend. free_weights: weights that the backend copied are freed
        meanwhile, so the model must not be changed or saved."""


class TorchBackend:
    """Computes packed rows with torch operators, on any device."""

    name = "torch"

    def __init__(self, model: Any) -> None:
        self.model = model

    def rows(self, rows: Sequence[PackedRow], *, prefix: Any = None, keep: Keep | None = None) -> Layout:
        return TorchRows(rows, device=torch.device(self.model.device), dtype=self.model.dtype, prefix=prefix, keep=keep)

    def prefix(self, length: int) -> Prefix:
        return TorchPrefix(length)

    def slots(self, count: int, room: int) -> Slots:
        return TorchSlots(count, room, device=torch.device(self.model.device))

    def step(self, slots: Any, active: int, prefix: Any = None) -> StepLayout:
        return TorchStep(slots, active, prefix)

    def summarize(self, _logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
        return None

    @contextlib.contextmanager
    def computing(self, *, free_weights: bool = False) -> Iterator[None]:
        del free_weights  # no weights are copied
        with constant_gains(self.model, lambda layer: layer.weight):
            yield


_layouts: list[Layout] = []
_read: list[torch.Tensor] = []


def current_layout() -> Layout | None:
    """The layout of the current forward pass; None outside `attending`."""
    return _layouts[-1] if _layouts else None


@contextlib.contextmanager
def reading(tokens: torch.Tensor) -> Iterator[None]:
    """While active, only the last hidden states of ``tokens`` (indices) are read. A last layer that computes only these
    renumbers them in place: 0, 1, 2 …"""
    _read.append(tokens)
    try:
        yield
    finally:
        _read.pop()


def tokens_read() -> torch.Tensor | None:
    """The tokens whose last hidden states are read; None for all tokens."""
    return _read[-1] if _read else None


def supports_custom_attention(base: Any) -> bool:
    """True where the model family calls its attention by name (Falcon, BLOOM and MPT do not)."""
    check = getattr(base, "_can_set_attn_implementation", None)
    return bool(check and check())


@contextlib.contextmanager
def attending(model: Any, layout: Layout) -> Iterator[None]:
    """While active, the model's attention uses ``layout``."""
    config = model.config
    before = config._attn_implementation
    config._attn_implementation = ATTENTION_NAME
    _layouts.append(layout)
    try:
        yield
    finally:
        _layouts.pop()
        config._attn_implementation = before


def _attend(layer: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, _mask: Any = None,
            scaling: float | None = None, sliding_window: int | None = None, softcap: float | None = None,
            **others: Any) -> tuple[torch.Tensor, None]:
    """transformers' attention function: [1, heads, tokens, size] -> [1, tokens, heads, size]."""
    unsupported = [name for name in ("s_aux", "position_bias", "head_mask") if others.get(name) is not None]
    if unsupported:
        raise NotImplementedError(f"attention with {', '.join(unsupported)}")
    call = Call(query.shape[-1] ** -0.5 if scaling is None else scaling, sliding_window or None, softcap)
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    return _layouts[-1].attend(layer, q, k, v, call)[None].to(query.dtype), None


def _register() -> None:
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION_NAME, _attend)


_register()


def _float32_on_cpu(x: torch.Tensor) -> torch.Tensor:
    """x, on a CPU in float32: scores rounded to bfloat16 change more answers than another batch size of lm-eval."""
    return x.float() if x.device.type == "cpu" else x


class TorchPrefix:
    """Keys and values of a shared prefix, by layer: two tensors [kv heads, tokens, size]."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.layers: dict[Any, tuple[torch.Tensor, torch.Tensor]] = {}

    def keep(self, layer: Any, key: torch.Tensor, value: torch.Tensor) -> None:
        self.layers[layer] = (key.transpose(0, 1).contiguous(), value.transpose(0, 1).contiguous())


class TorchRows:
    """Concatenated packed rows (see packing.py). Depths of rows after a prefix start at its length."""

    def __init__(self, rows: Sequence[PackedRow], *, device: torch.device, dtype: torch.dtype,
                 prefix: TorchPrefix | None = None, keep: Keep | None = None) -> None:
        self.rows = rows
        self.device = device
        self.dtype = dtype
        self.prefix = prefix
        self.keep = keep
        self.length = max(row.length for row in rows)
        self._masks: dict[tuple[int | None, bool], torch.Tensor] = {}
        index = np.zeros((len(rows), self.length), dtype=np.int64)
        start = 0
        for r, row in enumerate(rows):
            index[r] = start + np.minimum(np.arange(self.length), row.length - 1)
            start += row.length
        inside = np.arange(self.length)[None, :] < np.array([row.length for row in rows])[:, None]
        self._even = bool(inside.all())
        self._gather = torch.from_numpy(index.ravel()).to(device)
        self._inside = torch.from_numpy(np.flatnonzero(inside)).to(device)

    def attend(self, layer: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, call: Call
               ) -> torch.Tensor:
        """Attention of every token over its own row and the prefix."""
        query, key, value = map(_float32_on_cpu, (query, key, value))
        if self.keep is not None:
            self.keep(layer, key, value)
        heads, shared, size = query.shape[1], key.shape[1], query.shape[2]
        n, length, group = len(self.rows), self.length, heads // shared
        # kv heads first, then rows: the prefix takes one product for all rows, their own keys one batched product
        q = self._padded(query).view(n, length, shared, group, size).permute(2, 0, 1, 3, 4)
        k, v = (self._padded(x).view(n, length, shared, -1).permute(2, 0, 1, 3).reshape(shared * n, length, -1)
                for x in (key, value))
        out = q.new_empty(shared, n, length, group, v.shape[-1])
        past = self.prefix.length if self.prefix else 0
        limit = CPU_BLOCK if self.device.type == "cpu" else ACCELERATOR_BLOCK
        step = max(limit // (shared * n * group * (past + length)), 16)
        for start in range(0, length, step):
            end = min(start + step, length)
            block = q[:, :, start:end].reshape(shared * n, (end - start) * group, size)
            # in depth-first order a token sees no key after it
            scores = torch.bmm(block, k[:, :end].transpose(1, 2))
            prefix_scores = self._prefix_scores(layer, block, shared)
            seen = scores if prefix_scores is None else torch.cat((prefix_scores, scores), -1)
            call.scores(seen)
            self._add_mask(seen.view(shared, n, end - start, group, -1), call.window, start, end)
            weights = torch.softmax(seen, dim=-1)
            mixed = torch.bmm(weights[..., past:], v[:, :end])
            if self.prefix is not None:
                prefix_weights = weights[..., :past].reshape(shared, -1, past)
                mixed += torch.bmm(prefix_weights, self.prefix.layers[layer][1]).view_as(mixed)
            out[:, :, start:end] = mixed.view(shared, n, end - start, group, -1)
        flat = out.permute(1, 2, 0, 3, 4).reshape(n * length, heads, -1)
        return flat if self._even else flat.index_select(0, self._inside)

    def _padded(self, x: torch.Tensor) -> torch.Tensor:
        """[tokens, …] -> [rows * length, …]. Padding repeats a row's last token; no other token sees it."""
        return x if self._even else x.index_select(0, self._gather)

    def _prefix_scores(self, layer: Any, block: torch.Tensor, shared: int) -> torch.Tensor | None:
        """Products of a block of queries with the prefix [kv heads * rows, queries, prefix]."""
        if self.prefix is None:
            return None
        keys = self.prefix.layers[layer][0]
        products = torch.bmm(block.reshape(shared, -1, block.shape[-1]), keys.transpose(1, 2))
        return products.view(*block.shape[:2], self.prefix.length)

    def _add_mask(self, scores: torch.Tensor, window: int | None, start: int, end: int) -> None:
        """Add the mask to scores [kv heads, rows, queries, group, prefix + keys]."""
        mask = self._mask(window, prefix=False)[:, start:end, None, :end]
        past = scores.shape[-1] - end
        scores[..., past:] += mask
        if past and window is not None and window <= self._max_depth():
            scores[..., :past] += self._mask(window, prefix=True)[:, start:end, None]

    def _max_depth(self) -> int:
        return max(int(row.depth.max()) for row in self.rows)

    def _mask(self, window: int | None, *, prefix: bool) -> torch.Tensor:
        """[rows, queries, keys] in the model's dtype: 0 where a key is seen, its minimum elsewhere."""
        mask = self._masks.get((window, prefix))
        if mask is None:
            if prefix:
                assert self.prefix is not None
                depth = np.zeros((len(self.rows), self.length), dtype=np.int64)
                for r, row in enumerate(self.rows):
                    depth[r, : row.length] = row.depth
                seen = depth[:, :, None] - np.arange(self.prefix.length) < (window or 0)
            else:
                seen = attention_mask(list(self.rows), self.length, window)
            mask = torch.full(seen.shape, torch.finfo(self.dtype).min, dtype=self.dtype, device=self.device)
            mask.masked_fill_(torch.from_numpy(seen).to(self.device), 0)
            self._masks[window, prefix] = mask
        return mask


class TorchSlots:
    """Keys and values of sequences that are being continued, one per slot, by layer: [slots, kv heads, room, size].

    lengths: tokens in each slot, not counting a shared prefix. The rest of a slot is zero, because a weight of 0 times
    NaN is NaN: neither uninitialized memory nor an earlier text may remain there.
    """

    def __init__(self, count: int, room: int, *, device: torch.device) -> None:
        self.room = room
        self.lengths = torch.zeros(count, dtype=torch.long, device=device)
        self.layers: dict[Any, tuple[torch.Tensor, torch.Tensor]] = {}

    def buffers(self, layer: Any, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The buffers of a layer, allocated at its first keys and values."""
        if layer not in self.layers:
            k, v = (x.new_zeros(len(self.lengths), x.shape[1], self.room, x.shape[2]) for x in (key, value))
            self.layers[layer] = (k, v)
        return self.layers[layer]

    def fill(self, slots: Sequence[int], rows: Sequence[PackedRow]) -> Keep:
        """A function that stores each of the rows in its slot."""
        for slot, row in zip(slots, rows, strict=True):
            self.lengths[slot] = row.length

        def keep(layer: Any, key: torch.Tensor, value: torch.Tensor) -> None:
            stored, start = self.buffers(layer, key, value), 0
            for slot, row in zip(slots, rows, strict=True):
                for buffer, new in zip(stored, (key, value), strict=True):
                    buffer[slot, :, : row.length] = new[start: start + row.length].transpose(0, 1)
                    buffer[slot, :, row.length:] = 0
                start += row.length

        return keep

    def move(self, source: int, target: int) -> None:
        """Copy one slot into another."""
        for pair in self.layers.values():
            for buffer in pair:
                buffer[target] = buffer[source]
        self.lengths[target] = self.lengths[source]


class TorchStep:
    """One new token for each of the first ``active`` slots, in their order."""

    def __init__(self, slots: TorchSlots, active: int, prefix: TorchPrefix | None = None) -> None:
        self.slots = slots
        self.active = active
        self.prefix = prefix
        self.lengths = slots.lengths[:active].clone()
        self.longest = int(self.lengths.max()) + 1
        self._masks: dict[int | None, torch.Tensor] = {}

    def attend(self, layer: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, call: Call
               ) -> torch.Tensor:
        """Attention of each new token over its slot and the prefix; stores its key and value in the slot."""
        query, key, value = map(_float32_on_cpu, (query, key, value))
        n, (heads, size), shared = self.active, query.shape[1:], key.shape[1]
        index = torch.arange(n, device=query.device)
        k, v = self.slots.buffers(layer, key, value)
        k[index, :, self.lengths] = key
        v[index, :, self.lengths] = value
        k, v = (x[:n, :, : self.longest].flatten(0, 1) for x in (k, v))
        q = query.reshape(n * shared, heads // shared, size)
        scores = torch.bmm(q, k.transpose(1, 2))
        past = self.prefix.length if self.prefix else 0
        if self.prefix is not None:
            prefix_q = q.view(n, shared, -1, size).transpose(0, 1).reshape(shared, -1, size)
            products = torch.bmm(prefix_q, self.prefix.layers[layer][0].transpose(1, 2))
            scores = torch.cat((_slots_first(products, n).reshape(n * shared, -1, past), scores), -1)
        call.scores(scores)
        scores.view(n, shared, -1, past + self.longest).add_(self._mask(call.window, past, scores.dtype))
        weights = torch.softmax(scores, dim=-1)
        mixed = torch.bmm(weights[..., past:], v)
        if self.prefix is not None:
            prefix_weights = weights[..., :past].view(n, shared, -1, past).transpose(0, 1).reshape(shared, -1, past)
            mixed += _slots_first(torch.bmm(prefix_weights, self.prefix.layers[layer][1]), n).reshape(mixed.shape)
        return mixed.view(n, heads, -1)

    def _mask(self, window: int | None, past: int, dtype: torch.dtype) -> torch.Tensor:
        """[slots, 1, 1, prefix + longest]: 0 where a slot's new token sees a key, the dtype's minimum elsewhere."""
        if window not in self._masks:
            depth = torch.arange(past + self.longest, device=self.lengths.device)
            last = past + self.lengths[:, None]
            seen = depth <= last
            if window is not None:
                seen &= last - depth < window
            mask = torch.full(seen.shape, torch.finfo(dtype).min, dtype=dtype, device=seen.device)
            self._masks[window] = mask.masked_fill_(seen, 0)[:, None, None]
        return self._masks[window]


def _slots_first(x: torch.Tensor, slots: int) -> torch.Tensor:
    """[kv heads, slots * group, …] -> [slots, kv heads, group, …]."""
    return x.view(x.shape[0], slots, -1, x.shape[-1]).transpose(0, 1)
