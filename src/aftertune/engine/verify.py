"""The spot check of Apple's MPS: a few rows are scored again on the CPU before anything is stored.

MPS kernels have returned wrong numbers without a word (a known case: an accuracy of 0.54 against the CPU's
0.41), so a disagreement stops the run.

Decide, then verify: may this model take packed rows?

A flat batch is wrong, without a word, for ALiBi by index, a recurrent state, or whatever else counts places in the
row. So the config decides first, and at load the longest and a median item of the real schedule are scored packed
and plain, and a prompt is stepped through; where they differ the engine falls back to plain rows and says so.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aftertune.engine.attention import AttentionBackend, TorchBackend, supported
from aftertune.engine.decoder import Decoder
from aftertune.engine.memory import out_of_memory
from aftertune.engine.packing import PackedRow, packed_row
from aftertune.engine.scorer import Scorer, text_config, unwrapped
from aftertune.engine.tokenize import TokenSequence
from aftertune.errors import ResourceError

#: Largest difference of a token's log-probability between packed and plain rows, in float32.
TOLERANCE = 1e-3
#: In lower precision: this many times what plain rows themselves move between batch sizes 1 and 8 …
FACTOR = 3.0
#: … or this many steps of the dtype at the largest logit: logits are rounded to it, and by chance plain rows may not
#: move at all (16 has a step of 0.125 in bfloat16, and lm-eval moves by 0.5 between batch sizes there).
ROUNDING = 4
#: Tokens of a prompt that are stepped through one by one.
STEPS = 6

#: The sequences of one item, with the positions of their requests.
Branches = list[tuple[int, TokenSequence]]

_SOFTMAX_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}
_ALIBI = {"bloom", "mpt"}
_LENGTH_DEPENDENT_ROPE = {"longrope", "dynamic"}


@dataclass(frozen=True, slots=True)
class PackingDecision:
    """packed: rows may share prefixes; note: what runs and why; alone: one sequence a forward pass."""

    packed: bool
    note: str
    alone: bool = False


def decide(model: Any, longest: int) -> PackingDecision:
    """What the config allows for sequences of up to ``longest`` tokens."""
    config, base = text_config(model), unwrapped(model)
    kind = getattr(config, "model_type", "")
    layers = set(getattr(config, "layer_types", None) or [])
    if getattr(base, "_is_stateful", False) or layers - _SOFTMAX_LAYERS:
        return PackingDecision(False, f"plain rows: {kind} has recurrent or convolutional layers", alone=True)
    if getattr(config, "alibi", False) or kind in _ALIBI:
        return PackingDecision(False, f"plain rows: {kind} counts ALiBi distances by index")
    if kind == "gpt_neo":
        return PackingDecision(False, "plain rows: gpt_neo windows its attention by index inside the layer")
    if _prompt_learning(model):
        return PackingDecision(False, "plain rows: prompt-learning adapters put tokens of their own before every row")
    if not supported(base):
        return PackingDecision(False, f"plain rows: {kind} takes no attention but its own")
    return _by_length(config, longest)


def _by_length(config: Any, longest: int) -> PackingDecision:
    """The rules that act only beyond some length."""
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    parts = [r for r in (rope, *rope.values()) if isinstance(r, dict)]
    kinds = {str(r.get("rope_type", r.get("type", ""))) for r in parts}
    limits = [r.get("original_max_position_embeddings") for r in parts]
    limit = next((int(x) for x in limits if x), getattr(config, "original_max_position_embeddings", None)
                 or getattr(config, "max_position_embeddings", 0))
    if kinds & _LENGTH_DEPENDENT_ROPE and limit and longest > limit:
        return PackingDecision(False, f"plain rows, one at a time: its rotary frequencies change beyond {limit} "
                               "tokens", alone=True)
    chunk = getattr(config, "attention_chunk_size", None)
    if chunk and longest > chunk:
        return PackingDecision(False, f"plain rows: attention in chunks of {chunk} tokens")
    floor = getattr(config, "floor_scale", None)
    if getattr(config, "attn_temperature_tuning", False) and floor and longest >= floor:
        return PackingDecision(False, f"plain rows: attention temperature changes from {floor} tokens on")
    return PackingDecision(True, "packed rows")


def _prompt_learning(model: Any) -> bool:
    configs = getattr(model, "peft_config", None) or {}
    return any(getattr(c, "is_prompt_learning", False) for c in dict(configs).values())


def verify(model: Any, shared: list[tuple[tuple[int, ...], list[Branches]]], prompts: list[tuple[int, ...]],
           decision: PackingDecision, backend: AttentionBackend | None = None) -> PackingDecision:
    """Run the longest and a median item packed and plain, and step through the longest prompt's last tokens.

    shared: items by the prefix that is computed once for them. backend: what computes packed rows; torch, if not given.
    Falls back to plain rows where the two differ.
    """
    if not decision.packed or not (any(items for _, items in shared) or prompts):
        return decision
    samples = _samples(shared)
    tail = _tail(max(prompts, key=len)) if prompts else None
    if not samples and tail is None:
        return decision
    plain = Scorer(model, packed=False)
    singles = _singles(samples) + ([packed_row([tail])] if tail else [])
    scores = {p: s for one in singles for p, s in plain.run([one]).items()}
    alone = {p: s.logprobs for p, s in scores.items()}
    try:
        backend = backend or TorchBackend(model)
        with backend.computing(alone=True):
            packed = _packed(Scorer(model, packed=True, backend=backend), samples, tail)
    except (ValueError, TypeError, RuntimeError, LookupError, AttributeError) as error:
        if out_of_memory(error):
            raise  # says nothing of the model, and another time the plan would be another
        reason = " ".join(str(error).split())[:120]
        return PackingDecision(False, f"plain rows: this model does not take flat batches ({reason})")
    gap, bound = _gap(alone, packed), TOLERANCE
    if str(model.dtype) != "torch.float32":
        bound = max(ROUNDING * _step(model.dtype, max(abs(s.top) for s in scores.values())), TOLERANCE)
        if not gap <= bound:
            together = {p: s.logprobs for p, s in plain.run(singles).items()}
            bound = max(FACTOR * _gap(alone, together), bound)
    if not gap <= bound:
        return PackingDecision(False, f"plain rows: packed rows moved a token's log-probability by {gap:.2g}, "
                               f"more than {bound:.2g}")
    return PackingDecision(True, f"packed rows (verified: {gap:.1e} against plain rows, {bound:.1e} allowed)")


def _singles(samples: list[tuple[tuple[int, ...], Branches]]) -> list[PackedRow]:
    """Plain rows of the samples' first and last branches; of those with the same input one is enough."""
    found = {}
    for _, group in samples:
        by_input = {s.tokens[:-1]: (p, s) for p, s in group}
        for pair in (*by_input.values(),)[:: max(len(by_input) - 1, 1)]:
            found[pair[0]] = packed_row([pair])
    return list(found.values())


def _packed(scorer: Scorer, samples: list[tuple[tuple[int, ...], Branches]], tail: tuple[int, TokenSequence] | None
            ) -> dict[int, NDArray[np.float32]]:
    """Log-probabilities by request position, packed; those of ``tail`` by the decoder, step by step."""
    found: dict[int, NDArray[np.float32]] = {}
    for prefix in dict.fromkeys(prefix for prefix, _ in samples):
        rows = [packed_row(group, len(prefix)) for other, group in samples if other == prefix]
        found |= {p: s.logprobs for p, s in scorer.run(rows, prefix).items()}
    if tail is not None:
        found[tail[0]] = Decoder(scorer, None, tokens=0).forced(tail[1].tokens, tail[1].targets)
    return found


def _samples(shared: list[tuple[tuple[int, ...], list[Branches]]]) -> list[tuple[tuple[int, ...], Branches]]:
    """The longest and a median item, with their prefixes; of those that branch, where there are any.

    Two with the same prefix run together, as one flat batch: that is what single paths can go wrong in.
    """
    items = [(prefix, group) for prefix, groups in shared for group in groups]
    branching = [(p, g) for p, g in items if _branches(g)] or items
    by_length = sorted(branching, key=lambda pair: max(len(s.tokens) for _, s in pair[1]))
    return [by_length[i] for i in sorted({len(by_length) - 1, (len(by_length) - 1) // 2}, reverse=True) if i >= 0]


def _tail(prompt: tuple[int, ...]) -> tuple[int, TokenSequence] | None:
    """A prompt's last tokens as targets, to be stepped through; None for one that is too short."""
    targets = min(STEPS, len(prompt) - 1)
    return (-1, TokenSequence(prompt, targets)) if targets > 1 else None


def _branches(group: Branches) -> bool:
    """True where two inputs of the group part before the end of the shorter one."""
    inputs = [s.tokens[:-1] for _, s in group]
    longest = max(inputs, key=len)
    return any(longest[: len(i)] != i for i in inputs)


def _step(dtype: Any, value: float) -> float:
    """Distance between neighbouring numbers of ``dtype`` at ``value``."""
    import torch

    return float(torch.finfo(dtype).eps * 2 ** math.floor(math.log2(max(value, 1e-9))))


def _gap(a: dict[int, Any], b: dict[int, Any]) -> float:
    """Largest absolute difference over the keys of ``a``; NaN where one is met (``max`` would pass over it)."""
    return float(np.max([np.abs(a[k].astype(np.float64) - b[k].astype(np.float64)).max() for k in a]))


#: Rows scored twice.
ROWS = 8
#: Largest difference of a token's log-probability that rounding explains, by dtype of the device.
ALLOWED = {"torch.float32": 1e-2, "torch.float16": 0.25, "torch.bfloat16": 0.5}


def needs_spot_check(device: str) -> bool:
    return device.startswith("mps")


def spot_check(model: Any, rows: list[PackedRow], *, packed: bool) -> float:
    """Largest difference of a token's log-probability between the device and the CPU in float32.

    Raises ResourceError where it is more than rounding explains.
    """
    chosen = rows[:: max(len(rows) // ROWS, 1)][:ROWS]
    here = Scorer(model, packed=packed).run(chosen)
    there = Scorer(copy.deepcopy(model).to("cpu").float(), packed=packed).run(chosen)
    gaps = [np.abs(here[p].logprobs - there[p].logprobs).max() for p in here]
    gap, allowed = float(np.max(gaps, initial=0.0)), ALLOWED[str(model.dtype)]  # max() would pass over NaN
    if not gap <= allowed:
        raise ResourceError(f"device {model.device.type} disagrees with the CPU by {gap:.2g} in a token's "
                            f"log-probability ({allowed:.2g} is rounding): run with --device cpu, or with "
                            "another version of torch or of the operating system")
    return gap
