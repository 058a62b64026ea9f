"""Sends parts of pages to browsers when the ledger changes: one poller for the server, shared by all browsers.

    hub = LiveHub(changes, render=lambda part: "<section …>")
    async for event in hub.events(("running", "tuning:t-93…")): …        server-sent events, until the server stops

A part is a piece of a page with a name, such as "running" or "tuning:ID". The poller looks at the ledger once a second
while anyone listens. After a change it makes each part that is listened to once, and sends it to all who listen if its
text differs. Parts are also made again every few seconds, because a process that was killed changes nothing. A ledger
that cannot be read is one line, sent once; the next good look ends it. So is a part that cannot be made, for those who
listen to it; the other parts go on.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Set
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

from aftertune import bounds
from aftertune.errors import AftertuneError, InputError, one_line
from aftertune.redaction import public_text

#: Seconds between two looks at the ledger, and the most of the time that looks may take.
INTERVAL, SHARE = 1.0, 0.1
#: Seconds after which parts are made again without a change.
AGAIN = 5.0
#: Seconds without an event after which an empty line is sent, so that a connection that is gone is noticed.
HEARTBEAT = 15.0
#: Seconds between two looks whether the server stops.
_STEP = 0.2


class ChangeCount(Protocol):
    """Notices changes of a ledger (`aftertune.ledger.changes.changes_of`)."""

    def happened(self) -> bool: ...

    def close(self) -> None: ...


@dataclass(eq=False, slots=True)
class _Client:
    """A browser that listens. seen: part -> the number of its text that was sent last."""

    parts: tuple[str, ...]
    news: asyncio.Event = field(default_factory=asyncio.Event)
    seen: dict[str, int] = field(default_factory=dict)
    trouble: str = ""


class LiveHub:
    """Who listens, and what was sent. render: makes the text of a part; stopping: whether the server is stopping."""

    def __init__(self, changes: ChangeCount, render: Callable[[str], str],
                 stopping: Callable[[], bool] = lambda: False) -> None:
        self.changes, self.render, self.stopping = changes, render, stopping
        self.trouble = ""
        self._clients: set[_Client] = set()
        self._texts: dict[str, tuple[int, str]] = {}
        self._faults: dict[str, str] = {}  # part -> why it cannot be made
        self._made = 0.0
        self._poller: asyncio.Task[None] | None = None

    @property
    def full(self) -> bool:
        """Whether no further browser may listen."""
        return len(self._clients) >= bounds.VIEW_LISTENERS

    async def events(self, parts: Collection[str]) -> AsyncIterator[str]:
        """Server-sent events: "part" with the name and the text of a part, "trouble" with a line ("" when it ends)."""
        client = _Client(tuple(parts))
        if self.full:
            return
        self._clients.add(client)
        try:
            if self._poller is None or self._poller.done():
                self._poller = asyncio.get_running_loop().create_task(self._poll())
            yield "retry: 3000\n\n"
            sent = time.monotonic()
            while not self.stopping():
                with suppress(TimeoutError):
                    await asyncio.wait_for(client.news.wait(), HEARTBEAT)
                client.news.clear()
                events = self._news(client)
                if not events and time.monotonic() - sent >= HEARTBEAT:
                    events = [": still here\n\n"]
                for event in events:
                    sent = time.monotonic()
                    yield event
        finally:
            self._clients.discard(client)

    def _news(self, client: _Client) -> list[str]:
        """The events that a browser has not got yet."""
        events = []
        trouble = self.trouble or "; ".join(dict.fromkeys(f for p in client.parts if (f := self._faults.get(p))))
        if client.trouble != trouble:
            client.trouble = trouble
            events.append(_event("trouble", {"text": trouble}))
        for part in client.parts:
            number, text = self._texts.get(part, (0, ""))
            if client.seen.get(part, 0) != number:
                client.seen[part] = number
                events.append(_event("part", {"part": part, "html": text}))
        return events

    async def _poll(self) -> None:
        """Look at the ledger until nobody listens or the server stops."""
        try:
            while self._clients and not self.stopping():
                begun = time.monotonic()
                wanted = {part for client in self._clients for part in client.parts}
                await asyncio.to_thread(self._look, wanted)
                for client in self._clients:
                    client.news.set()
                pause = begun + max(INTERVAL, (time.monotonic() - begun) / SHARE) - time.monotonic()
                while pause > 0 and self._clients and not self.stopping():
                    await asyncio.sleep(min(pause, _STEP))
                    pause -= _STEP
        finally:
            for client in self._clients:  # they see that the server stops, or a new browser starts the poller again
                client.news.set()
            self._texts.clear()
            self._faults.clear()
            self.changes.close()

    def _look(self, wanted: Set[str]) -> None:
        """Make the parts again, if the ledger has changed, or if some are new or old."""
        try:
            changed = self.changes.happened()
        except AftertuneError as error:
            self.trouble = public_text(one_line(str(error)))
            return
        now = time.monotonic()
        again = changed or bool(self.trouble) or now - self._made >= AGAIN
        self.trouble = ""
        if again:
            self._made = now
        for part in (self._texts.keys() | self._faults.keys()) - wanted:  # else who asks for it later first gets what
            self._texts.pop(part, None)                                   # it was
            self._faults.pop(part, None)
        for part in wanted if again else wanted - (self._texts.keys() - self._faults.keys()):
            self._make(part)

    def _make(self, part: str) -> None:
        """Make one part; why it cannot be made is its own line, and does not keep the others from being made."""
        number, before = self._texts.get(part, (0, ""))
        self._faults.pop(part, None)
        try:
            text = self.render(part)
        except InputError:  # its entry was removed; the page stays as it was
            return
        except AftertuneError as error:
            self._faults[part] = public_text(one_line(str(error)))
            return
        except Exception as error:
            self._faults[part] = (f"what is new in {part.partition(':')[0]} cannot be shown ({type(error).__name__}); "
                                  "load the page again")
            return
        if text != before:
            self._texts[part] = number + 1, text


def _event(name: str, value: Mapping[str, str]) -> str:
    return f"event: {name}\ndata: {json.dumps(value)}\n\n"
