"""Exports tables for other programs: scores, comparisons and overviews as CSV, JSON, Markdown and LaTeX.

    as_csv(scores_export(evaluation))                        one line for each score, as fractions
    as_latex(comparison_export(comparison, "latex"))         a tabular environment of booktabs

The columns come from `report.columns`, as in the record and on the page. That is why this module is not in `exchange`,
which reads and writes the formats of other tools and may not import this room.

Foreign text stays text: in CSV a cell that a spreadsheet would run as a formula gets an apostrophe in front, and in
LaTeX every special character is escaped.
"""

from __future__ import annotations

import csv
import io
import json
import math
import unicodedata
from dataclasses import dataclass
from typing import Any

from aftertune.actions import Shown, perform
from aftertune.report import documents as md
from aftertune.report.columns import CellValue, Output, columns, unit_name
from aftertune.report.headline import headline
from aftertune.report.results import Results
from aftertune.report.table import score_interval
from aftertune.values import Comparison, Evaluation, Headline, plain

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
_LATEX = {"\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{",
          "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
          ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}", "−": "$-$", "–": "--", "±": r"$\pm$"}


@dataclass(frozen=True, slots=True)
class DataTable(Shown):
    """A table of plain values with named columns. title: one line. headline: of a comparison, for JSON and LaTeX.
    Fractions stay fractions."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[CellValue, ...], ...]
    headline: Headline | None = None

    def to_frame(self) -> Any:
        """A pandas DataFrame of the table."""
        return perform("to_frame", self)


def scores_export(evaluation: Evaluation) -> DataTable:
    """The scores of an evaluation. Its column stopped_of has the items of the full run if a task was stopped early."""
    rows = []
    for score in evaluation.scores:
        low, high = score_interval(score) or (None, None)
        stopped = evaluation.stopped(score.task)
        rows.append((score.task, score.metric, score.filter, score.value, score.stderr, low, high, score.n,
                     evaluation.total(score.task), stopped[1] if stopped else None, score.primary, unit_name(score)))
    return DataTable(f"{evaluation.name} ({evaluation.id})",
                     ("task", "metric", "filter", "value", "stderr", "low", "high", "n", "n_total", "stopped_of",
                      "primary", "unit"), tuple(rows))


def comparison_export(comparison: Comparison, output: Output) -> DataTable:
    """The rows of a comparison with the columns of an output: "csv", "json" or "latex"."""
    exported = columns(output)
    forced = ", FORCED: not comparable" if comparison.forced else ""
    return DataTable(f"{comparison.tuned_name} against {comparison.base_name} ({comparison.id}{forced})",
                     tuple(c.key for c in exported),
                     tuple(tuple(c.value(r) for c in exported) for r in comparison.rows), headline(comparison))


def overview_export(title: str, results: Results) -> DataTable:
    """The primary scores of several evaluations, each with the verdict of the newest comparison that includes it."""
    newest = {(c.tuned, r.task, r.metric, r.filter): (c.base_name, r) for c in results.comparisons if not c.forced
              for r in c.rows if r.primary}
    rows: list[tuple[CellValue, ...]] = []
    for evaluation in results.evaluations:
        for score in (s for s in evaluation.scores if s.primary):
            low, high = score_interval(score) or (None, None)
            base, row = newest.get((evaluation.id, score.task, score.metric, score.filter), ("", None))
            verdict = (base, row.delta, row.low, row.high, row.verdict, row.told) if row else (None,) * 6
            rows.append((evaluation.name, evaluation.id, score.task, score.metric, score.filter, unit_name(score),
                         score.value, low, high, score.n, evaluation.total(score.task), *verdict))
    return DataTable(title, ("evaluation", "id", "task", "metric", "filter", "unit", "value", "low", "high", "n",
                             "n_total", "base", "delta", "delta_low", "delta_high", "verdict", "label"), tuple(rows))


def as_objects(table: DataTable) -> list[dict[str, Any]]:
    """The rows as ``{column: value}``; a number that is not finite becomes None."""
    return [{key: _finite(cell) for key, cell in zip(table.head, row, strict=True)} for row in table.rows]


def _finite(cell: CellValue) -> Any:
    if isinstance(cell, tuple):
        return list(cell)
    return None if isinstance(cell, float) and not math.isfinite(cell) else cell


def as_csv(table: DataTable) -> str:
    """Comma-separated values with a header line."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(table.head)
    writer.writerows([_inert(cell) for cell in row] for row in table.rows)
    return out.getvalue()


def _inert(cell: CellValue) -> CellValue:
    """A cell that no spreadsheet runs as a formula."""
    if isinstance(cell, tuple):
        cell = "; ".join(cell) or None
    if isinstance(cell, bool):
        return str(cell).lower()
    if isinstance(cell, float):
        return repr(cell) if math.isfinite(cell) else None
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell


def as_json(table: DataTable) -> str:
    """``{"title": …, "headline": …, "rows": [{column: value}]}``; only a comparison has a headline."""
    said = {} if table.headline is None else {"headline": plain(table.headline)}
    return json.dumps({"title": table.title, **said, "rows": as_objects(table)}, ensure_ascii=False, indent=2) + "\n"


def as_markdown(table: DataTable) -> str:
    """A heading, the headline of a comparison, and a pipe table. As in LaTeX, empty columns are left out."""
    used, numeric = _used(table)
    said = [] if table.headline is None else [md.text(" ".join(table.headline.sentences))]
    lines = [[md.text(table.head[i]) for i in used], ["---:" if i in numeric else "---" for i in used],
             *([md.text(_plain_cell(row[i])) for i in used] for row in table.rows)]
    rows = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return "\n\n".join([f"## {md.text(table.title)}", *said, rows]) + "\n"


def _plain_cell(cell: CellValue) -> str:
    """A cell as text: numbers have four decimals."""
    if isinstance(cell, tuple):
        return "; ".join(cell)
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, float):
        return f"{cell:.4f}" if math.isfinite(cell) else "–"
    return "–" if cell is None else str(cell)


def _used(table: DataTable) -> tuple[list[int], set[int]]:
    """Positions of the columns that are not empty, and of those with numbers alone."""
    used = [i for i in range(len(table.head)) if any(row[i] is not None for row in table.rows)]
    return used, {i for i in used if all(row[i] is None or (isinstance(row[i], int | float) and not
                                         isinstance(row[i], bool)) for row in table.rows)}


def as_latex(table: DataTable) -> str:
    """A ``tabular`` with the rules of booktabs. Empty columns are left out; numbers have four decimals."""
    used, numeric = _used(table)
    said = () if table.headline is None else table.headline.sentences
    lines = [*(f"% {_latex(sentence)}" for sentence in said),
             f"% {_latex(table.title)}; needs \\usepackage{{booktabs}}",
             f"\\begin{{tabular}}{{{''.join('r' if i in numeric else 'l' for i in used)}}}", "\\toprule",
             " & ".join(_latex(table.head[i].replace("_", " ")) for i in used) + r" \\", "\\midrule"]
    lines += [" & ".join(_latex_cell(row[i]) for i in used) + r" \\" for row in table.rows]
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"]) + "\n"


def _latex_cell(cell: CellValue) -> str:
    if cell is None:
        return "--"
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, float):
        return (f"{cell:.4f}" if cell >= 0 else f"$-${-cell:.4f}") if math.isfinite(cell) else "--"
    return _latex(str(cell))


def _latex(text: str) -> str:
    """Text with every character escaped that is special in TeX; control characters are dropped."""
    flat = " ".join(text.split())
    return "".join(_LATEX.get(c, c) for c in flat if unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co"))
