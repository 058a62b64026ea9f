"""The tables of the terminal, built with rich.

    Console().print(terminal_table(comparison))             one row per task and metric, two lines each
    Console().print(terminal_table(comparison, width=140))  all columns side by side
    Console().print(terminal_scores(evaluation))            Task, Metric, Result, Error range (±1 SE), n
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aftertune.report import format as fmt
from aftertune.report.observations import lineage_note, watermark
from aftertune.report.table import VerdictLine, score_table, verdict_table
from aftertune.values import Comparison, Evaluation

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

_STYLES = {"lower": "bold red", "higher": "bold green", "within": "bold cyan", "undecided": "yellow"}
_ALL_COLUMNS = 130  # characters that the full table needs


def terminal_scores(evaluation: Evaluation) -> Table:
    """The scores of an evaluation; the caption says which tasks used a part of their items."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(fmt.visible(evaluation.name)), title_justify="left", caption_justify="left")
    table.add_column("Task", overflow="fold")
    table.add_column("Metric", overflow="fold")
    for head in ("Result", "Error range (±1 SE)", "n"):
        table.add_column(head, justify="right", no_wrap=True)
    lines = score_table(evaluation)
    for line in lines:
        table.add_row(Text(fmt.visible(line.task)), Text(line.metric), line.result, line.error, line.n,
                      style="bold" if line.primary else "")
    parts = dict.fromkeys(f"{fmt.visible(line.task)}: {line.part}" for line in lines if line.part)
    if parts:
        table.caption = Text("\n".join(parts))
    return table


def terminal_table(comparison: Comparison, *, width: int = 80) -> Table:
    """The verdict table of a comparison for a terminal ``width`` characters wide."""
    from rich.table import Table
    from rich.text import Text

    lines = verdict_table(comparison)
    title = f"{comparison.tuned_name} against {comparison.base_name} ({comparison.id})"
    table = Table(title=Text(fmt.visible(title)), title_justify="left", caption_justify="left",
                  show_lines=width < _ALL_COLUMNS)
    caption = [text for text in (watermark(comparison), lineage_note(comparison)) if text]
    if comparison.held_out is not None:
        held = comparison.held_out
        caption.append(f"Held-out loss {fmt.raw(held.before, 3)} to {fmt.raw(held.after, 3)} nats per token "
                       f"({fmt.change(held.after - held.before)}, 95 % interval {fmt.change(held.low)} to "
                       f"{fmt.change(held.high)}, n={fmt.count(held.n)})")
    table.caption = Text("\n".join(caption))
    if width < _ALL_COLUMNS:
        _stacked(table, lines)
    else:
        _side_by_side(table, lines)
    return table


def _side_by_side(table: Table, lines: list[VerdictLine]) -> None:
    from rich.text import Text

    table.add_column("Task", overflow="fold")
    table.add_column("Metric", overflow="fold")
    for head in ("n", "Base", "Tuned", "Difference\n(points)", "95 % interval", "Adjusted\np",
                 "Gained /\nlost"):
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("Verdict", overflow="fold")
    for line in lines:
        table.add_row(Text(fmt.visible(line.task)), Text(line.metric), line.n, line.base, line.tuned,
                      line.difference, line.interval, line.p, line.flips, _verdict(line),
                      style="" if line.primary else "dim")


def _stacked(table: Table, lines: list[VerdictLine]) -> None:
    """Two lines a row: what belongs together stands above each other."""
    from rich.text import Text

    table.add_column("Task\nMetric, n", overflow="fold")
    table.add_column("Base\nTuned", justify="right", no_wrap=True)
    table.add_column("Difference\n95 % interval", justify="right", no_wrap=True)
    table.add_column("Adj. p\nGained/lost", justify="right", no_wrap=True)
    table.add_column("Verdict", overflow="fold")
    for line in lines:
        table.add_row(Text(f"{fmt.visible(line.task)}\n{line.metric}, n={line.n}"),
                      f"{line.base}\n{line.tuned}", f"{line.difference}\n{line.interval}",
                      f"{line.p}\n{line.flips}", _verdict(line), style="" if line.primary else "dim")


def _verdict(line: VerdictLine) -> Text:
    from rich.text import Text

    text = Text(line.told or fmt.DASH, style=_STYLES.get(line.verdict or "", ""))
    if line.note:
        text.append(f"\n{line.note}", style="not bold")
    return text
