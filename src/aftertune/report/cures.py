"""Shows the models that a cure tried, which one it chose, and what is confirmed of it.

    head, cells = cure_table(cure)       ["model", "orders (learned)", "hellaswag (margin 2)", ""]
    confirmed_lines(cure)                sentences on the items that had no part in the choice
    recommendation(cure, written="runs/orders-cured")     what to do, in one sentence
    curve = strength_points(cure)        points of one strength for all layers, over the strength in percent
"""

from __future__ import annotations

from dataclasses import replace

from aftertune.report import formatting as fmt
from aftertune.values import VERDICT_LABELS, Cure, TaskOutcome, WatchPoint

_OUTCOMES: dict[TaskOutcome, str] = {
    "kept": "a loss beyond the margin is ruled out", "learned": "a gain is proven", "lost": "a loss is proven",
    "floor": "the base only guesses: nothing to lose", "open": "a loss beyond the margin is not ruled out"}


def cure_table(cure: Cure) -> tuple[list[str], list[list[str]]]:
    """Heading and cells, as texts: a row for each candidate, a column for each task, and what became of it."""
    tasks = [p.task for p in cure.candidates[0].points] if cure.candidates else []
    head = ["model", *(f"{fmt.visible(task)} ({_role(cure, task)})" for task in tasks), ""]
    cells = []
    for candidate in cure.candidates:
        of_task = {p.task: p for p in candidate.points}
        state = "chosen" if candidate.name == cure.chosen else candidate.refused
        cells.append([_model_name(cure, candidate.name, candidate.result),
                      *(_change(of_task[task]) for task in tasks), fmt.visible(state, 200)])
    return head, cells


def _role(cure: Cure, task: str) -> str:
    return "learned" if task == cure.target else f"margin {cure.keep[task]:g}"


def _model_name(cure: Cure, name: str, result: str) -> str:
    return f"{fmt.visible(name)}{' (as tuned)' if result in cure.parents.values() else ''}"


def _change(point: WatchPoint) -> str:
    return (f"{fmt.points(point.delta, digits=1)} ({fmt.points(point.low, digits=1)} to "
            f"{fmt.points(point.high, digits=1)})")


def confirmed_lines(cure: Cure) -> list[str]:
    """What the items that confirm show of the chosen model, with the fine-tune beside it; then the outcome in words."""
    tuned = {p.task: p for p in cure.tuned}
    lines = []
    for point in cure.confirmed:
        before = tuned.get(point.task)
        beside = "" if before is None or _same(before, point) else \
            f"; as tuned {_change(before)}, {VERDICT_LABELS[before.verdict]}"
        lines.append(f"on {point.n} other items of {fmt.visible(point.task)}: {fmt.percent(point.base)} → "
                     f"{fmt.percent(point.tuned)}, {_change(point)} points, {VERDICT_LABELS[point.verdict]}: "
                     f"{_outcome(cure, point.task)}{beside}")
    if cure.tries > 1:
        lines.append(f"this is look {cure.tries} at models of this fine-tune on these tasks (another model or another "
                     "number of items is another look); the claims are corrected, so that the error level of 5 % "
                     "covers all of them")
    lines += _skipped_lines(cure)
    state = {"confirmed": "confirmed", "open": "not proven", "failed": "nothing to hand on"}[cure.outcome]
    return [*lines, f"{state}: {fmt.visible(cure.reason, 600)}"]


def _outcome(cure: Cure, task: str) -> str:
    """What is proven of a task, or not."""
    outcome = cure.outcomes[task]
    return "a gain is not proven" if outcome == "open" and task == cure.target else _OUTCOMES[outcome]


def _skipped_lines(cure: Cure) -> list[str]:
    """What was not tried, a line for each reason."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in cure.skipped.items():
        by_reason.setdefault(reason, []).append(fmt.visible(name))
    return [f"not tried: {', '.join(names)} ({fmt.visible(reason, 300)})" for reason, names in by_reason.items()]


def recommendation(cure: Cure, *, written: str = "", ways: bool = True) -> str:
    """What to do after a cure, in one sentence. written: the folder with the chosen model, "" if none was written.
    ways: whether ways to train again follow."""
    chosen = next((c for c in cure.candidates if c.name == cure.chosen), None)
    as_tuned = chosen is not None and chosen.result in cure.parents.values()
    more = "ask again with more --items to decide what is open"
    if cure.outcome == "failed" or chosen is None:
        budget = any("budget" in reason for reason in cure.skipped.values())
        first = "first give a larger --budget, because not everything was tried; else " if budget else ""
        how = "in one of the ways below" if ways else "with a lower learning rate, replay or an anchor"
        return f"recommendation: {first}train again {how}; no cure without training is good enough"
    if cure.outcome == "confirmed":
        return "recommendation: keep the fine-tune as it is; what you named is kept" if as_tuned else \
            f"recommendation: use {written} ({fmt.visible(cure.chosen)}) instead of the fine-tune"
    if as_tuned:
        return f"recommendation: keep the fine-tune as it is for now; {more}"
    best = f"{written} ({fmt.visible(cure.chosen)})" if written else fmt.visible(cure.chosen)
    return f"recommendation: {best} is the best choice, but it is not proven; {more}"


def _same(left: WatchPoint, right: WatchPoint) -> bool:
    return (left.delta, left.low, left.high) == (right.delta, right.low, right.high)


def strength_points(cure: Cure) -> tuple[tuple[WatchPoint, ...], int | None]:
    """The points of the candidates with one strength for all layers, ``step`` being the strength in percent of the
    fine-tune, in ascending order; and the strength that was chosen, if it is one of them. Nothing where the fine-tune
    itself is the only one."""
    whole = sorted((c for c in cure.candidates if set(c.parts) == {"all"}), key=lambda c: c.parts["all"])
    if len(whole) < 2:
        return (), None
    points = tuple(replace(p, step=round(100 * c.parts["all"])) for c in whole for p in c.points)
    chosen = next((round(100 * c.parts["all"]) for c in whole if c.name == cure.chosen), None)
    return points, chosen
