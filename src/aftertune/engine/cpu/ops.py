"""One Python function for each compiled kernel (kernels.c), on tensors.

torch has no attention that keeps scores in float32 over bfloat16 keys, and none that knows packed rows. In a step of
decoding, torch spends more time between its small operators than in them.

All tensors of a call are float32, or all are bfloat16. Their last dimension is contiguous. Keys are stored in tiles of
16: [kv heads, tiles, size, 16], in bfloat16 by pairs of dimensions, [kv heads, tiles, size / 2, 16, 2].
"""

from __future__ import annotations

from typing import Any

import torch

from aftertune.engine.cpu import build
from aftertune.engine.memory import lazy_zeros

#: Keys per tile. The size of a head is a multiple of it.
TILE = 16
DTYPES = (torch.float32, torch.bfloat16)


def attend_rows(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, shape: RowShape, past: KVCache | None,
                scaling: float, window: int) -> torch.Tensor:
    """Attention of packed rows: query i of a row sees key j of the same row where j <= i < end[j], and all keys of
    ``past``. With a window it sees only keys that are fewer than ``window`` positions back (0: no window).

    q [tokens, heads, size], k and v [tokens, kv heads, size] -> [tokens, heads, size].
    """
    q, (k, v), out = _packed_heads(q), _same_stride(k, v), torch.empty(q.shape, dtype=q.dtype)
    build.call("attend_rows", _is_bf16(q), q, k, v, out, shape.starts, shape.end, shape.depth, len(shape.starts) - 1,
               q.shape[1], k.shape[1], q.shape[2], q.stride(0), k.stride(0), *_past(past), scaling, window)
    return out


def attend_step(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lengths: torch.Tensor, slots: KVCache,
                past: KVCache | None, scaling: float, window: int) -> torch.Tensor:
    """Attention of one new token in each of the first slots, over the slot, itself and ``past``. Stores its key and
    value in the slot at ``lengths`` [slots] (int64).

    q [slots, heads, size], k and v [slots, kv heads, size] -> [slots, heads, size].
    """
    q, (k, v), out = _packed_heads(q), _same_stride(k, v), torch.empty(q.shape, dtype=q.dtype)
    build.call("attend_step", _is_bf16(q), q, k, v, out, lengths, len(q), q.shape[1], k.shape[1], q.shape[2],
               q.stride(0), k.stride(0), slots.keys, slots.values, slots.room, *_past(past), scaling, window)
    return out


class RowShape:
    """Where rows are in a flat batch: starts [rows + 1], end and depth [tokens] (see packing.py), all int64."""

    def __init__(self, starts: torch.Tensor, end: torch.Tensor, depth: torch.Tensor) -> None:
        self.starts, self.end, self.depth = starts, end, depth


class KVCache:
    """Stored keys and values, of one prefix or of KV slots. keys: [slots, kv heads, tiles, size, 16]; values:
    [slots, kv heads, room, size]; length: number of keys in use, if it is the same for all slots."""

    def __init__(self, slots: int, room: int, key: torch.Tensor) -> None:
        """room: tokens per slot; key [tokens, kv heads, size]: an example of what will be stored."""
        kv_heads, size = key.shape[1:]
        self.room, self.length = room, room
        self.keys = lazy_zeros((slots, kv_heads, -(-room // TILE), size, TILE), key.dtype)
        self.values = lazy_zeros((slots, kv_heads, room, size), key.dtype)

    def store(self, slot: int, k: torch.Tensor, v: torch.Tensor) -> None:
        """Store keys and values [tokens, kv heads, size] at the beginning of a slot. Raises IndexError where they do
        not fit."""
        if len(k) > self.room or k.shape[1:] != self.values.shape[1:4:2]:
            raise IndexError(f"{len(k)} tokens do not fit into a slot of {self.room}")
        k, v = _same_stride(k, v)
        build.call("store_kv", _is_bf16(k), k, v, k.stride(0), len(k), k.shape[1], k.shape[2], self.keys[slot],
                   self.values[slot], self.room, 0)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """RMS norm, x / sqrt(mean(x^2) + epsilon) * weight, over the last dimension (Zhang and Sennrich 2019),
    rounded where transformers rounds."""
    return _norm(x, None, weight, epsilon)[1]


def add_norm(x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor, epsilon: float
             ) -> tuple[torch.Tensor, torch.Tensor]:
    """x + y, and the RMS norm of the sum."""
    return _norm(x, y.contiguous(), weight, epsilon)


def _norm(x: torch.Tensor, y: torch.Tensor | None, weight: torch.Tensor, epsilon: float
          ) -> tuple[torch.Tensor, torch.Tensor]:
    if x.shape[-1] % TILE or x.dtype not in DTYPES or weight.dtype != x.dtype or len(weight) != x.shape[-1]:
        raise NotImplementedError(f"no kernel for an RMS norm of {x.shape[-1]} numbers in {x.dtype}")
    x, weight = x.contiguous(), weight.contiguous()
    sums, out = x if y is None else torch.empty_like(x), torch.empty_like(x)
    build.call("rms_norm", _is_bf16(x), x, y, weight, sums, out, x.numel() // x.shape[-1], x.shape[-1], epsilon)
    return sums, out


def gate(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """silu(x) * y (Shazeer 2020) of x and y [tokens, columns], rounded where transformers rounds. The number of columns
    is a multiple of 16."""
    if not can_gate(x, y):
        raise NotImplementedError(f"no kernel for a gate of {tuple(x.shape)} and {tuple(y.shape)} numbers in {x.dtype}")
    x, y = (z if z.stride(1) == 1 else z.contiguous() for z in (x, y))
    out = x.new_empty(x.shape)
    build.call("gate", _is_bf16(x), x, x.stride(0), y, y.stride(0), out, *x.shape)
    return out


def can_gate(x: torch.Tensor, y: torch.Tensor) -> bool:
    """True for tensors that `gate` accepts."""
    return x.shape == y.shape and x.dtype == y.dtype and x.dtype in DTYPES and x.shape[1] % TILE == 0


def rotate(x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> None:
    """Rotary position embedding (Su et al. 2021), in place, of x [tokens, heads, size]. cosine and sine
    [tokens, rotary dims]: the first ``rotary dims`` numbers of each head rotate, their first half with the second."""
    if not _heads_together(x):
        raise ValueError("the heads of a token must be contiguous")
    build.call("rotate", _is_bf16(x), x, cosine.contiguous(), sine.contiguous(), *x.shape, cosine.shape[-1],
               x.stride(0))


def summarize(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """For each row of logits [rows, vocabulary]: log of the sum of exponentials, largest logit (both float32) and index
    of the first largest logit (int64), each [rows]."""
    logits = logits.contiguous()
    norm, top = (torch.empty(len(logits)) for _ in range(2))
    best = torch.empty(len(logits), dtype=torch.long)
    build.call("summarize", _is_bf16(logits), logits, len(logits), logits.shape[-1], norm, top, best)
    return norm, top, best


def add_lora(out: torch.Tensor, inner: torch.Tensor, b: torch.Tensor, scale: float, gain: torch.Tensor | None = None
            ) -> None:
    """LoRA, in place: out [tokens, columns] += scale * inner [tokens, rank] b [rank, columns]. With ``gain`` [columns]
    (DoRA) the sum is multiplied by it. All but ``out`` is float32; the number of columns is a multiple of 16."""
    build.call("add_lora", _is_bf16(out), inner, inner.stride(0), b, len(b), scale, gain, out, out.stride(0),
               *out.shape)


def takes_weight(weight: torch.Tensor) -> bool:
    """True for a weight [columns, depth] that `linear` accepts in tiles."""
    columns, depth = weight.shape
    return weight.dtype in DTYPES and not columns % TILE and not (_is_bf16(weight) and depth % (2 * TILE))


def tile_weight(weight: torch.Tensor) -> torch.Tensor:
    """A copy of a weight [columns, depth] in tiles, as `linear` reads it: [columns / 16, depth, 16], in bfloat16 by
    pairs, [columns / 16, depth / 2, 16, 2]."""
    columns, depth = weight.shape
    source = _words(weight.detach().contiguous()).view(columns // TILE, TILE, -1).transpose(1, 2)
    tiles = weight.new_empty(columns // TILE, depth // 2, TILE, 2) if _is_bf16(weight) \
        else weight.new_empty(columns // TILE, depth, TILE)
    _words(tiles).view(source.shape).copy_(source)
    return tiles


def untile_weight(tiles: torch.Tensor) -> torch.Tensor:
    """The weight [columns, depth] of these tiles."""
    words = _words(tiles).view(*tiles.shape[:3])
    return words.transpose(1, 2).contiguous().view(len(tiles) * TILE, -1).view(tiles.dtype)


def linear(x: torch.Tensor, tiles: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x [..., depth] times a weight in tiles (see `tile_weight`), plus bias [columns], all of one dtype. Sums are
    float32. A row's result does not depend on the number of rows. Raises NotImplementedError for other shapes."""
    x, columns, depth = x.contiguous(), len(tiles) * TILE, tiles[0].numel() // TILE
    if x.dtype != tiles.dtype or x.shape[-1] != depth or (bias is not None and bias.dtype != x.dtype):
        raise NotImplementedError(f"no kernel for a linear layer of {x.shape[-1]} numbers in {x.dtype}")
    out = x.new_empty(*x.shape[:-1], columns)
    build.call("linear", _is_bf16(x), x, x.numel() // depth, depth, tiles, columns, bias, out)
    return out


def layer_step(layer: int, x: torch.Tensor, out: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor,
               lengths: torch.Tensor, slots: KVCache, past: KVCache | None) -> None:
    """A whole decoder layer, at the address ``layer`` (see llama_step.py), for one new token in each of the first
    slots."""
    build.call("layer_step", _is_bf16(x), layer, x, out, cosine, sine, cosine.shape[-1], lengths, len(x), slots.keys,
               slots.values, slots.room, *_past(past))


def attend_back(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, grad: torch.Tensor,
                starts: torch.Tensor, scaling: float, window: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of q, k and v from ``grad``, the gradient of ``out`` = `attend_rows` of rows that do not branch.
    starts [rows + 1], int64. Sums are float32.

    q, out and grad [tokens, heads, size], k and v [tokens, kv heads, size] -> tensors of the shapes of q, k and v.
    """
    q, k, v, out, grad = (x.contiguous() for x in (q, k, v, out, grad))
    gradients = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    build.call("attend_back", _is_bf16(q), q, k, v, out, grad, *gradients, starts, len(starts) - 1, q.shape[1],
               k.shape[1], q.shape[2], scaling, window)
    return gradients


def rms_norm_back(x: torch.Tensor, weight: torch.Tensor, grad: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Gradient of x [..., size] from ``grad``, the gradient of `rms_norm`."""
    x, weight, grad = x.contiguous(), weight.contiguous(), grad.contiguous()
    out = torch.empty_like(x)
    build.call("rms_norm_back", _is_bf16(x), x, weight, grad, out, x.numel() // x.shape[-1], x.shape[-1], epsilon)
    return out


def gate_back(x: torch.Tensor, y: torch.Tensor, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of x and y from ``grad``, the gradient of `gate`."""
    x, y, grad = x.contiguous(), y.contiguous(), grad.contiguous()
    gradients = torch.empty_like(x), torch.empty_like(y)
    build.call("gate_back", _is_bf16(x), x, y, grad, *gradients, x.numel() // TILE)
    return gradients


def _is_bf16(x: torch.Tensor) -> int:
    return int(x.dtype == torch.bfloat16)


def _words(x: torch.Tensor) -> torch.Tensor:
    """x as words of four bytes: one float32 number or two bfloat16 numbers each."""
    return x.view(torch.int32)


def _heads_together(x: torch.Tensor) -> bool:
    """True where the heads of each token are contiguous, as the kernels require."""
    return bool(x.stride()[1:] == (x.shape[2], 1))


def _packed_heads(x: torch.Tensor) -> torch.Tensor:
    return x if _heads_together(x) else x.contiguous()


def _same_stride(k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values with the same stride from token to token."""
    k, v = _packed_heads(k), _packed_heads(v)
    return (k, v) if k.stride(0) == v.stride(0) else (k.contiguous(), v.contiguous())


def _past(past: KVCache | None) -> tuple[Any, ...]:
    return (None, None, 0, 0) if past is None else (past.keys, past.values, past.length, past.room)
