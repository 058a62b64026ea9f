"""The layouts of a flat batch again (see layouts.py), by the kernels: on a CPU, with less memory and several times as
fast. Keys and values are kept in the model's dtype; scores and sums are float32 inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from aftertune.engine import kernels, steps
from aftertune.engine.attention import Call
from aftertune.engine.layouts import Keep
from aftertune.engine.trie import Row


def suits(config: Any) -> bool:
    """True where the kernels do the attention of a model with this config; there may be none here all the same."""
    heads = number(config, "num_attention_heads")
    size = number(config, "head_dim") or (number(config, "hidden_size") // heads if heads else 0)
    values = number(config, "v_head_dim") or size
    return bool(size) and size % kernels.TILE == 0 and values == size and not number(config, "kv_lora_rank") \
        and not number(config, "attn_logit_softcapping")


def number(config: Any, name: str) -> int:
    """A whole number of a config; 0 where it has none, or another for each layer."""
    try:
        value = getattr(config, name, 0)
    except RuntimeError:  # transformers, for what differs from layer to layer
        return 0
    return int(value) if isinstance(value, int | float) else 0


class Prefix:
    """Keys and values of tokens that many sequences begin with, by layer."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.layers: dict[Any, kernels.Held] = {}

    def keep(self, layer: Any, key: torch.Tensor, value: torch.Tensor) -> None:
        self.layers[layer] = kernels.Held(1, len(key), key)
        self.layers[layer].keep(0, key, value)


class Rows:
    """Trie rows end to end. Depths of rows after a prefix begin with its length."""

    def __init__(self, rows: Sequence[Row], *, device: torch.device, dtype: torch.dtype,
                 prefix: Prefix | None = None, keep: Keep | None = None) -> None:
        del device, dtype  # those of the tensors that come
        self.prefix = prefix
        self.keep = keep
        starts = np.cumsum([0, *(row.length for row in rows)])
        self.shape = kernels.Shape(*(torch.from_numpy(x.astype(np.int64)) for x in (
            starts, np.concatenate([row.end for row in rows]), np.concatenate([row.depth for row in rows]))))

    def attend(self, layer: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, call: Call
               ) -> torch.Tensor:
        """Attention of every token over its own row, and over the prefix."""
        _check(query, key, value)
        if self.keep is not None:
            self.keep(layer, key, value)
        past = self.prefix.layers[layer] if self.prefix else None
        return kernels.attend_rows(query, key, value, self.shape, past, *_plain(call))


class Slots:
    """Keys and values of sequences that are being continued, one a slot. lengths: tokens held by each [slots]."""

    def __init__(self, count: int, room: int, *, device: torch.device) -> None:
        self.room = room
        self.lengths = torch.zeros(count, dtype=torch.long, device=device)
        self.layers: dict[Any, kernels.Held] = {}

    def held(self, layer: Any, key: torch.Tensor) -> kernels.Held:
        """What a layer holds, made at its first keys."""
        if layer not in self.layers:
            self.layers[layer] = kernels.Held(len(self.lengths), self.room, key)
        return self.layers[layer]

    def fill(self, slots: Sequence[int], rows: Sequence[Row]) -> Keep:
        """What a layer must call so that each row lies in its slot."""
        for slot, row in zip(slots, rows, strict=True):
            self.lengths[slot] = row.length

        def keep(layer: Any, key: torch.Tensor, value: torch.Tensor) -> None:
            held, start = self.held(layer, key), 0
            for slot, row in zip(slots, rows, strict=True):
                held.keep(slot, key[start: start + row.length], value[start: start + row.length])
                start += row.length

        return keep

    def move(self, source: int, target: int) -> None:
        """Put what one slot holds into another."""
        for held in self.layers.values():
            held.keys[target] = held.keys[source]
            held.values[target] = held.values[source]
        self.lengths[target] = self.lengths[source]


class Step:
    """One new token for each of the first ``active`` slots, in their order."""

    def __init__(self, slots: Slots, active: int, prefix: Prefix | None = None) -> None:
        self.slots = slots
        self.prefix = prefix
        self.lengths = slots.lengths[:active].clone()
        if int(self.lengths.max()) >= slots.room:
            raise IndexError(f"a slot of {slots.room} tokens is full")

    def attend(self, layer: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, call: Call
               ) -> torch.Tensor:
        """Attention of each new token over its slot and the prefix; its own key and value join the slot."""
        _check(query, key, value)
        past = self.prefix.layers[layer] if self.prefix else None
        return kernels.attend_step(query, key, value, self.lengths, self.slots.held(layer, key), past, *_plain(call))

    def through(self, layer: Any, step: steps.LayerStep, x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor
                ) -> torch.Tensor:
        """The same of a whole decoder layer, whose attention is ``layer``."""
        past = self.prefix.layers[layer] if self.prefix else None
        return step(x, cosine, sine, self.lengths, self.slots.layers[layer], past)


def _check(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
    """The kernels take pointers, so what they are not made for must not reach them."""
    if not (query.dtype == key.dtype == value.dtype and query.dtype in kernels.DTYPES and key.shape == value.shape
            and query.shape[2] == key.shape[2] and key.shape[2] % kernels.TILE == 0
            and query.shape[1] % key.shape[1] == 0 and query.device.type == "cpu"):
        raise NotImplementedError(f"the kernels take no heads of {query.shape[2]} and {value.shape[2]}, {query.dtype}")


def _plain(call: Call) -> tuple[float, int]:
    if call.softcap is not None:
        raise NotImplementedError("the kernels cap no scores")
    return float(call.scaling), call.window or 0
