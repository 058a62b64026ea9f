"""Defines the values of a drift measurement: how far a fine-tune moved a model, without a benchmark.

    Drift(id="d-1f…", base=…, tuned=…, groups=(DriftGroup(name="general prompts", kl=0.21, low=0.17, high=0.26, …),))

`aftertune.drift` makes them. A KL divergence is in nats per token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from aftertune.actions import Shown, perform
from aftertune.values.evaluation import ModelIdentity

#: The name of the group that compares two forms of one fine-tune on its own data: held-out prompts with their answers.
HELD_OUT_TEXTS = "held-out texts"


@dataclass(frozen=True, slots=True)
class DriftText:
    """One prompt with the base's continuation. kl: mean over its tokens, in nats; changed: share of its tokens at which
    the two models have different most likely tokens."""

    prompt: str
    text: str
    tokens: int
    kl: float
    changed: float


@dataclass(frozen=True, slots=True)
class DriftGroup:
    """The drift on one kind of prompts.

    kl: mean over the texts, in nats per token, with its 95 % interval (``low``, ``high``; BCa bootstrap over texts, or
    Student's t from 100 texts on); changed: mean share of tokens at which the most likely token is another; moved: the
    model is proven to have moved by more than rounding; texts: those that moved most come first. random_kl: the same of
    a random adapter whose update of each layer has the same size, None where the tuned model is no plain LoRA adapter;
    beyond_random: the model is proven to have moved further than with this one.
    """

    name: str
    kl: float
    low: float
    high: float
    changed: float
    moved: bool
    texts: tuple[DriftText, ...]
    random_kl: float | None = None
    beyond_random: bool = False

    @property
    def tokens(self) -> int:
        """Tokens of all continuations."""
        return sum(text.tokens for text in self.texts)


@dataclass(frozen=True, slots=True)
class Drift(Shown):
    """How far ``tuned`` moved from ``base``.

    id: a digest of both models, the prompts and everything else that decides the numbers. dtype, device: of the
    computation. prompts, tokens, seed: the most prompts of a kind, the most tokens of a continuation, and the seed of
    the sampling. notes: what was not measured, and why.
    """

    id: str
    base: ModelIdentity
    tuned: ModelIdentity
    dtype: str
    device: str
    prompts: int
    tokens: int
    seed: int
    groups: tuple[DriftGroup, ...]
    notes: tuple[str, ...] = ()

    def to_frame(self) -> Any:
        """A pandas DataFrame with a row for each text."""
        return perform("to_frame", self)
