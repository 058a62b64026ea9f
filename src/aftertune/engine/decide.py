"""Decide, then verify: may this model take packed rows?

transformers takes a 4-D mask as it is and then ignores a sliding window, ALiBi by index, or a recurrent
state, some of it without a word. So the config decides first, and at load the longest and a median row of the
real schedule are scored packed and plain; where they differ the engine falls back to plain rows and says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from aftertune.engine.encode import Sequence
from aftertune.engine.scorer import Scorer, text_config, unwrapped
from aftertune.engine.trie import row

#: Largest difference of a token's log-probability between packed and plain rows, in float32.
TOLERANCE = 1e-3
#: In lower precision: this many times what plain rows themselves move between batch sizes 1 and 8.
FACTOR = 3.0

_SOFTMAX_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}
_ALIBI = {"bloom", "mpt"}
_LENGTH_DEPENDENT_ROPE = {"longrope", "dynamic"}


@dataclass(frozen=True, slots=True)
class Decision:
    """packed: rows may share prefixes; note: what runs and why; alone: one sequence a forward pass."""

    packed: bool
    note: str
    alone: bool = False


def decide(model: Any, longest: int) -> Decision:
    """What the config allows for sequences of up to ``longest`` tokens."""
    config, base = text_config(model), unwrapped(model)
    kind = getattr(config, "model_type", "")
    layers = set(getattr(config, "layer_types", None) or [])
    if getattr(base, "_is_stateful", False) or layers - _SOFTMAX_LAYERS:
        return Decision(False, f"plain rows: {kind} has recurrent or convolutional layers", alone=True)
    if getattr(config, "alibi", False) or kind in _ALIBI:
        return Decision(False, f"plain rows: {kind} counts ALiBi distances by index")
    if kind == "gpt_neo":
        return Decision(False, "plain rows: gpt_neo windows its attention by index inside the layer")
    if _prompt_learning(model):
        return Decision(False, "plain rows: prompt-learning adapters take no 4-D mask")
    if str(getattr(config, "_attn_implementation", "")).startswith("flash"):
        return Decision(False, "plain rows: flash attention takes no 4-D mask")
    return _by_length(config, longest)


def _by_length(config: Any, longest: int) -> Decision:
    """The rules that act only beyond some length."""
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    parts = [r for r in (rope, *rope.values()) if isinstance(r, dict)]
    kinds = {str(r.get("rope_type", r.get("type", ""))) for r in parts}
    limits = [r.get("original_max_position_embeddings") for r in parts]
    limit = next((int(x) for x in limits if x), getattr(config, "original_max_position_embeddings", None)
                 or getattr(config, "max_position_embeddings", 0))
    if kinds & _LENGTH_DEPENDENT_ROPE and limit and longest > limit:
        return Decision(False, f"plain rows, one at a time: its rotary frequencies change beyond {limit} "
                               "tokens", alone=True)
    chunk = getattr(config, "attention_chunk_size", None)
    if chunk and longest > chunk:
        return Decision(False, f"plain rows: attention in chunks of {chunk} tokens")
    floor = getattr(config, "floor_scale", None)
    if getattr(config, "attn_temperature_tuning", False) and floor and longest >= floor:
        return Decision(False, f"plain rows: attention temperature changes from {floor} tokens on")
    return Decision(True, "packed rows")


def _prompt_learning(model: Any) -> bool:
    configs = getattr(model, "peft_config", None) or {}
    return any(getattr(c, "is_prompt_learning", False) for c in dict(configs).values())


def verify(model: Any, groups: list[list[tuple[int, Sequence]]], decision: Decision) -> Decision:
    """Score the longest and a median group packed and plain; fall back where they differ."""
    if not decision.packed or not groups:
        return decision
    branching = [g for g in groups if _branches(g)] or groups  # a single path is the same row, packed or plain
    by_length = sorted(branching, key=lambda g: max(len(s.tokens) for _, s in g))
    chosen = [by_length[-1], by_length[len(by_length) // 2]]
    plain = Scorer(model, packed=False)
    singles = [row([pair]) for group in chosen for pair in group][:8]
    alone = {p: s.logprobs for one in singles for p, s in plain.run([one]).items()}
    bound = TOLERANCE
    if str(model.dtype) != "torch.float32":
        together = {p: s.logprobs for p, s in plain.run(singles).items()}
        bound = max(FACTOR * _gap(alone, together), TOLERANCE)
    try:
        packed_scorer = Scorer(model, packed=True)
        packed = {p: s.logprobs for g in chosen for p, s in packed_scorer.run([row(g)]).items()}
    except (ValueError, TypeError, RuntimeError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:120]
        return Decision(False, f"plain rows: this model does not take a 4-D mask ({reason})")
    gap = _gap(alone, packed)
    if not gap <= bound:
        return Decision(False, f"plain rows: packed rows moved a token's log-probability by {gap:.2g}, "
                               f"more than {bound:.2g}")
    return Decision(True, f"packed rows (verified: {gap:.1e} against plain rows, {bound:.1e} allowed)")


def _branches(group: list[tuple[int, Sequence]]) -> bool:
    """True where two inputs of the group part before the end of the shorter one."""
    inputs = [s.tokens[:-1] for _, s in group]
    longest = max(inputs, key=len)
    return any(longest[: len(i)] != i for i in inputs)


def _gap(a: dict[int, Any], b: dict[int, Any]) -> float:
    """Largest absolute difference over the keys of ``a``."""
    return max(float(np.abs(a[k].astype(np.float64) - b[k].astype(np.float64)).max()) for k in a)
