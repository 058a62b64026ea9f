"""Two evaluations, question by question: owns the comparison of a base and a tuned model.

    compare("smollm2", "careful", margins={"hellaswag": 0.05})

Both answered the same items under the same settings, or the comparison is refused (guard); answers are paired
by item (pairs); each metric becomes numbers per item (columns) and one row (rows); the primary metrics carry
verdicts (rules: `aftertune.stats.verdict`; of tasks that were stopped early: early). "Forgot", "improved" and "kept"
are said only where the ledger or an adapter proves that the tuned model was made from the base model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from aftertune.comparison.early import early_units, is_stopped, with_early_rows
from aftertune.comparison.guard import differences, find_differences, refusal
from aftertune.comparison.pairs import pair_up
from aftertune.comparison.rows import MARGIN, build_rows, margin_of
from aftertune.errors import InputError, NotComparable
from aftertune.values import Comparison, Evaluation, HeldOut, digest

if TYPE_CHECKING:
    from aftertune.ledger import Ledger

__all__ = ["compare", "differences"]


def compare(base: Evaluation | str, tuned: Evaluation | str, *, margins: Mapping[str, float] | float = MARGIN,
            ledger: Ledger | None = None, force: bool = False) -> Comparison:
    """Compare two finished evaluations item by item, store the comparison in the ledger and return it.

    base, tuned: values, or ids or names in the ledger. margins: as fractions (0.02 is two points; in the
    metric's own unit where it is no share), one for all or per task or group; a task without one takes 0.02.
    force: compare what items both have in spite of blocking differences, and mark the result.
    Raises NotComparable (with each difference), InputError (margin, unknown or unfinished evaluation).
    """
    if ledger is None:
        from aftertune.ledger import Ledger

        with Ledger() as own:
            return compare(base, tuned, margins=margins, ledger=own, force=force)
    left, right = (_finished(ledger.find_evaluation(e) if isinstance(e, str) else e) for e in (base, tuned))
    if left.id == right.id:
        raise InputError(f"both sides are the evaluation {left.name} ({left.id}); name the base first, then the "
                         "tuned one")
    pairs = [pair_up(t, ledger.answers(left.id, t.task), ledger.answers(right.id, t.task))
             for t in left.tasks if right.task(t.task)]
    whole = [p for p in pairs if not is_stopped(left, right, p.settings.task)]
    found = find_differences(left, right, {p.settings.task: p.counts for p in whole})
    blocking = [d for d in found if d.blocking]
    usable = [p for p in pairs if p.left]
    if (blocking and not force) or not usable:
        raise NotComparable(refusal(left, right, blocking, forcible=bool(usable)))
    lineage, held_out = _lineage(left, right, ledger)
    units = early_units(left, right, usable)
    rows, without_rows = build_rows(left, right, [p for p in whole if p.left], margins, lineage=lineage,
                                    forced=bool(blocking), early=len(units))
    rows = with_early_rows(rows, units, margins, lineage=lineage, forced=bool(blocking))
    used = {p.settings.task: margin_of(margins, p.settings.task, *p.settings.groups) for p in usable}
    used |= {r.task: r.margin for r in rows}
    comparison = Comparison(
        id="c-" + digest([left.id, right.id, used])[:10], base=left.id, tuned=right.id, base_name=left.name,
        tuned_name=right.name, lineage=lineage, rows=rows, differences=(*found, *without_rows),
        forced=bool(blocking), held_out=held_out)
    ledger.save_comparison(comparison)
    return comparison


def _finished(evaluation: Evaluation) -> Evaluation:
    if evaluation.status != "done":
        raise InputError(f"evaluation {evaluation.name} ({evaluation.id}) is {evaluation.status!r}; only "
                         f"a done one can be compared: run the same command again to finish it")
    return evaluation


def _lineage(left: Evaluation, right: Evaluation, ledger: Ledger) -> tuple[bool, HeldOut | None]:
    """Whether the right model was provably made from the left one, and the held-out loss of that tuning."""
    made = [t for t in ledger.tunings() if t.status == "done" and t.result == right.model.fingerprint
            and t.base.fingerprint == left.model.fingerprint]
    named = [t for t in made if t.id == right.tuning] or made
    # without its adapter the right one is the left one; so the left one has none
    adapted = right.model.adapter is not None and right.model.base.fingerprint == left.model.fingerprint
    return bool(made) or adapted, named[-1].held_out if named else None
