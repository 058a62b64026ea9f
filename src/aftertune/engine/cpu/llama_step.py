"""Runs a whole decoder layer of Llama's kind in one call, for a decoding step.

    step = layer_step(layer, call)                      # None where a part is not what the kernel accepts
    step(x, cosine, sine, lengths, slots, past)         # the layer's output for x [slots, hidden]

In a decoding step Python takes more time than the matrix products. All linear layers must be in tiles of the kernels
(AMX); LoRA and DoRA on them are added. The results equal those of the separate kernels. This path is frozen: no model
family or method is added to it.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch

from aftertune.engine.attention import Call
from aftertune.engine.cpu import ops
from aftertune.engine.cpu.linear import TiledWeight
from aftertune.engine.cpu.lora import AdapterDelta, FusedLinear
from aftertune.engine.cpu.ops import TILE, KVCache

_FIELDS = {"p": ctypes.c_void_p, "n": ctypes.c_int64, "d": ctypes.c_double}


def _fields(**kinds: str) -> list[tuple[str, Any]]:
    """Fields of a structure by kind (p, a pointer; n, int64; d, double), in the order of kernels.c."""
    return [(name, _FIELDS[kind[0]]) for kind, names in kinds.items() for name in names.split()]


class _LoraPair(ctypes.Structure):
    _fields_ = _fields(p="b gain", n="start rank first columns", d="scale")


class _Linear(ctypes.Structure):
    _fields_ = _fields(p="weight bias", n="depth columns", p2="a pairs", n2="ranks count")


class _Layer(ctypes.Structure):
    _fields_ = [*((name, _Linear) for name in ("qkv", "output", "gate_up", "down")),
                *_fields(p="input_norm post_norm q_norm k_norm",
                         d="input_epsilon post_epsilon q_epsilon k_epsilon scaling", n="heads kv_heads size window")]


class LayerStep:
    """One layer as the kernel reads it. alive: the objects that its pointers refer to."""

    def __init__(self, layer: _Layer, alive: list[Any], dtype: torch.dtype) -> None:
        self.layer, self.alive, self.dtype = layer, alive, dtype
        self.pointer = ctypes.addressof(layer)

    def __call__(self, x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor, lengths: torch.Tensor, slots: KVCache,
                 past: KVCache | None) -> torch.Tensor:
        """The output for one new token per slot, x [slots, hidden]; stores its key and value at ``lengths`` [slots].
        cosine and sine: [slots, rotary dims], as for `ops.rotate`. Raises NotImplementedError for other shapes."""
        if not x.dtype == cosine.dtype == sine.dtype == self.dtype or len(x) != len(lengths) \
                or x.shape[1] != self.layer.qkv.depth:
            raise NotImplementedError(f"no kernel for a step of {tuple(x.shape)} numbers in {x.dtype}")
        x, out = x.contiguous(), torch.empty_like(x, memory_format=torch.contiguous_format)
        ops.layer_step(self.pointer, x, out, cosine.contiguous(), sine.contiguous(), lengths, slots, past)
        return out


def layer_step(layer: Any, call: Call) -> LayerStep | None:
    """A fused layer (see llama.py) as one call; None where a part is not what the kernel accepts."""
    fused = {name: getattr(layer, name) for name in ("qkv", "output", "gate_up", "down")}
    norms = {"input_norm": layer.input_norm, "post_norm": layer.post_norm}
    if layer.head_norms:
        norms |= dict(zip(("q_norm", "k_norm"), layer.head_norms, strict=True))
    alive: list[Any] = []
    linears = {name: _linear(part.product, part.delta, alive) for name, part in fused.items()
               if isinstance(part, FusedLinear) and isinstance(part.product, TiledWeight)}
    dtypes = {norm.weight.dtype for norm in norms.values()} | {fused[name].product.weight.dtype for name in linears}
    sizes = [layer.size, *(len(norm.weight) for norm in norms.values()), *(linear.depth for linear in linears.values())]
    if len(linears) < len(fused) or len(dtypes) > 1 or any(size % TILE for size in sizes):
        return None
    struct = _Layer(**linears, scaling=call.scaling, heads=layer.heads, kv_heads=layer.rotated - layer.heads,
                    size=layer.size, window=call.window or 0)
    for name, norm in norms.items():
        setattr(struct, name, _pointer(norm.weight.detach().contiguous(), alive))
        setattr(struct, f"{name.removesuffix('_norm')}_epsilon", norm.variance_epsilon)
    return LayerStep(struct, alive, dtypes.pop())


def _linear(product: TiledWeight, delta: AdapterDelta, alive: list[Any]) -> _Linear:
    columns, depth = len(product.weight) * TILE, product.weight[0].numel() // TILE
    struct = _Linear(weight=_pointer(product.weight, alive), bias=_pointer(product.bias, alive), depth=depth,
                     columns=columns)
    if delta.a is not None:
        ranks = -(-len(delta.a) // TILE) * TILE
        a = torch.nn.functional.pad(delta.a, (0, 0, 0, ranks - len(delta.a)))
        start, pairs = 0, (_LoraPair * len(delta.pair_columns))()
        for n, (pair, first, last) in enumerate(delta.pair_columns):
            pairs[n] = _LoraPair(_pointer(pair.b, alive), _pointer(pair.gain, alive), start, len(pair.b), first,
                                 last - first, pair.scale)
            start += len(pair.b)
        alive.append(pairs)
        struct.a, struct.pairs = _pointer(ops.tile_weight(a), alive), ctypes.addressof(pairs)
        struct.ranks, struct.count = ranks, len(pairs)
    return struct


def _pointer(x: torch.Tensor | None, alive: list[Any]) -> int | None:
    """The address of a tensor, which is added to ``alive`` so that it is not freed. None for None."""
    alive.append(x)
    return None if x is None else x.data_ptr()
