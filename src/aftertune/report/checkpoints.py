"""Shows what was learned and forgotten at each checkpoint of a fine-tune, as a table and in sentences.

    rows = checkpoint_rows(points, {50: 0.31, 100: 0.28}, saved=[50, 100], final=50)
    head, cells = checkpoint_table(rows)        ["step", "validation loss", "orders (learned)", "hellaswag (change)",
                                                 "weights"]
    choice_lines(choice)                        which checkpoint --keep-best chose, why, and how it does elsewhere

The points may come from any training: a step, a task and its change against the base are all that is read.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from aftertune.report import formatting as fmt
from aftertune.report.sentences import watch_text
from aftertune.values import VERDICT_LABELS, CheckpointChoice, Tuning, WatchPoint


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointRow:
    """What is known of one step. saved: its weights are in a folder of their own; final: they are handed on."""

    step: int
    validation_loss: float | None
    points: tuple[WatchPoint, ...]
    saved: bool
    final: bool


def checkpoint_rows(points: Sequence[WatchPoint], losses: Mapping[int, float], *, saved: Collection[int] = (),
                    final: int | None = None) -> list[CheckpointRow]:
    """A row for each step that was watched or saved, in ascending order; without a watch for each validation too.

    losses: step -> validation loss. saved: steps whose weights were kept.
    """
    steps = {point.step for point in points} | set(saved)
    if saved and not points:
        steps |= set(losses)
    return [CheckpointRow(step=step, validation_loss=losses.get(step), saved=step in saved, final=step == final,
                          points=tuple(p for p in points if p.step == step)) for step in sorted(steps)]


def tuning_checkpoints(tuning: Tuning) -> list[CheckpointRow]:
    """The rows of a fine-tune; none if it was neither watched nor kept checkpoints."""
    losses = {int(step["step"]): float(step["validation_loss"]) for step in tuning.steps
              if fmt.is_finite(step.get("validation_loss"))}
    return checkpoint_rows(tuning.watch, losses, saved={c.step for c in tuning.checkpoints}, final=tuning.final_step)


def checkpoint_table(rows: Sequence[CheckpointRow]) -> tuple[list[str], list[list[str]]]:
    """Heading and cells, as texts. There is a column for the validation loss if one was measured, one for each task
    (the target first), and one for the weights if any are saved or handed on."""
    tasks = {p.task: target for target in (True, False) for row in rows for p in row.points
             if p.is_target == target}
    validated = any(row.validation_loss is not None for row in rows)
    weights = any(row.saved or row.final for row in rows)
    head = ["step", *(["validation loss"] if validated else []),
            *(f"{fmt.visible(task)} ({'learned' if target else 'change'})" for task, target in tasks.items()),
            *(["weights"] if weights else [])]
    cells = []
    for row in rows:
        measured = {p.task: p for p in row.points}
        state = ", ".join(name for name, holds in (("saved", row.saved), ("final", row.final)) if holds)
        cells.append([fmt.count(row.step), *([fmt.raw(row.validation_loss, 3)] if validated else []),
                      *(_change(measured.get(task)) for task in tasks), *([state] if weights else [])])
    return head, cells


def _change(point: WatchPoint | None) -> str:
    """The change of a task at one step, with its interval and label."""
    if point is None:
        return fmt.DASH
    if not point.fraction:
        digits = fmt.own_digits(point.base, point.tuned)
        return f"{fmt.points(point.delta, 1, digits)} in its own unit"
    return (f"{fmt.points(point.delta, digits=1)} ({fmt.points(point.low, digits=1)} to "
            f"{fmt.points(point.high, digits=1)}) {VERDICT_LABELS[point.verdict]}")


def choice_lines(choice: CheckpointChoice) -> list[str]:
    """The chosen checkpoint with its reason, then how it does on the items that had no part in the choice."""
    if choice.met:
        first = f'chosen by "{choice.rule}": step {choice.step}, {choice.reason}'
    else:
        first = f'NO CHECKPOINT MEETS "{choice.rule}"; step {choice.step} was taken: {choice.reason}'
    return [first, *(f"on the other half of the items, {watch_text(p).removeprefix('watch, ')}" for p in choice.report)]
