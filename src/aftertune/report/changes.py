"""Shows what changed between the answers of two models beside right and wrong: in a line, and in tables.

    change_lines(comparison)[0]      "The answers are the same on 93.00% of 400 items. The log-probability …"
    change_tables(comparison)        a ChangeTable each for log-probabilities, calibration, positions and texts

Terminal, record, page and model card show the same tables. Their words are "moved" and "not seen to move": none of
these figures says that a model forgot.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from aftertune.report import formatting as fmt
from aftertune.report.columns import BY_KEY
from aftertune.report.names import task_title
from aftertune.values import (
    NO_EFFECT,
    Calibration,
    CalibrationShift,
    Changes,
    Comparison,
    Drift,
    DriftGroup,
    LogProbabilityMove,
    MeanChange,
    PositionTable,
    TaskChange,
    TextShift,
)
from aftertune.values.drift import HELD_OUT_TEXTS

TITLE = "What changed beside right and wrong"
MOVED, NOT_MOVED = "moved", "not seen to move"
#: The most tasks that a line names.
_NAMED = 3
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True, slots=True)
class ChangeTable:
    """One table. key: "moves", "calibration", "positions" or "texts"; rows: the first cell is the task; note: how to
    read it."""

    key: str
    title: str
    heads: list[str]
    rows: list[list[str]]
    note: str


def no_effect_text(comparison: Comparison) -> str:
    """The sentence about a fine-tune that had no effect on the answers; "" if it had one, or if that is not known."""
    reason = NO_EFFECT.get(comparison.changes.no_effect) if comparison.changes else None
    return f"{fmt.visible(comparison.tuned_name)} shows no effect: {reason}." if reason else ""


def change_lines(comparison: Comparison) -> list[str]:
    """One line about what changed; [] where it was not computed. The headline says where there was no effect."""
    changes = comparison.changes
    if changes is None:
        return []
    sentences = []
    if changes.answered:
        sentences.append(f"The answers are the same on {fmt.percent(changes.identical / changes.answered)} of "
                         f"{fmt.count(changes.answered)} items.")
    if changes.text is not None:
        sentences.append(f"The log-probability of the right texts changed by {_nats(changes.text)} on average: "
                         f"{_moved_text(changes)}.")
    if not sentences and any(r.stopped_of is not None for r in comparison.rows):
        sentences.append("How the answers changed is not shown: items that were drawn where the base was unsure are no "
                         "sample of their task.")
    elif not sentences:
        sentences.append("How the answers changed is not known: they are stored as scores alone.")
    return [" ".join(sentences)]


def drift_line(drift: Drift | None) -> str:
    """A drift measurement in one line; "" without one."""
    if drift is None:
        return ""
    groups = "; ".join(f"{fmt.raw(g.kl)} nats per token on {len(g.texts)} {fmt.visible(g.name)} ({fmt.raw(g.low)} to "
                       f"{fmt.raw(g.high)}): {MOVED if g.moved else NOT_MOVED}{_random_text(g)}" for g in drift.groups)
    if any(g.name == HELD_OUT_TEXTS for g in drift.groups):
        return f"Rounding (KL divergence of the token probabilities, with 95 % intervals): {groups}."
    return f"Drift (KL divergence on texts that the base wrote, with 95 % intervals): {groups}."


def _random_text(group: DriftGroup) -> str:
    """How the drift compares with that of a random adapter."""
    if group.random_kl is None:
        return ""
    more = "more than" if group.beyond_random else "not shown to be more than"
    return f", {more} by a random adapter of its size ({fmt.raw(group.random_kl)})"


def _nats(move: LogProbabilityMove) -> str:
    interval = f"{fmt.change(move.low)} to {fmt.change(move.high)}"
    return f"{fmt.change(move.mean)} nats ({interval}, n={fmt.count(move.n)})"


def _moved_text(changes: Changes) -> str:
    tested = sum(bool(task.moves) for task in changes.tasks)
    if not changes.moved:
        return NOT_MOVED
    if tested == 1:
        return MOVED
    names = f"moved on {', '.join(map(task_title, changes.moved))}" if len(changes.moved) <= _NAMED else "moved"
    return f"{fmt.visible(names)} ({len(changes.moved)} of {tested} tasks)"


def change_tables(comparison: Comparison) -> list[ChangeTable]:
    """The tables that have rows."""
    changes = comparison.changes
    if changes is None:
        return []
    names = fmt.visible(comparison.base_name), fmt.visible(comparison.tuned_name)
    tables = [_moves(changes), _calibration(changes.tasks), _positions(changes.tasks, names), _texts(changes.tasks)]
    return [table for table in tables if table.rows]


def missing_lines(comparison: Comparison) -> list[str]:
    """What is not known of each task, and why."""
    return [f"{_title(task)}: not known: {fmt.visible(reason)}."
            for task in (comparison.changes.tasks if comparison.changes else ()) for reason in task.missing]


def _title(task: TaskChange) -> str:
    return fmt.visible(task_title(task.task))


def _moves(changes: Changes) -> ChangeTable:
    rows = [[_title(task), f"right {move.measure}", fmt.change(move.mean),
             f"{fmt.change(move.low)} to {fmt.change(move.high)}", fmt.change(move.z, 1) if move.z is not None else
             fmt.DASH, fmt.p_value(move.p_adjusted), fmt.count(move.n), _move_word(move)]
            for task in changes.tasks for move in task.moves]
    return ChangeTable(
        "moves", "Log-probabilities",
        ["Task", "Log-probability of the", "Mean change (nats)", "95 % interval", "z", BY_KEY["p_adjusted"].heading,
         "n", "Model"],
        rows, "Right choice: the logarithm of its share among all choices, as in expected accuracy. Right text: its "
              "own log-likelihood. p is of the hypothesis that the mean changed by at most 0.001 nats, and is adjusted "
              f"(Holm) over the {fmt.count(changes.tests)} rows of this table. A model that moved need not be worse.")


def _move_word(move: LogProbabilityMove) -> str:
    if move.moved:
        return MOVED
    return f"{NOT_MOVED} ({fmt.visible(move.problem)})" if move.problem else NOT_MOVED


def _calibration(tasks: Sequence[TaskChange]) -> ChangeTable:
    rows = [[_title(task), fmt.count(shift.n), _before_after(shift, "confidence"), _before_after(shift, "accuracy"),
             f"{_over(shift.base)} → {_over(shift.tuned)} ({_change(shift.overconfidence, 100, 2)})", _brier(shift),
             _ece(shift)] for task in tasks if (shift := task.calibration)]
    return ChangeTable(
        "calibration", "Calibration",
        ["Task", "n", "Probability of the chosen answer", "Its accuracy", "Overconfidence (points)", "Brier score",
         "ECE (points)"], rows,
        "Base → tuned model (change with its 95 % interval). The probabilities are the shares of the choices, as in "
        "expected accuracy; overconfidence is the mean probability of the chosen answer less its accuracy. Brier "
        "score: 0 is best, 2 is worst. ECE is the expected calibration error over groups of equally many items, less "
        "an estimate of its excess from sampling noise (Kumar, Liang and Ma 2019); in brackets: the error that "
        "calibrated models would show by chance with as many items, before the subtraction, and the number of groups.")


def _before_after(shift: CalibrationShift, field: str) -> str:
    return f"{fmt.percent(getattr(shift.base, field))} → {fmt.percent(getattr(shift.tuned, field))}"


def _over(side: Calibration) -> str:
    return fmt.points(side.confidence - side.accuracy)


def _points(value: float | None) -> str:
    return fmt.points(value).lstrip("+")


def _change(change: MeanChange, scale: float, digits: int) -> str:
    mean, low, high = (fmt.points(v, scale, digits) for v in (change.mean, change.low, change.high))
    return f"{mean}, {low} to {high}"


def _brier(shift: CalibrationShift) -> str:
    if shift.brier is None:
        return fmt.DASH
    return f"{fmt.raw(shift.base.brier)} → {fmt.raw(shift.tuned.brier)} ({_change(shift.brier, 1, 4)})"


def _ece(shift: CalibrationShift) -> str:
    base, tuned = shift.base.error, shift.tuned.error
    if base is None or tuned is None:
        return fmt.DASH
    return (f"{_points(base.debiased)} → {_points(tuned.debiased)} (by chance {_points(base.by_chance)} → "
            f"{_points(tuned.by_chance)}; {base.bins} groups)")


def position_name(position: int) -> str:
    """A position as people say it: "A" for the first one."""
    return _LETTERS[position] if position < len(_LETTERS) else str(position + 1)


def _positions(tasks: Sequence[TaskChange], names: tuple[str, str]) -> ChangeTable:
    rows = [[_title(task), fmt.count(table.n), _counts(table.right) or "not known", _counts(table.base),
             _counts(table.tuned)] for task in tasks if (table := task.positions)]
    return ChangeTable("positions", "Positions of the chosen answers", ["Task", "n", "Right answers", *names], rows,
                       "How often each choice was taken; A is the first one.")


def _counts(counts: Sequence[int]) -> str:
    return ", ".join(f"{position_name(i)} {fmt.count(count)}" for i, count in enumerate(counts))


def positions_of(comparison: Comparison) -> Iterator[tuple[str, PositionTable]]:
    """(title, positions) of each task that has them."""
    for task in comparison.changes.tasks if comparison.changes else ():
        if task.positions is not None:
            yield _title(task), task.positions


def _texts(tasks: Sequence[TaskChange]) -> ChangeTable:
    rows = [[_title(task), fmt.count(shift.n), *_text_cells(shift)] for task in tasks if (shift := task.texts)]
    heads = ["Task", "n", "Median length", "Nine in ten are at most", "Ended by the model", "By a stop string",
             "At the token limit", "End not known", "Empty"]
    return ChangeTable("texts", "Generated texts", heads, rows, "Base → tuned model.")


def _text_cells(shift: TextShift) -> list[str]:
    lengths = [f"{getattr(shift.base, f):,.0f} → {getattr(shift.tuned, f):,.0f} {shift.unit}"
               for f in ("median", "long")]
    counts = [f"{fmt.count(getattr(shift.base, f))} → {fmt.count(getattr(shift.tuned, f))}"
              for f in ("ended", "stopped", "cut_off", "unknown", "empty")]
    return [*lengths, *counts]
