"""A decoder layer of the Llama kind in one call, for a step of decoding: its products take less time than what Python
does between them.

    step = of(block, call)                              # None where a part is not what the kernel takes
    step(x, cosine, sine, lengths, held, past)          # -> what the layer makes of x [slots, hidden]

All of its linear layers must lie in tiles of the kernels; LoRA and DoRA on them are added. The numbers are those of the
kernels one after the other.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch

from aftertune.engine import kernels
from aftertune.engine.adapters import Joined, Sums
from aftertune.engine.kernels import TILE, Held
from aftertune.engine.linears import Tiled

_FIELDS = {"p": ctypes.c_void_p, "n": ctypes.c_int64, "d": ctypes.c_double}


def _fields(**kinds: str) -> list[tuple[str, Any]]:
    """Names of one kind, in the order of kernels.c."""
    return [(name, _FIELDS[kind[0]]) for kind, names in kinds.items() for name in names.split()]


class _Low(ctypes.Structure):
    _fields_ = _fields(p="b gain", n="start rank first columns", d="scale")


class _Linear(ctypes.Structure):
    _fields_ = _fields(p="weight bias", n="depth columns", p2="a lows", n2="ranks count")


class _Layer(ctypes.Structure):
    _fields_ = [*((name, _Linear) for name in ("project", "output", "opened", "down")),
                *_fields(p="before between q_norm k_norm",
                         d="before_epsilon between_epsilon q_epsilon k_epsilon scaling", n="heads shared size window")]


class LayerStep:
    """One layer, as the kernel takes it. kept: what its pointers lead to."""

    def __init__(self, layer: _Layer, kept: list[Any], dtype: torch.dtype) -> None:
        self.layer, self.kept, self.dtype = layer, kept, dtype
        self.pointer = ctypes.addressof(layer)

    def __call__(self, x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor, lengths: torch.Tensor, slots: Held,
                 past: Held | None) -> torch.Tensor:
        """One new token of each slot, x [slots, hidden]; its key and value join the slot at ``lengths`` [slots].
        cosine and sine: [slots, turned], as for `kernels.rotate`."""
        if not x.dtype == cosine.dtype == sine.dtype == self.dtype or len(x) != len(lengths) \
                or x.shape[1] != self.layer.project.depth:
            raise NotImplementedError(f"a step of {tuple(x.shape)} numbers in {x.dtype}")
        x, out = x.contiguous(), torch.empty_like(x, memory_format=torch.contiguous_format)
        kernels.layer_step(self.pointer, x, out, cosine.contiguous(), sine.contiguous(), lengths, slots, past)
        return out


def of(block: Any) -> LayerStep | None:
    """A fused block (see blocks.py) as one call; None where a part is not what the kernel takes."""
    joined = {name: getattr(block, name) for name in ("project", "output", "opened", "down")}
    norms = {"before": block.before, "between": block.between}
    if block.norms:
        norms |= dict(zip(("q_norm", "k_norm"), block.norms, strict=True))
    kept: list[Any] = []
    linears = {name: _linear(part.product, part.sums, kept) for name, part in joined.items()
               if isinstance(part, Joined) and isinstance(part.product, Tiled)}
    dtypes = {norm.weight.dtype for norm in norms.values()} | {joined[name].product.weight.dtype for name in linears}
    sizes = [block.size, *(len(norm.weight) for norm in norms.values()), *(made.depth for made in linears.values())]
    if len(linears) < len(joined) or len(dtypes) > 1 or any(size % TILE for size in sizes):
        return None
    layer = _Layer(**linears, scaling=block.call.scaling, heads=block.heads, shared=block.turned - block.heads,
                   size=block.size, window=block.call.window or 0)
    for name, norm in norms.items():
        setattr(layer, name, _pointer(norm.weight.detach().contiguous(), kept))
        setattr(layer, f"{name.removesuffix('_norm')}_epsilon", norm.variance_epsilon)
    return LayerStep(layer, kept, dtypes.pop())


def _linear(product: Tiled, sums: Sums, kept: list[Any]) -> _Linear:
    columns, depth = len(product.weight) * TILE, product.weight[0].numel() // TILE
    made = _Linear(weight=_pointer(product.weight, kept), bias=_pointer(product.bias, kept), depth=depth,
                   columns=columns)
    if sums.a is not None:
        ranks = -(-len(sums.a) // TILE) * TILE
        a = torch.nn.functional.pad(sums.a, (0, 0, 0, ranks - len(sums.a)))
        start, lows = 0, (_Low * len(sums.parts))()
        for n, (low, first, last) in enumerate(sums.parts):
            lows[n] = _Low(_pointer(low.b, kept), _pointer(low.gain, kept), start, len(low.b), first, last - first,
                           low.scale)
            start += len(low.b)
        kept.append(lows)
        made.a, made.lows = _pointer(kernels.tile(a), kept), ctypes.addressof(lows)
        made.ranks, made.count = ranks, len(lows)
    return made


def _pointer(x: torch.Tensor | None, kept: list[Any]) -> int | None:
    kept.append(x)
    return None if x is None else x.data_ptr()
