"""The address that browsers listen to for parts of pages that change: `/live?part=running&part=tuning:ID`.

A page says what it can send in ``LIVE_PARTS``: the name of a part, and a function that makes it from the context and
what follows the colon. In the page, the part is an element with ``data-live="running"``; static/live.js does the rest.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from functools import cache
from threading import Lock

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from aftertune import bounds
from aftertune.errors import InputError, nearest, shown
from aftertune.ledger.changes import changes_of
from aftertune.view.guard import Refusal
from aftertune.view.live import LiveHub
from aftertune.view.rendering import ViewContext, context_of

#: (context, what follows the colon) -> the markup of a part, one element.
LivePart = Callable[[ViewContext, str], str]
#: Names of what the server and these pages keep in the settings of the context.
HUB, STOPPING = "live hub", "stopping"
_HUBS = Lock()


@cache
def live_parts() -> dict[str, LivePart]:
    """The parts of all pages by name."""
    from aftertune.view.app import page_modules

    return {name: make for module in page_modules() for name, make in getattr(module, "LIVE_PARTS", {}).items()}


async def live(request: Request) -> Response:
    """Server-sent events; they end when the browser leaves or the server stops."""
    parts = tuple(dict.fromkeys(request.query_params.getlist("part")))
    if not 0 < len(parts) <= bounds.VIEW_PARTS:
        raise InputError(f"{len(parts)} parts are asked for; from 1 to {bounds.VIEW_PARTS} are allowed")
    for part in parts:
        name = part.partition(":")[0]
        if name not in live_parts():
            raise InputError(f"no part {shown(name)}{nearest(name, list(live_parts()))}")
    hub = _hub(context_of(request))
    if hub.full:
        raise Refusal(503, f"{bounds.VIEW_LISTENERS} browsers listen already; close one, or load the page again to see "
                           "what is new")
    if request.method == "HEAD":
        return Response(media_type="text/event-stream")
    events: AsyncIterator[str] = hub.events(parts)
    return StreamingResponse(events, media_type="text/event-stream",
                             headers={"cache-control": "no-store", "x-accel-buffering": "no"})


def _hub(context: ViewContext) -> LiveHub:
    """The poller of this server."""
    with _HUBS:
        hub = context.settings.get(HUB)
        if not isinstance(hub, LiveHub):
            def render(part: str) -> str:
                name, _, rest = part.partition(":")
                return live_parts()[name](context, rest)

            hub = context.settings[HUB] = LiveHub(changes_of(context.ledgers.place), render,
                                                  context.settings.get(STOPPING, lambda: False))
        return hub


ROUTES = [Route("/live", live)]
