"""Checks limits on drops: is a drop beyond a limit proven, or is its absence proven?

    comparison, lines = gate("base", "tuned", {"hellaswag": 0.02}, ledger=ledger)
    any(line.failed for line in lines)

Each limit is the margin of its task. The limits are the family of the tests: they are chosen before the comparison, so
other tasks do not count in the correction. A drop is proven by the verdict "lower" (Holm's correction over the limits).
Its absence is proven by the one-sided test of "the drop is the limit or more" at 5 %. The claim that no limit is broken
needs all of these tests and no correction (intersection-union test, Berger 1982, Technometrics 24:295). For a task that
was stopped early, the verdict of its sequential test decides, and its interval.

The limit `average` is for the average over all tasks of the two evaluations on which something can be lost
(`comparison.average`), whichever other tasks have limits. Beside other limits it is a member of their family. That it
holds says nothing about any one task.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Literal

from aftertune.comparison import compare
from aftertune.comparison.average import AVERAGE
from aftertune.comparison.early_rows import UNEQUAL, unequal_advice
from aftertune.errors import InputError
from aftertune.stats.verdict import ALPHA
from aftertune.values import Comparison, ComparisonRow, Evaluation, GateLine, Margin, Verdict

if TYPE_CHECKING:
    from aftertune.ledger import Ledger

GateOutcome = Literal["dropped", "held", "open", "floor"]

#: The verdicts that rule out a drop beyond the margin.
_NO_DROP: frozenset[Verdict] = frozenset({"higher", "within", "better", "no_loss"})


def gate(base: Evaluation | str, tuned: Evaluation | str, limits: Mapping[str, float | Margin], *, ledger: Ledger,
         require_proof: bool = False, common: bool = False, force: Collection[str] = ()
         ) -> tuple[Comparison, tuple[GateLine, ...]]:
    """Check each limit, given by task or group: a fraction, or a number in the unit of the metric where it is no share.
    The comparison is not stored, because its family is not that of a usual comparison.

    require_proof: a limit also fails unless it is proven that it holds. force: names of settings that may differ.
    Raises what `compare` raises, and InputError for a limit whose task has no verdict.
    """
    comparison = compare(base, tuned, margins=limits, ledger=ledger, common=common, force=force,
                         tasks=tuple(limits), save=False)
    rows = {r.task: r for r in comparison.rows if r.primary}
    for task in limits:
        if task not in rows:
            raise InputError(f"--max-drop {task}: {_why_without(task, comparison, ledger)}")
    return comparison, tuple(_line(rows[task], require_proof) for task in limits)


def _why_without(task: str, comparison: Comparison, ledger: Ledger) -> str:
    """Why a limit has no verdict, and what to do."""
    left, right = (ledger.find_evaluation(e) for e in (comparison.base, comparison.tuned))
    hidden = {d.field for d in comparison.differences}
    unequal = [t.task for t in right.tasks if f"{t.task} {UNEQUAL}" in hidden and task in (AVERAGE, t.task, *t.groups)]
    if unequal:
        advice = unequal_advice(left, right, unequal)
        if task in unequal:
            return f"{task} {UNEQUAL}; {advice}"
        return f"{task} has no verdict, because {', '.join(unequal)} {UNEQUAL}; {advice}"
    if task == AVERAGE:
        return ("the two evaluations have fewer than two tasks on which something can be lost, so there is no average; "
                "set limits for tasks instead")
    group = next((r.group for r in comparison.rows if r.task == task and r.group), None)
    reason = f"its group {group} has the verdict; set the limit for {group} instead" if group else \
        "its primary metric cannot be compared item by item"
    return f"{task} has no verdict, because {reason}"


def _line(row: ComparisonRow, require_proof: bool) -> GateLine:
    limit = row.margin
    assert limit is not None  # each limit is the margin of its task
    outcome = _outcome(row, limit)
    failed = outcome == "dropped" or (require_proof and outcome != "held")
    return GateLine(task=row.task, limit=limit, row=row, outcome=outcome, failed=failed)


def _outcome(row: ComparisonRow, limit: float) -> GateOutcome:
    if row.at_floor:
        return "floor"
    if row.verdict == "lower":
        return "dropped"
    if row.stopped_of is not None:
        # "within" is proven at another level than the interval has, so the interval may reach beyond the limit
        return "held" if row.verdict in _NO_DROP or row.low > -limit else "open"
    return "held" if row.p_no_drop is not None and row.p_no_drop < ALPHA else "open"
