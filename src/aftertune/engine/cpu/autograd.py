"""Autograd functions for training on a CPU: attention, LoRA, whole Llama-like layers and the loss of the output head.

Each stores less and passes over memory fewer times than the torch operators that it replaces.

    with fused(model):                          PEFT's LoRA layers and Llama-like layers compute with these functions
        total, nats = head_loss(hidden, head, labels)       summed (differentiable), and of each token

The arithmetic is that of transformers and PEFT under autocast: products in the dtype of the weights, sums and softmax
in float32. Without the compiled kernels, or for layers of another kind, only LoRA and the loss are replaced.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from aftertune.engine.attention import Call, current_layout
from aftertune.engine.cpu import availability, ops
from aftertune.engine.cpu.llama import is_llama_layer, window_of
from aftertune.engine.cpu.lora import active_names, is_plain_lora

#: Logits that the head's loss computes at a time, at most (but at least 64 rows).
LOGITS = 2**25
#: Rows of logits converted to float32 at a time: they fit in a CPU's cache.
ROWS = 16


class HeadLoss(torch.autograd.Function):  # type: ignore[misc]
    """Sum of the negative log-likelihoods of labels under a linear head. The forward pass also computes the gradient,
    in chunks, so the logits of all tokens never exist at once."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None,
                labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """hidden [tokens, columns], weight [vocabulary, columns], labels [tokens] -> sum, and nats [tokens]."""
        weight = weight.to(hidden.dtype)
        bias = None if bias is None else bias.to(hidden.dtype)
        wanted = any(ctx.needs_input_grad)
        nats = torch.empty(len(labels), dtype=torch.float32, device=hidden.device)
        back = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros(weight.shape, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        grad_bias = torch.zeros(len(weight), dtype=torch.float32) if ctx.needs_input_grad[2] else None
        step = max(LOGITS // len(weight), 64)
        for start in range(0, len(labels), step):
            part, here = hidden[start:start + step], slice(start, start + step)
            logits = torch.nn.functional.linear(part, weight, bias)
            nats[here] = _surprise(logits, labels[here], change=wanted)
            if back is not None:
                back[here] = logits @ weight
            if grad_weight is not None:
                grad_weight += logits.t() @ part
            if grad_bias is not None:
                grad_bias += logits.sum(0, dtype=torch.float32)
        ctx.save_for_backward(back, grad_weight, grad_bias)
        ctx.mark_non_differentiable(nats)
        return nats.sum(), nats

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        back, weight, bias = ctx.saved_tensors
        return (*(None if x is None else x * grad for x in (back, weight, bias)), None)


def _surprise(logits: torch.Tensor, labels: torch.Tensor, *, change: bool) -> torch.Tensor:
    """Nats of each label [tokens]. With ``change`` the logits become their gradient: softmax, less one at the label."""
    nats = torch.empty(len(labels), dtype=torch.float32, device=logits.device)
    for start in range(0, len(labels), ROWS):
        part, index = logits[start:start + ROWS], labels[start:start + ROWS, None]
        exact = part.float()
        norm = torch.logsumexp(exact, -1, keepdim=True)
        nats[start:start + ROWS] = (norm - exact.gather(1, index))[:, 0]
        if change:
            exact = exact.clone() if exact is part else exact
            exact.sub_(norm).exp_()
            exact.scatter_add_(1, index, torch.full(index.shape, -1.0, device=exact.device))
            part.copy_(exact)
    return nats


def head_loss(hidden: torch.Tensor, head: Any, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Nats of ``labels`` [tokens] after ``hidden`` [tokens, columns]: their sum (differentiable), and each [tokens]."""
    result: tuple[torch.Tensor, torch.Tensor] = HeadLoss.apply(hidden, head.weight, head.bias, labels)
    return result


class RowAttention(torch.autograd.Function):  # type: ignore[misc]
    """Causal attention of rows end to end, by the kernels; the backward pass computes the scores again."""

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, shape: ops.RowShape, call: Call
                ) -> torch.Tensor:
        """q [tokens, heads, size], k and v [tokens, kv heads, size] -> [tokens, heads, size]."""
        out = ops.attend_rows(q, k, v, shape, None, call.scaling, call.window or 0)
        ctx.save_for_backward(q, k, v, out)
        ctx.starts, ctx.call = shape.starts, call
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, out = ctx.saved_tensors
        gradients = ops.attend_back(q, k, v, out, grad, ctx.starts, ctx.call.scaling, ctx.call.window or 0)
        return (*gradients, None, None)


class RmsNorm(torch.autograd.Function):  # type: ignore[misc]
    """RMS norm with a frozen weight (Zhang and Sennrich 2019)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.epsilon = epsilon
        return ops.rms_norm(x, weight, epsilon)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        return ops.rms_norm_back(x, weight, grad, ctx.epsilon), None, None


class SiluGate(torch.autograd.Function):  # type: ignore[misc]
    """silu(x) * y (Shazeer 2020)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, y)
        return ops.gate(x, y)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x, y = ctx.saved_tensors
        return ops.gate_back(x, y, grad)


class Rotary(torch.autograd.Function):  # type: ignore[misc]
    """Rotary position embedding (Su et al. 2021) of [tokens, heads, size]; the backward pass rotates back."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cosine, sine)
        out = x.clone(memory_format=torch.contiguous_format)
        ops.rotate(out, cosine, sine)
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        cosine, sine = ctx.saved_tensors
        back = grad.clone(memory_format=torch.contiguous_format)
        ops.rotate(back, cosine, -sine)
        return back, None, None


class LoraLinear(torch.autograd.Function):  # type: ignore[misc]
    """A frozen linear layer with LoRA beside it: W x + scale B A dropout(x) (Hu et al. 2021)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: Any, a: torch.Tensor, b: torch.Tensor, scale: float,
                dropout_mask: torch.Tensor | None) -> torch.Tensor:
        """x [tokens, columns], a [rank, columns], b [rows, rank]; dropout_mask [tokens, columns]: 0, or 1 / (1 - rate).
        """
        a, b = a.to(x.dtype), (b * scale).to(x.dtype)
        inner = (x if dropout_mask is None else x * dropout_mask) @ a.t()
        out = torch.nn.functional.linear(x, layer.weight, layer.bias)
        out.addmm_(inner, b.t())
        ctx.save_for_backward(x, inner, a, b, dropout_mask)
        ctx.layer, ctx.scale = layer, scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, inner, a, b, dropout_mask = ctx.saved_tensors
        grad_inner = grad @ b
        grad_a = grad_inner.t() @ (x if dropout_mask is None else x * dropout_mask)
        grad_b = (grad.t() @ inner).float().mul_(ctx.scale)
        back = None
        if ctx.needs_input_grad[0]:
            back = grad @ ctx.layer.weight
            if dropout_mask is None:
                back.addmm_(grad_inner, a)
            else:
                back.add_((grad_inner @ a).mul_(dropout_mask))
        return back, None, grad_a.float(), grad_b, None, None


def _lora_forward(layer: Any, x: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    """The forward function of a PEFT layer for which `is_plain_lora` (trained) is true."""
    if layer.disable_adapters:
        base: torch.Tensor = layer.base_layer(x)
        return base
    name = active_names(layer)[0]
    rate = getattr(layer.lora_dropout[name], "p", 0.0)
    rows = x.reshape(-1, x.shape[-1])
    dropout_mask = torch.nn.functional.dropout(torch.ones_like(rows), rate) if rate and layer.training else None
    out: torch.Tensor = LoraLinear.apply(rows, layer.base_layer, layer.lora_A[name].weight, layer.lora_B[name].weight,
                                         float(layer.scaling[name]), dropout_mask)
    if name in layer.lora_variant:
        out = (out * _gain(layer, name)).to(out.dtype)
    return out.view(*x.shape[:-1], out.shape[-1])


def _gain(layer: Any, name: str) -> torch.Tensor:
    """DoRA's magnitudes divided by the norms of W + scale * b a, which count as constants (Liu et al. 2024, section
    4.3). For each row |w + s b a|^2 = |w|^2 + 2 s b (a w) + s^2 b a a' b', so no matrix of W's size is computed."""
    dora, weight, scale = layer.lora_magnitude_vector[name], layer.base_layer.weight, float(layer.scaling[name])
    with torch.no_grad():
        a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
        if "squares" not in vars(dora):  # of the frozen base
            vars(dora)["squares"] = weight.float().square().sum(1)
        cross = ((weight @ a.t().to(weight.dtype)).float() * b).sum(1)
        own = ((b @ (a @ a.t())) * b).sum(1)
        norm = (vars(dora)["squares"] + 2 * scale * cross + scale ** 2 * own).sqrt()
    gains: torch.Tensor = dora.weight / norm
    return gains


class _TrainedLayer:
    """The forward function of one Llama-like layer (see llama.py) in training, under a layout."""

    def __init__(self, layer: Any) -> None:
        self.layer, self.original = layer, layer.forward
        attention = layer.self_attn
        self.call = Call(attention.scaling, window_of(attention))
        self.norms = [getattr(attention, n, None) for n in ("q_norm", "k_norm")]

    def __call__(self, hidden_states: torch.Tensor, *args: Any, **others: Any) -> Any:
        layout = current_layout()
        if layout is None:
            return self.original(hidden_states, *args, **others)
        attention, mlp = self.layer.self_attn, self.layer.mlp
        x = hidden_states[0]
        n = _norm(self.layer.input_layernorm, x)
        query, key, value = (p(n).view(len(n), -1, attention.head_dim)
                             for p in (attention.q_proj, attention.k_proj, attention.v_proj))
        if self.norms[0] is not None:
            query, key = _norm(self.norms[0], query), _norm(self.norms[1], key)
        cosine, sine = (p[0] for p in others["position_embeddings"])
        query, key = Rotary.apply(query, cosine, sine), Rotary.apply(key, cosine, sine)
        mixed = layout.attend(attention, query, key, value, self.call)
        x = x + attention.o_proj(mixed.reshape(len(mixed), -1))
        n = _norm(self.layer.post_attention_layernorm, x)
        return (x + mlp.down_proj(SiluGate.apply(mlp.gate_proj(n), mlp.up_proj(n))))[None]


def _norm(norm: Any, x: torch.Tensor) -> torch.Tensor:
    fits = norm.weight.dtype == x.dtype and not norm.weight.requires_grad
    out: torch.Tensor = RmsNorm.apply(x, norm.weight, norm.variance_epsilon) if fits else norm(x)
    return out


def _frozen(layer: Any) -> bool:
    """True for a layer whose own weights are frozen, on a CPU, in a dtype of the kernels, where they are available."""
    norm = layer.input_layernorm.weight
    return not norm.requires_grad and norm.dtype in ops.DTYPES and norm.device.type == "cpu" \
        and not availability.why_unavailable()


@contextlib.contextmanager
def fused(model: Any) -> Iterator[None]:
    """While active, the layers of a model that can be fused are. Must not run under autocast: these functions cast
    nothing."""
    layers = [m for m in model.modules() if is_llama_layer(m) and _frozen(m)]
    adapted = [m for m in model.modules() if is_plain_lora(m, trained=True)]
    try:
        for layer in adapted:
            layer.forward = partial(_lora_forward, layer)
        for layer in layers:
            layer.forward = _TrainedLayer(layer)
        yield
    finally:
        for layer in (*adapted, *layers):
            vars(layer).pop("forward", None)
