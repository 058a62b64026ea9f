"""Lets a base model continue prompts, and compares the token probabilities of another model on these texts.

    texts = continue_prompts(base, tokenizer, prompts, tokens=64, seed=0)
    stored = list(distributions(base, texts, vocabulary=len(tokenizer)))
    results = list(divergences(tuned, texts, stored))        # [TextDivergence(kl=0.21, changed=0.15), …]

On each token of a text, the base's distribution P is compared with that of the tuned model, Q:
KL(P || Q) = sum of P log(P / Q), in nats. Both models read the same tokens, one text at a time, so that equal models
give exactly 0. Of P the 4,096 most likely tokens are kept, and all others count as one; the KL of a larger vocabulary
is then a lower bound (by the data processing inequality), in practice an exact one. Rows of the embeddings that belong
to no token of the tokenizer do not count.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from aftertune.engine.scorer import unwrapped
from aftertune.engine.verify import decide

#: Tokens of the base's distribution that are kept at each position.
TOP = 4096
#: Prompts that are continued together.
_BATCH = 16

#: Called with (texts done, all texts).
Done = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Continuation:
    """The token ids of a prompt, and those that the base added; the last may be an end token."""

    prompt: list[int]
    tokens: list[int]


@dataclass(frozen=True, slots=True)
class Distribution:
    """The base's log-probabilities at the tokens of a continuation. ids, values: [tokens, top]; rest: [tokens], of all
    other tokens together (-inf for none). size: number of tokens of the vocabulary."""

    ids: torch.Tensor
    values: torch.Tensor
    rest: torch.Tensor
    size: int


@dataclass(frozen=True, slots=True)
class TextDivergence:
    """kl: mean over the tokens of a continuation, in nats; changed: share of them at which the two models have
    different most likely tokens."""

    kl: float
    changed: float


def token_rows(model: Any) -> int:
    """The number of tokens that the model has embeddings for."""
    return int(model.get_input_embeddings().weight.shape[0])


def continue_prompts(model: Any, tokenizer: Any, prompts: Sequence[list[int]], *, tokens: int, seed: int,
                     progress: Done | None = None) -> list[Continuation]:
    """Continue each prompt by sampling from the model's own probabilities (temperature 1).

    tokens: the most tokens of a continuation. The samples depend on the seed, the batches and the dtype. The state of
    the random number generators is restored.
    """
    from transformers import GenerationConfig

    ends = _end_ids(model, tokenizer)
    settings = GenerationConfig(do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=tokens,
                                eos_token_id=ends, pad_token_id=tokenizer.pad_token_id, use_cache=True,
                                suppress_tokens=list(range(len(tokenizer), token_rows(model))) or None)
    longest = max((len(prompt) for prompt in prompts), default=0) + tokens
    size = 1 if decide(model, longest).alone else _BATCH
    texts: list[Continuation] = []
    for start in range(0, len(prompts), size):
        batch = prompts[start:start + size]
        if progress is not None:
            progress(start, len(prompts))
        width = max(map(len, batch))
        ids = torch.full((len(batch), width), tokenizer.pad_token_id)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(batch):
            ids[row, width - len(prompt):] = torch.tensor(prompt)
            mask[row, width - len(prompt):] = 1
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())), torch.inference_mode():
            torch.manual_seed(seed + start)
            out = model.generate(input_ids=ids.to(model.device), attention_mask=mask.to(model.device),
                                 generation_config=settings)
        for prompt, new in zip(batch, out[:, width:].tolist(), strict=True):
            end = next((n + 1 for n, token in enumerate(new) if token in ends), len(new))
            texts.append(Continuation(prompt, new[:end]))
    return texts


def _end_ids(model: Any, tokenizer: Any) -> list[int]:
    """The ids of the tokens that end a text, by the generation config and the tokenizer."""
    config = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ends = {*(config if isinstance(config, list) else [config]), tokenizer.eos_token_id}
    return sorted(ends - {None})


def distributions(model: Any, texts: Sequence[Continuation], vocabulary: int, progress: Done | None = None
                  ) -> Iterator[Distribution]:
    """The base's distribution at each token of each text. vocabulary: number of tokens that count."""
    for logits in _logits(model, texts, vocabulary, progress):
        logprobs = torch.log_softmax(logits, dim=-1)
        values, ids = logprobs.topk(min(TOP, vocabulary), dim=-1)
        yield Distribution(ids.to("cpu", torch.int32), values.to("cpu"), _rest(logprobs, ids).to("cpu"), vocabulary)


def divergences(model: Any, texts: Sequence[Continuation], base: Sequence[Distribution], progress: Done | None = None
                ) -> Iterator[TextDivergence]:
    """How the tuned model diverges from the base's distributions on each text. It has all tokens that count."""
    for before, logits in zip(base, _logits(model, texts, base[0].size if base else 0, progress), strict=True):
        ids = before.ids.to(logits.device, torch.int64)
        values, rest = before.values.to(logits.device), before.rest.to(logits.device)
        logprobs = torch.log_softmax(logits, dim=-1)
        kept = (values.exp() * (values - logprobs.gather(-1, ids))).sum(dim=-1)
        others = torch.where(rest.isinf(), torch.zeros_like(rest), rest.exp() * (rest - _rest(logprobs, ids)))
        kl = (kept + others).clamp(min=0)
        yield TextDivergence(float(kl.mean()), float((ids[:, 0] != logprobs.argmax(dim=-1)).float().mean()))


def _logits(model: Any, texts: Sequence[Continuation], vocabulary: int, progress: Done | None
            ) -> Iterator[torch.Tensor]:
    """The logits that predict each token of a continuation: float32 [tokens, vocabulary], one text at a time."""
    options = inspect.signature(unwrapped(model).forward).parameters
    for number, text in enumerate(texts):
        if progress is not None:
            progress(number, len(texts))
        few = {"logits_to_keep": len(text.tokens) + 1} if "logits_to_keep" in options else {}
        ids = torch.tensor([text.prompt + text.tokens], device=model.device)
        with torch.inference_mode():
            logits = model(input_ids=ids, use_cache=False, **few).logits[0, -len(text.tokens) - 1:-1, :vocabulary]
        yield logits.float()


def _rest(logprobs: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """The log-probability of all tokens but ``ids``, at each position."""
    return logprobs.scatter(-1, ids, float("-inf")).logsumexp(dim=-1)
