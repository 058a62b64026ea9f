"""Computes DoRA's gain once instead of in every forward pass of a model whose weights do not change.

    with constant_gains(model, lambda layer: layer.weight):
        model(…)

DoRA multiplies each output of an adapted linear layer by a gain, which PEFT computes from the weights in every pass
(Liu et al. 2024, equation 5).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

#: The weight of a linear layer, wherever it is stored at the time.
Weight = Callable[[Any], torch.Tensor]


def is_dora(layer: Any, name: str) -> bool:
    """True where adapter ``name`` of a PEFT layer is DoRA."""
    return type(layer.lora_variant.get(name)).__name__ == "DoraLinearVariant"


@torch.no_grad()
def gain(dora: Any, lora_a: Any, lora_b: Any, scale: float, weight: torch.Tensor) -> torch.Tensor:
    """The gain of each row of W + scale * B A: its magnitude divided by its norm (Liu et al. 2024, equation 5). dora:
    PEFT's module of the magnitudes. Returns [rows], in the dtype of the magnitudes."""
    norm = dora.get_weight_norm(weight.to(lora_a.weight.dtype), lora_b.weight @ lora_a.weight, scale)
    gains: torch.Tensor = dora.weight / norm
    return gains


@contextlib.contextmanager
def constant_gains(model: Any, weight: Weight) -> Iterator[None]:
    """While active, PEFT's DoRA layers compute their gain at the first use and then keep it. The weights must not
    change meanwhile."""
    layers = [m for m in model.modules() if f"{type(m).__module__}.{type(m).__qualname__}"
              == "peft.tuners.lora.dora.DoraLinearLayer"]
    try:
        for layer in layers:
            layer.forward = _ConstantGain(layer, weight)
        yield
    finally:
        for layer in layers:
            del layer.forward


class _ConstantGain:
    """The forward function of a DoRA layer that keeps its gain."""

    def __init__(self, layer: Any, weight: Weight) -> None:
        self.layer, self.weight = layer, weight
        self.original = layer.forward
        self.gain: torch.Tensor | None = None

    def __call__(self, x: torch.Tensor, *, lora_A: Any, lora_B: Any, scaling: float, base_layer: Any,  # noqa: N803
                 base_result: torch.Tensor | None = None, **others: Any) -> torch.Tensor:
        """What PEFT's function adds to ``base_result``. The arguments have PEFT's names."""
        if base_result is None or type(base_layer) is not torch.nn.Linear:  # training with dropout; four-bit weights
            result: torch.Tensor = self.original(x, lora_A=lora_A, lora_B=lora_B, scaling=scaling,
                                                 base_layer=base_layer, base_result=base_result, **others)
            return result
        if self.gain is None:
            self.gain = gain(self.layer, lora_A, lora_B, scaling, self.weight(base_layer))
        unbiased = base_result if base_layer.bias is None else base_result - base_layer.bias
        return (self.gain - 1) * unbiased + self.gain * lora_B(lora_A(x)) * scaling
