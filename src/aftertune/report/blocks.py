"""Markdown blocks that the record and a model card share: the scores of an evaluation, one comparison.

    score_blocks(evaluation)             [a pipe table], or [] without scores
    comparison_blocks(comparison)        watermark, lineage, verdicts, held-out loss, form of the answers
"""

from __future__ import annotations

from aftertune.report import format as fmt
from aftertune.report import markdown as md
from aftertune.report.columns import columns, verdict_table
from aftertune.report.generated import form_text, shift_text
from aftertune.report.names import task_title
from aftertune.report.observations import lineage_note, watermark
from aftertune.report.table import held_out_line, score_table
from aftertune.values import Comparison, Evaluation


def score_blocks(evaluation: Evaluation) -> list[str]:
    """The scores as a table, primary ones in bold."""
    rows = []
    for line in score_table(evaluation):
        cells = [line.metric, line.result, line.error, line.interval,
                 f"{line.n} ({line.part})" if line.part else line.n]
        first = md.text(line.title)
        bold = [f"**{first}**", md.text(cells[0]), f"**{cells[1]}**", *map(md.text, cells[2:])]
        rows.append(bold if line.primary else [first, *map(md.text, cells)])
    head = ["Task", "Metric", "Result", "Error range (±1 SE)", "95 % interval", "n"]
    return [md.table(head, rows)] if rows else []


def comparison_blocks(comparison: Comparison) -> list[str]:
    """What a comparison says, below a heading of the caller's."""
    blocks = []
    if mark := watermark(comparison):
        blocks.append(f"> **{md.text(mark)}**")
    blocks += [md.text(lineage_note(comparison)), _verdicts(comparison)]
    if comparison.held_out is not None:
        blocks.append(md.table(["Held-out examples", "Loss before", "Loss after",
                                "Difference (nats per token)", "95 % interval"],
                               [list(held_out_line(comparison.held_out))]))
    for shift in comparison.forms:
        blocks.append(f"Form of the answers on {md.text(task_title(shift.task))}: {md.text(comparison.base_name)}: "
                      f"{form_text(shift.base)}; {md.text(comparison.tuned_name)}: {form_text(shift.tuned)}"
                      f"{'; ' + shift_text(shift) if shift.lost else ''}.")
    others = [d for d in comparison.differences if not d.blocking]
    if others:
        blocks.append("Also different: " + "; ".join(
            f"{md.text(d.field)} ({md.text(comparison.base_name)}: {md.text(fmt.visible(d.left, 80))}, "
            f"{md.text(comparison.tuned_name)}: {md.text(fmt.visible(d.right, 80))})" for d in others) + ".")
    return blocks


def _verdicts(comparison: Comparison) -> str:
    """The verdict table; the label and its note share a cell."""
    shown = columns("markdown")
    rows = []
    for line in verdict_table(comparison):
        cells = {c.key: md.text(line[c.key]) if c.name else line[c.key] for c in shown}
        cells["task"] = f"**{cells['task']}**" if line.row.primary else cells["task"]
        cells["label"] = f"**{line.label}**" if line.label else fmt.DASH
        cells["label"] += f" ({md.text(line.note)})" if line.note else ""
        rows.append(list(cells.values()))
    return md.table([c.heading for c in shown], rows)
