"""A real server of the view in a thread, and a reader of what it sends, for the tests of what changes while it is
looked at."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from aftertune.view.app import make_app
from aftertune.view.guard import Access
from aftertune.view.ledgers import LedgerSource
from aftertune.view.pages.live import STOPPING


@contextmanager
def serving(path: Path) -> Iterator[str]:
    """The address of a server for a ledger; at the end it is asked to stop, and must."""
    servers: list[uvicorn.Server] = []
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    host = f"127.0.0.1:{listener.getsockname()[1]}"
    app = make_app(LedgerSource(path), Access(hosts=frozenset({host})),
                   {STOPPING: lambda: any(s.should_exit for s in servers)})
    servers.append(uvicorn.Server(uvicorn.Config(app, lifespan="off", log_level="warning",
                                                 timeout_graceful_shutdown=20)))
    thread = threading.Thread(target=servers[0].run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not servers[0].started:
        time.sleep(0.01)
    try:
        yield f"http://{host}"
    finally:
        servers[0].should_exit = True
        thread.join(60)
        assert not thread.is_alive(), "the server does not stop"


@contextmanager
def events(address: str, *parts: str) -> Iterator[Iterator[tuple[str, dict[str, Any]]]]:
    """(name, data) of each event as it comes; a line that only keeps the connection open is ("", {})."""
    with httpx.Client(timeout=60) as browser, browser.stream(
            "GET", f"{address}/live", params=[("part", p) for p in parts]) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield _read(answer.iter_lines())


def _read(lines: Iterator[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    name = ""
    for line in lines:
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))
        elif line.startswith(":"):
            yield "", {}
