"""Defines the columns of the verdict table, once for the terminal, Markdown, the page, CSV, JSON and LaTeX.

    for column in columns("markdown"):
        column.heading, column.text(line)       "Adjusted p", "<0.001"
    for column in columns("csv"):
        column.key, column.value(row)           "p_adjusted", 0.0006

To add a column, add a field to `ComparisonRow`, a line to `aftertune.comparison.rows.build_row`, and a line to COLUMNS.
Every output reads that list, so nothing else changes. ``make docs`` writes docs/columns.md from it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from aftertune.report import formatting as fmt
from aftertune.report.table import (
    difference_text,
    full_run_text,
    interval_text,
    items_text,
    margin_text,
    note_text,
    partial_text,
    row_details,
    row_label,
    row_metric,
    row_title,
    shown_verdict,
    value_text,
)
from aftertune.values import Comparison, ComparisonRow, Score, Verdict

#: Where a column appears. "seeds" and "seeds page": comparisons of recipes over several seeds, in the record
#: and on the page.
Output = Literal["terminal", "markdown", "page", "seeds", "seeds page", "csv", "json", "latex"]
#: A plain value, for other programs.
CellValue = str | int | float | bool | tuple[str, ...] | None

TABLES: tuple[Output, ...] = ("terminal", "markdown", "page", "seeds", "seeds page")
DATA: tuple[Output, ...] = ("csv", "json")
LATEX: tuple[Output, ...] = (*DATA, "latex")
ALL: tuple[Output, ...] = (*TABLES, *LATEX)


@dataclass(frozen=True, slots=True)
class VerdictLine:
    """One row as a reader sees it; ``line["delta"]`` is the text of a column.

    lineage: the tuned model is proven to be made from the base, so a proven loss is called forgetting.
    """

    row: ComparisonRow
    lineage: bool

    def __getitem__(self, key: str) -> str:
        text = BY_KEY[key].text
        return text(self) if text else ""

    @property
    def verdict(self) -> Verdict | None:
        return shown_verdict(self.row)

    @property
    def label(self) -> str:
        return row_label(self.row, self.lineage)

    @property
    def note(self) -> str:
        return note_text(self.row)

    @property
    def details(self) -> tuple[str, ...]:
        return row_details(self.row)


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column.

    key: its name in JSON and CSV. says: its meaning, for docs/columns.md. outputs: where it appears. heading: in tables
    for people. text: its cell for people. plain: its cell for programs (None: the row's field named ``key``). short:
    heading on the terminal. narrow: heading on a narrow page, where rows are cards. wide: its cell takes a whole line
    of a card. name: it names the row. beside: on a narrow terminal it moves beside the task's name.
    optional: tables for people have it only if a row has a text for it.
    """

    key: str
    says: str
    outputs: tuple[Output, ...]
    heading: str = ""
    text: Callable[[VerdictLine], str] | None = None
    plain: Callable[[ComparisonRow], CellValue] | None = None
    short: str = ""
    narrow: str = ""
    wide: bool = False
    name: bool = False
    beside: bool = False
    optional: bool = False

    def value(self, row: ComparisonRow) -> CellValue:
        """The value of a row for programs; fractions stay fractions."""
        cell: CellValue = getattr(row, self.key) if self.plain is None else self.plain(row)
        return cell


def _flips(row: ComparisonRow) -> str:
    return fmt.DASH if row.gained is None or row.lost is None else f"{row.gained} / {row.lost}"


def unit_name(value: ComparisonRow | Score) -> str:
    """The unit of a row or score for programs: share (a fraction), percent (0 to 100) or own."""
    return "share" if value.fraction else "percent" if value.unit == "percent" else "own"


COLUMNS: tuple[Column, ...] = (
    Column(key="task", heading="Task", outputs=ALL, name=True,
           says="The task, or the group of tasks; average for the average over the tasks.",
           text=lambda line: fmt.visible(row_title(line.row))),
    Column(key="metric", heading="Metric", outputs=ALL, name=True,
           says="The metric, as lm-eval names it; mean for the average over the tasks.",
           text=lambda line: fmt.visible(row_metric(line.row))),
    Column(key="filter", outputs=LATEX, says="The filter that lm-eval applied to the answers before the metric."),
    Column(key="unit", outputs=LATEX, plain=unit_name,
           says="Unit of base, tuned, delta and margin: share (a fraction; tables for people show percent and points), "
                "percent (0 to 100) or own."),
    Column(key="n", heading="n", outputs=("terminal", "seeds", *LATEX), says="Items that both models answered.",
           text=lambda line: items_text(line.row)),
    Column(key="part", heading="n", outputs=("markdown", "page"),
           says="Items that both models answered, with the task's total if they are only a part of it.",
           text=lambda line: partial_text(line.row) or items_text(line.row)),
    Column(key="n_total", outputs=LATEX, says="Items of the whole task."),
    Column(key="base", heading="Base", outputs=ALL, says="Score of the base model on these items.",
           text=lambda line: value_text(line.row, line.row.base)),
    Column(key="tuned", heading="Tuned", outputs=ALL, says="Score of the tuned model on these items.",
           text=lambda line: value_text(line.row, line.row.tuned)),
    Column(key="delta", heading="Difference (points)", short="Points", narrow="Points", outputs=ALL,
           says="Tuned minus base, with the sign reversed where lower is better: positive is always better.",
           text=lambda line: difference_text(line.row, line.row.delta)),
    Column(key="interval", heading="95 % interval", wide=True, outputs=TABLES,
           says="95 % interval of the difference.",
           text=lambda line: interval_text(line.row)),
    Column(key="low", outputs=LATEX, says="Lower end of the 95 % interval of the difference."),
    Column(key="high", outputs=LATEX, says="Upper end of the 95 % interval of the difference."),
    Column(key="margin", heading="Margin", outputs=("markdown", *LATEX),
           says="The largest change that still counts as no change.",
           text=lambda line: margin_text(line.row) if line.row.primary else fmt.DASH),
    Column(key="gained", outputs=LATEX, says="Items that became right."),
    Column(key="lost", outputs=LATEX, says="Items that became wrong."),
    Column(key="p_adjusted", heading="Adjusted p", short="Adj. p", beside=True, outputs=ALL,
           says="p-value of the verdict's test, after Holm's correction over the primary metrics of its family.",
           text=lambda line: fmt.p_value(line.row.p_adjusted)),
    Column(key="p_exact", outputs=LATEX, says="McNemar's exact p-value of \"any difference\"."),
    Column(key="p_mid", outputs=LATEX, says="McNemar's mid-p-value of \"any difference\"."),
    Column(key="flips", heading="Gained / lost", short="Gained/lost", outputs=("terminal", "markdown", "page"),
           says="Items that became right, and items that became wrong.", text=lambda line: _flips(line.row)),
    Column(key="verdict", outputs=DATA,
           says="lower, higher, within, worse, better, no_loss or undecided; empty for a secondary metric."),
    Column(key="label", heading="Verdict", beside=True, outputs=ALL, text=lambda line: line.label,
           plain=lambda row: row.told or None,
           says="The verdict in words: forgot, improved, kept or no loss where the tuned model is proven to be made "
                "from the base, else lower, higher, within or not lower; or worse, better or undecided."),
    Column(key="stopped_of", outputs=LATEX,
           says="Items of the full run, where the task stopped early: the scores are then early estimates."),
    Column(key="full_run", heading="Full run", outputs=("markdown", "page"), wide=True, optional=True,
           text=lambda line: full_run_text(line.row),
           says="What asking all items would show, of a task that was stopped early: the tuned model's score, and how "
                "it is proven to compare with the base's. Valid at every look. On the terminal it is beside the name."),
    Column(key="full_low", outputs=DATA, says="Lower end of the 95 % interval of the full run's difference."),
    Column(key="full_high", outputs=DATA, says="Upper end of the 95 % interval of the full run's difference."),
    Column(key="full_base", outputs=DATA, says="Score of the base model on the full run, where it is known."),
    Column(key="full_tuned_low", outputs=DATA, says="Lower end of the interval of the tuned model's full-run score."),
    Column(key="full_tuned_high", outputs=DATA, says="Upper end of the interval of the tuned model's full-run score."),
    Column(key="full_verdict", outputs=DATA, says="What is proven of the full run, in the words of `verdict`."),
    Column(key="primary", outputs=LATEX, says="Whether the metric is the primary one of its task."),
    Column(key="p", outputs=DATA, says="The p-value before Holm's correction."),
    Column(key="q", outputs=DATA, says="Benjamini-Hochberg's q over the tasks of a group; exploratory."),
    Column(key="group", outputs=DATA, plain=lambda row: row.group or None,
           says="The group that gets the verdict instead of this task."),
    Column(key="average_of", outputs=DATA, says="The tasks and groups of which the row is the average, with equal "
           "weights; empty in other rows."),
    Column(key="family_size", outputs=DATA, says="Number of tests over which the adjusted p is corrected."),
    Column(key="items_needed", outputs=DATA, says="Items that would decide on which side of the margin the "
           "difference is, where that is not proven."),
    Column(key="items_needed_at", outputs=DATA, says="The true difference for which they would."),
    Column(key="items_needed_power", outputs=DATA, says="How often they then would, as a share of such rows."),
    Column(key="note", outputs=DATA, says="What a reader must know about this row."),
    Column(key="details", outputs=DATA, says="Further intervals."),
)

BY_KEY = {column.key: column for column in COLUMNS}


def columns(output: Output, lines: Sequence[VerdictLine] = ()) -> list[Column]:
    """The columns of one output, in order. lines: the rows of the table; optional columns without a text are left out.
    """
    return [column for column in COLUMNS if output in column.outputs
            and not (column.optional and all(not line[column.key] for line in lines))]


def verdict_table(comparison: Comparison) -> list[VerdictLine]:
    """The rows of a comparison, primary metrics first."""
    return verdict_lines(comparison.rows, lineage=comparison.lineage)


def verdict_lines(rows: Sequence[ComparisonRow], *, lineage: bool) -> list[VerdictLine]:
    """Rows, primary metrics first."""
    return [VerdictLine(row, lineage) for row in sorted(rows, key=lambda row: not row.primary)]


def reference() -> str:
    """The text of docs/columns.md."""
    names = {"terminal": "terminal", "markdown": "record", "page": "page", "csv": "CSV", "json": "JSON",
             "latex": "LaTeX"}
    rows = [f"| `{c.key}` | {c.heading} | {c.says} | {', '.join(n for o, n in names.items() if o in c.outputs)} |"
            for c in COLUMNS]
    return "\n".join([
        "# The columns of the verdict table", "",
        "Written by `make docs` from the program itself. CSV is `aftertune export ID --format csv`; JSON is "
        "`aftertune compare --json`", "and `aftertune export ID --format json`, which have the same keys. Shares and "
        "their differences are fractions there, not percent and points; `unit` says what is a share.", "",
        "| key | heading | meaning | where |", "| --- | --- | --- | --- |", *rows]) + "\n"
