"""Defines the values of a fine-tune: data, settings, training log, held-out loss, overlap, forgetting watch and kept
checkpoints.

    HeldOut(n=60, before=1.84, after=0.31, low=-1.61, high=-1.45)
    Overlap(task="gsm8k", n=1319, exact=(17,), ngram=(17, 204)).items      (17, 204)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from aftertune.actions import Shown, perform
from aftertune.catalog import FRACTIONS, unit_of
from aftertune.values.evaluation import ModelIdentity, Provenance, Verdict

#: The items of an analysis: all of a task, or the half that chooses a checkpoint, or the half that reports on it.
Half = Literal["all", "choice", "report"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """Completion loss, in nats per token, on n examples kept out of training, before and after the fine-tune.

    low, high: 95 % interval of after minus before, by a paired t test over the examples.
    """

    n: int
    before: float
    after: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchPoint:
    """One interim analysis of a forgetting watch: the primary metric of a task on a fixed subset of its items.

    base, tuned: scores of the base and of the model after ``step`` steps. low, high: 95 % interval of delta. All are
    fractions, unless the metric turned out to be no share; then nothing is tested and the verdict is "undecided".
    verdict: corrected for the number of analyses and tasks of the watch. half: with --keep-best, the half of the items
    that it is measured on: the one that chooses a checkpoint, or the one that reports on it. is_target: it is the
    target task, which shows what was learned.
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
    half: Half = "all"
    is_target: bool = False

    @property
    def fraction(self) -> bool:
        """True for a share, which is shown in percent and points."""
        return unit_of(self.metric, [self.base, self.tuned], task=self.task) in FRACTIONS


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptCheckpoint:
    """The tuned weights of one step, kept in a folder of their own.

    folder: in the output folder, such as "kept/step-50". result: fingerprint of the model with these weights. files:
    SHA-256 of each file; size: bytes of all of them. held_out: the held-out loss with these weights.
    """

    step: int
    folder: str
    result: str
    files: Mapping[str, str]
    size: int
    held_out: HeldOut | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointChoice:
    """The checkpoint that a rule (--keep-best) chose, on one half of the items.

    rule: as it is written. met: whether a checkpoint meets all conditions; if none does, this one comes nearest.
    reason: a sentence with the numbers of the choice. report: its analyses on the other half of the items, which had no
    part in the choice, corrected for the number of tasks.
    """

    rule: str
    step: int
    met: bool
    reason: str
    report: tuple[WatchPoint, ...] = ()


#: What the items that had no part in a choice show of one task, or of the chosen model: for a task that should be kept,
#: "kept" (a loss beyond its margin is ruled out), "lost" (such a loss is proven), "floor" (the base has nothing to
#: lose) or "open"; for the target "learned", "lost" or "open". For the model "confirmed", "failed" or "open".
TaskOutcome = Literal["kept", "learned", "lost", "floor", "open"]
CureOutcome = Literal["confirmed", "open", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A model that was made without training, such as a fine-tune at strength 0.4.

    parts: strength of each part of the layers ("all", or "lower", "middle" and "upper"), or weight of each member of a
    blend, or the "step" of a kept checkpoint. result: fingerprint of the model. evaluation: its id, on the items that
    choose. points: one for each task, on these items, each tested alone. refused: why it may not be chosen, "" if it
    may.
    """

    name: str
    parts: Mapping[str, float]
    result: str
    evaluation: str
    points: tuple[WatchPoint, ...]
    refused: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cure:
    """How a model was made from fine-tunes without training, how it was chosen, and what other items show of it.

    kind: "soften", "blend" or "cure" (both, and kept checkpoints). parents: id of each fine-tune -> fingerprint of its
    model. keep: margin of each task that should be kept, in points. target: the task that shows what was learned, ""
    without one. chosen: name of a candidate, "" if none may be chosen. confirmed: the chosen candidate on the items
    that had no part in the choice; tuned: the first parent on the same items. outcomes: by task. tries: looks at models
    of the same parents on these tasks so far, with this one; the same model on another number of items is another look.
    The claims are corrected for it. reason: a sentence. seconds: of scoring each candidate, with writing and loading
    it; alone: estimate of the same as evaluations of their own, 0 where the base was answered from the ledger. base: id
    of the base's evaluation on the items that choose. skipped: models that were left out, by name, with the reason (no
    time in the budget, damaged).
    """

    kind: str
    parents: Mapping[str, str]
    keep: Mapping[str, float]
    target: str
    candidates: tuple[Candidate, ...]
    chosen: str
    outcome: CureOutcome
    confirmed: tuple[WatchPoint, ...] = ()
    tuned: tuple[WatchPoint, ...] = ()
    outcomes: Mapping[str, TaskOutcome] = field(default_factory=dict)
    tries: int = 1
    reason: str = ""
    seconds: Mapping[str, float] = field(default_factory=dict)
    alone: float = 0.0
    base: str = ""
    skipped: Mapping[str, str] = field(default_factory=dict)

    @property
    def evaluations(self) -> tuple[str, ...]:
        """Ids of the evaluations on the items that choose."""
        return (self.base, *(c.evaluation for c in self.candidates))


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """The texts of an evaluation item that are searched for in training data. texts: its prompt without few-shot
    examples, and the longer texts of its document."""

    task: str
    index: int
    hash: str
    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """Items of one task that occur in the training data.

    n: items that were searched for. exact: indices of the items whose text equals an example's text. ngram: indices of
    those that share 13 consecutive words with an example. found: for the first few, the item, where it was found, and
    the words.
    """

    task: str
    n: int
    exact: tuple[int, ...] = ()
    ngram: tuple[int, ...] = ()
    found: tuple[Mapping[str, Any], ...] = ()

    @property
    def items(self) -> tuple[int, ...]:
        """Indices of all items that were found, in ascending order."""
        return tuple(sorted({*self.exact, *self.ngram}))


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedModel:
    """A model that was written from the result of a tuning for another program.

    fingerprint: of the written model. kind: such as "gguf q8_0". result: fingerprint of the result that was exported.
    """

    fingerprint: str
    kind: str
    result: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning(Shown):
    """One fine-tune: base + method + data + hyperparameters + seed -> a model.

    base: the base model. result: fingerprint of the fine-tuned model (the base with the adapter, or the new weights).
    data: fingerprint of the training examples that were used. settings: all hyperparameters, with defaults resolved.
    output: the output folder. steps: the training log, (step, loss). counts: examples of each file and how many were
    left out ("data", "replay_data"), and rows and tokens of each set ("training", "replay", …). merged: fingerprint of
    the weights in ``output``/merged, which are the adapter merged into the base; None without --merge. overlap: one for
    each task that was searched for in the training data. cost: "memory" (peak, in bytes) and "seconds" of training, and
    both as estimated before it ("estimated_…"). watch: the analyses of the forgetting watch; with --keep-best those on
    the half of the items that chooses. checkpoints: those that were kept; choice: which one --keep-best chose.
    final_step: of the weights in ``output``; None in tunings of older versions. states: fingerprints of the
    model at steps whose evaluations are in the ledger, where another trainer made them. exports: what `aftertune
    export` wrote of it. cure: how it was made from other fine-tunes, None for one that was trained.
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
    checkpoints: tuple[KeptCheckpoint, ...] = ()
    choice: CheckpointChoice | None = None
    final_step: int | None = None
    states: tuple[str, ...] = ()
    exports: tuple[ExportedModel, ...] = ()
    cure: Cure | None = None

    def to_frame(self) -> Any:
        """A pandas DataFrame of the training curve: step, loss and the other metrics of each step."""
        return perform("to_frame", self)

    def plot(self, *, width: int = 760) -> Any:
        """The loss during the training as a chart, which ``save(FILE)`` writes as SVG. Raises InputError without a log.
        """
        return perform("plot", self, width)

    @property
    def results(self) -> tuple[str, ...]:
        """Fingerprints of the models that are handed on: the result, and the merged weights."""
        return tuple(f for f in (self.result, self.merged) if f is not None)

    @property
    def change(self) -> str:
        """How it was made of another fine-tune without training: "strength 0.6", "step 20"; "" for one that was
        trained."""
        if self.cure is not None:
            return self.cure.chosen if self.result else ""
        soften, rollback = self.settings.get("soften"), self.settings.get("rollback")
        if isinstance(soften, int | float):
            return f"strength {soften:g}"
        return f"step {rollback}" if isinstance(rollback, int) else ""

    def made(self, fingerprint: str) -> bool:
        """Whether it made the model with this fingerprint: the one that is handed on, a kept checkpoint, or an export
        of one of them."""
        return fingerprint in (*self.results, *self.states, *(e.fingerprint for e in self.exports)) or any(
            c.result == fingerprint for c in self.checkpoints)

    def at(self, fingerprint: str) -> Tuning:
        """The tuning as it made the model with this fingerprint: with the step and the held-out loss of a kept
        checkpoint, if it is one."""
        fingerprint = next((e.result for e in self.exports if e.fingerprint == fingerprint), fingerprint)
        if fingerprint in self.results:
            return self
        found = next((c for c in self.checkpoints if c.result == fingerprint), None)
        return self if found is None else replace(self, result=found.result, final_step=found.step, merged=None,
                                                  held_out=found.held_out)
