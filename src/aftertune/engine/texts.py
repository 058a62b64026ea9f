"""When a generated text ends, and what is left of it: the rules of lm-eval's ``hf`` model.

    ending = Ending(model, tokenizer, settings)
    ending.ended([[11, 12], [13]])          [False, True]
    ending.response([11, 12, 2], 0)         Response(text="…", tokens=3, finish="eos")
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aftertune.engine.encode import Generation
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
