"""LoRA and DoRA beside packed weights, with PEFT's arithmetic and fewer passes over memory.

    base, pair = split_lora(layer, weight)      # the plain linear layer, and the LoraPair of an active adapter or None
    fused_linear(linears, q, k, v)(x)           # the outputs of three layers side by side, adapters included
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from aftertune.engine.cpu import ops
from aftertune.engine.cpu.linear import Function, PackedLinears, PackedWeight, is_packable
from aftertune.engine.dora import Weight, gain, is_dora


@dataclass(frozen=True, slots=True)
class LoraPair:
    """One adapter: it adds scale * B A x (Hu et al. 2021). a [rank, columns]; b [rank, rows], transposed for the
    kernel; gain [rows]: of DoRA, multiplies the whole output."""

    a: torch.Tensor
    b: torch.Tensor
    scale: float
    gain: torch.Tensor | None = None


def is_plain_lora(layer: Any, *, trained: bool = False) -> bool:
    """True for a PEFT layer whose arithmetic this module (or with ``trained`` autograd.py) can replace.

    It is LoRA or DoRA with one active adapter, in float32 and without biases, on an nn.Linear layer in a dtype of the
    kernels, and not merged. DoRA's layer has no bias. For evaluation the layer is not in training mode, and its rows
    fit into tiles. For training its base is frozen, and DoRA has no dropout, which would not pass through its gain.
    """
    if not _is_peft_linear(layer) or layer.merged or type(layer.base_layer) is not torch.nn.Linear:
        return False
    base, names = layer.base_layer, active_names(layer)
    if len(names) != 1 or base.weight.dtype not in ops.DTYPES:
        return False
    name = names[0]
    dora = is_dora(layer, name)
    plain = (name not in layer.lora_variant or (dora and base.bias is None)) and all(
        m[name].bias is None and m[name].weight.dtype == torch.float32 for m in (layer.lora_A, layer.lora_B))
    if trained:
        dropout = getattr(layer.lora_dropout[name], "p", 0.0)
        return bool(plain and not base.weight.requires_grad and not (dora and dropout))
    return bool(plain and not layer.training and getattr(layer, "cast_input_dtype_enabled", True)
                and base.out_features % ops.TILE == 0)


def active_names(layer: Any) -> list[str]:
    """The active adapters that a PEFT layer has a LoRA pair of."""
    return [name for name in layer.active_adapters if name in layer.lora_A]


def _is_peft_linear(layer: Any) -> bool:
    return f"{type(layer).__module__}.{type(layer).__qualname__}" == "peft.tuners.lora.layer.Linear"


def split_lora(layer: Any, weight: Weight) -> tuple[Any, LoraPair | None] | None:
    """A layer's packable base and the pair of its adapter (None without an active one). None for any other layer."""
    if is_packable(layer):
        return layer, None
    if not _is_peft_linear(layer) or not is_packable(layer.base_layer) or layer.merged:  # PEFT may unmerge it again
        return None
    base, names = layer.base_layer, active_names(layer)
    if layer.disable_adapters or not names:
        return base, None
    if not is_plain_lora(layer):
        return None
    name = names[0]
    a, b, scale = layer.lora_A[name], layer.lora_B[name], float(layer.scaling[name])
    gains = gain(layer.lora_magnitude_vector[name], a, b, scale, weight(base)) if is_dora(layer, name) else None
    return base, LoraPair(a.weight, b.weight.t().contiguous(), scale, gains)


class AdapterDelta:
    """What the adapters of several layers add to the layers' outputs, which are side by side. Sums are float32, as
    PEFT's are for adapters that it keeps in float32.

    pair_columns: each pair with its first column and the one after its last; a: all A matrices [sum of ranks, columns].
    """

    def __init__(self, pairs: Sequence[LoraPair | None], widths: Sequence[int]) -> None:
        first = [sum(widths[:n]) for n in range(len(widths))]
        self.pair_columns = [(pair, start, start + width)
                      for pair, start, width in zip(pairs, first, widths, strict=True) if pair]
        self.a = torch.cat([pair.a for pair, _, _ in self.pair_columns]).detach() if self.pair_columns else None

    def add_to(self, out: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """``out`` [tokens, all widths] with the adapters of x [tokens, columns] added, in place."""
        if self.a is None:
            return out
        inner = torch.nn.functional.linear(x.to(self.a.dtype), self.a)
        start = 0
        for pair, first, last in self.pair_columns:
            end = start + len(pair.b)
            ops.add_lora(out[:, first:last], inner[:, start:end], pair.b, pair.scale, pair.gain)
            start = end
        return out


@dataclass(frozen=True, slots=True)
class FusedLinear:
    """Linear layers side by side: the product with their packed weights, and their adapters."""

    product: PackedWeight
    delta: AdapterDelta

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.delta.add_to(self.product(x), x)


def fused_linear(linears: PackedLinears, *layers: Any) -> Function:
    """x [tokens, columns] -> the outputs of the layers side by side. Where one of them cannot be packed, or nothing is
    packed at the time, each layer is called on its own."""
    splits = [split_lora(layer, linears.weight) for layer in layers] if linears.on else [None]
    split = [layer for layer in splits if layer]
    if len(split) < len(layers) or len({base.bias is None for base, _ in split}) > 1:
        return lambda x: torch.cat([layer(x) for layer in layers], -1)
    return FusedLinear(linears.product(*(base for base, _ in split)),
                       AdapterDelta([pair for _, pair in split], [base.out_features for base, _ in split]))
