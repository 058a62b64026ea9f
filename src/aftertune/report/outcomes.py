"""What each fine-tune came to: a comparison with its proven base, together with the tuning that it is about.

    outcomes(results)[0].benchmarks       the primary rows that tell what was forgotten

Comparisons by force, and those whose lineage is not proven, are about nobody's forgetting and have no outcome.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aftertune.catalog import is_fraction
from aftertune.report.families import tuning_of
from aftertune.report.results import Results
from aftertune.report.table import shown_verdict
from aftertune.values import Comparison, ComparisonRow, Tuning, Verdict


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
class Outcome:
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


def outcomes(results: Results) -> list[Outcome]:
    """The outcomes, in the order of their comparisons; of several of one tuning against one base, the last."""
    by_id = {e.id: e for e in results.evaluations}
    found: dict[tuple[str, str], Outcome] = {}
    for comparison in results.comparisons:
        tuned = by_id.get(comparison.tuned)
        tuning = tuning_of(tuned, results.tunings) if tuned else None
        if tuning is not None and comparison.lineage and not comparison.forced:
            found[comparison.base, tuning.id] = Outcome(comparison, tuning)
    return list(found.values())


def against(found: Sequence[Outcome]) -> list[list[Outcome]]:
    """The outcomes of each base evaluation together."""
    return [[o for o in found if o.comparison.base == base] for base in dict.fromkeys(o.comparison.base for o in found)]


def common_benchmarks(found: Sequence[Outcome]) -> list[str]:
    """Tasks that all of them have, and on which the base has something to lose."""
    tasks = list(dict.fromkeys(r.task for r in found[0].benchmarks)) if found else []
    return [t for t in tasks if all(any(r.task == t and not r.at_floor for r in o.benchmarks) for o in found)]


def whole_verdict(rows: Sequence[ComparisonRow]) -> Verdict | None:
    """One verdict over several tasks: lower where any is, else undecided where any is, else higher where any is, else
    within; None where the base had nothing to lose on any."""
    told = [shown_verdict(r) for r in rows if not (r.at_floor and shown_verdict(r) == "undecided")]
    order: tuple[Verdict, ...] = ("lower", "undecided", "higher", "within")
    return next((v for v in order if v in told), None)
