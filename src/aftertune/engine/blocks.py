"""Decoder layers of the Llama kind as a handful of fused calls: on a CPU much of their time goes into what lies between
the matrix products.

    blocks = Blocks(model, linears)
    with linears.packed(), blocks.fused():
        model(…)                        # under a layout of ours; every other pass runs as transformers has it

The kind: RMS norm, queries, keys and values with rotary positions, attention, RMS norm, gated SiLU, each with its
residual sum. LoRA and DoRA on the projections are added to the packed products; any other adapter is called as it is.
The engine's check of packed against plain rows is the check of these too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from transformers.activations import SiLUActivation

from aftertune.engine import kernels, native, steps
from aftertune.engine.adapters import joined
from aftertune.engine.attention import Call, in_force, read
from aftertune.engine.linears import Linears
from aftertune.engine.scorer import unwrapped

#: Decoder layers that are of this kind, by module and class.
KIND = frozenset({"llama.modeling_llama.LlamaDecoderLayer", "mistral.modeling_mistral.MistralDecoderLayer",
                  "qwen2.modeling_qwen2.Qwen2DecoderLayer", "qwen3.modeling_qwen3.Qwen3DecoderLayer"})


class Blocks:
    """The layers of one model that can be fused; none where its family is another."""

    def __init__(self, model: Any, linears: Linears) -> None:
        self.linears = linears
        self.layers = [m for m in model.modules() if is_of_kind(m)]
        stack = getattr(unwrapped(model).base_model, "layers", None)
        self.last = stack[-1] if stack else None

    @contextlib.contextmanager
    def fused(self) -> Iterator[None]:
        """The layers run fused meanwhile, in passes under a layout."""
        try:
            for layer in self.layers:
                layer.forward = _Block(layer, self.linears, last=layer is self.last)
            yield
        finally:
            for layer in self.layers:
                vars(layer).pop("forward", None)


class _Block:
    """One layer's forward, fused: what stays the same from pass to pass is looked up once."""

    def __init__(self, layer: Any, linears: Linears, *, last: bool) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.usual = layer.forward
        self.last = last
        self.attention = attention
        self.before, self.between = layer.input_layernorm, layer.post_attention_layernorm
        self.project = joined(linears, attention.q_proj, attention.k_proj, attention.v_proj)
        self.output, self.down = joined(linears, attention.o_proj), joined(linears, mlp.down_proj)
        self.opened = joined(linears, mlp.gate_proj, mlp.up_proj)
        self.size = attention.head_dim
        self.heads = attention.config.num_attention_heads
        self.turned = self.heads + attention.config.num_key_value_heads
        self.norms = (attention.q_norm, attention.k_norm) if hasattr(attention, "q_norm") else None
        self.call = Call(attention.scaling, window_of(attention))
        self.step = steps.of(self)

    def __call__(self, hidden_states: torch.Tensor, *args: Any, **others: Any) -> Any:
        layout = in_force()
        if layout is None:
            return self.usual(hidden_states, *args, **others)
        x = hidden_states[0]
        cosine, sine = (part[0] for part in others["position_embeddings"])
        if self.step and isinstance(layout, native.Step):
            return layout.through(self.attention, self.step, x, cosine, sine)[None]
        found = self.project(_norm(self.before, x))
        found = found.view(len(found), -1, self.size)  # heads of queries, then of keys, then of values
        if self.norms:
            found[:, :self.heads] = _norm(self.norms[0], found[:, :self.heads])
            found[:, self.heads:self.turned] = _norm(self.norms[1], found[:, self.heads:self.turned])
        kernels.rotate(found[:, :self.turned], cosine, sine)
        mixed = layout.attend(self.attention, found[:, :self.heads], found[:, self.heads:self.turned],
                              found[:, self.turned:], self.call)
        x, mixed = self._needed(x, mixed.view(len(mixed), -1))
        x, normed = _add_norm(self.between, x, self.output(mixed))
        return self.down(_gate(self.opened(normed))).add_(x)[None]

    def _needed(self, x: torch.Tensor, mixed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the last layer's tokens those that are read."""
        tokens = read() if self.last else None
        if tokens is None or len(tokens) == len(x):
            return x, mixed
        x, mixed = x[tokens], mixed[tokens]
        torch.arange(len(tokens), out=tokens)
        return x, mixed


def is_of_kind(module: Any) -> bool:
    name = f"{type(module).__module__}.{type(module).__qualname__}".removeprefix("transformers.models.")
    if name not in KIND:
        return False
    norms = (module.input_layernorm, module.post_attention_layernorm)
    # an adapter may have put something of its own in their place
    return all(type(part).__module__ == type(module).__module__ for part in (module.self_attn, module.mlp)) \
        and all(hasattr(norm, "variance_epsilon") and norm.weight.numel() % kernels.TILE == 0 for norm in norms) \
        and isinstance(module.mlp.act_fn, SiLUActivation | torch.nn.SiLU)


def _gate(x: torch.Tensor) -> torch.Tensor:
    """silu(left) * right of the two halves of x [tokens, 2 * columns]."""
    left, right = x.chunk(2, -1)
    if kernels.gates(left, right):
        return kernels.gate(left, right)
    return torch.nn.functional.silu(left) * right


def _add_norm(norm: Any, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """x + y, and the norm of that."""
    if norm.weight.dtype == x.dtype == y.dtype:
        return kernels.add_norm(x, y, norm.weight, norm.variance_epsilon)
    x = x + y
    return x, _norm(norm, x)


def _norm(norm: Any, x: torch.Tensor) -> torch.Tensor:
    if norm.weight.dtype != x.dtype:
        made: torch.Tensor = norm(x)
        return made
    return kernels.rms_norm(x, norm.weight, norm.variance_epsilon)


def window_of(attention: Any) -> int | None:
    """Depths that the layer sees back, None for all: Mistral has them in its config, Qwen in the layer."""
    holder = attention.config if type(attention).__name__ == "MistralAttention" else attention
    window: int | None = getattr(holder, "sliding_window", None)
    return window
