"""What each fine-tune came to: a comparison with its proven base, together with the tuning that it is about.

    outcomes(results)[0].benchmarks       the primary rows that tell what was forgotten

Comparisons by force, and those whose lineage is not proven, are about nobody's forgetting and have no outcome.

What a report is made of, as one value.

    results = Results.load(ledger)                      everything that is finished in the ledger
    results = Results.load(ledger, ["base", "tuned"])   two evaluations and what belongs to them
    write_record(results, title="Orders study")

A ledger holds evaluations, tunings, comparisons, answers and the cells of studies. The other parts are computed from
these by rooms that this one may not import, because a report shows verdicts and computes none: `comparison` makes the
contrasts and the changed items, `exchange` audits reported scores, `pipeline` knows what is planned. Whoever has them
adds them with `dataclasses.replace`.

Which evaluations belong together: a base model, and all that was made from it.

    families(results)
        [Family(title="SmolLM2-135M-Instruct.Q4_1", evaluations=(base, careful, careless), pending=())]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from aftertune.catalog import is_fraction
from aftertune.errors import InputError
from aftertune.report.names import source_title
from aftertune.report.sections import Planned
from aftertune.report.table import shown_verdict
from aftertune.values import (
    Answer,
    Comparison,
    ComparisonRow,
    Contrast,
    Evaluation,
    Flips,
    ModelIdentity,
    Tuning,
    Verdict,
)
from aftertune.values.reported import AuditedDocument

if TYPE_CHECKING:
    from aftertune.ledger import Ledger, StoredCell


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """All that a report shows; every part may be empty.

    contrasts: recipes compared over seeds. answers: evaluation id -> its answers, for the form of generated ones.
    flips: comparison id -> the items that changed, a value for each task. reported: documents of others with their
    audit. planned: models of studies that are not evaluated yet. cells: of studies, in whatever state.
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

    @classmethod
    def load(cls, ledger: Ledger, only: Sequence[str] = ()) -> Results:
        """What the ledger holds: finished evaluations with their tunings, comparisons and answers, and the cells.

        only: ids or names of evaluations; with them only their own tunings and the comparisons among them, and no
        cells. Raises InputError where one of them is unknown or not finished.
        """
        chosen = list({e.id: e for e in map(ledger.find_evaluation, only)}.values()) or ledger.evaluations()
        evaluations = tuple(e for e in chosen if e.status == "done")
        if only and len(evaluations) < len(chosen):
            first = next(e for e in chosen if e.status != "done")
            raise InputError(f"evaluation {first.name} ({first.id}) is {first.status!r}; a report needs a finished "
                             "one: run the same command again to finish it")
        ids, used = {e.id for e in evaluations}, {e.tuning for e in evaluations}
        return cls(
            evaluations=evaluations,
            tunings=tuple(t for t in ledger.tunings() if not only or t.id in used),
            comparisons=tuple(c for c in ledger.comparisons() if {c.base, c.tuned} <= ids),
            answers={e.id: ledger.answers(e.id) for e in evaluations},
            cells=() if only else tuple(cell for study in ledger.studies() for cell in ledger.cells(study.name)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A base model with its evaluations (the base's own first) and the tunings not yet evaluated."""

    root: str
    model: ModelIdentity
    evaluations: tuple[Evaluation, ...]
    pending: tuple[Tuning, ...]

    @property
    def title(self) -> str:
        return source_title(self.model.source)

    @property
    def has_tuned(self) -> bool:
        """True where something in the family was made from its base."""
        return bool(self.pending) or any(e.model.fingerprint != self.root for e in self.evaluations)


def tuning_of(evaluation: Evaluation, tunings: Sequence[Tuning]) -> Tuning | None:
    """The fine-tune that an evaluation's model came from: by id, else by the model's fingerprint."""
    by_id = (t for t in tunings if t.id == evaluation.tuning)
    by_result = (t for t in tunings if evaluation.model.fingerprint in t.results)
    return next(by_id, None) or next(by_result, None)


def families(results: Results) -> list[Family]:
    """Group evaluations by the base model they go back to, in order of first appearance."""
    evaluations, tunings = results.evaluations, results.tunings
    found: dict[str, Family] = {}

    def family(model: ModelIdentity) -> Family:
        return found.setdefault(model.fingerprint, Family(root=model.fingerprint, model=model,
                                                          evaluations=(), pending=()))

    evaluated: set[str] = set()
    for evaluation in evaluations:
        tuning = tuning_of(evaluation, tunings)
        if tuning is not None:
            evaluated.add(tuning.id)
        home = family(_root(evaluation.model, tuning, tunings))
        found[home.root] = replace(home, evaluations=(*home.evaluations, evaluation))
    for tuning in tunings:
        if tuning.id not in evaluated:
            home = family(_root(tuning.base, None, tunings))
            found[home.root] = replace(home, pending=(*home.pending, tuning))
    return [replace(f, evaluations=tuple(sorted(f.evaluations, key=lambda e: e.model.fingerprint != f.root)))
            for f in found.values()]


def _root(model: ModelIdentity, tuning: Tuning | None, tunings: Sequence[Tuning]) -> ModelIdentity:
    """The model at the start of a chain of fine-tunes."""
    seen: set[str] = set()
    while tuning is not None and tuning.id not in seen:
        seen.add(tuning.id)
        model = tuning.base
        tuning = next((t for t in tunings if model.fingerprint in t.results), None)
    return model.base if model.adapter else model


@dataclass(frozen=True, slots=True)
class Span:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, row: ComparisonRow) -> Span:
        """A difference in points."""
        return cls(100 * row.delta, 100 * row.low, 100 * row.high)


@dataclass(frozen=True, slots=True)
class TuningOutcome:
    """One fine-tune against its base."""

    comparison: Comparison
    tuning: Tuning

    @property
    def benchmarks(self) -> list[ComparisonRow]:
        return benchmarks(self.comparison)

    @property
    def targets(self) -> list[ComparisonRow]:
        return targets(self.comparison)

    @property
    def loss_drop(self) -> Span | None:
        """How far the held-out loss fell, nats per token; positive is better."""
        found = self.comparison.held_out or self.tuning.held_out
        return None if found is None else Span(found.before - found.after, -found.high, -found.low)

    @property
    def share(self) -> float:
        """Replay in the training data, as a share of it."""
        return float(self.tuning.settings.get("replay_share") or 0.0)


def benchmarks(comparison: Comparison) -> list[ComparisonRow]:
    """Primary rows of tasks that the tuning was not made for, where they are told in points."""
    return [r for r in comparison.rows if r.primary and not r.target and is_fraction(r.metric)]


def targets(comparison: Comparison) -> list[ComparisonRow]:
    """Primary rows of tasks that the tuning was made for, where they are told in points."""
    return [r for r in comparison.rows if r.primary and r.target and is_fraction(r.metric)]


def outcomes(results: Results) -> list[TuningOutcome]:
    """The outcomes, in the order of their comparisons; of several of one tuning against one base, the last."""
    by_id = {e.id: e for e in results.evaluations}
    found: dict[tuple[str, str], TuningOutcome] = {}
    for comparison in results.comparisons:
        tuned = by_id.get(comparison.tuned)
        tuning = tuning_of(tuned, results.tunings) if tuned else None
        if tuning is not None and comparison.lineage and not comparison.forced:
            found[comparison.base, tuning.id] = TuningOutcome(comparison, tuning)
    return list(found.values())


def against(found: Sequence[TuningOutcome]) -> list[list[TuningOutcome]]:
    """The outcomes of each base evaluation together."""
    return [[o for o in found if o.comparison.base == base] for base in dict.fromkeys(o.comparison.base for o in found)]


def common_benchmarks(found: Sequence[TuningOutcome]) -> list[str]:
    """Tasks that all of them have, and on which the base has something to lose."""
    tasks = list(dict.fromkeys(r.task for r in found[0].benchmarks)) if found else []
    return [t for t in tasks if all(any(r.task == t and not r.at_floor for r in o.benchmarks) for o in found)]


def whole_verdict(rows: Sequence[ComparisonRow]) -> Verdict | None:
    """One verdict over several tasks: lower where any is, else undecided where any is, else higher where any is, else
    within; None where the base had nothing to lose on any."""
    told = [shown_verdict(r) for r in rows if not (r.at_floor and shown_verdict(r) == "undecided")]
    order: tuple[Verdict, ...] = ("lower", "undecided", "higher", "within")
    return next((v for v in order if v in told), None)
