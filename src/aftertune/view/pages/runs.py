"""The table of models and runs: evaluations, fine-tunes and comparisons, sorted, filtered and searched; two chosen ones
are compared."""

from __future__ import annotations

from typing import Any, get_args

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from aftertune.comparison import find_finished
from aftertune.comparison.lineage import find_relation
from aftertune.errors import AftertuneError, InputError, one_line
from aftertune.ledger import EntryQuery
from aftertune.ledger.listing import EntrySort
from aftertune.redaction import public_text
from aftertune.report.names import task_title
from aftertune.values import Evaluation
from aftertune.view.inputs import Inputs
from aftertune.view.links import comparison_path
from aftertune.view.rendering import NavigationLink, context_of, render

_PER_PAGE = 50
KINDS = {"evaluation": "Evaluations", "tuning": "Fine-tunes", "comparison": "Comparisons"}
STATUSES = ("done", "running", "interrupted", "failed")
#: Key of the sort -> heading of its column.
_COLUMNS = {"name": "Name", "kind": "Kind", "status": "Status", "started": "Started (UTC)"}


def runs(request: Request) -> Response:
    """The table."""
    inputs = Inputs(request)
    query = query_of(inputs)
    with context_of(request).ledgers.read() as ledger:
        page = ledger.entry_page(query)
        tags, tasks = ledger.tags(), ledger.task_names()
    return render(request, "runs.html", title="Runs", query=query, rows=page.rows, total=page.total,
                  tags=[(tag, f"{tag} ({n})") for tag, n in tags.items()], tasks=[(t, task_title(t)) for t in tasks],
                  kinds=KINDS, statuses=[(s, s) for s in STATUSES], headings=_headings(inputs, query), inputs=inputs,
                  page=query.offset // _PER_PAGE + 1, pages=max(1, -(-page.total // _PER_PAGE)))


def query_of(inputs: Inputs) -> EntryQuery:
    """The query of the table, from that of the request."""
    sort: Any = inputs.word("sort", get_args(EntrySort), "started")
    down = "desc" if sort == "started" else "asc"
    return EntryQuery(words=inputs.text("q"), kind=inputs.word("kind", KINDS), status=inputs.word("status", STATUSES),
                      task=inputs.text("task"), tag=inputs.text("tag"), base=inputs.text("base"),
                      archived=inputs.flag("archived"), sort=sort,
                      descending=inputs.word("order", ("asc", "desc"), down) == "desc", limit=_PER_PAGE,
                      offset=(inputs.number("page", 1, least=1, most=100_000) - 1) * _PER_PAGE)


def _headings(inputs: Inputs, query: EntryQuery) -> list[tuple[str, str, str]]:
    """(heading, address that sorts by it, value of aria-sort) of the sortable columns."""
    headings = []
    for key, title in _COLUMNS.items():
        current = key == query.sort
        first = "desc" if key == "started" else "asc"
        order = ("asc" if query.descending else "desc") if current else first
        state = ("descending" if query.descending else "ascending") if current else ""
        headings.append((title, inputs.changed(sort=key, order=order, page=None), state))
    return headings


def chosen(request: Request) -> Response:
    """Two chosen runs: sends the browser to their comparison, the base first."""
    base, tuned = _sides(request)
    with context_of(request).ledgers.read() as ledger:
        left, right = find_finished(base, ledger), find_finished(tuned, ledger)
        if find_relation(left, right, ledger).relation == "reversed":
            left, right = right, left
    return RedirectResponse(comparison_path(left.id, right.id), status_code=303)


def reason(request: Request) -> Response:
    """Whether two chosen runs can be compared, as a part of the page."""
    try:
        base, tuned = _sides(request)
        with context_of(request).ledgers.read() as ledger:
            text = reason_against(find_finished(base, ledger), find_finished(tuned, ledger))
    except AftertuneError as error:
        text = one_line(str(error))
    return render(request, "reason.html", title="Compare", text=public_text(text))


def reason_against(left: Evaluation, right: Evaluation) -> str:
    """Why two evaluations cannot be compared item by item; "" where nothing is known against it."""
    from aftertune.comparison import differences
    from aftertune.comparison.compatibility import refusal_message

    if left.id == right.id:
        return "both are the same evaluation"
    if not {t.task for t in left.tasks} & {t.task for t in right.tasks}:
        return f"{left.name} and {right.name} have no task in common"
    blocking = [d for d in differences(left, right) if d.blocking]
    return refusal_message(left, right, blocking, forcible=True) if blocking else ""


def _sides(request: Request) -> tuple[str, str]:
    ids = [value[:200] for value in request.query_params.getlist("pick")]
    if len(ids) != 2:
        raise InputError(f"{len(ids)} runs are chosen; choose two evaluations to compare")
    return ids[0], ids[1]


ROUTES = [Route("/runs", runs), Route("/compare", chosen), Route("/compare-reason", reason)]
NAVIGATION = NavigationLink("Runs", "/runs", 30)
