"""The view in a real browser: a prompt for both models and a document to audit, from the form to the answer, also for
those who see or use the page in another way."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aftertune.ledger import Ledger
from aftertune.view.both_models import BothModels
from aftertune.view.pages.ask import MODELS
from browser_cases import Watched, accessibility_faults, chromium, server
from source_cases import tiny_adapter, tiny_llama
from test_view_audit import RECORD
from view_cases import demo_ledger

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A view that was started with a base and its adapter."""
    folder = tmp_path_factory.mktemp("forms")
    tiny_llama(folder / "base")
    tiny_adapter(folder / "base", folder / "adapter")
    path = demo_ledger(folder / "ledger.db")
    with Ledger(path) as ledger:
        models = BothModels.find([str(folder / "base"), str(folder / "adapter")], ledger)
    with server(path, {MODELS: models}) as where:
        yield where


@pytest.fixture(params=["light", "dark"])
def watched(browser: Any, address: str, request: pytest.FixtureRequest) -> Iterator[Watched]:
    view = Watched(browser, address, color_scheme=request.param)
    yield view
    view.close()
    assert view.faults == []


def fits(page: Any) -> bool:
    """Whether nothing is wider than the page, at three widths."""
    return all(page.set_viewport_size({"width": width, "height": 900}) or
               page.evaluate("document.documentElement.scrollWidth <= innerWidth") for width in (390, 900, 1440))


def test_a_prompt_goes_to_both_models(watched: Watched) -> None:
    page = watched.open("/")
    page.click("nav >> text=Both models")
    assert accessibility_faults(page) == []
    page.fill("[name=prompt]", "w1 w2 w3 </textarea><img src=x onerror=alert(1)>")
    page.fill("[name=tokens]", "8")
    page.click("button:text-is('Ask')")
    page.wait_for_selector(".pair section:nth-child(2) pre")
    assert [page.inner_text(f".pair section:nth-child({n}) h2") for n in (1, 2)] == ["base", "adapter"]
    assert page.locator(".pair mark").count() > 0
    assert page.inner_text(".pair section p").startswith("cut off after 8 tokens")
    assert page.input_value("[name=prompt]").startswith("w1 w2 w3 </textarea>")
    assert accessibility_faults(page) == []
    assert fits(page)


def test_a_file_is_audited_and_its_figures_are_walked_through(watched: Watched, tmp_path: Path) -> None:
    (tmp_path / "record.md").write_text(RECORD, encoding="utf-8")
    page = watched.open("/audit")
    page.set_input_files("#document-file", tmp_path / "record.md")
    page.locator("#file-note", has_text="record.md is in the field below.").wait_for()
    page.click("button:text-is('Audit')")
    page.wait_for_selector(".audited")
    assert [" ".join(m.inner_text().split()) for m in page.locator("mark.found").all()] == [
        "6.07% (possible)", "26.30% (impossible)", "33.51% (established)"]
    assert "<script>alert(1)</script>" in page.inner_text(".audited")
    page.keyboard.press("j")
    page.keyboard.press("j")
    assert "26.30%" in page.inner_text(".current")
    assert accessibility_faults(page) == []
    assert fits(page)
