"""One fine-tune: its data, settings, training log, held-out loss and what was seen of tasks on the way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from aftertune.values.evaluation import ModelIdentity, Provenance, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """Completion loss (nats per token) on examples that training never saw, before and after.

    low, high: 95 % paired-t interval of after minus before, over examples.
    """

    n: int
    before: float
    after: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchPoint:
    """A look at a task while a model is trained: its primary metric on a fixed subset, against the base on that.

    base, tuned, delta, low, high: fractions, the interval one of 95 %. verdict: at the level of all looks together.
    """

    step: int
    task: str
    metric: str
    n: int
    base: float
    tuned: float
    delta: float
    low: float
    high: float
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What an evaluation item asks, to be looked for in training data. texts: its prompt without examples, and the
    longer texts of its document."""

    task: str
    index: int
    hash: str
    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """Items of one task that training data shows; ``n`` of its items were looked for. exact, ngram: indices of those
    whose text is an example's text, and of those that share 13 words in a row with one. found: of the first few the
    item, where it was found, and the words."""

    task: str
    n: int
    exact: tuple[int, ...] = ()
    ngram: tuple[int, ...] = ()
    found: tuple[Mapping[str, Any], ...] = ()

    @property
    def items(self) -> tuple[int, ...]:
        """Indices of all items that were found, either way."""
        return tuple(sorted({*self.exact, *self.ngram}))


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """One fine-tune: base + method + data + hyperparameters + seed -> a model.

    base: fingerprint of the base model (ModelIdentity.fingerprint); result: fingerprint of what came out,
    the base with the adapter or the new weights. data: fingerprint of the training examples actually used.
    settings: every resolved hyperparameter. steps: (step, loss) of the training log. counts: what each file gave and
    what was left out of it ("data", "replay_data"), and what each side came to in rows and tokens ("training",
    "replay", …). merged: fingerprint of the weights in ``output``/merged, the adapter summed into the base; None where
    they were not asked for. overlap: of the tasks that were looked for in the training data; without tasks nothing is
    said. cost: "memory" (bytes at the peak) and "seconds" of training, and both as they were "estimated_" beforehand.
    watch: what was seen of tasks on the way.
    """

    id: str
    name: str
    base: ModelIdentity
    method: str
    data: str
    data_source: str
    examples: int
    seed: int
    settings: Mapping[str, Any]
    output: str
    status: str = "running"
    result: str | None = None
    trainable_parameters: int | None = None
    held_out: HeldOut | None = None
    steps: tuple[Mapping[str, int | float], ...] = ()
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    overlap: tuple[Overlap, ...] = ()
    notes: tuple[str, ...] = ()
    provenance: Provenance | None = None
    merged: str | None = None
    cost: Mapping[str, int | float] = field(default_factory=dict)
    watch: tuple[WatchPoint, ...] = ()

    @property
    def results(self) -> tuple[str, ...]:
        """Fingerprints of the models that came out of it."""
        return tuple(f for f in (self.result, self.merged) if f is not None)
