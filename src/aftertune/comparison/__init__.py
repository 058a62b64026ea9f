"""Compares the evaluations of two models item by item.

    compare("smollm2", "careful", margins={"hellaswag": 0.05})

1. compatibility: refuses evaluations with different items or settings
2. expected_accuracy: computes the metric `prob` of multiple-choice tasks from the stored log-likelihoods
3. pairing: pairs the answers by item, and turns each metric into paired values; clusters: which items belong together
4. rows: makes a row for each metric; the primary metrics get verdicts (`aftertune.stats.verdict`)
5. early_rows: the same for tasks that were stopped early; average: a row for the average over the tasks
6. collapse: finds signs that the tuned model is broken, in its scores and in how its answers changed (answer_changes)
7. changes: what changed beside right and wrong; log_probability, answer_changes, no_effect: its parts
8. lineage: proves from the ledger or an adapter that the tuned model was made from the base; only then a row is called
   "forgot", "improved" or "kept"

The same pairs are used by flips (the items that changed), across_seeds (recipes over several seeds) and gate (limits in
continuous integration).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from aftertune.catalog import MetricKey
from aftertune.comparison.average import AVERAGE, all_rows, average_name
from aftertune.comparison.changes import find_changes
from aftertune.comparison.clusters import with_clusters
from aftertune.comparison.collapse import find_signs
from aftertune.comparison.compatibility import differences, find_differences, refusal_message, setting_of
from aftertune.comparison.early_rows import is_stopped, unequal_advice
from aftertune.comparison.expected_accuracy import answers_and_questions, choose_primary, chosen_metrics
from aftertune.comparison.lineage import earlier_looks, find_relation
from aftertune.comparison.margins import MARGIN, Margins, margin_of
from aftertune.comparison.pairing import Pair, form_shifts, pair_answers, score_of
from aftertune.errors import InputError, NotComparable, nearest, shown
from aftertune.values import (
    NO_EFFECT,
    RULES,
    Changes,
    Comparison,
    ComparisonRow,
    Difference,
    Early,
    Evaluation,
    FewShotScore,
    Item,
    TaskSettings,
    digest,
)

if TYPE_CHECKING:
    from aftertune.ledger import Ledger

__all__ = ["check_margins", "choose_primary", "compare", "compare_again", "differences", "find_finished",
           "note_of_answers", "pair_evaluations"]


def compare(base: Evaluation | str, tuned: Evaluation | str, *, margins: Margins = MARGIN,
            ledger: Ledger | None = None, force: bool | Collection[str] = False, common: bool = False,
            tasks: Collection[str] = (), save: bool = True) -> Comparison:
    """Compare two finished evaluations item by item, store the comparison in the ledger and return it.

    A comparison that was stored under an earlier version of the rules for verdicts is returned as it is (see
    `compare_again`).

    base, tuned: evaluations, or their ids or names in the ledger. margins: one for all, or one for each task or group
    ("*" for all others). A margin is a fraction (0.02 is two points); for a task whose metric is no share it is in the
    unit of the metric and must be given by the name of the task, else the task is not tested. The default is 0.02.
    force: compare the items that both have in spite of blocking differences, and mark the result; or names of settings
    that may differ, which are then listed and mark nothing. common: pair on the
    items that both have where the samples differ. tasks: only these tasks, or those of these groups; they are then the
    family. "average" among them is the average over all tasks (`comparison.average`). Raises NotComparable (with its
    differences) and InputError (margin, task, unknown or unfinished evaluation).
    """
    if ledger is None:
        from aftertune.ledger import Ledger

        with Ledger() as opened:
            return compare(base, tuned, margins=margins, ledger=opened, force=force, common=common, tasks=tasks,
                           save=save)
    left, right = find_finished(base, ledger), find_finished(tuned, ledger)
    average = average_name(names_of(left, right))
    _check_tasks(left, right, [t for t in tasks if t != average])
    pairs, found = pair_evaluations(left, right, ledger, force=force, common=common,
                                    tasks=() if average in tasks else tasks)
    forced = any(d.blocking for d in found)
    relation = find_relation(left, right, ledger)
    samples = [p for p in pairs if not p.unequal]  # of which a mean or a count over the items speaks of the task
    rows, without_rows = all_rows(left, right, pairs, margins, name=average, tasks=tasks, lineage=relation.lineage,
                                  forced=forced)
    if not rows and not samples and without_rows:
        raise NotComparable(f"{left.name} and {right.name} cannot be compared: {without_rows[-1].field} "
                            f"({without_rows[-1].left} | {without_rows[-1].right}); "
                            f"{unequal_advice(left, right, [p.settings.task for p in pairs])}")
    of_tasks = [r for r in rows if not r.average_of]
    looked = earlier_looks(left, right, ledger)
    changes = find_changes(left, right, samples, of_tasks, ledger, unequal=[p for p in pairs if p.unequal],
                           forced=forced)
    if relation.relation in _SAME or (force and not isinstance(force, bool)):
        changes = replace(changes, no_effect="")  # equal answers are what two forms of one model should give
    rows = tuple(replace(r, note="; ".join(filter(None, (
        _no_effect_note(r, changes), r.note, _looked_note(r, looked, right.early or left.early))))) for r in rows)
    used = {p.settings.task: margin_of(margins, "share", p.settings.task, *p.settings.groups, primary=False)
            for p in pairs} | {r.task: r.margin for r in rows if r.primary and (not r.average_of or (
                isinstance(margins, Mapping) and r.task in margins))}  # an id without a margin for it stays
    comparison = Comparison(
        id="c-" + digest([left.id, right.id, used, *(["common"] if common else []), *_allowed(force),
                          *chosen_metrics(left, pairs, ledger),
                          *([["tasks", *sorted(set(tasks))]] if average in tasks else [])])[:10], base=left.id,
        tuned=right.id, base_name=left.name, tuned_name=right.name, lineage=relation.lineage, rows=rows,
        differences=(*found, *without_rows), forced=forced, held_out=relation.held_out, relation=relation.relation,
        origin=relation.origin, common=common, forms=tuple(form_shifts(samples)), rules=RULES,
        signs=() if forced else find_signs(of_tasks, samples, left, right), changes=changes,
        few_shot=tuple(_few_shot(left, right, of_tasks)))
    return _save(comparison, ledger) if save else comparison


def _few_shot(left: Evaluation, right: Evaluation, rows: Sequence[ComparisonRow]) -> Iterator[FewShotScore]:
    """The scores of the base with examples, on tasks that the tuned model was asked without (NAME_Kshot of NAME)."""
    for row in (r for r in rows if r.primary):
        for other in left.tasks:
            score = score_of(left, other.task, MetricKey.of(row.metric, row.filter))
            if score and other.num_fewshot and other.task == f"{row.task}_{other.num_fewshot}shot" \
                    and right.task(other.task) is None:
                yield FewShotScore(task=row.task, shots=other.num_fewshot, metric=row.metric, filter=row.filter,
                                   value=score.value, n=score.n, fraction=row.fraction)


#: Relations in which equal answers are no sign of a fine-tune without effect.
_SAME = ("same model", "siblings")


def _allowed(force: bool | Collection[str]) -> list[list[str]]:
    """The part of an id that says which settings may differ."""
    return [] if isinstance(force, bool) else [sorted(force)]


def _no_effect_note(row: ComparisonRow, changes: Changes) -> str:
    """That the fine-tune had no effect on the answers, so that a verdict such as "kept" is nothing it earned."""
    return f"no effect seen: {NO_EFFECT[changes.no_effect]}" if row.primary and changes.no_effect else ""


def _looked_note(row: ComparisonRow, looked: Mapping[tuple[str, ...], Collection[int]], plan: Early | None) -> str:
    """What a reader must know of earlier comparisons of the two models on fewer items. plan: of a run that stops early;
    a row of one keeps its error level by itself, whatever was compared before."""
    names = {name for u in (plan.units if plan else ()) if u.batch < u.items for name in (u.name, *u.tasks)}
    if (row.stopped_of is not None and not row.average_of) or {*(row.average_of or (row.task,))} <= names:
        return ""
    fewer = sorted(n for n in looked.get(row.average_of or (row.task,), ()) if n < row.n)
    if not row.primary or not fewer:
        return ""
    counts = ", ".join(f"{n:,}" for n in fewer)
    of = "these tasks" if row.average_of else "this task"
    return (f"{_LOOKED} {counts} items of {of}; looking again with more items makes "
            "a false verdict more likely than 5 % (--until-decided allows many looks)")


#: How the last part of a note begins, which depends on the other comparisons of a ledger.
_LOOKED = "the two models were compared before on"


def note_of_answers(note: str) -> str:
    """The part of a row's note that follows from the answers of the two models."""
    return note.partition(_LOOKED)[0].removesuffix("; ")


def compare_again(base: Evaluation | str, tuned: Evaluation | str, *, margins: Margins = MARGIN,
                  ledger: Ledger, force: bool = False, common: bool = False) -> Comparison:
    """As `compare`, but by the current rules also where an earlier version stored the comparison, which is kept."""
    comparison = compare(base, tuned, margins=margins, ledger=ledger, force=force, common=common, save=False)
    return _save(comparison, ledger, again=True)


def _save(comparison: Comparison, ledger: Ledger, *, again: bool = False) -> Comparison:
    """Store a comparison. One that was stored under earlier rules stays as it is, and is returned.

    again: then the new one is stored beside it, with an id of its own.
    """
    stored = ledger.comparisons(base=comparison.base, tuned=comparison.tuned)
    earlier = next((c for c in stored if c.id == comparison.id and c.rules < RULES), None)
    if earlier is not None and not again:
        return earlier
    if earlier is not None:
        comparison = replace(comparison, id="c-" + digest([comparison.id, {"rules": RULES}])[:10])
    return ledger.save_comparison(comparison)


def find_finished(evaluation: Evaluation | str, ledger: Ledger) -> Evaluation:
    """A finished evaluation, given as a value or by id or name. Raises InputError if it is unknown or unfinished."""
    value = ledger.find_evaluation(evaluation) if isinstance(evaluation, str) else evaluation
    if not isinstance(value, Evaluation):
        raise InputError(f"found a {type(value).__name__}; give two evaluations, or their ids or names")
    if value.status != "done":
        raise InputError(f"evaluation {value.name} ({value.id}) is {value.status!r}, and only a finished one can be "
                         "compared: run the same command again to finish it")
    return value


def names_of(left: Evaluation, right: Evaluation) -> set[str]:
    """The tasks and groups of both evaluations."""
    return {name for e in (left, right) for t in e.tasks for name in (t.task, *t.groups)}


def check_margins(margins: Mapping[str, object], pairs: Sequence[tuple[Evaluation, Evaluation]],
                  tasks: Collection[str] = ()) -> None:
    """Raise InputError for a margin by name that is for no row of any of these comparisons, so has no effect.

    tasks: of the rows, where only some are compared; empty: all.
    """
    shared = [[t for t in left.tasks if right.task(t.task) and (not tasks or {t.task, *t.groups} & set(tasks))]
              for left, right in pairs]
    names = {name for found in shared for t in found for name in (t.task, *t.groups)}
    averages = {average_name(names_of(*pair)) for pair, found in zip(pairs, shared, strict=True)
                if len(found) > 1 or tasks}
    for name in margins.keys() - {"*"} - names - averages:
        sides = " and ".join(dict.fromkeys(e.name for e in pairs[0])) if len(pairs) == 1 else "the evaluations"
        what = "fewer than two tasks in common, so there is no average" if name == AVERAGE else \
            f"no such task{nearest(name, sorted(names | averages))} in common"
        raise InputError(f"margin of {shown(name)}: {sides} have {what}; it has an effect on: "
                         f"{', '.join(sorted(names))}")


def _check_tasks(left: Evaluation, right: Evaluation, tasks: Collection[str]) -> None:
    names = names_of(left, right)
    for name in tasks:
        if name not in names:
            raise InputError(f"{left.name} and {right.name} have no task {name!r}{nearest(name, sorted(names))}; "
                             f"their tasks: {', '.join(sorted(names))}")


def pair_evaluations(left: Evaluation, right: Evaluation, ledger: Ledger, *, force: bool | Collection[str] = False,
                     common: bool = False, tasks: Collection[str] = (), each: Callable[[Item], None] | None = None
                     ) -> tuple[list[Pair], tuple[Difference, ...]]:
    """The paired answers of the tasks that both have, and the differences. Raises NotComparable where these block.

    each: gets the items whose documents are read, as `answers_and_questions` gives them.
    """
    if left.id == right.id:
        raise InputError(f"base and tuned are the same evaluation, {left.name} ({left.id}); name the base first, then "
                         "the tuned one")
    _check_tasks(left, right, tasks)
    pairs = [_pair(left, right, t, ledger, each)
             for t in left.tasks if right.task(t.task) and (not tasks or {t.task, *t.groups} & set(tasks))]
    counts = {p.settings.task: p.counts for p in pairs if not is_stopped(left, right, p.settings.task)}
    found = find_differences(left, right, counts, common=common, tasks=tasks)
    if not isinstance(force, bool):
        found = tuple(replace(d, blocking=d.blocking and setting_of(d) not in force) for d in found)
    blocking = tuple(d for d in found if d.blocking)
    usable = [p for p in pairs if p.left or p.unequal]
    if (blocking and force is not True) or not usable:
        raise NotComparable(refusal_message(left, right, blocking, forcible=bool(usable)), blocking)
    return usable, found


def _pair(left: Evaluation, right: Evaluation, settings: TaskSettings, ledger: Ledger,
          each: Callable[[Item], None] | None) -> Pair:
    """The paired answers to one task, with its questions and clusters."""
    ours, theirs, questions = answers_and_questions(left, right, settings, ledger, each)
    pair = replace(pair_answers(settings, ours, theirs), questions=questions)
    if any(e.drawn_unequally(settings.task) for e in (left, right)):
        whole = with_clusters(replace(pair, left=ours, right=ours), left, left, ledger)
        pair = replace(pair, unequal=True, whole=whole)
    return with_clusters(pair, left, right, ledger)
