"""The first page: the headline of each stored comparison, the newest first, and what runs now."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from aftertune.ledger import EntryQuery
from aftertune.redaction import public_text
from aftertune.report import headline, verdict_table, watermark
from aftertune.report.columns import VerdictLine
from aftertune.report.names import task_title
from aftertune.values import Comparison, HeadlineState
from aftertune.view.inputs import Inputs
from aftertune.view.links import comparison_path, stored_path
from aftertune.view.rendering import NavigationLink, ViewContext, context_of, render

_PER_PAGE = 20
#: State of a headline -> the class of its colour.
_COLOURS: dict[HeadlineState, str] = {
    "broken": "lower", "lost": "lower", "fit": "higher", "fit on average": "higher", "not learned": "undecided",
    "open": "undecided", "nothing": "undecided", "no effect": "undecided", "difference": "within", "none": "undecided"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonSummary:
    """One comparison in the list. verdicts: (task, title, line) of each primary row."""

    id: str
    path: str
    tuned: str
    base: str
    sentences: tuple[str, ...]
    watermark: str
    colour: str
    verdicts: list[tuple[str, str, VerdictLine]]

    @classmethod
    def of(cls, comparison: Comparison) -> ComparisonSummary:
        """The summary of a stored comparison."""
        found = headline(comparison)
        return cls(id=comparison.id, path=stored_path(comparison), tuned=comparison.tuned_name,
                   base=comparison.base_name, sentences=found.sentences, watermark=public_text(watermark(comparison)),
                   colour=_COLOURS[found.state],
                   verdicts=[(comparison_path(comparison.base, comparison.tuned, id=comparison.id, task=line.row.task),
                              line["task"] if line.row.average_of else task_title(line.row.task), line)
                             for line in verdict_table(comparison) if line.row.primary and line.verdict])


def overview(request: Request) -> Response:
    """The first page."""
    inputs = Inputs(request)
    number = inputs.number("page", 1, least=1, most=100_000)
    with context_of(request).ledgers.read() as ledger:
        comparisons, total = ledger.newest_comparisons(_PER_PAGE, (number - 1) * _PER_PAGE)
        entries = ledger.entry_page(EntryQuery(limit=1))
        running = ledger.running()
    return render(request, "overview.html", title="Overview", summaries=[ComparisonSummary.of(c) for c in comparisons],
                  total=total, entries=entries.total, running=running, page=number,
                  pages=max(1, -(-total // _PER_PAGE)), inputs=inputs)


def running_now(context: ViewContext, _: str) -> str:
    """What runs now, as a part of the page."""
    with context.ledgers.read() as ledger:
        return context.page("running_now.html", running=ledger.running())


LIVE_PARTS = {"running": running_now}
ROUTES = [Route("/", overview)]
NAVIGATION = NavigationLink("Overview", "/", 10)
