"""Loads everything that a report shows from the ledger, and groups it by base model and by fine-tune.

    results = Results.load(ledger)                      everything that is finished in the ledger
    results = Results.load(ledger, ["base", "tuned"])   two evaluations and what belongs to them
    write_record(results, title="Orders study")

    families(results)[0].evaluations                    a base model and all that was made from it
    outcomes(results)[0].benchmarks                     the primary rows of one fine-tune against its base

A ledger contains evaluations, tunings, comparisons, answers and the cells of studies. The other parts of `Results` come
from rooms that this one may not import, because a report computes no verdict: `comparison` makes the contrasts and the
changed items, `exchange` audits reported scores, and `pipeline` knows what is planned. The caller adds them with
`dataclasses.replace`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from aftertune.errors import InputError
from aftertune.report.names import source_title
from aftertune.report.sections import Planned
from aftertune.report.table import shown_verdict
from aftertune.values import (
    Answer,
    Comparison,
    ComparisonRow,
    Contrast,
    Drift,
    Evaluation,
    Flips,
    ModelIdentity,
    Tuning,
    Verdict,
)
from aftertune.values.reported import AuditedDocument

if TYPE_CHECKING:
    from aftertune.ledger import Ledger, StoredAt, StoredCell


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """Everything that a report shows; every part may be empty.

    contrasts: recipes compared over seeds. answers: evaluation id -> its answers, for the format of generated ones.
    flips: comparison id -> the items that changed, one entry for each task. reported: other people's documents with
    their audit. planned: models of studies that are not evaluated yet. cells: of studies, in any state.
    drifts: measurements without a benchmark of how far fine-tunes moved their bases.
    """

    evaluations: Sequence[Evaluation] = ()
    tunings: Sequence[Tuning] = ()
    comparisons: Sequence[Comparison] = ()
    contrasts: Sequence[Contrast] = ()
    answers: Mapping[str, Sequence[Answer]] = field(default_factory=dict)
    flips: Mapping[str, Sequence[Flips]] = field(default_factory=dict)
    reported: Sequence[AuditedDocument] = ()
    planned: Sequence[Planned] = ()
    cells: Sequence[StoredCell] = ()
    drifts: Sequence[Drift] = ()

    @classmethod
    def load(cls, ledger: Ledger, only: Sequence[str] = ()) -> Results:
        """The finished evaluations of the ledger with their tunings, comparisons and answers, and the cells.

        What a cure asked to choose is left out; its record shows it. only: ids or names of evaluations. Then the result
        has these evaluations, their tunings and the comparisons among them, but no cells. Raises InputError if
        one of them is unknown or not finished.
        """
        tunings = ledger.tunings()
        tried = {id_ for t in tunings if t.cure for id_ in t.cure.evaluations}
        chosen = list({e.id: e for e in map(ledger.find_evaluation, only)}.values()) or \
            [e for e in ledger.evaluations() if e.id not in tried]
        evaluations = tuple(e for e in chosen if e.status == "done")
        if only and len(evaluations) < len(chosen):
            first = next(e for e in chosen if e.status != "done")
            raise InputError(f"evaluation {first.name} ({first.id}) is {first.status!r}; a report needs finished "
                             "evaluations; run the same command again to finish it")
        ids, used = {e.id for e in evaluations}, {e.tuning for e in evaluations}
        return cls(
            evaluations=evaluations,
            tunings=tuple(t for t in tunings if not only or t.id in used),
            comparisons=tuple(c for c in ledger.comparisons() if {c.base, c.tuned} <= ids),
            drifts=tuple(ledger.drifts()),
            answers=StoredAnswers(ledger.database.place, [e.id for e in evaluations]),
            cells=() if only else tuple(cell for study in ledger.studies() for cell in ledger.cells(study.name)))

    def drift(self, comparison: Comparison) -> Drift | None:
        """The newest drift measurement of the two models of a comparison; None without one."""
        models = {e.id: e.model.fingerprint for e in self.evaluations}
        sides = models.get(comparison.base), models.get(comparison.tuned)
        return next((d for d in reversed(self.drifts) if (d.base.fingerprint, d.tuned.fingerprint) == sides), None)

    @classmethod
    def of_comparison(cls, comparison: Comparison, ledger: Ledger) -> Results:
        """A comparison with its two evaluations and the drift measurements of the ledger."""
        return cls(evaluations=[ledger.find_evaluation(side) for side in (comparison.base, comparison.tuned)],
                   comparisons=(comparison,), drifts=tuple(ledger.drifts()))

    def generated(self, evaluation: Evaluation) -> Sequence[Answer]:
        """The answers of an evaluation if a task of it has generated texts; () where none has."""
        has_texts = any(task.output_type == "generate_until" for task in evaluation.tasks)
        return self.answers.get(evaluation.id, ()) if has_texts else ()


class StoredAnswers(Mapping[str, Sequence[Answer]]):
    """Evaluation id -> its answers, which are read from the ledger when they are asked for.

    Those of the last few evaluations are kept, so that a report of many does not need the memory for all.
    """

    _KEPT = 3

    def __init__(self, place: StoredAt, ids: Sequence[str]) -> None:
        self.place = place
        self.ids = dict.fromkeys(ids)
        self.kept: dict[str, Sequence[Answer]] = {}

    def __getitem__(self, evaluation: str) -> Sequence[Answer]:
        if evaluation not in self.ids:
            raise KeyError(evaluation)
        answers = self.kept.pop(evaluation, None)
        if answers is None:
            from aftertune.ledger import Ledger

            while len(self.kept) >= self._KEPT:
                del self.kept[next(iter(self.kept))]
            with Ledger(self.place, create=False) as ledger:
                answers = ledger.answers(evaluation)
        self.kept[evaluation] = answers
        return answers

    def __iter__(self) -> Iterator[str]:
        return iter(self.ids)

    def __len__(self) -> int:
        return len(self.ids)


# --- Families: a base model and what was made from it ---
@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A base model with its evaluations (those of the base first) and the tunings that are not evaluated yet.

    root: the fingerprint of the base model.
    """

    root: str
    model: ModelIdentity
    evaluations: tuple[Evaluation, ...]
    pending: tuple[Tuning, ...]

    @property
    def title(self) -> str:
        return source_title(self.model.source)

    @property
    def has_tuned(self) -> bool:
        """True if the family has a model that was made from its base."""
        return bool(self.pending) or any(e.model.fingerprint != self.root for e in self.evaluations)


def tuning_of(evaluation: Evaluation, tunings: Sequence[Tuning]) -> Tuning | None:
    """The fine-tune that made an evaluation's model, as it made this model: found by its id, else by the model's
    fingerprint."""
    by_id = (t for t in tunings if t.id == evaluation.tuning)
    by_result = (t for t in tunings if t.made(evaluation.model.fingerprint))
    tuning = next(by_id, None) or next(by_result, None)
    return None if tuning is None else tuning.at(evaluation.model.fingerprint)


def families(results: Results) -> list[Family]:
    """Groups evaluations by their base model, in order of first appearance."""
    evaluations, tunings = results.evaluations, results.tunings
    by_root: dict[str, Family] = {}

    def family(model: ModelIdentity) -> Family:
        return by_root.setdefault(model.fingerprint, Family(root=model.fingerprint, model=model,
                                                            evaluations=(), pending=()))

    evaluated: set[str] = set()
    for evaluation in evaluations:
        tuning = tuning_of(evaluation, tunings)
        if tuning is not None:
            evaluated.add(tuning.id)
        home = family(_root(evaluation.model, tuning, tunings))
        by_root[home.root] = replace(home, evaluations=(*home.evaluations, evaluation))
    for tuning in tunings:
        if tuning.id not in evaluated:
            home = family(_root(tuning.base, None, tunings))
            by_root[home.root] = replace(home, pending=(*home.pending, tuning))
    return [replace(f, evaluations=tuple(sorted(f.evaluations, key=lambda e: e.model.fingerprint != f.root)))
            for f in by_root.values()]


def _root(model: ModelIdentity, tuning: Tuning | None, tunings: Sequence[Tuning]) -> ModelIdentity:
    """The model at the start of a chain of fine-tunes."""
    seen: set[str] = set()
    while tuning is not None and tuning.id not in seen:
        seen.add(tuning.id)
        model = tuning.base
        tuning = next((t for t in tunings if t.made(model.fingerprint)), None)
    return model.base if model.adapter else model


def newest(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The newest comparison of each pair of evaluations, in the order in which the pairs were first compared.

    The same two evaluations can be compared again, with another margin or by newer rules. Forced comparisons support no
    conclusion, so they count apart: none takes the place of another one.
    """
    return list({(c.base, c.tuned, c.forced): c for c in comparisons}.values())


# --- Outcomes: one fine-tune against its base ---
@dataclass(frozen=True, slots=True)
class Span:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, row: ComparisonRow) -> Span:
        """The difference of a row, in percentage points."""
        return cls(100 * row.delta, 100 * row.low, 100 * row.high)


@dataclass(frozen=True, slots=True)
class TuningOutcome:
    """One fine-tune compared with its base; the lineage is proven and the comparison is not forced."""

    comparison: Comparison
    tuning: Tuning

    @property
    def benchmarks(self) -> list[ComparisonRow]:
        """Primary rows of the tasks that are not target tasks, where the metric is a fraction; not the average."""
        return [r for r in self.comparison.rows if r.primary and not r.target and r.fraction and not r.average_of]

    def average(self, tasks: Sequence[str]) -> ComparisonRow | None:
        """The row of the average of exactly these tasks; None without one."""
        return next((r for r in self.comparison.rows if r.average_of and set(r.average_of) == set(tasks)), None)

    @property
    def targets(self) -> list[ComparisonRow]:
        """Primary rows of the target tasks, where the metric is a fraction."""
        return [r for r in self.comparison.rows if r.primary and r.target and r.fraction]

    @property
    def loss_drop(self) -> Span | None:
        """The drop in held-out loss, in nats per token; positive is better. None if it was not measured."""
        loss = self.comparison.held_out or self.tuning.held_out
        return None if loss is None else Span(loss.before - loss.after, -loss.high, -loss.low)

    @property
    def share(self) -> float:
        """The share of replay examples in the training data, from 0 to 1."""
        return float(self.tuning.settings.get("replay_share") or 0.0)


def outcomes(results: Results) -> list[TuningOutcome]:
    """The outcomes in the order of their comparisons; the newest one of each tuning and base."""
    by_id = {e.id: e for e in results.evaluations}
    newest: dict[tuple[str, str], TuningOutcome] = {}
    for comparison in results.comparisons:
        tuned = by_id.get(comparison.tuned)
        tuning = tuning_of(tuned, results.tunings) if tuned else None
        if tuning is not None and comparison.lineage and not comparison.forced:
            newest[comparison.base, tuning.id] = TuningOutcome(comparison, tuning)
    return list(newest.values())


def by_base(members: Sequence[TuningOutcome]) -> list[list[TuningOutcome]]:
    """The outcomes grouped by base evaluation."""
    bases = dict.fromkeys(o.comparison.base for o in members)
    return [[o for o in members if o.comparison.base == base] for base in bases]


def common_benchmarks(members: Sequence[TuningOutcome]) -> list[str]:
    """Tasks that all outcomes have and on which the base is above the floor."""
    tasks = list(dict.fromkeys(r.task for r in members[0].benchmarks)) if members else []
    return [t for t in tasks if all(any(r.task == t and not r.at_floor for r in o.benchmarks) for o in members)]


def overall_verdict(rows: Sequence[ComparisonRow]) -> Verdict | None:
    """One verdict over several tasks: the first of lower, worse, undecided, no_loss, higher, better and within that a
    row has.

    Rows at the floor count only if they have a proven verdict; None if no row counts.
    """
    verdicts = [shown_verdict(r) for r in rows if not (r.at_floor and shown_verdict(r) == "undecided")]
    order: tuple[Verdict, ...] = ("lower", "worse", "undecided", "no_loss", "higher", "better", "within")
    return next((v for v in order if v in verdicts), None)
