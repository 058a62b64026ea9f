"""Generates texts with transformers' own ``generate``, for models and settings that KV slots do not support.

    Generator(model, tokenizer).run(prompts, settings)      # {position: Response(text="…", tokens=3, finish="eos")}

The prompts of a wave are padded on the left. Where the settings look at the tokens of a text or at its length (a
repetition penalty, ``min_length``), the engine puts only prompts of the same length into a wave, because lm-eval's
batches of several would count the padding too. Sampled texts are generated one prompt at a time, seeded with the
position of the request, so that a text does not depend on the other texts of its batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from aftertune.engine.decoder import StopCriteria
from aftertune.engine.tokenize import Generation, Prompt
from aftertune.errors import InputError
from aftertune.values import Response


class _StopStrings:
    """A stopping criterion for transformers: a prompt is done when its decoded tail contains a stop string.

    The beams of a prompt are adjacent rows. As in lm-eval, its first beam decides for all of them.
    lengths: generated tokens at which each prompt reached a stop string; None until then.
    """

    def __init__(self, stop: StopCriteria, start: int, rows: int) -> None:
        self.stop = stop
        self.start = start
        self.lengths: list[int | None] = [None] * rows

    def __call__(self, input_ids: torch.Tensor, _scores: Any, **_: Any) -> torch.Tensor:
        beams = len(input_ids) // len(self.lengths)
        generated = input_ids[::beams, self.start:]
        for i, stopped in enumerate(self.stop.stopped(generated[:, -self.stop.tail:])):
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
        """Continue the prompts of one wave; the response of each, by request position.

        Raises InputError for settings that transformers rejects.
        """
        positions = list(prompts)
        width = max(len(prompts[p].tokens) for p in positions)
        pad = self.tokenizer.pad_token_id
        tokens = torch.full((len(positions), width), pad, dtype=torch.long)
        mask = torch.zeros_like(tokens)
        for i, p in enumerate(positions):
            n = len(prompts[p].tokens)
            tokens[i, width - n:] = torch.tensor(prompts[p].tokens)
            mask[i, width - n:] = 1
        if settings.do_sample:
            torch.manual_seed(positions[0])
        stop = StopCriteria(self.model, self.tokenizer, settings)
        stop_strings = _StopStrings(stop, width, len(tokens))
        out = self._generate(tokens, mask, settings, stop_strings)
        return {p: stop.response(out[i, width:].tolist()[: stop_strings.lengths[i]], prompts[p].truncated)
                for i, p in enumerate(positions)}

    def _generate(self, tokens: torch.Tensor, mask: torch.Tensor, settings: Generation,
                  stop_strings: _StopStrings) -> torch.Tensor:
        from transformers import StoppingCriteriaList

        options = {name: value for name, value in settings.options if name != "think_end_token"}
        try:
            out: torch.Tensor = self.model.generate(
                input_ids=tokens.to(self.model.device), attention_mask=mask.to(self.model.device),
                max_new_tokens=settings.max_tokens, do_sample=settings.do_sample,
                stopping_criteria=StoppingCriteriaList([stop_strings]), pad_token_id=self.tokenizer.pad_token_id,
                use_cache=True, return_dict_in_generate=False, **options)
        except ValueError as error:
            raise InputError(f"transformers rejects the generation settings {options or 'of the model'}: "
                             f"{' '.join(str(error).split())}") from error
        return out
