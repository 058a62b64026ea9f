"""What a model was asked and answered: models, tasks, items, requests, responses, answers, scores and evaluations.

    Item(task="hellaswag", index=0, hash="9f…", doc={"query": …})
    Response(logprob=-21.3, greedy=False)            four of them, one per choice
    Answer(item=…, metrics={"acc,none": 1.0, "acc_norm,none": 0.0}, responses=(…))
    Score(task="hellaswag", metric="acc_norm", filter="none", value=0.41, stderr=0.028, n=300)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from aftertune.catalog import MetricKey
from aftertune.values.encoding import digest

Verdict = Literal["lower", "higher", "within", "undecided"]
#: Reports progress of long work: called with (done, total, what is being done).
Progress = Callable[[int, int, str], None]

Finish = Literal["stop", "eos", "length"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelIdentity:
    """What a model is, by content. Each fingerprint is shown on its own.

    source: as the user gave it; weights: stored tensors of the (base) model; config: the fields of
    ``config.json`` that change the forward pass; tokenizer: tokenizer and chat template; adapter: PEFT
    adapter weights and config, None for a plain model. quantization: how the linear layers were held once
    loaded ("nf4"), None where as stored.
    """

    source: str
    weights: str
    config: str
    tokenizer: str
    adapter: str | None = None
    adapter_source: str | None = None
    architecture: str = ""
    parameters: int | None = None
    revision: str | None = None
    trust_remote_code: bool = False
    quantization: str | None = None

    @property
    def fingerprint(self) -> str:
        """Identity of the function that the model computes: weights, config, adapter and quantisation."""
        parts = [self.weights, self.config, self.adapter]
        return digest([*parts, self.quantization] if self.quantization else parts)

    @property
    def base(self) -> ModelIdentity:
        """The same model without its adapter."""
        return replace(self, adapter=None, adapter_source=None)

    @property
    def stored(self) -> ModelIdentity:
        """The base as its files have it: without adapter and quantisation."""
        return replace(self.base, quantization=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSettings:
    """One task as it was really run: everything that decides which prompts the model saw.

    items, prompts: digests over the item hashes and over the prompt texts, in order. n of n_total items
    were used. chance: expected score of a guess (1/choices), None for generated answers. primary:
    ``metric,filter`` that carries the verdict. cluster: name of the document field that groups items.
    data: where the documents came from (``hub:…``, ``pack:…``, ``file:…``). group: the lm-eval group that
    brought the task in, if any. used:
    how many of the n items were asked before the task was stopped early, in the random order of draw_seed; None where
    all of them were.
    """

    task: str
    version: str
    output_type: str
    num_fewshot: int
    n: int
    n_total: int
    split: str
    data: str
    items: str
    prompts: str
    primary: str
    higher_is_better: Mapping[str, bool]
    limit: int | None = None
    sample: int | None = None
    sample_seed: int | None = None
    chat_template: str | None = None
    system_instruction: str | None = None
    fewshot_as_multiturn: bool = False
    generation: Mapping[str, Any] = field(default_factory=dict)
    chance: float | None = None
    cluster: str | None = None
    groups: tuple[str, ...] = ()
    target: bool = False
    used: int | None = None
    draw_seed: int | None = None

    @property
    def partial(self) -> bool:
        """True where a limit or a sample left items out."""
        return self.n < self.n_total


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A document as it was put to a model, without examples and template. gold: the right choices by number, or the
    reference answer as text; empty where the task has none."""

    question: str = ""
    choices: tuple[str, ...] = ()
    gold: tuple[int, ...] = ()
    reference: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One document of a task. index: position in the task's split; hash: sha256 of its content."""

    task: str
    index: int
    hash: str
    doc: Mapping[str, Any]
    cluster: str | None = None
    asked: Asked | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One thing asked of a model, as text. position: its place in the evaluation's request list.

    "score": log-probability of ``continuation`` after ``context``; "rolling": log-probability of the whole
    ``continuation`` in windows; "generate": text after ``context`` with the ``generation`` settings of lm-eval
    (``until``, ``max_gen_toks``, ``do_sample``, ``temperature`` …). item: ordinal of the item asked about;
    requests of one item share most of their text.
    """

    position: int
    kind: Literal["score", "rolling", "generate"]
    context: str
    continuation: str = ""
    generation: Mapping[str, Any] = field(default_factory=dict)
    item: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """What the model returned for one request of an item (one choice, one text, one repeat).

    logprob: natural log-probability of the continuation; greedy: every token of it was the argmax.
    text: generated text, cut at the first stop string; tokens: how many were generated; finish: why it ended.
    """

    logprob: float | None = None
    greedy: bool | None = None
    text: str | None = None
    tokens: int | None = None
    finish: Finish | None = None
    truncated: int = 0  # context tokens cut off on the left because the window was full


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What one model did on one item. metrics: ``metric,filter`` -> value of this item."""

    task: str
    index: int
    item: str
    metrics: Mapping[str, float]
    responses: tuple[Response, ...] = ()
    extracted: Mapping[str, str] = field(default_factory=dict)
    cluster: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """An aggregated metric of one task (or group). stderr is lm-eval's; None where it has none."""

    task: str
    metric: str
    filter: str
    value: float
    stderr: float | None
    n: int
    higher_is_better: bool = True
    primary: bool = False
    group: bool = False

    @property
    def key(self) -> MetricKey:
        return MetricKey.of(self.metric, self.filter)


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """How a result came to be: what was run, where, with what. No secret ever enters it."""

    command: str
    started: str
    finished: str | None = None
    seconds: float | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    hardware: Mapping[str, Any] = field(default_factory=dict)
    git: str | None = None
    dirty: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlyUnit:
    """What one sequential verdict is about: a task, or a group whose items are pooled.

    key: ``metric,filter``; items: of the full run; batch: items between two looks; order: sha256 over the item hashes
    in drawn order, fixed before the first was asked. used: how many were asked; verdict: what stopped it, None where
    all items were used.
    """

    name: str
    key: str
    tasks: tuple[str, ...]
    items: int
    batch: int
    order: str
    used: int = 0
    verdict: Verdict | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Early:
    """How an evaluation stops at the first safe moment: its items are asked in a random order, batch by batch.

    against: id of the evaluation on the other side; margins: of each unit, fractions. min_items, max_width: a verdict
    stops a unit only after so many items, and only once its interval is this narrow (a fraction).
    """

    against: str
    seed: int
    margins: Mapping[str, int | float]
    units: tuple[EarlyUnit, ...]
    min_items: int = 0
    max_width: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """One model on a set of tasks under fixed settings.

    engine: "packed", "plain" or "lm-eval:NAME"; engine_note says what really ran (packed, or why it fell
    back). schedule: budget, slots, threads and every halving. status: "running" or "done". early: how it was to be
    stopped early, None for one that asks all its items; the scores of a task that was stopped are early estimates.
    """

    id: str
    name: str
    model: ModelIdentity
    tasks: tuple[TaskSettings, ...]
    device: str
    dtype: str
    engine: str
    engine_note: str = ""
    schedule: Mapping[str, Any] = field(default_factory=dict)
    status: str = "running"
    scores: tuple[Score, ...] = ()
    warnings: tuple[str, ...] = ()
    tuning: str | None = None
    provenance: Provenance | None = None
    early: Early | None = None

    def task(self, name: str) -> TaskSettings | None:
        """The settings of task ``name``, or None."""
        return next((t for t in self.tasks if t.task == name), None)

    def total(self, name: str) -> int | None:
        """Items that a task, or the tasks of a group, have in all; None where there is no such task."""
        return sum(t.n_total for t in self.tasks if name in (t.task, *t.groups)) or None

    def stopped(self, name: str) -> tuple[int, int] | None:
        """Items used and items in all of a task or group that was stopped early; None where all were used."""
        task = self.task(name)
        if task is not None:
            return None if task.used is None else (task.used, task.n)
        units = self.early.units if self.early else ()
        return next(((u.used, u.items) for u in units if u.name == name and u.used < u.items), None)
