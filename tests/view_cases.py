"""A ledger with the demo's answers in small, and a client for the view's pages, for the tests of the view."""

from __future__ import annotations

from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from starlette.testclient import TestClient

from aftertune.comparison import compare
from aftertune.ledger import Ledger
from aftertune.view.app import make_app
from aftertune.view.guard import CSRF, Access
from aftertune.view.ledgers import LedgerSource
from demo_cases import demo_evaluations
from report_cases import TUNINGS

HOST = "127.0.0.1:7788"
ORIGIN = f"http://{HOST}"


def demo_ledger(path: Path) -> Path:
    """A ledger with smollm2, careful and careless, both compared with the base on some tasks, and two fine-tunes."""
    path.write_bytes(_demo_content())
    return path


@cache
def _demo_content() -> bytes:
    """The file of such a ledger, which is made once."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.db"
        with Ledger(path) as ledger:
            base, *tuned = demo_evaluations(ledger)
            for side in tuned:
                compare(base, side, ledger=ledger, tasks=["hellaswag", "orders"])
            for tuning in TUNINGS:
                ledger.save_tuning(tuning)
        return path.read_bytes()


def client(path: Path, *, access: Access | None = None, settings: dict[str, Any] | None = None) -> TestClient:
    """A browser without scripts, at the address of the view. Its changes have an origin."""
    app = make_app(LedgerSource(path), access or Access(hosts=frozenset({HOST})), settings)
    return TestClient(app, base_url=ORIGIN, raise_server_exceptions=True)


def csrf_of(browser: TestClient, path: str = "/entry/e-careful") -> str:
    """The secret of the forms of a page."""
    return next(v["value"] for tag, v in tags(browser.get(path).text) if tag == "input" and v.get("name") == CSRF)


def post(browser: TestClient, path: str, **fields: str) -> Any:
    """Send a form as a page of the view does."""
    return browser.post(path, data={CSRF: csrf_of(browser), **fields}, headers={"origin": ORIGIN},
                        follow_redirects=False)


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {k: v or "" for k, v in attrs}))


def tags(html: str) -> list[tuple[str, dict[str, str]]]:
    """Every element of a page with its attributes."""
    parser = _Tags()
    parser.feed(html)
    return parser.found
