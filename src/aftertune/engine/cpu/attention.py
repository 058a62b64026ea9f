"""The layouts of a flat batch (see engine/attention.py), computed by the compiled kernels.

They use less memory than torch's and are several times as fast. Keys and values are stored in the model's dtype;
scores and sums are float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from aftertune.engine.attention import Call, Keep
from aftertune.engine.cpu import ops
from aftertune.engine.cpu.llama_step import LayerStep
from aftertune.engine.packing import PackedRow
from aftertune.engine.scorer import config_number


def supports(config: Any) -> bool:
    """True where the kernels can compute the attention of a model with this config. They may still be unavailable."""
    heads = config_number(config, "num_attention_heads")
    size = config_number(config, "head_dim") or (config_number(config, "hidden_size") // heads if heads else 0)
    values = config_number(config, "v_head_dim") or size
    return bool(size) and size % ops.TILE == 0 and values == size and not config_number(config, "kv_lora_rank") \
        and not config_number(config, "attn_logit_softcapping")


class CpuPrefix:
    """Keys and values of a shared prefix, by layer."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.layers: dict[Any, ops.KVCache] = {}

    def keep(self, layer: Any, key: torch.Tensor, value: torch.Tensor) -> None:
        self.layers[layer] = ops.KVCache(1, len(key), key)
        self.layers[layer].store(0, key, value)


class CpuRows:
    """Packed rows end to end. Depths of rows after a prefix start at its length."""

    def __init__(self, rows: Sequence[PackedRow], *, prefix: CpuPrefix | None = None, keep: Keep | None = None) -> None:
        self.prefix = prefix
        self.keep = keep
        starts = np.cumsum([0, *(row.length for row in rows)])
        self.shape = ops.RowShape(*(torch.from_numpy(x.astype(np.int64)) for x in (
            starts, np.concatenate([row.end for row in rows]), np.concatenate([row.depth for row in rows]))))

    def attend(self, layer: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, call: Call
               ) -> torch.Tensor:
        """Attention of every token over its own row and the prefix."""
        _check(query, key, value)
        if self.keep is not None:
            self.keep(layer, key, value)
        past = self.prefix.layers[layer] if self.prefix else None
        return ops.attend_rows(query, key, value, self.shape, past, *_scaling_and_window(call))


class CpuSlots:
    """Keys and values of sequences that are being continued, one per slot. lengths: tokens in each [slots]."""

    def __init__(self, count: int, room: int) -> None:
        self.room = room
        self.lengths = torch.zeros(count, dtype=torch.long)
        self.layers: dict[Any, ops.KVCache] = {}

    def cache(self, layer: Any, key: torch.Tensor) -> ops.KVCache:
        """The cache of a layer, allocated at its first keys."""
        if layer not in self.layers:
            self.layers[layer] = ops.KVCache(len(self.lengths), self.room, key)
        return self.layers[layer]

    def fill(self, slots: Sequence[int], rows: Sequence[PackedRow]) -> Keep:
        """A function that stores each of the rows in its slot."""
        for slot, row in zip(slots, rows, strict=True):
            self.lengths[slot] = row.length

        def keep(layer: Any, key: torch.Tensor, value: torch.Tensor) -> None:
            cache, start = self.cache(layer, key), 0
            for slot, row in zip(slots, rows, strict=True):
                cache.store(slot, key[start: start + row.length], value[start: start + row.length])
                start += row.length

        return keep

    def move(self, source: int, target: int) -> None:
        """Copy one slot into another."""
        for cache in self.layers.values():
            cache.keys[target] = cache.keys[source]
            cache.values[target] = cache.values[source]
        self.lengths[target] = self.lengths[source]


class CpuStep:
    """One new token for each of the first ``active`` slots, in their order. Raises IndexError where a slot is full."""

    def __init__(self, slots: CpuSlots, active: int, prefix: CpuPrefix | None = None) -> None:
        self.slots = slots
        self.prefix = prefix
        self.lengths = slots.lengths[:active].clone()
        if int(self.lengths.max()) >= slots.room:
            raise IndexError(f"a slot of {slots.room} tokens is full")

    def attend(self, layer: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, call: Call
               ) -> torch.Tensor:
        """Attention of each new token over its slot and the prefix; stores its key and value in the slot."""
        _check(query, key, value)
        past = self.prefix.layers[layer] if self.prefix else None
        return ops.attend_step(query, key, value, self.lengths, self.slots.cache(layer, key), past,
                               *_scaling_and_window(call))

    def run_layer(self, layer: Any, step: LayerStep, x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor
                  ) -> torch.Tensor:
        """A whole decoder layer in one call (see llama_step.py); its attention module is ``layer``."""
        past = self.prefix.layers[layer] if self.prefix else None
        return step(x, cosine, sine, self.lengths, self.slots.layers[layer], past)


def _check(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
    """Raises NotImplementedError for tensors that the kernels, which get only pointers, would misread."""
    if not (query.dtype == key.dtype == value.dtype and query.dtype in ops.DTYPES and key.shape == value.shape
            and query.shape[2] == key.shape[2] and key.shape[2] % ops.TILE == 0
            and query.shape[1] % key.shape[1] == 0 and query.device.type == "cpu"):
        raise NotImplementedError(f"the kernels do not support heads of size {query.shape[2]} and {value.shape[2]} in "
                                  f"{query.dtype}")


def _scaling_and_window(call: Call) -> tuple[float, int]:
    """What the kernels need of a call; raises NotImplementedError for capped scores."""
    if call.softcap is not None:
        raise NotImplementedError("the kernels do not support capped scores (softcap)")
    return float(call.scaling), call.window or 0
