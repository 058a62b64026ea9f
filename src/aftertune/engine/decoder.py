"""Generates texts with continuous batching: each text has a slot in the KV cache, and free slots are refilled.

    decoder = Decoder(scorer, tokenizer, tokens=1024)
    decoder.run(prompts, settings, Wave(slots=16))      # {position: Response(text="…", tokens=3, finish="eos")}

Prompts enter slots in batches. Each decoding step then gives every slot one token. When a text ends, the next prompt of
the wave takes its slot. What a prompt gets depends on the wave alone, never on timing.

A text ends as in lm-eval's ``hf`` model: at the end-of-sequence token, when a stop string appears in its decoded tail,
or at the token limit. It is then cut at the first stop string.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from aftertune.engine.attention import Prefix, Slots, attending
from aftertune.engine.packing import prompt_row
from aftertune.engine.sampling import Sampler
from aftertune.engine.scorer import Scorer
from aftertune.engine.tokenize import Generation, Prompt
from aftertune.values import Finish, Response

# --- When a text ends ---


class StopCriteria:
    """End-of-sequence tokens, stop strings and token limit of one wave.

        stop = StopCriteria(model, tokenizer, settings)
        stop.ended([[11, 12], [13]])          # [False, True]
        stop.response([11, 12, 2], 0)         # Response(text="…", tokens=3, finish="eos")
    """

    def __init__(self, model: Any, tokenizer: Any, settings: Generation) -> None:
        self.tokenizer = tokenizer
        self.settings = settings
        self.stop_strings = [u for u in settings.until if u]
        longest = max((len(tokenizer.encode(u, add_special_tokens=False)) for u in self.stop_strings), default=0)
        self.tail = longest + 2  # the model may write a stop string with other tokens than the tokenizer does
        ends = dict(settings.options).get("eos_token_id", getattr(model.generation_config, "eos_token_id", None))
        ids = set(ends) if isinstance(ends, list | tuple) else {ends}
        self.eos_token_ids = {i for i in ids | {tokenizer.eos_token_id} if i is not None}

    def ended(self, texts: Sequence[list[int]]) -> list[bool]:
        """Which of these texts, as generated tokens, end with their last token."""
        stopped = self.stopped([t[-self.tail:] for t in texts])
        return [stop or t[-1] in self.eos_token_ids or len(t) >= self.settings.max_tokens
                for t, stop in zip(texts, stopped, strict=True)]

    def stopped(self, tails: Sequence[list[int]]) -> list[bool]:
        """Which of these tails, as tokens, contain a stop string."""
        return [any(stop in text for stop in self.stop_strings) for text in self.tokenizer.batch_decode(tails)]

    def response(self, tokens: list[int], truncated: int) -> Response:
        """The response for the generated ``tokens``, up to and including the one that ended the text."""
        cut = next((i for i, t in enumerate(tokens) if t in self.eos_token_ids), None)
        before_end = tokens if cut is None else tokens[:cut]
        decoded = tokens if cut is None else tokens[: cut + 1]  # as in lm-eval: an end token may be ordinary text
        reasoning, answer = self._without_trace(decoded)
        full_text = self.tokenizer.decode(before_end)
        finish: Finish = "length" if cut is None else "eos"
        if any(stop in full_text for stop in self.stop_strings):
            finish = "stop"
        return Response(text=self.settings.cut(answer), tokens=len(tokens) if cut is None else cut + 1, finish=finish,
                        truncated=truncated, reasoning=reasoning)

    def _without_trace(self, tokens: list[int]) -> tuple[str | None, str]:
        """The reasoning trace, None where there is none, and the text after it.

        As in lm-eval, the last ``think_end_token`` ends the trace, and a text without it is an answer as a whole. A
        special token, which the decoded text does not show, is found by its id.
        """
        end = self.settings.think_end_token
        decode = partial(self.tokenizer.decode, skip_special_tokens=True)
        if end is None:
            return None, decode(tokens)
        if end in self.tokenizer.all_special_tokens:
            number = self.tokenizer.convert_tokens_to_ids(end)
            last = max((i for i, token in enumerate(tokens) if token == number), default=None)
            trace, answer = (None, tokens) if last is None else (decode(tokens[:last]), tokens[last + 1:])
            return trace, decode(answer).lstrip()
        trace, found, rest = decode(tokens).rpartition(end)
        return (trace if found else None), rest.lstrip()


# --- Decoding in slots ---

#: Free slots are refilled once they are at least 1/8 of all slots.
REFILL = 8


@dataclass(slots=True)
class _SlotText:
    """A text in progress. prompt: its tokens after the prefix; generator: for samples; tokens: generated so far."""

    position: int
    prompt: tuple[int, ...]
    truncated: int
    generator: torch.Generator | None = None
    tokens: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Wave:
    """How prompts are continued together. ended: called with the position of each text that has ended."""

    slots: int
    prefix: tuple[int, ...] = ()
    ended: Callable[[int], None] = lambda _: None


class Decoder:
    """Continues prompts with a model that can run packed rows. tokens: prompt tokens per forward pass, at most."""

    def __init__(self, scorer: Scorer, tokenizer: Any, *, tokens: int) -> None:
        self.scorer = scorer
        self.tokenizer = tokenizer
        self.tokens = tokens

    @torch.inference_mode()
    def run(self, prompts: Mapping[int, Prompt], settings: Generation, wave: Wave) -> dict[int, Response]:
        """Continue the prompts of one wave; the response of each, by request position."""
        stop = StopCriteria(self.scorer.model, self.tokenizer, settings)
        sampler = Sampler(self.scorer.model, settings)
        waiting = deque(_SlotText(p, q.tokens[len(wave.prefix):], q.truncated, sampler.generator(p))
                        for p, q in prompts.items())
        count = min(wave.slots, len(waiting))
        room = max(len(t.prompt) for t in waiting) + settings.max_tokens
        slots = self.scorer.backend.slots(count, room)
        prefix = self.scorer.prefix(wave.prefix)
        active: list[_SlotText] = []
        responses: dict[int, Response] = {}
        while waiting or active:
            free = count - len(active)
            if waiting and free >= min(max(count // REFILL, 1), len(waiting)):
                texts = self._next_prompts(waiting, free)
                logits = self._prefill(texts, range(len(active), len(active) + len(texts)), slots, prefix)
                active += texts
            else:
                texts = active
                logits = self._step(active, slots, prefix)
            for text, token in zip(texts, sampler(logits, [t.generator for t in texts]), strict=True):
                text.tokens.append(token)
            for text in self._remove_ended(active, texts, slots, stop):
                responses[text.position] = stop.response(text.tokens, text.truncated)
                wave.ended(text.position)
        return {p: responses[p] for p in prompts}

    @torch.inference_mode()
    def teacher_forced(self, tokens: tuple[int, ...], targets: int) -> NDArray[np.float32]:
        """Log-probabilities of the last ``targets`` tokens [targets], one decoding step each. `verify` compares them
        with those of one forward pass."""
        cut = len(tokens) - targets
        text = _SlotText(0, tokens[:cut], 0)
        slots = self.scorer.backend.slots(1, len(tokens))
        logits = [self._prefill([text], [0], slots, None)]
        for token in tokens[cut:-1]:
            text.tokens.append(token)
            logits.append(self._step([text], slots, None))
        logprobs = torch.cat(logits).float().log_softmax(-1)
        result: NDArray[np.float32] = logprobs[torch.arange(targets), torch.tensor(tokens[cut:])].cpu().numpy()
        return result

    def _next_prompts(self, waiting: deque[_SlotText], free: int) -> list[_SlotText]:
        """Remove and return the next prompts, up to ``free``, that fit into one forward pass."""
        texts = [waiting.popleft()]
        longest = len(texts[0].prompt)
        while waiting and len(texts) < free:
            longest = max(longest, len(waiting[0].prompt))
            if longest * (len(texts) + 1) > self.tokens:
                break
            texts.append(waiting.popleft())
        return texts

    def _prefill(self, texts: Sequence[_SlotText], indices: Sequence[int], slots: Slots,
                 prefix: Prefix | None) -> torch.Tensor:
        """Run prompts and store them in the slots at ``indices``; the logits after each [texts, vocabulary]."""
        past = prefix.length if prefix else 0
        rows = [prompt_row(t.prompt, past) for t in texts]
        layout = self.scorer.backend.rows(rows, prefix=prefix, keep=slots.fill(indices, rows))
        with attending(self.scorer.model, layout):
            return self.scorer.flat(rows)

    def _step(self, active: Sequence[_SlotText], slots: Slots, prefix: Prefix | None) -> torch.Tensor:
        """Run the last token of every active text; the logits after it [active, vocabulary]."""
        count = len(active)
        layout = self.scorer.backend.step(slots, count, prefix)
        depth = layout.lengths + (prefix.length if prefix else 0)
        with attending(self.scorer.model, layout):
            logits = self.scorer.forward(torch.tensor([t.tokens[-1] for t in active]), torch.arange(count), depth)
        slots.lengths[:count] += 1
        return logits

    def _remove_ended(self, active: list[_SlotText], texts: Sequence[_SlotText], slots: Slots,
                      stop: StopCriteria) -> list[_SlotText]:
        """Remove the ``texts`` that have ended from the active ones and return them. The last slots move into the gaps,
        so that the active slots stay the first ones."""
        ended = stop.ended([t.tokens for t in texts])
        ended_ids = {id(t) for t, end in zip(texts, ended, strict=True) if end}
        removed = []
        for slot in reversed(range(len(active))):
            if id(active[slot]) not in ended_ids:
                continue
            removed.append(active[slot])
            last = active.pop()
            if slot < len(active):
                slots.move(len(active), slot)
                active[slot] = last
        return removed
