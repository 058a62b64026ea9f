"""Two evaluations, question by question: owns the comparison of a base and a tuned model.

    compare("smollm2", "careful", margins={"hellaswag": 0.05})

Both answered the same items under the same settings, or the comparison is refused (guard); answers are paired
by item (pairs); each metric becomes numbers per item (columns) and one row (rows); the primary metrics carry
verdicts (rules: `aftertune.stats.verdict`; of tasks that were stopped early: early). "Forgot", "improved" and "kept"
are said only where the ledger or an adapter proves that the tuned model was made from the base model (lineage). The
form of generated answers (forms), the items that changed (flips), recipes over several seeds (contrasts) and a gate's
limits (gate) stand on the same pairs.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from aftertune.comparison.compatibility import differences, find_differences, refusal
from aftertune.comparison.early_rows import early_units, is_stopped, with_early_rows
from aftertune.comparison.lineage import find_relation
from aftertune.comparison.pairing import Pair, pair_up, shifts
from aftertune.comparison.rows import MARGIN, build_rows, margin_of
from aftertune.errors import InputError, NotComparable, nearest
from aftertune.values import Comparison, Difference, Evaluation, digest

if TYPE_CHECKING:
    from aftertune.ledger import Ledger

__all__ = ["align", "compare", "differences", "find"]


def compare(base: Evaluation | str, tuned: Evaluation | str, *, margins: Mapping[str, float] | float = MARGIN,
            ledger: Ledger | None = None, force: bool = False, common: bool = False,
            tasks: Collection[str] = (), save: bool = True) -> Comparison:
    """Compare two finished evaluations item by item, store the comparison in the ledger and return it.

    base, tuned: values, or ids or names in the ledger. margins: as fractions (0.02 is two points; in the
    metric's own unit where it is no share), one for all or per task or group ("*": all others); without one a task
    takes 0.02.
    force: compare what items both have in spite of blocking differences, and mark the result. common: pair on the items
    that both have where the samples differ. tasks: only these, or those of these groups; they are then the family.
    Raises NotComparable (with each difference), InputError (margin, task, unknown or unfinished evaluation).
    """
    if ledger is None:
        from aftertune.ledger import Ledger

        with Ledger() as own:
            return compare(base, tuned, margins=margins, ledger=own, force=force, common=common, tasks=tasks, save=save)
    left, right = find(base, ledger), find(tuned, ledger)
    usable, found = align(left, right, ledger, force=force, common=common, tasks=tasks)
    forced = any(d.blocking for d in found)
    kin = find_relation(left, right, ledger)
    units = early_units(left, right, usable)
    whole = [p for p in usable if not is_stopped(left, right, p.settings.task)]
    rows, without_rows = build_rows(left, right, whole, margins, lineage=kin.lineage, forced=forced, early=len(units))
    rows = with_early_rows(rows, units, margins, lineage=kin.lineage, forced=forced)
    used = {p.settings.task: margin_of(margins, p.settings.task, *p.settings.groups) for p in usable}
    used |= {r.task: r.margin for r in rows}
    comparison = Comparison(
        id="c-" + digest([left.id, right.id, used, *(["common"] if common else [])])[:10], base=left.id, tuned=right.id,
        base_name=left.name, tuned_name=right.name, lineage=kin.lineage, rows=rows, differences=(*found, *without_rows),
        forced=forced, held_out=kin.held_out, relation=kin.relation, origin=kin.origin, common=common,
        forms=tuple(shifts(usable)))
    if save:
        ledger.save_comparison(comparison)
    return comparison


def find(evaluation: Evaluation | str, ledger: Ledger) -> Evaluation:
    """A finished evaluation, by value, id or name; InputError otherwise."""
    found = ledger.find_evaluation(evaluation) if isinstance(evaluation, str) else evaluation
    if found.status != "done":
        raise InputError(f"evaluation {found.name} ({found.id}) is {found.status!r}; only a done one can be compared: "
                         "run the same command again to finish it")
    return found


def align(left: Evaluation, right: Evaluation, ledger: Ledger, *, force: bool = False, common: bool = False,
          tasks: Collection[str] = ()) -> tuple[list[Pair], tuple[Difference, ...]]:
    """The tasks that both have with their answers paired, and the differences; NotComparable where these block."""
    if left.id == right.id:
        raise InputError(f"both sides are the evaluation {left.name} ({left.id}); name the base first, then the "
                         "tuned one")
    known = {name for e in (left, right) for t in e.tasks for name in (t.task, *t.groups)}
    for name in tasks:
        if name not in known:
            raise InputError(f"{left.name} and {right.name} have no task {name!r}{nearest(name, sorted(known))}; "
                             f"their tasks: {', '.join(sorted(known))}")
    pairs = [pair_up(t, ledger.answers(left.id, t.task), ledger.answers(right.id, t.task))
             for t in left.tasks if right.task(t.task) and (not tasks or {t.task, *t.groups} & set(tasks))]
    counts = {p.settings.task: p.counts for p in pairs if not is_stopped(left, right, p.settings.task)}
    found = find_differences(left, right, counts, common=common, tasks=tasks)
    blocking = tuple(d for d in found if d.blocking)
    usable = [p for p in pairs if p.left]
    if (blocking and not force) or not usable:
        raise NotComparable(refusal(left, right, blocking, forcible=bool(usable)), blocking)
    return usable, found
