"""Text after a prompt: waves of left-padded prompts through transformers' own ``generate``.

A row ends at the end-of-sequence token, when a stop string shows up in its decoded tail, or at the limit;
the text is then cut at the first stop string. Sampled generation runs one prompt at a time, seeded by its
position, so that a result does not depend on the batch it sat in.
"""

from __future__ import annotations

from typing import Any

import torch

from aftertune.engine.encode import Generation, Prompt
from aftertune.errors import InputError
from aftertune.values import Finish, Response


class _Stops:
    """A transformers stopping criterion with one flag per row: a stop string in the decoded tail.

    lengths: generated tokens at which each row met a stop string, None while it has not.
    """

    def __init__(self, tokenizer: Any, until: tuple[str, ...], start: int, rows: int) -> None:
        self.tokenizer = tokenizer
        self.until = [u for u in until if u]
        self.start = start
        self.lengths: list[int | None] = [None] * rows
        longest = max((len(tokenizer.encode(u, add_special_tokens=False)) for u in self.until), default=0)
        self.tail = longest + 2  # a stop string may be written with other tokens than the tokenizer would

    def __call__(self, input_ids: torch.Tensor, _scores: Any, **_: Any) -> torch.Tensor:
        generated = input_ids[:, self.start:]
        for i, text in enumerate(self.tokenizer.batch_decode(generated[:, -self.tail:])):
            if self.lengths[i] is None and any(stop in text for stop in self.until):
                self.lengths[i] = generated.shape[1]
        return torch.tensor([n is not None for n in self.lengths], device=input_ids.device)


class Generator:
    """Continues prompts with one model."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model = model
        self.tokenizer = tokenizer

    @torch.inference_mode()
    def run(self, prompts: dict[int, Prompt], settings: Generation) -> dict[int, Response]:
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
        stops = _Stops(self.tokenizer, settings.until, width, len(tokens))
        out = self._generate(tokens, mask, settings, stops)
        return {p: self._response(out[i, width:].tolist()[: stops.lengths[i]], prompts[p], settings)
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

    def _response(self, tokens: list[int], prompt: Prompt, settings: Generation) -> Response:
        """``tokens`` were generated, up to the one that completed a stop string."""
        ends = self._ends()
        cut = next((i for i, t in enumerate(tokens) if t in ends), None)
        kept = tokens if cut is None else tokens[:cut]
        text = settings.cut(self.tokenizer.decode(kept, skip_special_tokens=True))
        stopped = any(stop in self.tokenizer.decode(kept) for stop in settings.until if stop)
        finish: Finish = "stop" if stopped else "length" if cut is None else "eos"
        count = len(tokens) if cut is None else cut + 1
        return Response(text=text, tokens=count, finish=finish, truncated=prompt.truncated)

    def _ends(self) -> set[int]:
        """End-of-sequence ids of the model's generation config and of the tokenizer."""
        ends = getattr(self.model.generation_config, "eos_token_id", None)
        ids = set(ends) if isinstance(ends, list) else {ends}
        return {i for i in ids | {self.tokenizer.eos_token_id} if i is not None}
