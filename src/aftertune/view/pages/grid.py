"""The grid: models against tasks, sorted, filtered by verdict, with the seeds of a recipe in one row."""

from __future__ import annotations

from typing import get_args

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from aftertune.errors import InputError, nearest, shown
from aftertune.report.badges import BADGES
from aftertune.report.names import task_title
from aftertune.values import Verdict
from aftertune.view.inputs import Inputs
from aftertune.view.rendering import NavigationLink, context_of, render
from aftertune.view.verdict_grid import BY_BASE, BY_NAME, GridQuery, grid_members, verdict_grid, with_intervals

#: The newest comparisons that are read, and the rows and tasks of one page.
MOST_COMPARISONS, PER_PAGE, MOST_TASKS = 2000, 100, 60


def grid(request: Request) -> Response:
    """The page."""
    inputs, context = Inputs(request), context_of(request)
    query = GridQuery(
        words=inputs.text("q"), base=inputs.text("base"), task=inputs.text("task"),
        verdict=inputs.word("verdict", get_args(Verdict)), sort=inputs.text("sort") or BY_NAME,
        descending=inputs.word("order", ("asc", "desc"), "asc") == "desc", fold=not inputs.flag("seeds"),
        recipe=inputs.text("recipe"))
    number = inputs.number("page", 1, least=1, most=100_000)
    with context.ledgers.read() as ledger:
        comparisons, total = ledger.newest_comparisons(MOST_COMPARISONS)
        key = ("grid", tuple((c.id, c.base_name, c.tuned_name) for c in comparisons))
        members = context.memory.get(key, lambda: grid_members(ledger, comparisons[::-1]))
        found = verdict_grid(members, query)
        known = {BY_NAME, BY_BASE, *found.tasks}
        if query.sort not in known:
            raise InputError(f"sort={shown(query.sort)}: no comparison has this task"
                             f"{nearest(query.sort, sorted(known))}")
        rows = with_intervals(found.rows[(number - 1) * PER_PAGE:number * PER_PAGE], ledger, context.small)
    pages = max(1, -(-len(found.rows) // PER_PAGE))
    tasks = dict(list(found.tasks.items())[:MOST_TASKS])
    return render(
        request, "grid.html", title="Grid", grid=found, query=query, inputs=inputs, tasks=tasks, page=number,
        pages=pages, rows=rows, comparisons=total,
        unread=max(0, total - MOST_COMPARISONS), hidden_tasks=len(found.tasks) - len(tasks),
        verdicts=[(verdict, f"{badge.symbol} {badge.word}") for verdict, badge in BADGES.items()],
        headings=[_heading(inputs, query, BY_NAME, "Model"), _heading(inputs, query, BY_BASE, "Base model"),
                  *(_heading(inputs, query, task, title) for task, title in tasks.items())],
        bases=[(name, name) for name in found.bases], all_tasks=[(task, task_title(task)) for task in found.tasks])


def _heading(inputs: Inputs, query: GridQuery, key: str, title: str) -> tuple[str, str, str]:
    """(heading, address that sorts by it, value of aria-sort); a task first shows its largest losses."""
    current = query.sort == key
    order = "desc" if current and not query.descending else "asc"
    state = ("descending" if query.descending else "ascending") if current else ""
    return title, inputs.changed(sort=key, order=order, page=None), state


ROUTES = [Route("/grid", grid)]
NAVIGATION = NavigationLink("Grid", "/grid", 20)
