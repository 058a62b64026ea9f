"""Text after prompts, in KV slots: prompts fill slots in batches, every step gives each slot one token, and a slot
that falls free is taken at once by the next prompt of the wave.

A text ends at the end-of-sequence token, when a stop string shows up in its decoded tail, or at the limit; it is then
cut at the first stop string. What a prompt gets depends on the wave alone, never on timing.

    Decoder(scorer, tokenizer, tokens=1024).run(prompts, settings, Wave(slots=16))

When a generated text ends, and what is left of it: the rules of lm-eval's ``hf`` model.

    ending = Ending(model, tokenizer, settings)
    ending.ended([[11, 12], [13]])          [False, True]
    ending.response([11, 12, 2], 0)         Response(text="…", tokens=3, finish="eos")
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from aftertune.engine.attention import Prefix, Slots, attending
from aftertune.engine.packing import path
from aftertune.engine.sampling import Chooser
from aftertune.engine.scorer import Scorer
from aftertune.engine.tokenize import Generation, Prompt
from aftertune.values import Finish, Response


class Ending:
    """End-of-sequence tokens, stop strings and the limit of one wave."""

    def __init__(self, model: Any, tokenizer: Any, settings: Generation) -> None:
        self.tokenizer = tokenizer
        self.settings = settings
        self.stops = [u for u in settings.until if u]
        longest = max((len(tokenizer.encode(u, add_special_tokens=False)) for u in self.stops), default=0)
        self.tail = longest + 2  # a stop string may be written with other tokens than the tokenizer would
        ends = dict(settings.options).get("eos_token_id", getattr(model.generation_config, "eos_token_id", None))
        ids = set(ends) if isinstance(ends, list | tuple) else {ends}
        self.ends = {i for i in ids | {tokenizer.eos_token_id} if i is not None}

    def ended(self, texts: Sequence[list[int]]) -> list[bool]:
        """Which of these texts end with their last token."""
        stopped = self.stopped([t[-self.tail:] for t in texts])
        return [stop or t[-1] in self.ends or len(t) >= self.settings.max_tokens
                for t, stop in zip(texts, stopped, strict=True)]

    def stopped(self, tails: Sequence[list[int]]) -> list[bool]:
        """Which of these tails hold a stop string."""
        return [any(stop in text for stop in self.stops) for text in self.tokenizer.batch_decode(tails)]

    def response(self, tokens: list[int], truncated: int) -> Response:
        """``tokens`` were generated, up to the one that ended the text."""
        cut = next((i for i, t in enumerate(tokens) if t in self.ends), None)
        kept = tokens if cut is None else tokens[:cut]
        read = tokens if cut is None else tokens[: cut + 1]  # as in lm-eval, an end token that is text is read
        text = self.settings.cut(self.tokenizer.decode(read, skip_special_tokens=True))
        whole = self.tokenizer.decode(kept)
        finish: Finish = "stop" if any(stop in whole for stop in self.stops) else "length" if cut is None else "eos"
        return Response(text=text, tokens=len(tokens) if cut is None else cut + 1, finish=finish,
                        truncated=truncated)


#: Free slots that are worth a pass of their own, as a share of all.
REFILL = 8


@dataclass(slots=True)
class _SlotText:
    """A prompt on its way: what of it is not in the prefix, what its draws come from, and the tokens after it."""

    position: int
    prompt: tuple[int, ...]
    truncated: int
    draws: torch.Generator | None = None
    tokens: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Wave:
    """How prompts are continued together. ended: called with the position of each text that has ended."""

    slots: int
    prefix: tuple[int, ...] = ()
    ended: Callable[[int], None] = lambda _: None


class Decoder:
    """Continues prompts with one model whose rows may be packed. tokens: of prompts, in one pass."""

    def __init__(self, scorer: Scorer, tokenizer: Any, *, tokens: int) -> None:
        self.scorer = scorer
        self.tokenizer = tokenizer
        self.tokens = tokens

    @torch.inference_mode()
    def run(self, prompts: Mapping[int, Prompt], settings: Generation, wave: Wave) -> dict[int, Response]:
        """One wave: the response of each prompt, by request position."""
        ending = Ending(self.scorer.model, self.tokenizer, settings)
        choose = Chooser(self.scorer.model, settings)
        waiting = deque(_SlotText(p, q.tokens[len(wave.prefix):], q.truncated, choose.seeded(p))
                        for p, q in prompts.items())
        count = min(wave.slots, len(waiting))
        room = max(len(t.prompt) for t in waiting) + settings.max_tokens
        held = self.scorer.backend.slots(count, room)
        before = self.scorer.prefix(wave.prefix)
        active: list[_SlotText] = []
        done: dict[int, Response] = {}
        while waiting or active:
            free = count - len(active)
            if waiting and free >= min(max(count // REFILL, 1), len(waiting)):
                new = self._take(waiting, free)
                logits = self._fill(new, range(len(active), len(active) + len(new)), held, before)
                active += new
            else:
                new = active
                logits = self._step(active, held, before)
            for text, token in zip(new, choose(logits, [t.draws for t in new]), strict=True):
                text.tokens.append(token)
            for text in self._collect(active, new, held, ending):
                done[text.position] = ending.response(text.tokens, text.truncated)
                wave.ended(text.position)
        return {p: done[p] for p in prompts}

    @torch.inference_mode()
    def forced(self, tokens: tuple[int, ...], targets: int) -> NDArray[np.float32]:
        """Log-probabilities of the last ``targets`` tokens, each after a step of its own: the decoder's check."""
        cut = len(tokens) - targets
        text = _SlotText(0, tokens[:cut], 0)
        held = self.scorer.backend.slots(1, len(tokens))
        logits = [self._fill([text], [0], held, None)]
        for token in tokens[cut:-1]:
            text.tokens.append(token)
            logits.append(self._step([text], held, None))
        logprobs = torch.cat(logits).float().log_softmax(-1)
        found: NDArray[np.float32] = logprobs[torch.arange(targets), torch.tensor(tokens[cut:])].cpu().numpy()
        return found

    def _take(self, waiting: deque[_SlotText], free: int) -> list[_SlotText]:
        """The next prompts, up to ``free``, that one pass holds."""
        taken = [waiting.popleft()]
        longest = len(taken[0].prompt)
        while waiting and len(taken) < free:
            longest = max(longest, len(waiting[0].prompt))
            if longest * (len(taken) + 1) > self.tokens:
                break
            taken.append(waiting.popleft())
        return taken

    def _fill(self, texts: Sequence[_SlotText], slots: Sequence[int], held: Slots,
              prefix: Prefix | None) -> torch.Tensor:
        """Run prompts into their slots; the logits after each [texts, vocabulary]."""
        past = prefix.length if prefix else 0
        rows = [path(t.prompt, past) for t in texts]
        layout = self.scorer.backend.rows(rows, prefix=prefix, keep=held.fill(slots, rows))
        with attending(self.scorer.model, layout):
            return self.scorer.flat(rows)

    def _step(self, active: Sequence[_SlotText], held: Slots, prefix: Prefix | None) -> torch.Tensor:
        """One token further in every slot; the logits after it [active, vocabulary]."""
        count = len(active)
        layout = self.scorer.backend.step(held, count, prefix)
        depth = layout.lengths + (prefix.length if prefix else 0)
        with attending(self.scorer.model, layout):
            logits = self.scorer.forward(torch.tensor([t.tokens[-1] for t in active]), torch.arange(count), depth)
        held.lengths[:count] += 1
        return logits

    def _collect(self, active: list[_SlotText], new: Sequence[_SlotText], held: Slots,
                 ending: Ending) -> list[_SlotText]:
        """Take the texts that have ended out of their slots; the last ones move into the gaps."""
        ended = ending.ended([t.tokens for t in new])
        over = {id(t) for t, end in zip(new, ended, strict=True) if end}
        found = []
        for slot in reversed(range(len(active))):
            if id(active[slot]) not in over:
                continue
            found.append(active[slot])
            last = active.pop()
            if slot < len(active):
                held.move(len(active), slot)
                active[slot] = last
        return found
