"""Attention over flat batches: the rows of a batch lie end to end, without padding, and a layout says who sees whom.

transformers lets a model's attention be a function by name. Ours is called with the queries, keys and values of a
flat batch [1, heads, tokens, size] and hands them to the layout in force, so that every linear layer of any family
computes each token once, and no mask of transformers is needed.

    with attending(model, layout):
        model(input_ids=tokens[None], position_ids=depths[None], use_cache=False)

Scores are plain batched products: on a CPU they beat the fused kernel with a mask by two to one for rows of a few
hundred tokens, and by far more when a few queries meet a long cache.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch

NAME = "aftertune"
#: Scores of one block of queries, at most: what still lies in a CPU's cache.
BLOCK = 2**20
#: The same on an accelerator, where many small products cost more than memory.
WIDE = 2**26


@dataclass(frozen=True, slots=True)
class Call:
    """What a layer asks of its attention. window: keys this many depths back are seen, None for all of them;
    softcap: scores are squeezed into (-softcap, softcap) by tanh."""

    scaling: float
    window: int | None = None
    softcap: float | None = None

    def scores(self, products: torch.Tensor) -> torch.Tensor:
        """Scaled, capped scores from the products of queries and keys, in place."""
        products *= self.scaling
        if self.softcap is not None:
            products.div_(self.softcap).tanh_().mul_(self.softcap)
        return products


class Layout(Protocol):
    """Who sees whom in a flat batch."""

    def attend(self, layer: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, call: Call
               ) -> torch.Tensor:
        """query [tokens, heads, size], key and value [tokens, kv heads, size] -> [tokens, heads, size]."""


_in_force: list[Layout] = []
_read: list[torch.Tensor] = []


def in_force() -> Layout | None:
    """The layout that a pass runs under, if one of ours."""
    return _in_force[-1] if _in_force else None


@contextlib.contextmanager
def reading(tokens: torch.Tensor) -> Iterator[None]:
    """Of a pass meanwhile, only the last hidden states of ``tokens`` (indices) are read. A last layer that computes no
    others counts them anew, in place: 0, 1, 2 …"""
    _read.append(tokens)
    try:
        yield
    finally:
        _read.pop()


def read() -> torch.Tensor | None:
    """The tokens whose last hidden states are read, None for all of them."""
    return _read[-1] if _read else None


def supported(base: Any) -> bool:
    """True where the family takes its attention by name (Falcon, BLOOM and MPT do not)."""
    check = getattr(base, "_can_set_attn_implementation", None)
    return bool(check and check())


@contextlib.contextmanager
def attending(model: Any, layout: Layout) -> Iterator[None]:
    """The model attends by ``layout`` meanwhile."""
    config = model.config
    before = config._attn_implementation
    config._attn_implementation = NAME
    _in_force.append(layout)
    try:
        yield
    finally:
        _in_force.pop()
        config._attn_implementation = before


def _attend(layer: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, _mask: Any = None,
            scaling: float | None = None, sliding_window: int | None = None, softcap: float | None = None,
            **others: Any) -> tuple[torch.Tensor, None]:
    """transformers' attention function: [1, heads, tokens, size] -> [1, tokens, heads, size]."""
    strange = [name for name in ("s_aux", "position_bias", "head_mask") if others.get(name) is not None]
    if strange:
        raise NotImplementedError(f"attention with {', '.join(strange)}")
    call = Call(query.shape[-1] ** -0.5 if scaling is None else scaling, sliding_window or None, softcap)
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    return _in_force[-1].attend(layer, q, k, v, call)[None].to(query.dtype), None


def _register() -> None:
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, _attend)


_register()


def weights(scores: torch.Tensor) -> torch.Tensor:
    """Softmax over the last dimension; in float32 inside, whatever the dtype."""
    return torch.softmax(scores, dim=-1)
