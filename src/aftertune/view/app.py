"""Puts the pages, the static files and the guard together.

    app = make_app(LedgerSource(path), Access(hosts=frozenset({"127.0.0.1:7788"})))
    uvicorn.run(app)

Every module of `aftertune.view.pages` is a page; README.md beside this file says what it has.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import Receive, Scope, Send

from aftertune.errors import AftertuneError
from aftertune.report.charts.svg import sheet
from aftertune.view import pages
from aftertune.view.guard import Access, Guard
from aftertune.view.ledgers import LedgerSource
from aftertune.view.rendering import CONTEXT, NavigationLink, ViewContext, context_of

#: The pages that a person opens first.
_FIRST_PAGES = ("/", "/runs")


@cache
def page_modules() -> tuple[ModuleType, ...]:
    """Every module of pages."""
    return tuple(import_module(f"{pages.__name__}.{found.name}") for found in iter_modules(pages.__path__))


def make_context(ledgers: LedgerSource, access: Access, settings: Mapping[str, Any] | None = None) -> ViewContext:
    """What the pages share, with the navigation that their modules give. settings: of single pages."""
    links = (getattr(module, "NAVIGATION", None) for module in page_modules())
    navigation = sorted((link for link in links if isinstance(link, NavigationLink)
                         and (not link.needs or link.needs in (settings or {}))), key=lambda link: link.order)
    return ViewContext(ledgers, access, tuple(navigation), settings=dict(settings or {}))


def make_app(ledgers: LedgerSource, access: Access, settings: Mapping[str, Any] | None = None, *,
             ready: bool = False) -> Guard:
    """The ASGI application: the pages behind the guard. ready: load everything now that a first request would load."""
    context = make_context(ledgers, access, settings)
    if ready:
        _make_ready(context)
    routes = [Route("/static/{name:path}", _static_file),
              *(route for module in page_modules() for route in module.ROUTES)]
    router = Router(routes=routes, redirect_slashes=False)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"], scope[CONTEXT] = router, context  # "app": then a missing page is an exception for the guard
        await router(scope, receive, send)

    def error_page(status: int, title: str, text: str) -> str:
        return context.page("error.html", title=title, status=status, text=text, part="")

    bodies = {path: most for module in page_modules() for path, most in getattr(module, "BODIES", {}).items()}
    return Guard(app, access, error_page, bodies)


def _make_ready(context: ViewContext) -> None:
    """Compile the templates, import what draws charts, and make the pages that a person opens first, for their queries.

    A page that fails is left to the request for it, which says why.
    """
    for name in context.environment.list_templates(filter_func=lambda n: n.endswith(".html") and "/" not in n):
        context.environment.get_template(name)
    with sheet("ready", 10, 10):  # imports matplotlib
        pass
    endpoints = {route.path: route.endpoint for module in page_modules() for route in module.ROUTES}
    for path in _FIRST_PAGES:
        with suppress(AftertuneError):
            endpoints[path](Request({"type": "http", "method": "GET", "path": path, "query_string": b"", "headers": [],
                                     CONTEXT: context}))


def _static_file(request: Request) -> Response:
    """The endpoint of static files."""
    file = context_of(request).files.get(request.path_params["name"])
    if file is None:
        raise HTTPException(404)
    kept = "public, max-age=31536000, immutable" if request.query_params.get("v") == file.version else "no-cache"
    return Response(file.content, media_type=file.media_type, headers={"cache-control": kept})
