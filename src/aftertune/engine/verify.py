"""Decides whether a model may run packed rows, and checks on real rows that they give the numbers of plain rows.

    decision = decide(model, longest=512)                   # from the config and the model's class
    decision = verify(model, shared, prompts, decision)     # on the longest and a median item
    decision.note                              # "packed rows (verified: on 4 rows of this run, a token's …)"

Packed rows give wrong numbers without an error for models with recurrent layers, with ALiBi distances counted by index,
or with anything else that depends on where a token is in the row. The config rules out the known cases. `verify` finds
the others: where packed and plain rows differ, the engine uses plain rows and the note says why.

The module also has the spot check of Apple's MPS: a few rows are scored again on the CPU before anything is stored. MPS
kernels have returned wrong numbers without an error (in one known case an accuracy of 0.54 instead of the CPU's 0.41).
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aftertune.engine.attention import AttentionBackend, TorchBackend, supports_custom_attention
from aftertune.engine.decoder import Decoder
from aftertune.engine.memory import is_out_of_memory
from aftertune.engine.packing import PackedRow, packed_row
from aftertune.engine.scorer import Scorer, text_config, unwrapped
from aftertune.engine.tokenize import TokenSequence
from aftertune.errors import ResourceError

#: Largest difference of a token's log-probability between packed and plain rows, in float32.
TOLERANCE = 1e-3
#: In lower precision: this many times the difference of plain rows between batch sizes 1 and 8 …
FACTOR = 3.0
#: … or this many steps of the dtype at the largest logit, whichever is larger. Logits are rounded to such a step, and
#: plain rows may happen not to differ at all (at 16 the step of bfloat16 is 0.125, and lm-eval differs by 0.5 between
#: batch sizes there).
ROUNDING = 4
#: Tokens of a prompt that are decoded one by one for the check.
STEPS = 6

#: The sequences of one item, with the positions of their requests.
ItemSequences = list[tuple[int, TokenSequence]]

_SOFTMAX_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}
_ALIBI = {"bloom", "mpt"}
_LENGTH_DEPENDENT_ROPE = {"longrope", "dynamic"}


# --- Deciding from the config ---


@dataclass(frozen=True, slots=True)
class PackingDecision:
    """packed: rows may share prefixes; note: what runs and why; alone: only one sequence per forward pass.

    The ledger stores this value (a stage of an evaluation that stops early), so its field names do not change.
    """

    packed: bool
    note: str
    alone: bool = False


def decide(model: Any, longest: int) -> PackingDecision:
    """The decision by the model's class and config, for sequences of up to ``longest`` tokens."""
    config, base = text_config(model), unwrapped(model)
    family = getattr(config, "model_type", "")
    layers = set(getattr(config, "layer_types", None) or [])
    if getattr(base, "_is_stateful", False) or layers - _SOFTMAX_LAYERS:
        return PackingDecision(False, f"plain rows: {family} has recurrent or convolutional layers", alone=True)
    if getattr(config, "alibi", False) or family in _ALIBI:
        return PackingDecision(False, f"plain rows: {family} computes ALiBi distances from the index in the row")
    if family == "gpt_neo":
        return PackingDecision(False, "plain rows: gpt_neo applies its attention window by the index in the row")
    if _prompt_learning(model):
        return PackingDecision(False, "plain rows, one at a time: prompt-learning adapters put their own tokens before "
                               "every row", alone=True)
    if not supports_custom_attention(base):
        return PackingDecision(False, f"plain rows: {family} does not support a custom attention function")
    return _decide_by_length(config, longest)


def _decide_by_length(config: Any, longest: int) -> PackingDecision:
    """The rules that apply only to sequences beyond some length."""
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    ropes = [r for r in (rope, *rope.values()) if isinstance(r, dict)]
    rope_types = {str(r.get("rope_type", r.get("type", ""))) for r in ropes}
    limits = [r.get("original_max_position_embeddings") for r in ropes]
    limit = next((int(x) for x in limits if x), getattr(config, "original_max_position_embeddings", None)
                 or getattr(config, "max_position_embeddings", 0))
    if rope_types & _LENGTH_DEPENDENT_ROPE and limit and longest > limit:
        return PackingDecision(False, f"plain rows, one at a time: the rotary frequencies change beyond {limit} "
                               "tokens", alone=True)
    chunk = getattr(config, "attention_chunk_size", None)
    if chunk and longest > chunk:
        return PackingDecision(False, f"plain rows: the model attends in chunks of {chunk} tokens")
    floor = getattr(config, "floor_scale", None)
    if getattr(config, "attn_temperature_tuning", False) and floor and longest >= floor:
        return PackingDecision(False, f"plain rows: the attention temperature changes from {floor} tokens on")
    return PackingDecision(True, "packed rows")


def _prompt_learning(model: Any) -> bool:
    configs = getattr(model, "peft_config", None) or {}
    return any(getattr(c, "is_prompt_learning", False) for c in dict(configs).values())


# --- Verifying on real rows ---


def verify(model: Any, shared: list[tuple[tuple[int, ...], list[ItemSequences]]], prompts: list[tuple[int, ...]],
           decision: PackingDecision, backend: AttentionBackend | None = None) -> PackingDecision:
    """Score the longest and a median item packed and plain, and decode the end of the longest prompt step by step.

    shared: items by the prefix that is computed once for them. backend: computes packed rows; torch by default.
    Returns a decision for plain rows if the log-probabilities differ by more than rounding explains.
    """
    if not decision.packed or not (any(items for _, items in shared) or prompts):
        return decision
    samples = _samples(shared)
    tail = _prompt_tail(max(prompts, key=len)) if prompts else None
    if not samples and tail is None:
        return decision
    plain = Scorer(model, packed=False)
    singles = _single_rows(samples) + ([packed_row([tail])] if tail else [])
    scores = {p: s for row in singles for p, s in plain.run([row]).items()}
    alone = {p: s.logprobs for p, s in scores.items()}
    try:
        backend = backend or TorchBackend(model)
        with backend.computing(free_weights=True):
            packed = _packed_logprobs(Scorer(model, packed=True, backend=backend), samples, tail)
    except (ValueError, TypeError, RuntimeError, LookupError, AttributeError) as error:
        if is_out_of_memory(error):
            raise  # this says nothing about the model, and the same run must get the same plan later
        reason = " ".join(str(error).split())[:120]
        return PackingDecision(False, f"plain rows: this model does not support packed rows ({reason})")
    gap, bound = _largest_gap(alone, packed), TOLERANCE
    if str(model.dtype) != "torch.float32":
        bound = max(ROUNDING * _dtype_step(model.dtype, max(abs(s.top) for s in scores.values())), TOLERANCE)
        if not gap <= bound:
            together = {p: s.logprobs for p, s in plain.run(singles).items()}
            bound = max(FACTOR * _largest_gap(alone, together), bound)
    if not gap <= bound:
        return PackingDecision(False, f"plain rows: packed rows changed a token's log-probability by {gap:.2g}, "
                               f"more than {bound:.2g}")
    return PackingDecision(True, f"packed rows (verified: on {len(singles)} rows of this run, a token's "
                           f"log-probability differs from that of plain rows by at most {gap:.2g}; rounding explains "
                           f"up to {bound:.2g})")


def _single_rows(samples: list[tuple[tuple[int, ...], ItemSequences]]) -> list[PackedRow]:
    """Plain rows of the first and last sequence of each sample, by distinct input."""
    rows = {}
    for _, group in samples:
        by_input = {s.tokens[:-1]: (p, s) for p, s in group}
        for pair in (*by_input.values(),)[:: max(len(by_input) - 1, 1)]:
            rows[pair[0]] = packed_row([pair])
    return list(rows.values())


def _packed_logprobs(scorer: Scorer, samples: list[tuple[tuple[int, ...], ItemSequences]],
                     tail: tuple[int, TokenSequence] | None) -> dict[int, NDArray[np.float32]]:
    """Log-probabilities of the targets, by request position: of the samples packed, of ``tail`` by the decoder."""
    logprobs: dict[int, NDArray[np.float32]] = {}
    for prefix in dict.fromkeys(prefix for prefix, _ in samples):
        rows = [packed_row(group, len(prefix)) for p, group in samples if p == prefix]
        logprobs |= {p: s.logprobs for p, s in scorer.run(rows, prefix).items()}
    if tail is not None:
        logprobs[tail[0]] = Decoder(scorer, None, tokens=0).teacher_forced(tail[1].tokens, tail[1].targets)
    return logprobs


def _samples(shared: list[tuple[tuple[int, ...], list[ItemSequences]]]
             ) -> list[tuple[tuple[int, ...], ItemSequences]]:
    """The longest and a median item with their prefixes, of the items that branch if there are any.

    Two items with the same prefix run as one flat batch, which shows a row that sees tokens of the next one.
    """
    items = [(prefix, group) for prefix, groups in shared for group in groups]
    branching = [(p, g) for p, g in items if _branches(g)] or items
    by_length = sorted(branching, key=lambda pair: max(len(s.tokens) for _, s in pair[1]))
    return [by_length[i] for i in sorted({len(by_length) - 1, (len(by_length) - 1) // 2}, reverse=True) if i >= 0]


def _prompt_tail(prompt: tuple[int, ...]) -> tuple[int, TokenSequence] | None:
    """A prompt with its last tokens as targets, at position -1; None if it is too short."""
    targets = min(STEPS, len(prompt) - 1)
    return (-1, TokenSequence(prompt, targets)) if targets > 1 else None


def _branches(group: ItemSequences) -> bool:
    """True if two inputs differ before the end of the shorter one."""
    inputs = [s.tokens[:-1] for _, s in group]
    longest = max(inputs, key=len)
    return any(longest[: len(i)] != i for i in inputs)


def _dtype_step(dtype: Any, value: float) -> float:
    """Distance between adjacent numbers of ``dtype`` at ``value``; 0 where that is no number (damaged weights)."""
    import torch

    if not math.isfinite(value):
        return 0.0
    return float(torch.finfo(dtype).eps * 2 ** math.floor(math.log2(max(value, 1e-9))))


def _largest_gap(a: dict[int, Any], b: dict[int, Any]) -> float:
    """Largest absolute difference over the keys of ``a``. NaN if there is one (Python's ``max`` would skip it)."""
    return float(np.max([np.abs(a[k].astype(np.float64) - b[k].astype(np.float64)).max() for k in a]))


# --- The spot check of MPS ---

#: Rows that are scored again on the CPU.
SPOT_CHECK_ROWS = 8
#: Largest difference of a token's log-probability that rounding explains, by dtype of the device.
SPOT_CHECK_TOLERANCE = {"torch.float32": 1e-2, "torch.float16": 0.25, "torch.bfloat16": 0.5}


def needs_spot_check(device: str) -> bool:
    return device.startswith("mps")


def spot_check(model: Any, rows: list[PackedRow], *, packed: bool) -> float:
    """Largest difference of a token's log-probability between the device and the CPU in float32.

    Raises ResourceError if it is more than rounding explains.
    """
    sample = rows[:: max(len(rows) // SPOT_CHECK_ROWS, 1)][:SPOT_CHECK_ROWS]
    on_device = Scorer(model, packed=packed).run(sample)
    on_cpu = Scorer(copy.deepcopy(model).to("cpu").float(), packed=packed).run(sample)
    gaps = [np.abs(on_device[p].logprobs - on_cpu[p].logprobs).max() for p in on_device]
    gap, allowed = float(np.max(gaps, initial=0.0)), SPOT_CHECK_TOLERANCE[str(model.dtype)]  # max() would skip NaN
    if not gap <= allowed:
        raise ResourceError(f"device {model.device.type} gave a token's log-probability that differs from the CPU's by "
                            f"{gap:.2g} (allowed: {allowed:.2g}): use --device cpu, or another version of torch or of "
                            "the operating system")
    return gap
