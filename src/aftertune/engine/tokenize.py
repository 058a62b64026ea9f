"""Tokenizes texts exactly as lm-eval's ``hf`` model does.

    Encoder(tokenizer, max_length=8192).score("The sky is", " blue")
    # TokenSequence(tokens=(504, 6376, 314, 3747), targets=1, truncated=0)

The rules (lm-eval 0.4.13, ``TemplateLM._encode_pair``, ``HFLM.tok_encode`` and ``_loglikelihood_tokens``):
- Trailing spaces of a context move to the continuation.
- Context and continuation are split by the token count of the context alone.
- An empty context becomes the prefix token (BOS, else EOS).
- Where a token spans context and continuation, so that nothing is left for the continuation, the continuation is
  encoded alone, as in lm-eval's pull request 4055. lm-eval 0.4.13 stops there.
- The tokenizer adds special tokens by its own default, but not if the text already starts with the prefix token.
- Tokens that do not fit into the context length are cut off on the left.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from aftertune.errors import InputError

#: ``model_max_length`` of a tokenizer without a limit.
_UNLIMITED = int(1e30)
_LENGTH_FIELDS = ("n_positions", "max_position_embeddings", "n_ctx")
DEFAULT_MAX_LENGTH = 2048
DEFAULT_MAX_GEN_TOKS = 256


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """Tokens to run. The last ``targets`` tokens are scored. truncated: number of context tokens cut off. alone: the
    continuation was encoded without its context."""

    tokens: tuple[int, ...]
    targets: int
    truncated: int = 0
    alone: bool = False


@dataclass(frozen=True, slots=True)
class Prompt:
    """Tokens to continue. truncated: number of tokens cut off on the left so that ``max_tokens`` new ones fit."""

    tokens: tuple[int, ...]
    truncated: int = 0


def context_length(config: Any, tokenizer: Any) -> int:
    """The longest input in tokens: the config's limit, or the tokenizer's, or 2,048."""
    config = getattr(config, "text_config", None) or config
    for name in _LENGTH_FIELDS:
        value = getattr(config, name, None)
        if value is not None:
            return int(value)
    length = getattr(tokenizer, "model_max_length", None)
    return int(length) if length is not None and length < _UNLIMITED else DEFAULT_MAX_LENGTH


class Encoder:
    """Tokenizes the texts of requests for one model. max_length: the model's context length in tokens.

    Raises InputError if the tokenizer has neither a BOS nor an EOS token.
    """

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        if bos is None and eos is None:
            raise InputError("the tokenizer has neither a BOS nor an EOS token, and lm-eval needs one of them for "
                             "an empty context: set `bos_token` in tokenizer_config.json")
        self.prefix_token: int = bos if bos is not None else eos
        self._prefix_text: str = tokenizer.decode(self.prefix_token)

    def encode(self, text: str) -> list[int]:
        """Tokens of ``text``. The tokenizer adds its special tokens unless the text starts with the prefix token."""
        if self._prefix_text and text.startswith(self._prefix_text):
            return list(self.tokenizer.encode(text, add_special_tokens=False))
        return list(self.tokenizer.encode(text))

    def score(self, context: str, continuation: str) -> TokenSequence:
        """The sequence whose last tokens are ``continuation``. Raises InputError if it is empty or does not fit."""
        alone = False
        if context == "":
            target = list(self.tokenizer.encode(continuation, add_special_tokens=False))
            head = [self.prefix_token]
            if target and target[0] == self.prefix_token:
                head, target = target[:1], target[1:]
        else:
            head, target = self._pair(context, continuation)
            head = head or [self.prefix_token]  # a context of only spaces; lm-eval raises AssertionError here
            if not target:  # a token spans the two; lm-eval raises AssertionError here
                target, alone = list(self.tokenizer.encode(continuation, add_special_tokens=False)), True
        if not target:
            raise InputError(f"the continuation {continuation[:60]!r} has no tokens: an answer choice must not be "
                             "empty")
        return replace(self._fit(head, target), alone=alone)

    def rolling(self, text: str) -> list[TokenSequence]:
        """Windows that together score every token of ``text`` once (lm-eval's rolling windows, context_len 1)."""
        tokens, size = self.encode(text), self.max_length
        windows, done = [], 0
        while done < len(tokens):
            targets = min(size, len(tokens) - done)
            end = done + targets
            head = [self.prefix_token] if done == 0 else tokens[max(end - size - 1, 0): done]
            windows.append(TokenSequence(tuple(head + tokens[done:end]), targets))
            done = end
        return windows

    def prompt(self, context: str, max_tokens: int) -> Prompt:
        """The prompt, cut off on the left so that ``max_tokens`` new tokens fit into the context length.

        Raises InputError if no prompt token would fit.
        """
        room = self.max_length - max_tokens
        if room <= 0:
            raise InputError(f"max_gen_toks is {max_tokens}, but the model's context length is {self.max_length} "
                             "tokens: lower it with --gen-kwargs max_gen_toks=N")
        bos = self.tokenizer.bos_token
        special = not (bos is not None and context.startswith(bos))
        tokens = list(self.tokenizer.encode(context) if special
                      else self.tokenizer.encode(context, add_special_tokens=False))
        tokens = tokens or [self.prefix_token]  # transformers' generate fails on an empty prompt
        return Prompt(tuple(tokens[-room:]), max(len(tokens) - room, 0))

    def _pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        spaces = len(context) - len(context.rstrip())
        if spaces:
            context, continuation = context[:-spaces], context[-spaces:] + continuation
        tokens, head = self.encode(context + continuation), self.encode(context)
        return head, tokens[len(head):]

    def _fit(self, head: list[int], target: list[int]) -> TokenSequence:
        if len(target) > self.max_length:
            raise InputError(f"a continuation has {len(target)} tokens, more than the model's context length of "
                             f"{self.max_length} tokens: shorten it")
        tokens = head + target
        cut = max(len(tokens) - (self.max_length + 1), 0)
        return TokenSequence(tuple(tokens[cut:]), len(target), cut)


@dataclass(frozen=True, slots=True)
class Generation:
    """Resolved generation settings of one request. until: stop strings, including the text of EOS.

    The digest of a plan includes the repr of this class, so its name and its fields do not change.
    """

    until: tuple[str, ...]
    max_tokens: int
    do_sample: bool
    options: tuple[tuple[str, Any], ...]

    @classmethod
    def resolve(cls, settings: Mapping[str, Any], eos: str) -> Generation:
        """The settings of a task, by the rules of lm-eval's ``normalize_gen_kwargs`` and ``handle_stop_sequences``."""
        rest = dict(settings)
        until = rest.pop("until", None) or []
        until = [until] if isinstance(until, str) else list(until)
        if eos not in until:
            until.append(eos)
        lengths = [rest.pop(k, None) for k in ("max_gen_toks", "max_new_tokens", "max_tokens",
                                               "max_completion_tokens")]
        max_tokens = int(next((v for v in lengths if v is not None), DEFAULT_MAX_GEN_TOKS))
        temperature = float(rest.pop("temperature", 0.0) or 0.0)
        do_sample = rest.pop("do_sample", None)
        do_sample = temperature > 0 if do_sample is None else bool(do_sample)
        if do_sample:
            rest["temperature"] = temperature or 1.0
        return cls(tuple(until), max_tokens, do_sample, tuple(sorted(rest.items())))

    @property
    def think_end_token(self) -> str | None:
        """The text that ends a reasoning trace, None where no trace is cut."""
        return dict(self.options).get("think_end_token")

    def cut(self, text: str) -> str:
        """``text`` cut at the first occurrence of each stop string, in lm-eval's order."""
        for stop in self.until:
            if stop:
                text = text.split(stop)[0]
        return text
