"""The view in a real browser: accessibility of every page, the pages that open from disk, the frame of a notebook."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import aftertune
from aftertune.ledger import Ledger
from aftertune.view.app import make_context
from aftertune.view.guard import Access
from aftertune.view.ledgers import LedgerSource
from aftertune.view.static_site import write_static_site
from browser_cases import Watched, accessibility_faults, chromium, server
from test_view_browser import ITEMS, PAGES, hostile_ledger
from view_cases import demo_ledger

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo_ledger(tmp_path_factory.mktemp("browser") / "ledger.db")


@pytest.fixture(scope="module")
def site(ledger: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages of the demo's comparisons."""
    folder = tmp_path_factory.mktemp("site") / "pages"
    with Ledger(ledger, read_only=True) as stored:
        write_static_site(stored, folder, stored.comparisons())
    return folder


@pytest.fixture
def from_disk(browser: Any, site: Path) -> Iterator[Watched]:
    """A page that may ask for nothing but the files of the site."""
    page = Watched(browser, site.as_uri())
    yield page
    page.close()
    assert page.faults == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_fault(browser: Any, ledger: Path, scheme: str) -> None:
    navigation = [link.path for link in make_context(LedgerSource(ledger), Access(hosts=frozenset())).navigation]
    with Ledger(ledger, read_only=True) as stored:
        more = [f"/entry/{stored.tunings()[0].id}", f"/entry/{stored.comparisons()[0].id}",
                "/compare/e-smollm2/e-careless?task=hellaswag&show=lost&item=hellaswag:0"]
    faults: dict[str, list[str]] = {}
    with server(ledger) as address:
        view = Watched(browser, address, color_scheme=scheme)
        for path in dict.fromkeys((*PAGES, *navigation, *more)):
            if found := accessibility_faults(view.open(path)):
                faults[path] = found
        view.close()
    assert not faults, "\n".join(f"{path}: {line}" for path, lines in faults.items() for line in lines)


def test_from_disk_to_a_lost_question_to_the_next_and_back(from_disk: Watched) -> None:
    page = from_disk.open("/index.html")
    assert accessibility_faults(page) == []
    page.click("article.summary h3 a")
    assert accessibility_faults(page) == []
    page.click("p.tasks-bar a[data-open]")
    page.wait_for_selector(".items-list li")
    assert accessibility_faults(page) == []
    lost = page.inner_text(".tasks-bar a")
    assert lost.startswith("lost ")
    assert page.locator(".items-list li").count() == min(50, int(lost[5:]))
    page.click(".items-list a[data-open]")
    page.wait_for_selector(".pager.between")
    assert accessibility_faults(page) == []
    assert "1 of " in page.inner_text(".pager.between")
    page.keyboard.press("n")
    page.locator(".pager.between", has_text="2 of ").wait_for()
    page.go_back()
    page.locator(".pager.between", has_text="1 of ").wait_for()
    page.go_back()
    page.wait_for_selector("#filters")
    address = page.url
    page.reload()
    page.wait_for_selector(".items-list li")
    assert page.url == address


def test_a_search_and_the_brush_choose_items_without_a_server(from_disk: Watched) -> None:
    page = from_disk.open("/index.html")
    page.click("article.summary h3 a")
    page.click("p.tasks-bar a[data-open] >> text=HellaSwag")
    page.wait_for_selector("#scatter canvas")
    page.click(".tasks-bar a:last-child")
    page.locator(".tasks-bar a:last-child[aria-current=true]").wait_for()
    everything = page.inner_text(".pickbar span")
    page.wait_for_selector("#scatter .u-over")
    box = page.locator("#scatter .u-over").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.3, box["y"] + box["height"] * 0.3)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.7, box["y"] + box["height"] * 0.7, steps=5)
    page.mouse.up()
    page.wait_for_url(re.compile("bmin="))
    page.locator(f".pickbar span:not(:text-is({everything!r}))").wait_for()
    page.click("text=Clear")
    page.locator(".pickbar span", has_text=everything).wait_for()
    page.fill("[data-search]", "no item has these words")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=No item fits")
    with page.expect_download() as downloaded:
        page.click("text=Show all")
        page.click("text=JSONL")
    assert len(Path(downloaded.value.path()).read_text(encoding="utf-8").splitlines()) == int(everything.split()[0])


@pytest.mark.parametrize("width", [390, 800, 1440])
def test_the_pages_from_disk_fit_their_width(browser: Any, site: Path, width: int) -> None:
    view = Watched(browser, site.as_uri(), viewport={"width": width, "height": 900}, color_scheme="dark")
    for path in sorted(p.name for p in site.glob("*.html")):
        page = view.open(f"/{path}")
        if "items" in path:
            page.wait_for_selector("#explorer[data-ready]")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path
    view.close()
    assert view.faults == []


def test_a_data_file_that_is_missing_is_said(browser: Any, ledger: Path, tmp_path: Path) -> None:
    with Ledger(ledger, read_only=True) as stored:
        write_static_site(stored, tmp_path / "site", stored.comparisons()[:1])
    for path in (tmp_path / "site" / "data").iterdir():
        path.unlink()
    view = Watched(browser, (tmp_path / "site").as_uri())
    page = view.open(f"/{next((tmp_path / 'site').glob('*-items.html')).name}")
    page.wait_for_selector("#explorer [role=alert]")
    assert "is missing beside this page" in page.inner_text("#explorer [role=alert]")
    view.close()


def test_a_notebook_shows_the_items_in_its_frame(browser: Any, ledger: Path, tmp_path: Path) -> None:
    with Ledger(ledger, read_only=True) as stored:
        shown = aftertune.view(stored.comparisons()[0], ledger=stored)
    (tmp_path / "cell.html").write_text(f"<!DOCTYPE html><title>x</title>{shown._repr_html_()}", encoding="utf-8")
    view = Watched(browser, tmp_path.as_uri())
    frame = view.open("/cell.html").frame_locator("iframe")
    frame.locator(".tasks-bar a:last-child").click()
    assert frame.locator(".items-list li").nth(1).is_visible()
    frame.locator(".items-list a[data-open]").first.click()
    frame.locator(".pager.between").wait_for()
    view.close()
    assert view.faults == []


def test_foreign_texts_are_never_run_without_a_server(browser: Any, tmp_path: Path) -> None:
    path, _ = hostile_ledger(tmp_path / "ledger.db")
    with Ledger(path, read_only=True) as stored:
        write_static_site(stored, tmp_path / "site", stored.comparisons())
    view = Watched(browser, (tmp_path / "site").as_uri())
    for name in sorted(p.name for p in (tmp_path / "site").glob("*.html")):
        page = view.open(f"/{name}")
        if "items" in name:
            for task in ("choose", "write <b>"):
                page.goto(f"{page.url.partition('#')[0]}#task={task}&show=all")
                page.wait_for_selector(".items-list li")
                for index in range(ITEMS):
                    page.evaluate(f"location.hash = 'task={task}&show=all&item={task}:{index}'")
                    page.wait_for_selector(".pager.between")
                    assert page.locator("main img, main style, main iframe, main object, main base").count() == 0
    view.close()
    assert view.faults == []
