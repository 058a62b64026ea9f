"""The values of a comparison: rows with their verdicts, changed items, answer formats, contrasts over seeds, gates.

Fractions, never percent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from aftertune.values.evaluation import Verdict
from aftertune.values.tuning import HeldOut

#: How the models of two evaluations are related, as far as it is proven; "" for not at all.
Relation = Literal["", "tuned", "reversed", "siblings", "same model"]
#: How a verdict is told where the lineage is proven (the tuned model was made from the base model).
TOLD: dict[str, str] = {"lower": "forgot", "higher": "improved", "within": "kept", "undecided": "undecided"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A setting in which two evaluations differ. blocking: a paired comparison is refused."""

    field: str
    left: str
    right: str
    blocking: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonRow:
    """Base against tuned on one metric of one task; all values are fractions.

    delta = tuned - base, counted so that positive is better. low, high: its own 95 % interval. p: for
    primary rows the p-value of the test that the verdict stands on (min of "lower" and "higher" where
    undecided), p_adjusted after Holm over the family; for secondary rows both are None. p_exact, p_mid:
    McNemar, "any difference". gained, lost: items that became right or wrong (binary metrics only).
    items_needed: items that would decide an undecided row, None where this task cannot decide it or the
    row is decided. stopped_of: items of the full run, where the row was stopped early after n of them: then low and
    high hold for the full run's difference at every look at once, the p-values are anytime-valid, and base, tuned and
    delta are early estimates, not scores.
    p_no_drop: one-sided p of "the drop, if any, is not beyond the margin". n_total: items that the task
    has. group: the group that speaks for this task, whose metrics are explored: q is the p_mid after
    Benjamini-Hochberg over the tasks of the group. details: further intervals, for who wants them.
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
    margin: float
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


#: What stands for the extract of an answer that took a filter or a metric too long.
OUT_OF_TIME = "[out of time]"


@dataclass(frozen=True, slots=True, kw_only=True)
class FormCounts:
    """How many of n generated answers failed in form; an answer can be in more than one count.

    no_answer: nothing to extract; cut_off: ended at the token limit; no_end: not ended by the model's own end token
    (a stop string or the limit ended it); other_form: found, but not by a stricter filter; empty: no visible text.
    """

    n: int
    no_answer: int
    cut_off: int
    no_end: int
    other_form: int
    empty: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FormShift:
    """The form of the generated answers of both models to the same items of one task.

    lost: items that became wrong; lost_by_form: those of them without an answer to judge (none found, cut off, or
    empty), low and high: Wilson's 95 % interval of their share. cause: of the loss, by that interval: "format" above a
    half, "skill" below, else "mixed"; "" where nothing was lost.
    """

    task: str
    base: FormCounts
    tuned: FormCounts
    lost: int
    lost_by_form: int
    low: float
    high: float
    cause: Literal["", "format", "skill", "mixed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two evaluations aligned item by item. lineage: the tuned model was proven to be made from the base.

    relation says more of how the two models are related, origin: the base model of "siblings". common: paired on the
    items that both have, on request. forms: of the tasks with generated answers.
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

    @property
    def comparable(self) -> bool:
        return not any(d.blocking for d in self.differences)


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrast:
    """Two recipes of one base, trained with the same seeds, compared over seeds and items; left is the one named first.

    factor: what they differ in ("method", "data size", "replay", or "recipe" for more than one thing); left, right: how
    each is called; settings: (name, left, right) of whatever differs. evaluations: ids, a pair for each seed. rows: one
    a task, primary metrics only; base is the left recipe's mean, tuned the right one's, delta right minus left.
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
    """What one model did on an item that changed. chosen: the choice it took, or the text that it wrote.

    scores: what the metric compared, one a choice (log-probabilities in nats, or nats per character); margin: the right
    choice's score less the best other one. extracted: filter -> what was taken from the text.
    """

    right: bool
    chosen: str
    scores: tuple[float, ...] = ()
    margin: float | None = None
    extracted: Mapping[str, str] = field(default_factory=dict)
    finish: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Flip:
    """An item that one model has right and the other wrong. gold: the right choice, or the reference answer."""

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
class Flips:
    """The items of one task that changed. n: items that both answered; lost, gained: of all of them; flips: those that
    were asked for. differences: what blocks, where the two were compared by force."""

    task: str
    metric: str
    base_name: str
    tuned_name: str
    n: int
    lost: int
    gained: int
    flips: tuple[Flip, ...]
    differences: tuple[Difference, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class GateLine:
    """One limit of a gate and what came of it. limit: largest drop allowed, in the unit of the row (a fraction).

    outcome: "dropped" (a drop beyond the limit is proven), "held" (its absence is proven), "open" (neither), "floor"
    (the base scores at chance, nothing can be lost there). failed: this line fails the gate.
    """

    task: str
    limit: float
    row: ComparisonRow
    outcome: Literal["dropped", "held", "open", "floor"]
    failed: bool
