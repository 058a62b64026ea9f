"""LoRA next to packed weights: what an adapter adds to a product, with PEFT's arithmetic and fewer passes.

    base, low = taken_apart(layer)              # a plain linear layer, and the Low of an active adapter, or None
    Sums([low_q, low_k, low_v], widths).onto(base(x), x)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from aftertune.engine import kernels
from aftertune.engine.linears import plain


@dataclass(frozen=True, slots=True)
class Low:
    """What LoRA adds: scale * b a x (Hu et al. 2021). a [rank, columns]; b [rank, rows], as the kernel takes it."""

    a: torch.Tensor
    b: torch.Tensor
    scale: float


def taken_apart(layer: Any) -> tuple[Any, Low | None] | None:
    """A layer that can be packed, and what one plain LoRA adds to it; None where it is anything else."""
    if plain(layer):
        return layer, None
    kind = type(layer)
    if f"{kind.__module__}.{kind.__qualname__}" != "peft.tuners.lora.layer.Linear" or not plain(layer.base_layer):
        return None
    names = [n for n in layer.active_adapters if n in layer.lora_A]
    if layer.merged:
        return None  # PEFT may take it apart again
    if layer.disable_adapters or not names:
        return layer.base_layer, None
    low = [layer.lora_A[names[0]], layer.lora_B[names[0]]]
    usual = len(names) == 1 and names[0] not in layer.lora_variant and not layer.training \
        and all(m.bias is None and m.weight.dtype == torch.float32 for m in low) \
        and getattr(layer, "cast_input_dtype_enabled", True) and layer.base_layer.out_features % kernels.TILE == 0
    if not usual:
        return None
    return layer.base_layer, Low(low[0].weight, low[1].weight.t().contiguous(), float(layer.scaling[names[0]]))


class Sums:
    """What the adapters of layers add to their products, which lie side by side; sums are in float32, as PEFT's are
    for adapters that it keeps in float32."""

    def __init__(self, lows: Sequence[Low | None], widths: Sequence[int]) -> None:
        first = [sum(widths[:n]) for n in range(len(widths))]
        self.parts = [(low, start, start + width) for low, start, width in zip(lows, first, widths, strict=True) if low]
        self.a = torch.cat([low.a for low, _, _ in self.parts]).detach() if self.parts else None

    def onto(self, out: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """``out`` [tokens, all widths], with everything added in place."""
        if self.a is None:
            return out
        inner = torch.nn.functional.linear(x.to(self.a.dtype), self.a)
        start = 0
        for low, first, last in self.parts:
            end = start + len(low.b)
            kernels.add_low(out[:, first:last], inner[:, start:end], low.b, low.scale)
            start = end
        return out
