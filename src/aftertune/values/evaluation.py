"""Defines the values of an evaluation: models, tasks, items, requests, responses, answers and scores.

    Item(task="hellaswag", index=0, hash="9f…", doc={"query": …})
    Response(logprob=-21.3, greedy=False)            one for each choice
    Answer(item=…, metrics={"acc,none": 1.0, "acc_norm,none": 0.0}, responses=(…))
    Score(task="hellaswag", metric="acc_norm", filter="none", value=0.41, stderr=0.028, n=300)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from aftertune.actions import Shown, perform
from aftertune.catalog import FRACTIONS, MetricKey, Unit, unit_of
from aftertune.values.encoding import digest

#: What is proven of a row, as it is stored. The first three are about the margin: below it, above it, within it.
#: "worse" and "better" are about 0, and "no_loss" is "not below the margin". `VERDICT_LABELS` has their words.
Verdict = Literal["lower", "higher", "within", "worse", "better", "no_loss", "undecided"]
#: Called with (done, total, what is being done) to report the progress of long work.
Progress = Callable[[int, int, str], None]

Finish = Literal["stop", "eos", "length"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelIdentity:
    """A model, identified by the fingerprints of its content.

    source: the model source that the user gave. weights: fingerprint of the stored tensors of the (base) model. config:
    of the fields of ``config.json`` that change the forward pass. tokenizer: of tokenizer and chat template. adapter:
    of the PEFT adapter's weights and config, None for a model without one. quantization: of the linear layers after
    loading ("nf4"), None where the weights are used as stored.
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
        """Identity of the function that the model computes: weights, config, adapter and quantization."""
        content = [self.weights, self.config, self.adapter]
        return digest([*content, self.quantization] if self.quantization else content)

    @property
    def base(self) -> ModelIdentity:
        """The same model without its adapter."""
        return replace(self, adapter=None, adapter_source=None)

    @property
    def stored(self) -> ModelIdentity:
        """The base as it is stored in its files: without adapter and quantization."""
        return replace(self.base, quantization=None)


#: Fields of TaskSettings that were added after ids were made of the others.
_LATER_FIELDS = ("code", "template_date", "template_arguments", "part", "scorers")


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSettings:
    """One task as it was run: everything that decides which prompts the model saw.

    items, prompts: digests over the item hashes and over the prompt texts, in order. n: items of the evaluation;
    n_total: items that the task has. chance: expected score of a guess (1/choices), None for generated answers.
    primary: the ``metric,filter`` that gets the verdict. cluster: the document field that groups items. data: where the
    documents come from (``hub:…``, ``pack:…``, ``file:…``). groups: the lm-eval groups that contain the task.
    target: the task tests the skill that a fine-tune teaches. used: how many of the n items were asked
    before the task was stopped early, in the random order of draw_seed; None where all were asked. code: the Python
    files of the user's task folder that the task ran, with their SHA-256, and installed modules that its file names;
    empty for lm-eval's own tasks and for tasks without code. template_arguments: further variables of the chat
    template, such as ``enable_thinking``.
    template_date: the date that the chat template wrote, as YYYY-MM-DD; None for a template without a date, or with its
    own. An evaluation from before there was this field has None too, with the date of the day on which it ran. part:
    which of the sampled items these are ("choose" or "confirm" a cure), "" for all of them. scorers: how the answers to
    a target task are judged ("regex:…", "rouge"), the primary one first; empty where its metrics say it, as for exact
    and json alone, and for tasks of lm-eval.
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
    code: Mapping[str, str] = field(default_factory=dict)
    template_date: str | None = None
    template_arguments: Mapping[str, Any] = field(default_factory=dict)
    part: str = ""
    scorers: tuple[str, ...] = ()

    def hashed(self) -> dict[str, Any]:
        """The fields for the id of an evaluation. A later field is among them where it is set, so older ids stay."""
        return {k: v for k, v in asdict(self).items() if v or k not in _LATER_FIELDS}

    @property
    def partial(self) -> bool:
        """True where a limit or a sample excludes items. The number of all items may not be known to an import."""
        return self.n < self.n_total or self.limit is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The question and answers of a document as text, without few-shot examples and chat template.

    gold: indices of the right choices. reference: the reference answer as text. Both are empty where the task has none.
    """

    question: str = ""
    choices: tuple[str, ...] = ()
    gold: tuple[int, ...] = ()
    reference: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One document of a task. index: its position in the task's split; hash: SHA-256 of its content."""

    task: str
    index: int
    hash: str
    doc: Mapping[str, Any]
    cluster: str | None = None
    asked: Asked | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One input of a model, as text. position: its index in the evaluation's list of requests.

    kind: "score" for the log-probability of ``continuation`` after ``context``; "rolling" for the log-probability of
    the whole ``continuation`` in windows; "generate" for the text after ``context``, with the ``generation`` settings
    of lm-eval (``until``, ``max_gen_toks``, ``do_sample``, ``temperature`` …). item: index of its item; the requests of
    one item share most of their text.
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

    logprob: log-probability of the continuation, in nats. greedy: each of its tokens is the argmax. text: the generated
    text, without a reasoning trace and cut at the first stop string. tokens: how many were generated, the trace
    included. finish: why generation ended; None where that is not known, and for a log-likelihood. truncated: context
    tokens that were cut off on the left because the window was full; None where that is not known. reasoning: the
    trace, which ended with the ``think_end_token`` of the settings; None where there is none.
    """

    logprob: float | None = None
    greedy: bool | None = None
    text: str | None = None
    tokens: int | None = None
    finish: Finish | None = None
    truncated: int | None = 0
    reasoning: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What one model answered to one item. metrics: ``metric,filter`` -> value on this item."""

    task: str
    index: int
    item: str
    metrics: Mapping[str, float]
    responses: tuple[Response, ...] = ()
    extracted: Mapping[str, str] = field(default_factory=dict)
    cluster: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """An aggregated metric of one task (or group). stderr: lm-eval's standard error; None where it has none. unit: of
    the value, "" where an older version stored it."""

    task: str
    metric: str
    filter: str
    value: float
    stderr: float | None
    n: int
    higher_is_better: bool = True
    primary: bool = False
    group: bool = False
    unit: Unit | Literal[""] = field(default="", compare=False)

    @property
    def fraction(self) -> bool:
        """True for a share, which is shown in percent; False for a value in the metric's own unit."""
        return (self.unit or unit_of(self.metric, [self.value], task=self.task)) in FRACTIONS

    @property
    def key(self) -> MetricKey:
        """``metric,filter``."""
        return MetricKey.of(self.metric, self.filter)


def group_unit(key: str, members: Sequence[Score]) -> Unit | Literal[""]:
    """The unit of a group's score ``metric,filter``: no share if it is none in a member; "" if no member has it."""
    units = [m.unit for m in members if m.key == key]
    return next((u for u in units if u not in FRACTIONS), units[0] if units else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """How a result was made: command, versions, hardware, git commit and times. It contains no secrets."""

    command: str
    started: str
    finished: str | None = None
    seconds: float | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    hardware: Mapping[str, Any] = field(default_factory=dict)
    git: str | None = None
    dirty: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnBatch:
    """The items of one interim analysis that were drawn with unequal weights, and what the bets on them depend on.

    weights, predictions: of each stratum, fixed before the batch; empty for equal chances. stake: size of a bet on one
    item. strata: of each item of the batch, in the order of the draws; which item it is follows from the random order.
    """

    weights: tuple[float, ...]
    predictions: tuple[float, ...]
    stake: float
    strata: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlyUnit:
    """One sequential test: of a task, or of a group whose items are pooled.

    key: ``metric,filter``. items: of the full run. batch: items between two interim analyses. order: SHA-256 over the
    item hashes in their random order, which is fixed before the first item is asked. used: items that were asked.
    verdict: the one that stopped the test, None where nothing was proven. share: number of tests that share the error
    level with it; None: all tests of the plan do. draw: "weighted" where items were drawn with unequal weights; "" for
    equal chances. Of weighted drawing: strata: one letter for each item in its random order, its stratum, a for 0;
    ranks: mean rank of the base's confidence in each stratum; earlier: expected squares of the differences of earlier
    tunings in each stratum; batches: what was drawn.
    """

    name: str
    key: str
    tasks: tuple[str, ...]
    items: int
    batch: int
    order: str
    used: int = 0
    verdict: Verdict | None = None
    share: int | None = None
    draw: Literal["", "weighted"] = ""
    strata: str = ""
    ranks: tuple[float, ...] = ()
    earlier: tuple[tuple[float, ...], ...] = ()
    batches: tuple[DrawnBatch, ...] = ()

    @property
    def unequal(self) -> bool:
        """True where the items that were asked are a sample with unequal weights, which has no plain mean."""
        return self.draw == "weighted" and self.used < self.items


@dataclass(frozen=True, slots=True, kw_only=True)
class Early:
    """The plan of an evaluation that stops early: its items are asked in a random order, batch by batch.

    against: id of the evaluation of the other model. units: the sequential tests. margins: by name of the test, as
    fractions. min_items, max_width: a test stops only after this many items, and only once its interval is no wider
    than this (a fraction). max_items: it stops in any case before it has asked more. stop_target: which test ends a
    task, that about the models or that about the full run; "" in plans of versions that had only the second one, and
    where no task can stop early.
    """

    against: str
    seed: int
    margins: Mapping[str, int | float]
    units: tuple[EarlyUnit, ...]
    min_items: int = 0
    max_width: float | None = None
    max_items: int | None = None
    stop_target: Literal["", "models", "full-run"] = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation(Shown):
    """One model on a set of tasks under fixed settings.

    engine: "packed", "plain" or "lm-eval:NAME". engine_note: what was used (packed rows, or why plain ones). schedule:
    budget, slots, threads and every split after running out of memory. status: "running" or "done". early: the plan of
    an evaluation that stops early, None for one that asks all items; the scores of a task that was stopped are early
    estimates. defaults: the fields of the model's generation config that changed its texts; empty where no text was
    generated. code_digest: of the model's own Python files, None where none of them ran. stated: what the user
    states about a model that the engine knows by a name only (a server); its fingerprint is then not that of weights.
    failed: tasks of the same command that could not be evaluated, with the reasons.
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
    defaults: Mapping[str, Any] = field(default_factory=dict)
    code_digest: str | None = None
    stated: Mapping[str, Any] = field(default_factory=dict)
    failed: Mapping[str, str] = field(default_factory=dict)

    def to_frame(self, what: Literal["scores", "answers"] = "scores", *, ledger: Any = None) -> Any:
        """A pandas DataFrame with a row for each score, or for each item with the values of its metrics, the texts and
        the log-probabilities. ledger: an open `Ledger` or its path, which has the answers; default: as of `evaluate`.
        """
        return perform("to_frame", self, what, ledger)

    def task(self, name: str) -> TaskSettings | None:
        """The settings of task ``name``, or None."""
        return next((t for t in self.tasks if t.task == name), None)

    def total(self, name: str) -> int | None:
        """Number of items of a task, or of all tasks of a group; None where there is no such task."""
        return sum(t.n_total for t in self.tasks if name in (t.task, *t.groups)) or None

    def stopped(self, name: str) -> tuple[int, int] | None:
        """(items used, all items) of a task or group that was stopped early; None where all were used."""
        task = self.task(name)
        if task is not None:
            return None if task.used is None else (task.used, task.n)
        units = self.early.units if self.early else ()
        return next(((u.used, u.items) for u in units if u.name == name and u.used < u.items), None)

    def drawn_unequally(self, name: str) -> bool:
        """True for a task whose items were asked with unequal chances and not all of them, and for its groups. A mean
        over them says nothing of the whole: they have no score, and only `aftertune.comparison.early_rows` can read
        the answers."""
        drawn = {task for u in (self.early.units if self.early else ()) if u.unequal for task in (u.name, *u.tasks)}
        return name in drawn or any(name in t.groups and t.task in drawn for t in self.tasks)
