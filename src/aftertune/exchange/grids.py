"""Owns tables for other programs: the scores of an evaluation, a comparison, the overview of several evaluations.

    as_csv(scores_grid(evaluation, interval))        one line a score, numbers as fractions
    as_latex(comparison_grid(comparison))            a tabular environment of booktabs

Text of others stays text: in CSV a cell that a spreadsheet would run as a formula gets an apostrophe before it, in
LaTeX every special character is escaped.
"""

from __future__ import annotations

import csv
import io
import json
import math
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from aftertune.values import Comparison, Evaluation, Score

Cell = str | int | float | bool | None
#: 95 % interval of a score, or None where it has none.
Interval = Callable[[Score], tuple[float, float] | None]

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
_LATEX = {"\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{",
          "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
          ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}", "−": "$-$", "–": "--", "±": r"$\pm$"}


@dataclass(frozen=True, slots=True)
class Grid:
    """A table of plain values under named columns. title: one line; fractions stay fractions."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


def scores_grid(evaluation: Evaluation, interval: Interval) -> Grid:
    """The scores of an evaluation; items_of: items of the full run where a task was stopped early."""
    rows = []
    for score in evaluation.scores:
        low, high = interval(score) or (None, None)
        stopped = evaluation.stopped(score.task)
        rows.append((score.task, score.metric, score.filter, score.value, score.stderr, low, high, score.n,
                     evaluation.total(score.task), stopped[1] if stopped else None, score.primary))
    return Grid(f"{evaluation.name} ({evaluation.id})",
                ("task", "metric", "filter", "value", "stderr", "low", "high", "n", "n_total", "stopped_of", "primary"),
                tuple(rows))


def comparison_grid(comparison: Comparison) -> Grid:
    """The rows of a comparison with intervals, p-values and verdicts."""
    rows = tuple((r.task, r.metric, r.filter, r.n, r.n_total, r.base, r.tuned, r.delta, r.low, r.high, r.margin,
                  r.gained, r.lost, r.p_adjusted, r.p_exact, r.p_mid, r.told or None, r.stopped_of, r.primary)
                 for r in comparison.rows)
    forced = ", FORCED: not comparable" if comparison.forced else ""
    return Grid(f"{comparison.tuned_name} against {comparison.base_name} ({comparison.id}{forced})",
                ("task", "metric", "filter", "n", "n_total", "base", "tuned", "difference", "low", "high", "margin",
                 "gained", "lost", "p_adjusted", "p_exact", "p_mid", "verdict", "stopped_of", "primary"), rows)


def overview_grid(title: str, evaluations: Sequence[Evaluation], comparisons: Sequence[Comparison],
                  interval: Interval) -> Grid:
    """The primary scores of several evaluations, each beside the verdict of the newest comparison that has it."""
    told = {(c.tuned, r.task, r.metric, r.filter): (c.base_name, r) for c in comparisons if not c.forced
            for r in c.rows if r.primary}
    rows: list[tuple[Cell, ...]] = []
    for evaluation in evaluations:
        for score in (s for s in evaluation.scores if s.primary):
            low, high = interval(score) or (None, None)
            base, row = told.get((evaluation.id, score.task, score.metric, score.filter), ("", None))
            beside = (base, row.delta, row.low, row.high, row.told) if row else (None,) * 5
            rows.append((evaluation.name, evaluation.id, score.task, score.metric, score.filter, score.value, low, high,
                         score.n, evaluation.total(score.task), *beside))
    return Grid(title, ("evaluation", "id", "task", "metric", "filter", "value", "low", "high", "n", "n_total", "base",
                        "difference", "difference_low", "difference_high", "verdict"), tuple(rows))


def as_csv(grid: Grid) -> str:
    """Comma-separated values with a header line."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(grid.head)
    writer.writerows([_inert(cell) for cell in row] for row in grid.rows)
    return out.getvalue()


def _inert(cell: Cell) -> Cell:
    """A cell that no spreadsheet takes for a formula."""
    if isinstance(cell, bool):
        return str(cell).lower()
    if isinstance(cell, float):
        return repr(cell) if math.isfinite(cell) else None
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell


def as_json(grid: Grid) -> str:
    """``{"title": …, "rows": [{column: value}]}``; a number that is not finite is null."""
    rows: list[dict[str, Any]] = [
        {k: None if isinstance(c, float) and not math.isfinite(c) else c for k, c in zip(grid.head, row, strict=True)}
        for row in grid.rows]
    return json.dumps({"title": grid.title, "rows": rows}, ensure_ascii=False, indent=2) + "\n"


def as_latex(grid: Grid) -> str:
    """A ``tabular`` with the rules of booktabs; columns without any value are left out, numbers have four decimals."""
    used = [i for i in range(len(grid.head)) if any(row[i] is not None for row in grid.rows)]
    numeric = {i for i in used if all(row[i] is None or (isinstance(row[i], int | float) and not
                                      isinstance(row[i], bool)) for row in grid.rows)}
    lines = [f"% {_latex(grid.title)}; needs \\usepackage{{booktabs}}",
             f"\\begin{{tabular}}{{{''.join('r' if i in numeric else 'l' for i in used)}}}", "\\toprule",
             " & ".join(_latex(grid.head[i].replace("_", " ")) for i in used) + r" \\", "\\midrule"]
    lines += [" & ".join(_latex_cell(row[i]) for i in used) + r" \\" for row in grid.rows]
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"]) + "\n"


def _latex_cell(cell: Cell) -> str:
    if cell is None:
        return "--"
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, float):
        return (f"{cell:.4f}" if cell >= 0 else f"$-${-cell:.4f}") if math.isfinite(cell) else "--"
    return _latex(str(cell))


def _latex(text: str) -> str:
    """Text with every character that TeX acts on escaped; control characters are dropped."""
    flat = " ".join(text.split())
    return "".join(_LATEX.get(c, c) for c in flat if unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co"))
