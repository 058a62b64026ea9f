"""A real browser in front of the view, for tests: the server runs in a thread, Chromium through playwright.

A person without a browser gets a skip that says what to install; in CI (the variable CI is set) that is a failure.
"""

from __future__ import annotations

import os
import shutil
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from aftertune.view.app import make_app
from aftertune.view.guard import Access
from aftertune.view.ledgers import LedgerSource
from aftertune.view.server import allowed_hosts

#: axe-core from the npm registry, which `make browser` puts here.
AXE = Path(__file__).parents[1] / ".browser" / "package" / "axe.min.js"
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@contextmanager
def server(path: Path, settings: Mapping[str, Any] | None = None) -> Iterator[str]:
    """The address of a view of a ledger. settings: of single pages."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    port = listener.getsockname()[1]
    source = LedgerSource(path)
    app = make_app(source, Access(hosts=allowed_hosts("127.0.0.1", port)), settings)
    running = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=lambda: running.run(sockets=[listener]), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{port}"
    running.should_exit = True
    thread.join(20)
    source.close()


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser of playwright."""
    found = next((path for name in _NAMES if (path := shutil.which(name))), None)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        found = None
    if found is None:
        text = "tests in a browser need playwright and Chromium: pip install playwright, apt-get install chromium"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(text)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


class Watched:
    """A page whose faults are collected: messages of the console, errors of scripts, dialogs, and requests that leave.
    """

    def __init__(self, browser: Any, address: str, **options: Any) -> None:
        self.address = address
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        self.page = self.context.new_page()
        self.faults: list[str] = []
        self.page.on("console", lambda m: self.faults.append(m.text) if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda e: self.faults.append(f"script: {e}"))
        self.page.on("dialog", lambda d: (self.faults.append(f"dialog: {d.message}"), d.dismiss()))
        self.page.on("request", lambda r: None if r.url.startswith((address, "data:")) else
                     self.faults.append(f"request: {r.url}"))

    def open(self, path: str) -> Any:
        """Load a page and wait until it is quiet."""
        self.page.goto(self.address + path, wait_until="networkidle")
        return self.page

    def close(self) -> None:
        """Close it."""
        self.context.close()


def accessibility_faults(page: Any) -> list[str]:
    """The serious and critical faults that axe-core finds on a page, each with its first element."""
    if not AXE.is_file():
        (pytest.fail if os.environ.get("CI") else pytest.skip)("tests of accessibility need axe-core: make browser")
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate("axe.run(document, {preload: false, resultTypes: ['violations']}).then(r => r.violations)")
    return [f"{v['id']}: {v['help']}: {v['nodes'][0]['html'][:200]}" for v in found
            if v["impact"] in ("serious", "critical")]
