"""The page of two evaluations: headline, verdict table, forest plot, the average, and what changed.

A stored comparison is shown as it is stored. Two evaluations without one are compared when the page is asked for, which
stores nothing; where they cannot be compared, the page says why.
"""

from __future__ import annotations

import shlex
from collections import Counter
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from aftertune.catalog import MetricKey
from aftertune.comparison import compare, find_finished
from aftertune.errors import InputError, NotComparable
from aftertune.ledger import EntryLabel, Ledger
from aftertune.redaction import public_text, published
from aftertune.report import Results
from aftertune.report.columns import VerdictLine, verdict_table
from aftertune.report.names import task_title
from aftertune.report.page.views import comparison_view
from aftertune.values import Comparison, Difference, Evaluation
from aftertune.view.inputs import Inputs
from aftertune.view.pages.items import chosen_metric, items_page, task_choices
from aftertune.view.rendering import ViewContext, context_of, render

#: Two evaluations with more items than this are compared on the command line: a page would take too long.
MOST_ITEMS = 100_000
_MARGIN = 2.0  # points


@dataclass(frozen=True, slots=True)
class Sides:
    """The two evaluations, and the comparison of them that is shown: None where they cannot be compared, or are too
    large to compare here; then ``why`` says so. stored: all stored ones, the newest first."""

    base: Evaluation
    tuned: Evaluation
    comparison: Comparison | None
    stored: tuple[Comparison, ...]
    why: str = ""
    differences: tuple[Difference, ...] = ()


def comparison_page(request: Request) -> Response:
    """The page."""
    inputs, context = Inputs(request), context_of(request)
    task = inputs.text("task")
    with context.ledgers.read() as ledger:
        sides = find_sides(context, ledger, request.path_params["base"], request.path_params["tuned"], inputs)
        comparison = published(sides.comparison)
        if comparison is not None and "show" in request.query_params:
            return items_page(request, (sides.base, sides.tuned), comparison, ledger)
        view: Any = None
        if comparison is not None:
            results = Results.of_comparison(comparison, ledger)
            drift = results.drift(comparison)
            key = ("page", comparison.id, comparison.base_name, comparison.tuned_name, comparison.rules,
                   drift.id if drift else "")
            view = context.memory.get(key, lambda: comparison_view(comparison, results, [], many=False))
        label = ledger.labels().get(comparison.id if comparison else "", EntryLabel())
    lines = [] if comparison is None else [line for line in verdict_table(comparison) if not task or _is_of(line, task)]
    if comparison is not None and task and not lines:
        names = sorted({r.task for r in comparison.rows})
        raise InputError(f"the comparison has no task {task!r}; its tasks: {', '.join(names)}")
    return render(request, "comparison.html", title=f"{sides.tuned.name} against {sides.base.name}", sides=sides,
                  why=public_text(sides.why), differences=published(sides.differences), c=view,
                  comparison=comparison, lines=lines, task=task, inputs=inputs, label=label,
                  margin=inputs.decimal("margin"), command=command_of((sides.base, sides.tuned), comparison),
                  stored_id=comparison.id if comparison and comparison.id in {c.id for c in sides.stored} else None,
                  tasks=_tasks(comparison), item_tasks=task_choices(comparison) if comparison else [])


def find_sides(context: ViewContext, ledger: Ledger, base: str, tuned: str, inputs: Inputs) -> Sides:
    """The two evaluations of an address with the comparison that the query names, else the newest stored one, else a
    new one."""
    left, right = find_finished(base, ledger), find_finished(tuned, ledger)
    stored = tuple(reversed(ledger.comparisons(base=left.id, tuned=right.id)))
    margin, wanted = inputs.decimal("margin"), inputs.text("id")
    if wanted:
        found = next((c for c in stored if c.id == wanted), None)
        if found is None:
            raise InputError(f"{left.name} and {right.name} have no comparison {wanted!r}; leave id out for the newest")
        return Sides(left, right, found, stored)
    if stored and margin is None:
        return Sides(left, right, stored[0], stored)
    points = _MARGIN if margin is None else margin
    if not 0.1 <= points <= 100:
        raise InputError(f"margin={points:g}: allowed are points from 0.1 to 100")
    if (items := sum(t.n if t.used is None else t.used for t in left.tasks)) > MOST_ITEMS:
        return Sides(left, right, None, stored, why=f"{items:,} items take too long for a page; compare them on the "
                     "command line, which stores the result")
    key = ("compared", left.id, right.id, left.name, right.name, points)
    try:
        made = context.memory.get(key, lambda: compare(left, right, margins=points / 100, ledger=ledger, save=False))
    except NotComparable as error:
        return Sides(left, right, None, stored, why=str(error), differences=tuple(error.differences))
    except InputError as error:
        return Sides(left, right, None, stored, why=str(error))
    return Sides(left, right, made, stored)


def command_of(sides: tuple[Evaluation, Evaluation], comparison: Comparison | None) -> str:
    """The command that makes the comparison and stores it: with its margins and metrics, where they are not those that
    `aftertune compare` takes by itself."""
    words = ["aftertune", "compare", *(side.id for side in sides)]
    if comparison is None:
        return shlex.join(words)
    judged = [row for row in comparison.rows if row.primary and row.margin is not None]
    margins = [(row.task, f"{100 * row.margin if row.fraction else row.margin:g}", row.fraction) for row in judged
               if row.margin is not None]
    common = Counter(value for _, value, share in margins if share).most_common(1)
    usual = common[0][0] if common else f"{_MARGIN:g}"
    if usual != f"{_MARGIN:g}":
        words += ["--margin", usual]
    for task, value, share in margins:
        if not share or value != usual:
            words += ["--margin", f"{task}={value}"]
    for task in dict.fromkeys(row.task for row in judged if not row.average_of):
        if key := chosen_metric(comparison, task, sides[1]):
            words += ["--primary", f"{task}={MetricKey(key).metric}"]
    words += ["--common"] * comparison.common + ["--force"] * comparison.forced
    return shlex.join(words)


def _is_of(line: VerdictLine, task: str) -> bool:
    return task in (line.row.task, line.row.group)


def _tasks(comparison: Comparison | None) -> list[tuple[str, str]]:
    """(task, title) of the rows, each once."""
    rows = comparison.rows if comparison is not None else ()
    return list(dict.fromkeys((r.task, task_title(r.task)) for r in rows if not r.average_of))


ROUTES = [Route("/compare/{base}/{tuned}", comparison_page)]
