"""Studies: a list, and for each one its cells as a grid that fills, and learned against forgotten."""

from __future__ import annotations

import contextlib
import re
from dataclasses import replace

from markupsafe import Markup, escape
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from aftertune.errors import InputError
from aftertune.ledger import Ledger
from aftertune.report.page.figures import BalanceView, ChartView, balance_views, with_attributes
from aftertune.report.results import Results, outcomes
from aftertune.values import Comparison
from aftertune.view.links import stored_path
from aftertune.view.rendering import NavigationLink, ViewContext, context_of, render
from aftertune.view.study_cells import KINDS, StudyView, study_view

#: Fine-tunes of one study that are drawn; a chart of more is a cloud.
MOST_POINTS = 200


def studies(request: Request) -> Response:
    """The list."""
    with context_of(request).ledgers.read() as ledger:
        found = _all_studies(ledger)
    return render(request, "studies.html", title="Studies", studies=found)


def study_page(request: Request) -> Response:
    """The page of one study."""
    context = context_of(request)
    with context.ledgers.read() as ledger:
        view = study_view(ledger, request.path_params["id"])
        ids = tuple(c.id for c in view.comparisons)
        scatters = context.memory.get(("scatter", view.name, ids), lambda: linked_balances(ledger, view))
    return render(request, "study.html", title=view.name, study=view, kinds=KINDS, balances=scatters,
                  too_many=len(view.comparisons) > MOST_POINTS)


def _all_studies(ledger: Ledger) -> list[StudyView]:
    running = ledger.running()
    return [study_view(ledger, s.name, running, verdicts=False) for s in reversed(ledger.studies())]


def linked_balances(ledger: Ledger, study: StudyView) -> list[BalanceView]:
    """Learned against forgotten, with marks that open their comparison."""
    comparisons = study.comparisons
    if not 1 < len(comparisons) <= MOST_POINTS:
        return []
    evaluations = {}
    for id_ in dict.fromkeys(side for c in comparisons for side in (c.base, c.tuned)):
        with contextlib.suppress(InputError):  # removed since
            evaluations[id_] = ledger.find_evaluation(id_)
    tunings = []
    for id_ in (row.cells["tune"].ref for row in study.rows if "tune" in row.cells and row.cells["tune"].ref):
        with contextlib.suppress(InputError):
            tunings.append(ledger.find_tuning(id_))
    found = outcomes(Results(evaluations=list(evaluations.values()), tunings=tunings, comparisons=list(comparisons)))
    by_id = {c.id: c for c in comparisons}
    return [_linked(view, by_id) for view in balance_views(found, stored_path)]


def _linked(view: BalanceView, comparisons: dict[str, Comparison]) -> BalanceView:
    """The view with a name for each link of its chart. A picture may hold no links, so the chart becomes a group."""
    texts = {stored_path(comparisons[row.comparison]):
             f"{row.number} {row.name}: learned {row.learned} ({row.learned_interval}), changed {row.changed} "
             f"({row.changed_interval}), {row.label}" for row in view.rows}

    def named(link: re.Match[str]) -> str:
        text = escape(texts.get(link[1].replace("&amp;", "&"), ""))
        return f'<a class="point" href="{link[1]}" aria-label="{text}"><title>{text}</title>'

    charts = tuple((css, Markup(re.sub(r'<a href="([^"]*)"[^>]*>', named, with_attributes(str(svg)))
                                .replace('role="img"', 'role="group"', 1))) for css, svg in view.figure.charts)
    return replace(view, figure=ChartView(charts, view.figure.caption, view.figure.key))


def live_study(context: ViewContext, name: str) -> str:
    """The grid of a study, as a part of its page."""
    with context.ledgers.read() as ledger:
        return context.page("study_live.html", study=study_view(ledger, name), kinds=KINDS)


def live_studies(context: ViewContext, _: str) -> str:
    """The list of studies, as a part of its page."""
    with context.ledgers.read() as ledger:
        return context.page("studies_live.html", studies=_all_studies(ledger))


LIVE_PARTS = {"study": live_study, "studies": live_studies}
ROUTES = [Route("/studies", studies), Route("/study/{id}", study_page)]
NAVIGATION = NavigationLink("Studies", "/studies", 40, also="/study")
