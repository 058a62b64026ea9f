"""The two layouts of a flat batch: trie rows, perhaps after a shared prefix, and one new token in each KV slot.

    Rows(rows, device=…, dtype=…, prefix=prefix)      scoring, and filling slots with prompts
    Step(slots, prefix=prefix)                        decoding: token i of the batch belongs to slot i

Both keep keys and values by layer module, so no cache of transformers is involved.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from aftertune.engine.attention import BLOCK, WIDE, Call, weights
from aftertune.engine.trie import Row, sees

#: Called with layer, keys and values [tokens, kv heads, size] of a flat batch.
Keep = Callable[[Any, torch.Tensor, torch.Tensor], None]


def _exact(x: torch.Tensor) -> torch.Tensor:
    """In float32 on a CPU: scores rounded to bfloat16 move answers more than a change of lm-eval's batch size does."""
    return x.float() if x.device.type == "cpu" else x


class Prefix:
    """Keys and values of tokens that many sequences begin with, by layer: two tensors [kv heads, tokens, size]."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.layers: dict[Any, tuple[torch.Tensor, torch.Tensor]] = {}

    def keep(self, layer: Any, key: torch.Tensor, value: torch.Tensor) -> None:
        self.layers[layer] = (key.transpose(0, 1).contiguous(), value.transpose(0, 1).contiguous())


class Rows:
    """Trie rows end to end. Depths of rows after a prefix begin with its length."""

    def __init__(self, rows: Sequence[Row], *, device: torch.device, dtype: torch.dtype,
                 prefix: Prefix | None = None, keep: Keep | None = None) -> None:
        self.rows = rows
        self.device = device
        self.dtype = dtype
        self.prefix = prefix
        self.keep = keep
        self.length = max(row.length for row in rows)
        self._masks: dict[tuple[int | None, bool], torch.Tensor] = {}
        place = np.zeros((len(rows), self.length), dtype=np.int64)
        start = 0
        for r, row in enumerate(rows):
            place[r] = start + np.minimum(np.arange(self.length), row.length - 1)
            start += row.length
        inside = np.arange(self.length)[None, :] < np.array([row.length for row in rows])[:, None]
        self._even = bool(inside.all())
        self._gather = torch.from_numpy(place.ravel()).to(device)
        self._inside = torch.from_numpy(np.flatnonzero(inside)).to(device)

    def attend(self, layer: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, call: Call
               ) -> torch.Tensor:
        """Attention of every token over its own row, and over the prefix."""
        query, key, value = map(_exact, (query, key, value))
        if self.keep is not None:
            self.keep(layer, key, value)
        heads, shared, size = query.shape[1], key.shape[1], query.shape[2]
        n, length, group = len(self.rows), self.length, heads // shared
        # kv heads first, then rows: the prefix takes all rows in one product, and each row is one of a batch
        q = self._padded(query).view(n, length, shared, group, size).permute(2, 0, 1, 3, 4)
        k, v = (self._padded(x).view(n, length, shared, -1).permute(2, 0, 1, 3).reshape(shared * n, length, -1)
                for x in (key, value))
        out = q.new_empty(shared, n, length, group, v.shape[-1])
        past = self.prefix.length if self.prefix else 0
        limit = BLOCK if self.device.type == "cpu" else WIDE
        step = max(limit // (shared * n * group * (past + length)), 16)
        for start in range(0, length, step):
            end = min(start + step, length)
            block = q[:, :, start:end].reshape(shared * n, (end - start) * group, size)
            # in depth-first order a token sees none that comes after it
            scores = torch.bmm(block, k[:, :end].transpose(1, 2))
            before = self._before(layer, block, shared)
            seen = scores if before is None else torch.cat((before, scores), -1)
            call.scores(seen)
            self._hide(seen.view(shared, n, end - start, group, -1), call.window, start, end)
            share = weights(seen)
            mixed = torch.bmm(share[..., past:], v[:, :end])
            if self.prefix is not None:
                ahead = share[..., :past].reshape(shared, -1, past)
                mixed += torch.bmm(ahead, self.prefix.layers[layer][1]).view_as(mixed)
            out[:, :, start:end] = mixed.view(shared, n, end - start, group, -1)
        flat = out.permute(1, 2, 0, 3, 4).reshape(n * length, heads, -1)
        return flat if self._even else flat.index_select(0, self._inside)

    def _padded(self, x: torch.Tensor) -> torch.Tensor:
        """[tokens, …] -> [rows * length, …]; padding repeats a row's last token, and is seen by nobody else."""
        return x if self._even else x.index_select(0, self._gather)

    def _before(self, layer: Any, block: torch.Tensor, shared: int) -> torch.Tensor | None:
        """Products of a block of queries with the prefix [kv heads * rows, queries, prefix]."""
        if self.prefix is None:
            return None
        keys = self.prefix.layers[layer][0]
        products = torch.bmm(block.reshape(shared, -1, block.shape[-1]), keys.transpose(1, 2))
        return products.view(*block.shape[:2], self.prefix.length)

    def _hide(self, scores: torch.Tensor, window: int | None, start: int, end: int) -> None:
        """Add the mask to scores [kv heads, rows, queries, group, prefix + keys]."""
        mask = self._mask(window, prefix=False)[:, start:end, None, :end]
        past = scores.shape[-1] - end
        scores[..., past:] += mask
        if past and window is not None and window <= self._deepest():
            scores[..., :past] += self._mask(window, prefix=True)[:, start:end, None]

    def _deepest(self) -> int:
        return max(int(row.depth.max()) for row in self.rows)

    def _mask(self, window: int | None, *, prefix: bool) -> torch.Tensor:
        """[rows, queries, keys] in the model's dtype: 0 where a key is seen, its minimum elsewhere."""
        found = self._masks.get((window, prefix))
        if found is None:
            if prefix:
                assert self.prefix is not None
                depth = np.zeros((len(self.rows), self.length), dtype=np.int64)
                for r, row in enumerate(self.rows):
                    depth[r, : row.length] = row.depth
                seen = depth[:, :, None] - np.arange(self.prefix.length) < (window or 0)
            else:
                seen = sees(list(self.rows), self.length, window)
            found = torch.full(seen.shape, torch.finfo(self.dtype).min, dtype=self.dtype, device=self.device)
            found.masked_fill_(torch.from_numpy(seen).to(self.device), 0)
            self._masks[window, prefix] = found
        return found


class Slots:
    """Keys and values of sequences that are being continued, one a slot, by layer: [slots, kv heads, room, size].

    lengths: tokens held by each slot, those of a shared prefix not counted. What lies beyond them is zero: a weight of
    0 does not hide NaN, so neither fresh memory nor the text before may stand there.
    """

    def __init__(self, count: int, room: int, *, device: torch.device) -> None:
        self.room = room
        self.lengths = torch.zeros(count, dtype=torch.long, device=device)
        self.layers: dict[Any, tuple[torch.Tensor, torch.Tensor]] = {}

    def held(self, layer: Any, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The buffers of a layer, made at its first keys and values."""
        if layer not in self.layers:
            k, v = (x.new_zeros(len(self.lengths), x.shape[1], self.room, x.shape[2]) for x in (key, value))
            self.layers[layer] = (k, v)
        return self.layers[layer]

    def fill(self, slots: Sequence[int], rows: Sequence[Row]) -> Keep:
        """What a layer must call so that each row lies in its slot."""
        for slot, row in zip(slots, rows, strict=True):
            self.lengths[slot] = row.length

        def keep(layer: Any, key: torch.Tensor, value: torch.Tensor) -> None:
            held, start = self.held(layer, key, value), 0
            for slot, row in zip(slots, rows, strict=True):
                for buffer, new in zip(held, (key, value), strict=True):
                    buffer[slot, :, : row.length] = new[start: start + row.length].transpose(0, 1)
                    buffer[slot, :, row.length:] = 0
                start += row.length

        return keep

    def move(self, source: int, target: int) -> None:
        """Put what one slot holds into another."""
        for pair in self.layers.values():
            for buffer in pair:
                buffer[target] = buffer[source]
        self.lengths[target] = self.lengths[source]


class Step:
    """One new token for each of the first ``active`` slots, in their order."""

    def __init__(self, slots: Slots, active: int, prefix: Prefix | None = None) -> None:
        self.slots = slots
        self.active = active
        self.prefix = prefix
        self.lengths = slots.lengths[:active].clone()
        self.longest = int(self.lengths.max()) + 1
        self._masks: dict[int | None, torch.Tensor] = {}

    def attend(self, layer: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, call: Call
               ) -> torch.Tensor:
        """Attention of each new token over its slot and the prefix; its own key and value join the slot."""
        query, key, value = map(_exact, (query, key, value))
        n, (heads, size), shared = self.active, query.shape[1:], key.shape[1]
        places = torch.arange(n, device=query.device)
        k, v = self.slots.held(layer, key, value)
        k[places, :, self.lengths] = key
        v[places, :, self.lengths] = value
        k, v = (x[:n, :, : self.longest].flatten(0, 1) for x in (k, v))
        q = query.reshape(n * shared, heads // shared, size)
        scores = torch.bmm(q, k.transpose(1, 2))
        past = self.prefix.length if self.prefix else 0
        if self.prefix is not None:
            ahead = q.view(n, shared, -1, size).transpose(0, 1).reshape(shared, -1, size)
            products = torch.bmm(ahead, self.prefix.layers[layer][0].transpose(1, 2))
            scores = torch.cat((_slots_first(products, n).reshape(n * shared, -1, past), scores), -1)
        call.scores(scores)
        scores.view(n, shared, -1, past + self.longest).add_(self._mask(call.window, past, scores.dtype))
        share = weights(scores)
        mixed = torch.bmm(share[..., past:], v)
        if self.prefix is not None:
            ahead = share[..., :past].view(n, shared, -1, past).transpose(0, 1).reshape(shared, -1, past)
            mixed += _slots_first(torch.bmm(ahead, self.prefix.layers[layer][1]), n).reshape(mixed.shape)
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
