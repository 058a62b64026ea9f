"""Chooses the next token of each text: the largest logit, or a sample.

    sampler = Sampler(model, settings)
    sampler(logits, [sampler.generator(position) for position in positions])      # token ids [texts]

Samples use the logits warpers of transformers, in its order and with its defaults. Each text has its own random
generator, seeded with its position, so a text does not depend on the other texts of its batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from aftertune.engine.tokenize import Generation
from aftertune.sources.generation import changed_fields, text_settings

#: Settings that slots take into account, so that transformers' ``generate`` is not needed for them.
_IN_SLOTS = frozenset({"eos_token_id", "max_new_tokens", "temperature", "top_k", "top_p", "min_p", "think_end_token"})


def can_use_slots(model: Any, settings: Generation) -> bool:
    """True if the next token is the argmax or a plain sample: no beams, penalties or forced tokens."""
    changing = text_settings(_generation_values(model, settings), sampled=settings.do_sample)
    return _IN_SLOTS.issuperset(changing)


class Sampler:
    """Chooses tokens as ``settings`` and the model's generation config say."""

    def __init__(self, model: Any, settings: Generation) -> None:
        self.do_sample = settings.do_sample
        self.warpers = _warpers(_generation_values(model, settings)) if self.do_sample else []

    def generator(self, position: int) -> torch.Generator | None:
        """The random generator of the text at ``position``; None for greedy decoding."""
        return torch.Generator().manual_seed(position) if self.do_sample else None

    def __call__(self, logits: torch.Tensor, generators: Sequence[torch.Generator | None]) -> list[int]:
        """logits [texts, vocabulary] -> token ids [texts]."""
        if not self.do_sample:
            # the first of equal logits, like argmax, but faster in bfloat16
            token_ids: list[int] = logits.max(-1).indices.tolist()
            return token_ids
        scores = logits.float()
        for warp in self.warpers:
            scores = warp(None, scores)
        probabilities = scores.softmax(-1).cpu()
        return [int(torch.multinomial(row, 1, generator=generator))
                for row, generator in zip(probabilities, generators, strict=True)]


def _generation_values(model: Any, settings: Generation) -> dict[str, Any]:
    """The changed fields of the model's generation config, overridden by the options of the settings."""
    config = getattr(model, "generation_config", None)
    changed = changed_fields(config) if config is not None else {}
    return {**changed, **dict(settings.options)}


def _warpers(values: dict[str, Any]) -> list[Any]:
    """The warpers of transformers, with the defaults of its ``generate`` (top_k is 50 unless set)."""
    from transformers.generation import logits_process

    def value(name: str, default: Any) -> Any:
        return default if values.get(name) is None else values[name]

    candidates = [(logits_process.TemperatureLogitsWarper, value("temperature", 1.0), 1.0),
                  (logits_process.TopKLogitsWarper, value("top_k", 50), 0),
                  (logits_process.TopPLogitsWarper, value("top_p", 1.0), 1.0),
                  (logits_process.MinPLogitsWarper, value("min_p", 0.0), 0.0)]
    return [warper(number) for warper, number, neutral in candidates if number != neutral]
