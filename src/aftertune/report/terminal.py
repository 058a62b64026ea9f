"""Prints scores and verdicts on the terminal as tables of rich.

    Console().print(terminal_table(comparison, width=100))  a block for each task: its verdict, its primary metric, and
                                                            one dim line for each other metric
    Console().print(terminal_scores(evaluation, width=100)) Task, Metric, its title, Value, Stderr, n

Foreign text is passed as Text and never as a string, so that rich reads no markup in a model named "[red]x".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aftertune.report import formatting as fmt
from aftertune.report.badges import badge
from aftertune.report.changed_items import form_text, shift_text
from aftertune.report.changes import TITLE, change_lines, change_tables, drift_line, missing_lines
from aftertune.report.columns import BY_KEY, VerdictLine, columns, verdict_table
from aftertune.report.headline import headline
from aftertune.report.sentences import lineage_note, watermark
from aftertune.report.table import (
    exploratory_text,
    few_shot_lines,
    held_out_line,
    margin_text,
    partial_text,
    row_metric,
    row_name,
    score_table,
)
from aftertune.values import Comparison, Drift, Evaluation, HeadlineState

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Group, RenderableType
    from rich.table import Table
    from rich.text import Text

#: The figures of a row. The first ones are shown at every width; the others move beside the task's name if they do not
#: fit.
_FIGURES = sorted((c for c in columns("terminal") if not c.name), key=lambda c: c.beside)
_ALWAYS = sum(not c.beside for c in _FIGURES)
_NAME = 24  # a metric's name gets up to this many characters before columns move to make room


def terminal_scores(evaluation: Evaluation, *, width: int = 80) -> Group:
    """The scores of an evaluation. Below them are the tasks of which only a part of the items was used.

    A name is never cut: the titles of the metrics are left out, and then each task gets a line of its own, where the
    terminal is not wide enough.
    """
    from rich.cells import cell_len
    from rich.console import Group
    from rich.text import Text

    lines = score_table(evaluation)
    cells = [(fmt.visible(line.task), line.name, line.metric if line.metric != line.name else "", line.result,
              line.error, line.n) for line in lines]
    heads = ("Task", "Metric", "", "Value", "Stderr", "n")
    widths = [max(map(cell_len, column)) for column in zip(heads, *cells, strict=True)]
    total = sum(widths) + 2 * len(widths)
    kept = [0, 1, 2, 3, 4, 5] if total <= width else [0, 1, 3, 4, 5]
    if sum(widths[at] + 2 for at in kept) > width:
        kept = kept[1:]
    parts: list[RenderableType] = [Text(fmt.visible(evaluation.name), "bold")]
    if lines:
        parts.append(_score_row([heads[at] for at in kept], kept, widths, "dim"))
    task = None
    for line, row in zip(lines, cells, strict=True):
        if 0 not in kept and row[0] != task:
            parts.append(Text(row[0]))
        shown = [row[at] if at or row[0] != task else "" for at in kept]
        task = row[0]
        parts.append(_score_row(shown, kept, widths, "bold" if line.primary else ""))
    notes = dict.fromkeys(f"{fmt.visible(line.task)}: {line.part}" for line in lines if line.part)
    notes |= dict.fromkeys(f"{fmt.visible(line.task)}, {line.name}: the standard error is 0 because all "
                           f"items have the same value; the 95 % interval is {line.interval}"
                           for line in lines if line.certain)
    return Group(*parts, *(Text(note, "dim") for note in notes))


def _score_row(cells: Sequence[str], kept: Sequence[int], widths: Sequence[int], style: str) -> Table:
    """One line of a table of scores. kept: positions of its columns; text is on the left, figures are on the right."""
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2, 0, 0))
    for at in kept:
        grid.add_column(width=widths[at], justify="left" if at < 3 else "right", overflow="fold", no_wrap=at >= 3)
    indent = "" if 0 in kept else "  "
    grid.add_row(*(Text(f"{indent if n == 0 else ''}{cell}", "not bold dim" if kept[n] == 2 else "")
                   for n, cell in enumerate(cells)), style=style)
    return grid


def terminal_headline(comparison: Comparison) -> Text:
    """The headline, its first sentence in the colour of what it says."""
    from rich.text import Text

    said = headline(comparison)
    style = f"bold {_STATES.get(said.state, '')}".strip()
    return Text.assemble((said.line, style), *(f" {sentence}" for sentence in said.sentences[1:]))


#: Rich's colour of a headline's first sentence.
_STATES: Mapping[HeadlineState, str] = {
    "no effect": "red", "broken": "red", "lost": "red", "fit": "green", "open": "yellow", "not learned": "yellow",
    "nothing": "yellow"}


def terminal_table(comparison: Comparison, *, width: int = 80, details: bool = False, drift: Drift | None = None
                   ) -> Group:
    """The headline and the verdict table of a comparison for a terminal that is ``width`` characters wide.

    details: also show the p-values and intervals of each row, each task of a group that has one verdict, and what
    changed beside right and wrong. drift: of its models, where it was measured.
    """
    from rich.console import Group
    from rich.text import Text

    lines = [line for line in verdict_table(comparison) if details or not line.row.group]
    title = fmt.visible(f"{comparison.tuned_name} against {comparison.base_name} ({comparison.id})")
    parts: list[RenderableType] = [terminal_headline(comparison), Text(title, style="bold")]
    if mark := watermark(comparison):
        parts.append(Text(mark, style="bold red"))
    layout = _Layout(lines, width)
    parts.append(layout.row("", [c.short or c.heading for c in _FIGURES], "dim"))
    for task in dict.fromkeys(line.row.task for line in lines):
        parts += layout.block([line for line in lines if line.row.task == task], details=details)
    parts += [Text(line) for line in (*few_shot_lines(comparison), *exploratory_text(comparison), *_formats(comparison),
                                      *change_lines(comparison), drift_line(drift)) if line]
    if details:
        parts += _changes(comparison)
    parts.append(Text(_footer(comparison, lines), style="dim"))
    if comparison.held_out is not None:
        n, before, after, difference, interval = held_out_line(comparison.held_out)
        parts.append(Text(f"Held-out loss {before} before, {after} after tuning ({difference} nats per token, 95 % "
                          f"interval {interval}, n={n})"))
    return Group(*parts)


def terminal_summary(comparisons: Sequence[Comparison]) -> Table:
    """Several tuned models against one base: each task is a line with the verdict and difference of each model."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, title=Text(f"against {fmt.visible(comparisons[0].base_name)}"),
                  title_justify="left", title_style="bold")
    table.add_column("", overflow="fold")
    for comparison in comparisons:
        table.add_column(Text(fmt.visible(comparison.tuned_name)), overflow="fold")
    cells = {((line.row.task, line.row.average_of), at): line for at, comparison in enumerate(comparisons)
             for line in verdict_table(comparison) if line.row.primary}
    for task in dict.fromkeys(task for task, _ in cells):
        row = [cells.get((task, at)) for at in range(len(comparisons))]
        name = f"{task[0]} ({len(task[1])} tasks)" if task[1] else task[0]
        table.add_row(Text(fmt.visible(name)), *(
            Text.assemble((line.label, badge(line.verdict).style), f" {line['delta']}") if line
            else Text(fmt.DASH) for line in row))
    return table


def _formats(comparison: Comparison) -> list[str]:
    """The format failures of generated answers on both sides, for each task that has any."""
    lines = []
    for form in comparison.forms:
        if any((c.cut_off, c.no_answer, c.empty) != (0, 0, 0) for c in (form.base, form.tuned)):
            cause = f"; {shift_text(form)}" if form.lost else ""
            before, after = fmt.visible(comparison.base_name), fmt.visible(comparison.tuned_name)
            lines.append(f"{fmt.visible(form.task)}: answers of {before}: {form_text(form.base)}; of {after}: "
                         f"{form_text(form.tuned)}{cause}")
    return lines


def _changes(comparison: Comparison) -> list[RenderableType]:
    """The tables of what changed beside right and wrong, each with how to read it."""
    from rich.table import Table
    from rich.text import Text

    blocks: list[RenderableType] = []
    for table in change_tables(comparison):
        shown = Table(box=None, pad_edge=False, header_style="dim", title=Text(f"{TITLE}: {table.title.lower()}"),
                      title_justify="left", title_style="bold")
        for head in table.heads:
            shown.add_column(Text(head), overflow="fold")
        for row in table.rows:
            shown.add_row(*map(Text, row))
        blocks += [Text(), shown, Text(table.note, style="dim")]
    return [*blocks, *(Text(line, style="dim") for line in missing_lines(comparison))]


def _footer(comparison: Comparison, lines: list[VerdictLine]) -> str:
    """The line below the table: margins, items and lineage."""
    margins = {line.row.task: margin_text(line.row) for line in lines if line.row.primary}
    shown = [f"{fmt.visible(task)} {margin}" for task, margin in margins.items()]
    if len(set(margins.values())) == 1:
        shown = [next(iter(margins.values()))]
    partial = [f"{fmt.visible(line.row.task)} {partial_text(line.row)}" for line in lines
               if line.row.primary and partial_text(line.row)]
    items = f" Items used: {', '.join(partial)}." if partial else ""
    own = margins and not any(line.row.fraction for line in lines if line.row.primary)
    return f"{'Margin:' if own else 'Margin in points:'} {', '.join(shown) or fmt.DASH}.{items} " \
        f"{lineage_note(comparison)}"


class _Layout:
    """The column widths of a comparison, the same for all its tasks. Figures are never cut; names fold.

    beside: p-value and verdict are beside the task's name. gap: spaces between columns. name: width of the column of
    names, 0 if each name gets a separate line.
    """

    def __init__(self, lines: list[VerdictLine], width: int) -> None:
        from rich.cells import cell_len

        widths = [max(map(cell_len, (c.short or c.heading, *(line[c.key] or fmt.DASH for line in lines))))
                  for c in _FIGURES]
        self.titles = True
        full = sum(widths) + 2 * len(widths) + self._names(lines)
        self.titles = full <= width
        names = self._names(lines)
        self.beside = width < sum(widths) + 2 * len(widths) + min(names, _NAME)
        self.widths = widths[:_ALWAYS] if self.beside else widths
        room = width - sum(self.widths) - len(self.widths)
        self.gap = 2 if room - len(self.widths) >= min(names, _NAME) else 1
        room -= (self.gap - 1) * len(self.widths)
        self.name = min(names, room) if room >= min(names, 12) else 0

    def _names(self, lines: Sequence[VerdictLine]) -> int:
        """The width of the column of names."""
        from rich.cells import cell_len

        return max((cell_len(self.metric(line)) + 2 for line in lines), default=0)

    def metric(self, line: VerdictLine) -> str:
        """The metric of a row: its name, and its title where there is room for it."""
        name, title = fmt.visible(row_name(line.row)), fmt.visible(row_metric(line.row))
        return f"{name}  {title}" if self.titles and title != name else name

    def block(self, lines: list[VerdictLine], *, details: bool) -> list[RenderableType]:
        """One task: its name, verdict and note, then one row for each metric, the primary one first."""
        from rich.padding import Padding
        from rich.text import Text

        block: list[RenderableType] = [Text(), self._head(lines)]
        for line in lines:
            figures = [line[c.key] or fmt.DASH for c in _FIGURES]
            style = "" if line.row.primary else "dim"
            block.append(self.row(f"  {self.metric(line)}", figures, style, badge(line.verdict).style))
        block += [Padding(Text(f"{fmt.visible(row_name(line.row))}: {line.note}", style="dim"), (0, 0, 0, 2))
                  for line in lines if line.note and not line.row.primary]
        block += [Padding(Text(f"{fmt.visible(row_name(line.row))}: {'; '.join(line.details)}", "dim"), (0, 0, 0, 2))
                  for line in lines if details and line.details]
        return block

    def _head(self, lines: list[VerdictLine]) -> Text:
        from rich.text import Text

        first = lines[0]
        primary = first.row.primary
        head = Text(fmt.visible(first.row.task), style="bold" if primary else "dim bold")
        if primary and self.beside:
            head.append("  ").append(first.label, style=badge(first.verdict).style)
            for column in (c for c in _FIGURES if c.beside and c.key != "label"):
                head.append(f"  {column.heading.lower()} {first[column.key]}", style="not bold")
        if primary and first.note:  # that of an average begins with its name
            head.append(f"  {first.note.removeprefix(f'{head.plain} ')}", style="not bold dim")
        if full := first["full_run"]:
            head.append(f"  {BY_KEY['full_run'].heading.lower()}: {full}", style="not bold")
        return head

    def row(self, name: str, figures: Sequence[str], style: str, label: str = "") -> RenderableType:
        """One line of the table; a name that is too long breaks after its comma. label: rich's style of the verdict."""
        from rich.cells import cell_len
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        grid = Table.grid(padding=(0, self.gap, 0, 0))
        if self.name and cell_len(name) > self.name:
            name = name.replace(",", ",\n    ", 1)
        if self.name:
            grid.add_column(width=self.name, overflow="fold")
        for column, width in zip(_FIGURES, self.widths, strict=False):
            grid.add_column(width=width, justify="left" if column.key == "label" else "right", no_wrap=True)
        texts = [Text(figure, style=label if column.key == "label" else "")
                 for column, figure in zip(_FIGURES, figures, strict=True)]
        cells = [Text(name), *texts[:len(self.widths)]]
        grid.add_row(*(cells if self.name else cells[1:]), style=style)
        return grid if self.name else Group(Text(name, style=style), grid)
