"""Owns the gradients that training on a CPU is made of: attention over rows that lie end to end, LoRA beside a frozen
product, whole Llama-like layers, and the loss of the head; each saves less and passes over memory fewer times than the
operators of torch that it stands for.

    with fused(model):                          PEFT's LoRA layers, and layers of the kind, compute by these meanwhile
        total, each = head_loss(hidden, head, labels)       nats, summed; and of each token, without gradient

Arithmetic is that of transformers and PEFT under autocast: products in the weights' dtype, sums and softmax in float32.
Where there are no kernels (`aftertune.engine.kernels`) or a layer is of another kind, it runs as it is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from aftertune.engine import kernels
from aftertune.engine.adapters import is_dora
from aftertune.engine.attention import Call, in_force
from aftertune.engine.blocks import is_of_kind, window_of

#: Logits held at a time by the head's loss; as many rows of them as fit, at least 64.
LOGITS = 2**25
#: Rows of logits turned into float32 at a time: what stays in a CPU's cache.
ROWS = 16


class HeadLoss(torch.autograd.Function):  # type: ignore[misc]
    """Sum of the negative log-likelihoods of labels under a linear head. The gradient is made on the way forward, chunk
    by chunk, so that the logits of all tokens are never held at once."""

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
    """Nats of each label [tokens]; with ``change`` the logits become their gradient, softmax less one at the label."""
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
    """Sum of the nats of ``labels`` [tokens] after ``hidden`` [tokens, columns] (differentiable), and each of them."""
    found: tuple[torch.Tensor, torch.Tensor] = HeadLoss.apply(hidden, head.weight, head.bias, labels)
    return found


class Attend(torch.autograd.Function):  # type: ignore[misc]
    """Causal attention of rows that lie end to end, by the kernels; scores are made again on the way back."""

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, shape: kernels.Shape, call: Call
                ) -> torch.Tensor:
        """q [tokens, heads, size], k and v [tokens, kv heads, size] -> [tokens, heads, size]."""
        out = kernels.attend_rows(q, k, v, shape, None, call.scaling, call.window or 0)
        ctx.save_for_backward(q, k, v, out)
        ctx.starts, ctx.call = shape.starts, call
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, out = ctx.saved_tensors
        found = kernels.attend_back(q, k, v, out, grad, ctx.starts, ctx.call.scaling, ctx.call.window or 0)
        return (*found, None, None)


class Norm(torch.autograd.Function):  # type: ignore[misc]
    """RMS norm with a frozen weight (Zhang and Sennrich 2019)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.epsilon = epsilon
        return kernels.rms_norm(x, weight, epsilon)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        return kernels.rms_norm_back(x, weight, grad, ctx.epsilon), None, None


class Gate(torch.autograd.Function):  # type: ignore[misc]
    """silu(x) * y (Shazeer 2020)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, y)
        return kernels.gate(x, y)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x, y = ctx.saved_tensors
        return kernels.gate_back(x, y, grad)


class Turn(torch.autograd.Function):  # type: ignore[misc]
    """Rotary position embedding (Su et al. 2021) of [tokens, heads, size]; the way back turns back."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cosine, sine)
        out = x.clone(memory_format=torch.contiguous_format)
        kernels.rotate(out, cosine, sine)
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        cosine, sine = ctx.saved_tensors
        back = grad.clone(memory_format=torch.contiguous_format)
        kernels.rotate(back, cosine, -sine)
        return back, None, None


class Low(torch.autograd.Function):  # type: ignore[misc]
    """A frozen linear layer with LoRA beside it: W x + scale B A dropout(x) (Hu et al. 2021)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: Any, a: torch.Tensor, b: torch.Tensor, scale: float,
                kept: torch.Tensor | None) -> torch.Tensor:
        """x [tokens, columns], a [rank, columns], b [rows, rank]; kept [tokens, columns]: dropout's factors."""
        a, b = a.to(x.dtype), (b * scale).to(x.dtype)
        inner = (x if kept is None else x * kept) @ a.t()
        out = torch.nn.functional.linear(x, layer.weight, layer.bias)
        out.addmm_(inner, b.t())
        ctx.save_for_backward(x, inner, a, b, kept)
        ctx.layer, ctx.scale = layer, scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, inner, a, b, kept = ctx.saved_tensors
        low = grad @ b
        grad_a = low.t() @ (x if kept is None else x * kept)
        grad_b = (grad.t() @ inner).float().mul_(ctx.scale)
        back = None
        if ctx.needs_input_grad[0]:
            back = grad @ ctx.layer.weight
            if kept is None:
                back.addmm_(low, a)
            else:
                back.add_((low @ a).mul_(kept))
        return back, None, grad_a.float(), grad_b, None, None


def is_low(layer: Any) -> bool:
    """True for a plain LoRA layer of PEFT with one adapter in float32, on a frozen linear layer; DoRA where it has
    neither a bias nor dropout, which would not go through its gain."""
    kind = type(layer)
    if f"{kind.__module__}.{kind.__qualname__}" != "peft.tuners.lora.layer.Linear" or layer.merged:
        return False
    names = [n for n in layer.active_adapters if n in layer.lora_A]
    base = layer.base_layer
    usual = len(names) == 1 and (names[0] not in layer.lora_variant or (
        is_dora(layer, names[0]) and base.bias is None and not getattr(layer.lora_dropout[names[0]], "p", 0.0)))
    return usual and type(base) is torch.nn.Linear \
        and not base.weight.requires_grad and base.weight.dtype in kernels.DTYPES \
        and all(m[names[0]].bias is None and m[names[0]].weight.dtype == torch.float32
                for m in (layer.lora_A, layer.lora_B))


def _low(layer: Any, x: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    """The forward of such a layer."""
    if layer.disable_adapters:
        plain: torch.Tensor = layer.base_layer(x)
        return plain
    name = next(n for n in layer.active_adapters if n in layer.lora_A)
    rate = getattr(layer.lora_dropout[name], "p", 0.0)
    rows = x.reshape(-1, x.shape[-1])
    kept = torch.nn.functional.dropout(torch.ones_like(rows), rate) if rate and layer.training else None
    out: torch.Tensor = Low.apply(rows, layer.base_layer, layer.lora_A[name].weight, layer.lora_B[name].weight,
                                  float(layer.scaling[name]), kept)
    if name in layer.lora_variant:
        out = (out * _gain(layer, name)).to(out.dtype)
    return out.view(*x.shape[:-1], out.shape[-1])


def _gain(layer: Any, name: str) -> torch.Tensor:
    """DoRA's magnitudes over the norms of W + scale * b a, which count as constants (Liu et al. 2024, section 4.3):
    |w + s b a|^2 = |w|^2 + 2 s b (a w) + s^2 b a a' b' of each row, so that nothing of W's size is made in a step."""
    dora, weight, scale = layer.lora_magnitude_vector[name], layer.base_layer.weight, float(layer.scaling[name])
    with torch.no_grad():
        a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
        if "squares" not in vars(dora):  # of the frozen base
            vars(dora)["squares"] = weight.float().square().sum(1)
        cross = ((weight @ a.t().to(weight.dtype)).float() * b).sum(1)
        own = ((b @ (a @ a.t())) * b).sum(1)
        norm = (vars(dora)["squares"] + 2 * scale * cross + scale ** 2 * own).sqrt()
    found: torch.Tensor = dora.weight / norm
    return found


class _Layer:
    """The forward of one decoder layer of the kind (see `aftertune.engine.blocks`), under a layout in force."""

    def __init__(self, layer: Any) -> None:
        self.layer, self.usual = layer, layer.forward
        attention = layer.self_attn
        self.call = Call(attention.scaling, window_of(attention))
        self.norms = [getattr(attention, n, None) for n in ("q_norm", "k_norm")]

    def __call__(self, hidden_states: torch.Tensor, *args: Any, **others: Any) -> Any:
        layout = in_force()
        if layout is None:
            return self.usual(hidden_states, *args, **others)
        attention, mlp = self.layer.self_attn, self.layer.mlp
        x = hidden_states[0]
        n = _norm(self.layer.input_layernorm, x)
        query, key, value = (p(n).view(len(n), -1, attention.head_dim)
                             for p in (attention.q_proj, attention.k_proj, attention.v_proj))
        if self.norms[0] is not None:
            query, key = _norm(self.norms[0], query), _norm(self.norms[1], key)
        cosine, sine = (p[0] for p in others["position_embeddings"])
        query, key = Turn.apply(query, cosine, sine), Turn.apply(key, cosine, sine)
        mixed = layout.attend(attention, query, key, value, self.call)
        x = x + attention.o_proj(mixed.reshape(len(mixed), -1))
        n = _norm(self.layer.post_attention_layernorm, x)
        return (x + mlp.down_proj(Gate.apply(mlp.gate_proj(n), mlp.up_proj(n))))[None]


def _norm(norm: Any, x: torch.Tensor) -> torch.Tensor:
    if norm.weight.dtype != x.dtype or norm.weight.requires_grad:
        found: torch.Tensor = norm(x)
        return found
    made: torch.Tensor = Norm.apply(x, norm.weight, norm.variance_epsilon)
    return made


def _frozen(layer: Any) -> bool:
    """True for a layer whose own weights stay as they are, in a dtype that there are kernels for."""
    norm = layer.input_layernorm.weight
    return not norm.requires_grad and norm.dtype in kernels.DTYPES and norm.device.type == "cpu" \
        and not kernels.missing()


@contextlib.contextmanager
def fused(model: Any) -> Iterator[None]:
    """What can be fused of a model is, meanwhile. It must not run under autocast, whose casts are not made here."""
    layers = [m for m in model.modules() if is_of_kind(m) and _frozen(m)]
    lows = [m for m in model.modules() if is_low(m)]
    try:
        for layer in lows:
            layer.forward = partial(_low, layer)
        for layer in layers:
            layer.forward = _Layer(layer)
        yield
    finally:
        for layer in (*lows, *layers):
            vars(layer).pop("forward", None)
