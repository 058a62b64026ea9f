"""Applies what a study file says about verdicts: `family: study` and `primary: prob`.

    with_study_primary(evaluations, ledger)     with expected accuracy as the primary metric where their study says so
    over_studies(comparisons, ledger)           judged over all fine-tunes of their study where it says so
    recipe_contrasts(results, ledger)           recipes compared over seeds, with the margins of these comparisons

The ledger has the studies with their cells, so `run`, `record` and `report` agree. Comparisons are stored one by one,
as `aftertune compare` stores them. Over a study the number of fine-tunes is that of the study file, also while some of
them are not evaluated yet, so no verdict changes when they are.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aftertune.catalog import EXPECTED_ACCURACY
from aftertune.comparison import choose_primary
from aftertune.comparison.across_seeds import contrasts_across_seeds
from aftertune.comparison.margins import MARGIN
from aftertune.comparison.rows import over_fine_tunes
from aftertune.values import Comparison, Contrast, Evaluation, Margin

if TYPE_CHECKING:
    from aftertune.ledger import Ledger
    from aftertune.report import Results


@dataclass(frozen=True, slots=True)
class StudyRules:
    """What a stored study says. evaluations: of its models; tuned: of its fine-tunes; fine_tunes: how many it has."""

    family: str
    primary: str | None
    evaluations: frozenset[str]
    tuned: frozenset[str]
    fine_tunes: int


def _stored_rules(ledger: Ledger) -> Iterator[StudyRules]:
    """The rules of all studies, the newest last; those of older versions have the usual ones."""
    for stored in ledger.studies():
        study = json.loads(stored.yaml)
        tunings = study.get("tunings", {})
        refs = {c.name.removeprefix("evaluate "): c.ref for c in ledger.cells(stored.name)
                if c.ref and c.name.startswith("evaluate ")}
        yield StudyRules(study.get("family", "pair"), study.get("primary"), frozenset(refs.values()),
                         frozenset(ref for name, ref in refs.items() if name in tunings), len(tunings))


def with_study_primary(evaluations: Sequence[Evaluation], ledger: Ledger) -> tuple[Evaluation, ...]:
    """The evaluations, with expected accuracy as the primary metric of their multiple-choice tasks where the newest
    study that has them says so."""
    primary = {id_: rules.primary for rules in _stored_rules(ledger) for id_ in rules.evaluations}
    return tuple(expected_accuracy_primary(e) if primary.get(e.id) == EXPECTED_ACCURACY else e for e in evaluations)


def expected_accuracy_primary(evaluation: Evaluation) -> Evaluation:
    """The evaluation with expected accuracy as the primary metric of its multiple-choice tasks, if it has any."""
    if not any(t.output_type == "multiple_choice" for t in evaluation.tasks):
        return evaluation
    return choose_primary(evaluation, EXPECTED_ACCURACY)


def over_studies(comparisons: Sequence[Comparison], ledger: Ledger) -> tuple[Comparison, ...]:
    """The comparisons, those of a study with `family: study` judged over all of its fine-tunes."""
    counts: dict[tuple[str, str], int] = {}
    for rules in _stored_rules(ledger):
        if rules.family == "study":
            counts |= {(base, tuned): max(rules.fine_tunes, counts.get((base, tuned), 1))
                       for base in rules.evaluations - rules.tuned for tuned in rules.tuned}
    return tuple(over_fine_tunes([c], count)[0] if (count := counts.get((c.base, c.tuned), 1)) > 1 else c
                 for c in comparisons)


def recipe_contrasts(results: Results, ledger: Ledger) -> list[Contrast]:
    """Comparisons of recipes over seeds, with the margins of the comparisons of their models."""
    margins = {row.task: Margin(row.margin) if row.fraction else Margin(MARGIN, row.margin)
               for comparison in results.comparisons for row in comparison.rows if row.margin is not None}
    return contrasts_across_seeds(with_study_primary(results.evaluations, ledger), results.tunings, margins=margins,
                                  ledger=ledger)
