"""Runs decoder layers of Llama's kind as a few fused calls.

    layers = FusedLayers(model, linears)
    with linears.packed(), layers.fused():
        model(…)                        # fused inside `attending`; any other pass runs as in transformers

On a CPU much of a layer's time goes into the small operators between the matrix products. A layer of this kind has an
RMS norm, attention with rotary positions, another RMS norm and a gated SiLU, with a residual sum after each half. LoRA
and DoRA on the projections are added to the packed products; layers with any other adapter are called unchanged. The
engine's check of packed rows against plain rows also checks these layers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from transformers.activations import SiLUActivation

from aftertune.engine.attention import Call, current_layout, tokens_read
from aftertune.engine.cpu import llama_step, ops
from aftertune.engine.cpu.attention import CpuStep
from aftertune.engine.cpu.linear import PackedLinears
from aftertune.engine.cpu.lora import fused_linear
from aftertune.engine.scorer import unwrapped

#: The decoder layers of this kind, by module and class.
KIND = frozenset({"llama.modeling_llama.LlamaDecoderLayer", "mistral.modeling_mistral.MistralDecoderLayer",
                  "qwen2.modeling_qwen2.Qwen2DecoderLayer", "qwen3.modeling_qwen3.Qwen3DecoderLayer"})


class FusedLayers:
    """The layers of one model that can be fused; none for a model of another family."""

    def __init__(self, model: Any, linears: PackedLinears) -> None:
        self.linears = linears
        self.layers = [m for m in model.modules() if is_llama_layer(m)]
        stack = getattr(unwrapped(model).base_model, "layers", None)
        self.last = stack[-1] if stack else None

    @contextlib.contextmanager
    def fused(self) -> Iterator[None]:
        """While active, the layers run fused in passes under a layout."""
        try:
            for layer in self.layers:
                layer.forward = _FusedLayer(layer, self.linears, last=layer is self.last)
            yield
        finally:
            for layer in self.layers:
                vars(layer).pop("forward", None)


class _FusedLayer:
    """The fused forward function of one layer. What does not change from pass to pass is looked up once."""

    def __init__(self, layer: Any, linears: PackedLinears, *, last: bool) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.original = layer.forward
        self.last = last
        self.attention = attention
        self.input_norm, self.post_norm = layer.input_layernorm, layer.post_attention_layernorm
        self.qkv = fused_linear(linears, attention.q_proj, attention.k_proj, attention.v_proj)
        self.output, self.down = fused_linear(linears, attention.o_proj), fused_linear(linears, mlp.down_proj)
        self.gate_up = fused_linear(linears, mlp.gate_proj, mlp.up_proj)
        self.size = attention.head_dim
        self.heads = attention.config.num_attention_heads
        self.rotated = self.heads + attention.config.num_key_value_heads
        self.head_norms = (attention.q_norm, attention.k_norm) if hasattr(attention, "q_norm") else None
        self.call = Call(attention.scaling, window_of(attention))
        self.step = llama_step.layer_step(self, self.call)

    def __call__(self, hidden_states: torch.Tensor, *args: Any, **others: Any) -> Any:
        layout = current_layout()
        if layout is None:
            return self.original(hidden_states, *args, **others)
        x = hidden_states[0]
        cosine, sine = (part[0] for part in others["position_embeddings"])
        if self.step and isinstance(layout, CpuStep):
            return layout.run_layer(self.attention, self.step, x, cosine, sine)[None]
        heads = self.qkv(_norm(self.input_norm, x))
        heads = heads.view(len(heads), -1, self.size)  # of queries, then of keys, then of values
        if self.head_norms:
            heads[:, :self.heads] = _norm(self.head_norms[0], heads[:, :self.heads])
            heads[:, self.heads:self.rotated] = _norm(self.head_norms[1], heads[:, self.heads:self.rotated])
        ops.rotate(heads[:, :self.rotated], cosine, sine)
        mixed = layout.attend(self.attention, heads[:, :self.heads], heads[:, self.heads:self.rotated],
                              heads[:, self.rotated:], self.call)
        x, mixed = self._needed(x, mixed.view(len(mixed), -1))
        x, normed = _add_norm(self.post_norm, x, self.output(mixed))
        return self.down(_gate(self.gate_up(normed))).add_(x)[None]

    def _needed(self, x: torch.Tensor, mixed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """In the last layer, only the tokens that are read."""
        tokens = tokens_read() if self.last else None
        if tokens is None or len(tokens) == len(x):
            return x, mixed
        x, mixed = x[tokens], mixed[tokens]
        torch.arange(len(tokens), out=tokens)
        return x, mixed


def is_llama_layer(module: Any) -> bool:
    """True for a decoder layer of the kind that no adapter has changed otherwise."""
    name = f"{type(module).__module__}.{type(module).__qualname__}".removeprefix("transformers.models.")
    if name not in KIND:
        return False
    norms = (module.input_layernorm, module.post_attention_layernorm)
    # an adapter may have replaced one of the modules
    return all(type(part).__module__ == type(module).__module__ for part in (module.self_attn, module.mlp)) \
        and all(hasattr(norm, "variance_epsilon") and norm.weight.numel() % ops.TILE == 0 for norm in norms) \
        and isinstance(module.mlp.act_fn, SiLUActivation | torch.nn.SiLU)


def _gate(x: torch.Tensor) -> torch.Tensor:
    """silu(left) * right of the two halves of x [tokens, 2 * columns]."""
    left, right = x.chunk(2, -1)
    if ops.can_gate(left, right):
        return ops.gate(left, right)
    return torch.nn.functional.silu(left) * right


def _add_norm(norm: Any, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """x + y, and the norm of the sum."""
    if norm.weight.dtype == x.dtype == y.dtype:
        return ops.add_norm(x, y, norm.weight, norm.variance_epsilon)
    x = x + y
    return x, _norm(norm, x)


def _norm(norm: Any, x: torch.Tensor) -> torch.Tensor:
    if norm.weight.dtype != x.dtype:
        out: torch.Tensor = norm(x)
        return out
    return ops.rms_norm(x, norm.weight, norm.variance_epsilon)


def window_of(attention: Any) -> int | None:
    """Positions that the layer sees back, None for all. Mistral has the number in its config, Qwen in the layer."""
    holder = attention.config if type(attention).__name__ == "MistralAttention" else attention
    window: int | None = getattr(holder, "sliding_window", None)
    return window
