"""Defines the values of a comparison: rows with their verdicts, changed items, answer formats, recipes over several
seeds, and gates.

    ComparisonRow(task="hellaswag", metric="acc_norm", base=0.41, tuned=0.36, delta=-0.05, verdict="lower", …)

All shares are fractions, never percent. Other metrics have their own unit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from aftertune.actions import Shown, perform
from aftertune.catalog import FRACTIONS, Unit, unit_of
from aftertune.values.changes import Changes
from aftertune.values.evaluation import Verdict
from aftertune.values.headline import CollapseSign
from aftertune.values.tuning import HeldOut

#: The version of the rules by which verdicts are made; docs/changes.md says what each version changed. A value that was
#: stored before there was a version has 1.
RULES = 4

#: The proven relation of the models of two evaluations; "" where none is proven.
Relation = Literal["", "tuned", "reversed", "siblings", "same model"]
#: Verdict -> the label that a row shows where the lineage is proven (the tuned model was made from the base model).
VERDICT_LABELS: dict[Verdict, str] = {"lower": "forgot", "higher": "improved", "within": "kept", "worse": "worse",
                                      "better": "better", "no_loss": "no loss", "undecided": "undecided"}
#: Verdict -> the label of any other comparison. No word of it is about forgetting.
NEUTRAL_LABELS: dict[Verdict, str] = {"lower": "lower", "higher": "higher", "within": "within", "worse": "worse",
                                      "better": "better", "no_loss": "not lower", "undecided": "undecided"}


def verdict_label(verdict: Verdict, *, lineage: bool) -> str:
    """The word that a row shows for a verdict. "forgot", "improved", "kept" and "no loss" need a proven lineage."""
    return (VERDICT_LABELS if lineage else NEUTRAL_LABELS)[verdict]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A setting in which two evaluations differ. blocking: a paired comparison is refused because of it."""

    field: str
    left: str
    right: str
    blocking: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonRow:
    """Base and tuned model on one metric of one task. Shares are fractions; other metrics have their own unit.

    base, tuned: the scores. delta: tuned - base, with the sign turned so that positive is better. low, high: 95 %
    interval of delta. n: items that both answered; n_total: items that the task has. gained, lost: items that became
    right or wrong (binary metrics only).

    p: p-value of the test behind the verdict (the smaller of p_lower and p_higher where undecided). p_adjusted: the
    same after Holm's correction over the family. Both are None in secondary rows. p_lower, p_higher, p_within: the
    tests against the margin, unadjusted. p_worse, p_better: those against 0, two-sided; None in rows by version 2 of
    the rules or before. p_no_drop: one-sided p of "the drop, if any, is not beyond the margin".
    p_exact, p_mid: McNemar's p of "any difference". group: the group that has the verdict in place of this task; then q
    is p_mid after Benjamini-Hochberg over the tasks of the group.

    told: the label, such as "forgot" (`VERDICT_LABELS`). note: what a reader must know beside the figures. details:
    further intervals. items_needed: items that would decide on which side of the margin the difference is; None where
    that is decided or the task cannot decide it. items_needed_at: the true difference for which they do, with the power
    items_needed_power; None in rows by version 1 of the rules. family_size: number of tests over which p_adjusted is
    corrected. at_floor: the base scores no better than a guess. target: the task tests the skill that the fine-tune
    teaches. unit: of base, tuned, delta and margin, "" where an older version stored the row. margin: None where the
    metric is no share and no margin in its unit was given; then nothing is tested.

    stopped_of: items of the full run, where the row was stopped early after n of them. Then low and high hold at every
    interim analysis at once, the p-values are anytime-valid, and base, tuned and delta are early estimates, not scores.
    full_low, full_high: 95 % interval of the difference that the full run would show, at every analysis at once;
    full_verdict: what is proven of it; full_base: the base's score on the full run, None where it is not known;
    full_tuned_low, full_tuned_high: the tuned model's score there, None with full_base. In a row that was stopped early
    by version 2 of the rules or before, low, high and verdict are about the full run, and these are None.

    average_of: the tasks and groups of which the row is the average, with equal weights; () in all other rows.
    p_claims: the adjusted p of each claim that a verdict can make ("lower", "worse", …); empty in rows without a test
    and in those by version 3 of the rules or before.
    """

    task: str
    metric: str
    filter: str
    n: int
    base: float
    tuned: float
    delta: float
    low: float
    high: float
    margin: float | None
    primary: bool
    kind: Literal["binary", "real"]
    p: float | None = None
    p_adjusted: float | None = None
    p_lower: float | None = None
    p_higher: float | None = None
    p_within: float | None = None
    p_exact: float | None = None
    p_mid: float | None = None
    gained: int | None = None
    lost: int | None = None
    verdict: Verdict | None = None
    told: str = ""
    note: str = ""
    items_needed: int | None = None
    at_floor: bool = False
    target: bool = False
    stopped_of: int | None = None
    p_no_drop: float | None = None
    n_total: int | None = None
    group: str = ""
    q: float | None = None
    details: tuple[str, ...] = ()
    items_needed_at: float | None = None
    items_needed_power: float | None = None
    family_size: int | None = None
    unit: Unit | Literal[""] = ""
    p_worse: float | None = None
    p_better: float | None = None
    full_low: float | None = None
    full_high: float | None = None
    full_verdict: Verdict | None = None
    full_base: float | None = None
    full_tuned_low: float | None = None
    full_tuned_high: float | None = None
    average_of: tuple[str, ...] = ()
    p_claims: Mapping[Verdict, float] = field(default_factory=dict)

    @property
    def fraction(self) -> bool:
        """True for a share, which is shown in percent and points; False for a metric in its own unit."""
        return (self.unit or unit_of(self.metric, [self.base, self.tuned], task=self.task)) in FRACTIONS


@dataclass(frozen=True, slots=True)
class Margin:
    """The largest change of a task that counts as none. share: where its metric is a share, as a fraction; own: where
    it is not, in the metric's own unit, None if it was not given in that unit."""

    share: float
    own: float | None = None

    @classmethod
    def given(cls, value: float) -> Margin:
        """A margin as a user writes it for a task: in points, or in the metric's own unit."""
        return cls(share=value / 100, own=value)


#: The extracted text of an answer in which a filter found nothing, as lm-eval writes it.
NO_ANSWER = "[invalid]"
#: Name of the filter that reads the letter of an answer to a multiple-choice question (`tasks.letters`).
LETTER_FILTER = "letter"
#: The extracted text of an answer on which a filter or a metric ran out of time.
OUT_OF_TIME = "[out of time]"


@dataclass(frozen=True, slots=True, kw_only=True)
class FormCounts:
    """How many of n generated answers failed in form. An answer can be in more than one count.

    no_answer: the filter extracted nothing. cut_off: ended at the token limit. no_end: ended by a stop string or the
    limit, not by the model's end token. other_form: extracted, but not by a stricter filter. empty: no visible text.
    unknown_end: it is not known how the text ended (imported answers, and engines that do not say so); these are in
    neither cut_off nor no_end.
    """

    n: int
    no_answer: int
    cut_off: int
    no_end: int
    other_form: int
    empty: int
    unknown_end: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class FormShift:
    """The form of the generated answers of both models to the same items of one task.

    lost: items that became wrong. lost_by_form: those of them without an answer to judge (none extracted, cut off, or
    empty). lost_unknown: the others of which it is not known whether they were cut off. low, high: Wilson's 95 %
    interval of the share lost_by_form / lost; with unknown ends it begins at that of none of them and ends at that of
    all. cause: of the loss, by that interval: "format" where it lies above a half, "skill" where it lies below, else
    "mixed"; "" where nothing was lost.
    """

    task: str
    base: FormCounts
    tuned: FormCounts
    lost: int
    lost_by_form: int
    low: float
    high: float
    cause: Literal["", "format", "skill", "mixed"]
    lost_unknown: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class FewShotScore:
    """What the base scores on a task with examples in the prompt, in a task of its own (NAME_Kshot) that the tuned
    model was not asked: how much of a gain is only learning the form of the answers. metric, filter: as of the row of
    ``task``. fraction: the value is a share."""

    task: str
    shots: int
    metric: str
    filter: str
    value: float
    n: int
    fraction: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison(Shown):
    """Two evaluations compared item by item.

    base, tuned: ids of the evaluations. lineage: it is proven that the tuned model was made from the base. relation:
    how the two models are related; origin: the base model of "siblings". forced: compared in spite of blocking
    differences. common: paired on the items that both have, where the samples differ. forms: one for each task with
    generated answers. rules: the version of the rules by which the verdicts were made (`RULES`). signs: of collapse;
    versions that did not look for them stored none. changes: what changed beside right and wrong; None where an older
    version stored the comparison. few_shot: the base with examples, of tasks that both were asked without.
    """

    id: str
    base: str
    tuned: str
    base_name: str
    tuned_name: str
    lineage: bool
    rows: tuple[ComparisonRow, ...]
    differences: tuple[Difference, ...] = ()
    forced: bool = False
    held_out: HeldOut | None = None
    relation: Relation = ""
    origin: str = ""
    common: bool = False
    forms: tuple[FormShift, ...] = ()
    rules: int = 1
    signs: tuple[CollapseSign, ...] = ()
    changes: Changes | None = None
    few_shot: tuple[FewShotScore, ...] = ()

    def to_frame(self) -> Any:
        """A pandas DataFrame with a row for each metric of each task; its columns are those of docs/columns.md."""
        return perform("to_frame", self)

    def plot(self, kind: Literal["forest", "learned"] = "forest", *, width: int = 760, ledger: Any = None) -> Any:
        """A chart that a notebook shows and that ``save(FILE)`` writes as SVG: the differences with their intervals
        ("forest"), or what the fine-tunes of this base learned against what they forgot ("learned"). ledger: which has
        the other fine-tunes; default: as of `evaluate`. Raises InputError if there is nothing to draw."""
        return perform("plot", self, kind, width, ledger)

    @property
    def comparable(self) -> bool:
        """True where no difference blocks a paired comparison."""
        return not any(d.blocking for d in self.differences)


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrast:
    """Two recipes of one base, trained with the same seeds and compared over seeds and items.

    factor: what they differ in ("method", "data size", "replay", or "recipe" for more than one setting). left, right:
    names of the recipes. settings: (name, left, right) of each setting that differs. evaluations: ids, a pair for each
    seed. rows: one for each task, on its primary metric; base is the mean of the left recipe, tuned that of the right
    one, delta right minus left.
    """

    id: str
    factor: str
    left: str
    right: str
    base_name: str
    settings: tuple[tuple[str, str, str], ...]
    seeds: tuple[int, ...]
    evaluations: tuple[tuple[str, str], ...]
    rows: tuple[ComparisonRow, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FlipSide:
    """What one model answered to an item that changed.

    chosen: the choice with the highest score, or the generated text. scores: what the metric compared, one for each
    choice (log-probabilities in nats, or in nats per character or byte). margin: score of the right choice minus that
    of the best wrong one. extracted: filter -> the text that it extracted. reasoning: the trace before a generated
    text.
    """

    right: bool
    chosen: str
    scores: tuple[float, ...] = ()
    margin: float | None = None
    extracted: Mapping[str, str] = field(default_factory=dict)
    finish: str | None = None
    reasoning: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Flip:
    """An item that one model answered right and the other wrong. gold: the right choice, or the reference answer."""

    task: str
    index: int
    item: str
    direction: Literal["lost", "gained"]
    question: str
    choices: tuple[str, ...]
    gold: str
    base: FlipSide
    tuned: FlipSide


@dataclass(frozen=True, slots=True, kw_only=True)
class Flips(Shown):
    """The items of one task that changed.

    n: items that both answered. lost, gained: how many changed in each direction. flips: the items to show.
    differences: the blocking ones, where the comparison was forced. unequal: the items were drawn with unequal weights,
    so their counts say nothing of the task.
    """

    task: str
    metric: str
    base_name: str
    tuned_name: str
    n: int
    lost: int
    gained: int
    flips: tuple[Flip, ...]
    differences: tuple[Difference, ...] = ()
    unequal: bool = False

    def to_frame(self) -> Any:
        """A pandas DataFrame with a row for each item that changed: question, right answer and both answers."""
        return perform("to_frame", self)


@dataclass(frozen=True, slots=True, kw_only=True)
class GateLine:
    """One limit of a gate and its outcome. limit: largest drop allowed, as a fraction or in the metric's own unit.

    outcome: "dropped" (a drop beyond the limit is proven), "held" (its absence is proven), "open" (neither), "floor"
    (the base scores at chance, so it has nothing to lose). failed: this limit fails the gate.
    """

    task: str
    limit: float
    row: ComparisonRow
    outcome: Literal["dropped", "held", "open", "floor"]
    failed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class GateResult(Shown):
    """A gate: its comparison and the outcome of each limit. It is true where the gate passed."""

    comparison: Comparison
    lines: tuple[GateLine, ...]

    @property
    def passed(self) -> bool:
        """True where no limit failed."""
        return not any(line.failed for line in self.lines)

    def __bool__(self) -> bool:
        return self.passed
