"""What a report is made of, as one value.

    results = Results.load(ledger)                      everything that is finished in the ledger
    results = Results.load(ledger, ["base", "tuned"])   two evaluations and what belongs to them
    write_record(results, title="Orders study")

A ledger holds evaluations, tunings, comparisons, answers and the cells of studies. The other parts are computed from
these by rooms that this one may not import, because a report shows verdicts and computes none: `comparison` makes the
contrasts and the changed items, `exchange` audits reported scores, `pipeline` knows what is planned. Whoever has them
adds them with `dataclasses.replace`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aftertune.errors import InputError
from aftertune.report.sections import Planned
from aftertune.reported import Judged
from aftertune.values import Answer, Comparison, Contrast, Evaluation, Flips, Tuning

if TYPE_CHECKING:
    from aftertune.ledger import Cell, Ledger


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
    reported: Sequence[Judged] = ()
    planned: Sequence[Planned] = ()
    cells: Sequence[Cell] = ()

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
