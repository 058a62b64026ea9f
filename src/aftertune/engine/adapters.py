"""LoRA and DoRA next to packed weights: what an adapter adds to a product, with PEFT's arithmetic and fewer passes.

    base, low = taken_apart(layer, weight)      # a plain linear layer, and the Low of an active adapter, or None
    joined(linears, q, k, v)(x)                 # what each of them makes of x, side by side
    with steady(model, weight): model(…)        # what DoRA divides by is made once, not in every pass
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from aftertune.engine import kernels
from aftertune.engine.linears import Function, Linears, Packed, plain

#: A linear layer -> its weight, wherever that lies at the time.
Weight = Callable[[Any], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Low:
    """What LoRA adds: scale * b a x (Hu et al. 2021). a [rank, columns]; b [rank, rows], as the kernel takes it; gain
    [rows]: of DoRA, what the sum is multiplied by."""

    a: torch.Tensor
    b: torch.Tensor
    scale: float
    gain: torch.Tensor | None = None


def taken_apart(layer: Any, weight: Weight) -> tuple[Any, Low | None] | None:
    """A layer that can be packed, and what one plain LoRA or DoRA adds to it; None where it is anything else."""
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
    name, base = names[0], layer.base_layer
    low = [layer.lora_A[name], layer.lora_B[name]]
    dora = is_dora(layer, name) and base.bias is None
    usual = len(names) == 1 and (dora or name not in layer.lora_variant) and not layer.training \
        and all(m.bias is None and m.weight.dtype == torch.float32 for m in low) \
        and getattr(layer, "cast_input_dtype_enabled", True) and base.out_features % kernels.TILE == 0
    if not usual:
        return None
    scale = float(layer.scaling[name])
    by = gain(layer.lora_magnitude_vector[name], *low, scale, weight(base)) if dora else None
    return base, Low(low[0].weight, low[1].weight.t().contiguous(), scale, by)


def is_dora(layer: Any, name: str) -> bool:
    """True where an adapter of a PEFT layer is DoRA."""
    return type(layer.lora_variant.get(name)).__name__ == "DoraLinearVariant"


@torch.no_grad()
def gain(dora: Any, low_a: Any, low_b: Any, scale: float, weight: torch.Tensor) -> torch.Tensor:
    """What DoRA multiplies each row of W + scale * b a by: its magnitude over the row's norm (Liu et al. 2024, eq. 5).
    dora: PEFT's layer of the magnitudes; the gain is in their dtype [rows]."""
    norm = dora.get_weight_norm(weight.to(low_a.weight.dtype), low_b.weight @ low_a.weight, scale)
    found: torch.Tensor = dora.weight / norm
    return found


@contextlib.contextmanager
def steady(model: Any, weight: Weight) -> Iterator[None]:
    """PEFT's DoRA layers look their gains up meanwhile, each made at its first use; the weights must stay as they are
    until then."""
    found = [m for m in model.modules() if f"{type(m).__module__}.{type(m).__qualname__}"
             == "peft.tuners.lora.dora.DoraLinearLayer"]
    try:
        for layer in found:
            layer.forward = _Dora(layer, weight)
        yield
    finally:
        for layer in found:
            del layer.forward


class _Dora:
    """A DoRA layer's forward, with its gain kept."""

    def __init__(self, layer: Any, weight: Weight) -> None:
        self.layer, self.weight = layer, weight
        self.usual = layer.forward
        self.gain: torch.Tensor | None = None

    def __call__(self, x: torch.Tensor, *, lora_A: Any, lora_B: Any, scaling: float, base_layer: Any,  # noqa: N803
                 base_result: torch.Tensor | None = None, **others: Any) -> torch.Tensor:
        """What PEFT's adds to ``base_result``; its own words for the arguments."""
        if base_result is None or type(base_layer) is not torch.nn.Linear:  # dropout in training; packed in four bits
            made: torch.Tensor = self.usual(x, lora_A=lora_A, lora_B=lora_B, scaling=scaling, base_layer=base_layer,
                                            base_result=base_result, **others)
            return made
        if self.gain is None:
            self.gain = gain(self.layer, lora_A, lora_B, scaling, self.weight(base_layer))
        alone = base_result if base_layer.bias is None else base_result - base_layer.bias
        return (self.gain - 1) * alone + self.gain * lora_B(lora_A(x)) * scaling


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
            kernels.add_low(out[:, first:last], inner[:, start:end], low.b, low.scale, low.gain)
            start = end
        return out


@dataclass(frozen=True, slots=True)
class Joined:
    """Layers side by side: the product of their packed copy, and what adapters add to it."""

    product: Packed
    sums: Sums

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.sums.onto(self.product(x), x)


def joined(linears: Linears, *layers: Any) -> Function:
    """x [tokens, columns] -> what each of the layers makes of it, side by side."""
    parts = [taken_apart(layer, linears.weight) for layer in layers] if linears.on else [None]
    whole = [part for part in parts if part]
    if len(whole) < len(layers) or len({base.bias is None for base, _ in whole}) > 1:
        return lambda x: torch.cat([layer(x) for layer in layers], -1)
    return Joined(linears.product(*(base for base, _ in whole)),
                  Sums([low for _, low in whole], [base.out_features for base, _ in whole]))
