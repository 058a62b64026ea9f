"""Text after prompts through transformers' own ``generate``: for models and settings that KV slots do not take.

Waves of left-padded prompts. Sampled generation runs one prompt at a time, seeded by its position, so that a result
does not depend on the batch it sat in.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from aftertune.engine.decoder import Ending
from aftertune.engine.tokenize import Generation, Prompt
from aftertune.errors import InputError
from aftertune.values import Response


class _Stops:
    """A transformers stopping criterion with one flag per row: a stop string in the decoded tail.

    The beams of a prompt are rows side by side; as in lm-eval, its first beam ends them all.
    lengths: generated tokens at which each prompt met a stop string, None while it has not.
    """

    def __init__(self, ending: Ending, start: int, rows: int) -> None:
        self.ending = ending
        self.start = start
        self.lengths: list[int | None] = [None] * rows

    def __call__(self, input_ids: torch.Tensor, _scores: Any, **_: Any) -> torch.Tensor:
        beams = len(input_ids) // len(self.lengths)
        generated = input_ids[::beams, self.start:]
        for i, stopped in enumerate(self.ending.stopped(generated[:, -self.ending.tail:])):
            if stopped and self.lengths[i] is None:
                self.lengths[i] = generated.shape[1]
        return torch.tensor([n is not None for n in self.lengths], device=input_ids.device).repeat_interleave(beams)


class Generator:
    """Continues prompts with one model."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model = model
        self.tokenizer = tokenizer

    @torch.inference_mode()
    def run(self, prompts: Mapping[int, Prompt], settings: Generation) -> dict[int, Response]:
        """One wave: the response of each prompt, by request position."""
        order = list(prompts)
        width = max(len(prompts[p].tokens) for p in order)
        pad = self.tokenizer.pad_token_id
        tokens = torch.full((len(order), width), pad, dtype=torch.long)
        mask = torch.zeros_like(tokens)
        for i, p in enumerate(order):
            n = len(prompts[p].tokens)
            tokens[i, width - n:] = torch.tensor(prompts[p].tokens)
            mask[i, width - n:] = 1
        if settings.do_sample:
            torch.manual_seed(order[0])
        ending = Ending(self.model, self.tokenizer, settings)
        stops = _Stops(ending, width, len(tokens))
        out = self._generate(tokens, mask, settings, stops)
        return {p: ending.response(out[i, width:].tolist()[: stops.lengths[i]], prompts[p].truncated)
                for i, p in enumerate(order)}

    def _generate(self, tokens: torch.Tensor, mask: torch.Tensor, settings: Generation,
                  stops: _Stops) -> torch.Tensor:
        from transformers import StoppingCriteriaList

        try:
            out: torch.Tensor = self.model.generate(
                input_ids=tokens.to(self.model.device), attention_mask=mask.to(self.model.device),
                max_new_tokens=settings.max_tokens, do_sample=settings.do_sample,
                stopping_criteria=StoppingCriteriaList([stops]), pad_token_id=self.tokenizer.pad_token_id,
                use_cache=True, **dict(settings.options))
        except ValueError as error:
            raise InputError(f"generation settings {dict(settings.options)}: {' '.join(str(error).split())}"
                             ) from error
        return out
