"""The next token of each text: the largest logit, or a draw.

    choose = Chooser(model, settings)
    choose(logits, [text.draws for text in active])        -> token ids, one a text

Draws go through transformers' own warpers, in its order and with its defaults, and come from a generator of each
text's own, seeded by its position: what a text becomes does not depend on the batch that it sat in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from aftertune.engine.tokenize import Generation

#: Fields of a generation config that leave both greedy choice and draws alone, or are heeded here.
_HARMLESS = frozenset({
    "bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "transformers_version",
    "_from_model_config", "max_length", "max_new_tokens", "do_sample", "temperature", "top_k", "top_p", "min_p",
    "use_cache", "cache_implementation", "output_attentions", "output_hidden_states", "return_dict_in_generate",
    "chat_format", "max_window_size", "trust_remote_code", "compile_config"})
#: Others, with the values at which they do nothing.
_NEUTRAL = {"repetition_penalty": 1.0, "num_beams": 1, "length_penalty": 1.0, "typical_p": 1.0}


def takes_slots(model: Any, settings: Generation) -> bool:
    """True where the next token is the argmax or a plain draw: no beams, penalties or forced tokens."""
    values = _values(model, settings)
    harmful = set(values) - _HARMLESS - (set() if settings.do_sample else {"typical_p"})
    return all(values[name] in (_NEUTRAL.get(name), None) for name in harmful)


class Chooser:
    """Chooses tokens as ``settings`` and the model's generation config say."""

    def __init__(self, model: Any, settings: Generation) -> None:
        self.draws = settings.do_sample
        self.warpers = _warpers(_values(model, settings)) if self.draws else []

    def seeded(self, position: int) -> torch.Generator | None:
        """The generator of the text at ``position``; None where nothing is drawn."""
        return torch.Generator().manual_seed(position) if self.draws else None

    def __call__(self, logits: torch.Tensor, draws: Sequence[torch.Generator | None]) -> list[int]:
        """logits [texts, vocabulary] -> a token of each text."""
        if not self.draws:
            chosen: list[int] = logits.max(-1).indices.tolist()  # the first of equals, as argmax; faster in bfloat16
            return chosen
        scores = logits.float()
        for warp in self.warpers:
            scores = warp(None, scores)
        shares = scores.softmax(-1).cpu()
        return [int(torch.multinomial(share, 1, generator=own)) for share, own in zip(shares, draws, strict=True)]


def _values(model: Any, settings: Generation) -> dict[str, Any]:
    """What the model's generation config changes, and over it the settings' own options."""
    config = getattr(model, "generation_config", None)
    changed = config.to_diff_dict() if config is not None else {}
    return {**changed, **dict(settings.options)}


def _warpers(values: dict[str, Any]) -> list[Any]:
    """transformers' warpers, with the defaults of its ``generate``: top_k is 50 unless something else is asked for."""
    from transformers.generation import logits_process as known

    def value(name: str, default: Any) -> Any:
        return default if values.get(name) is None else values[name]

    wanted = [(known.TemperatureLogitsWarper, value("temperature", 1.0), 1.0),
              (known.TopKLogitsWarper, value("top_k", 50), 0),
              (known.TopPLogitsWarper, value("top_p", 1.0), 1.0),
              (known.MinPLogitsWarper, value("min_p", 0.0), 0.0)]
    return [kind(given) for kind, given, neutral in wanted if given != neutral]
