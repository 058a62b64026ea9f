"""The page of audits: a pasted document with its figures marked, and the imported ones."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from urllib.parse import quote

import pytest
from starlette.testclient import TestClient

from aftertune import bounds
from aftertune.exchange import audit_document, import_results, mark_figures, mark_lines, parse_record
from aftertune.ledger import Ledger
from view_cases import ORIGIN, client, csrf_of, demo_ledger, post, tags

RECORD = """\
# Results

## Base model

| Task | n | Metric | Value | Stderr |
|---|---|---|---|---|
| gsm8k | 1319 | exact_match | 6.07% | ±0.66% |
| piqa | 100 | acc | 26.30% | ±4.40% |

## Tuned <script>alert(1)</script>

| Task | n | Metric | Value | Stderr |
|---|---|---|---|---|
| gsm8k | 1319 | exact_match | 33.51% | ±1.30% |
"""


@pytest.fixture
def ledger_path(tmp_path: Path) -> Path:
    return demo_ledger(tmp_path / "ledger.db")


@pytest.fixture
def browser(ledger_path: Path) -> TestClient:
    return client(ledger_path)


def marked(page: str) -> list[tuple[str, str]]:
    """(figure, kind) of each mark in the document."""
    return [(text, kind) for kind, text in re.findall(r'<mark class="found (\w+)">([^<]+)<span', page)]


def test_each_figure_is_marked_where_it_stands_with_the_reason_beside_it(browser: TestClient) -> None:
    page = post(browser, "/audit", document=RECORD)
    assert page.status_code == 200
    assert marked(page.text) == [("6.07%", "possible"), ("26.30%", "impossible"), ("33.51%", "established")]
    assert "not reproducible as k/n at the stated n=100" in page.text
    assert "significant at every pairing" in page.text
    assert 'id="line-8" data-row' in page.text
    assert page.headers["cache-control"] == "no-store"


def test_nothing_of_the_text_is_markup_and_nothing_is_stored(browser: TestClient, ledger_path: Path) -> None:
    before = hashlib.sha256(ledger_path.read_bytes()).hexdigest()
    page = post(browser, "/audit", document=RECORD).text
    assert "alert(1)" in page
    assert not [v for tag, v in tags(page) if tag == "script" and "src" not in v]
    assert hashlib.sha256(ledger_path.read_bytes()).hexdigest() == before


@pytest.mark.parametrize("text", ["", "   ", "no table here", "/etc/passwd", "| a |\n|---|\n| b |"])
def test_a_text_without_scores_is_one_line_and_stays_in_the_field(browser: TestClient, text: str) -> None:
    page = post(browser, "/audit", document=text)
    assert page.status_code == 400
    assert page.text.count('role="alert"') == 1
    assert "root:" not in page.text


def test_the_size_of_a_document_is_bounded(browser: TestClient) -> None:
    fits = post(browser, "/audit", document=RECORD + "x " * (bounds.VIEW_BODY // 2))
    assert fits.status_code == 200
    page = post(browser, "/audit", document="x" * bounds.VIEW_DOCUMENT)
    assert page.status_code == 413
    assert f"{bounds.VIEW_DOCUMENT:,} bytes" in page.text
    other = post(browser, "/entry/e-careful/note", note="x" * bounds.VIEW_BODY)
    assert other.status_code == 413


def test_a_document_needs_the_secret_of_the_page(browser: TestClient) -> None:
    answer = browser.post("/audit", data={"document": RECORD}, headers={"origin": ORIGIN})
    assert answer.status_code == 403
    assert csrf_of(browser, "/audit")


def test_imported_documents_are_listed_and_audited(tmp_path: Path, ledger_path: Path) -> None:
    record = tmp_path / "record <b>.md"
    record.write_text(RECORD, encoding="utf-8")
    with Ledger(ledger_path) as ledger:
        import_results(record, ledger=ledger)
    browser = client(ledger_path)
    page = browser.get("/audit").text
    assert "3 figures of 2 models" in page
    assert f"/audit?source={quote(record.name, safe='').replace('%20', '+')}" in page
    page = browser.get("/audit", params={"source": record.name}).text
    assert "not reproducible as k/n at the stated n=100" in page
    assert "established: significant at every pairing" in page
    assert browser.get("/audit?source=other.md").status_code == 404


def test_lines_joined_are_the_document_and_a_percent_sign_may_stand_elsewhere() -> None:
    text = "| Model | HellaSwag | MMLU |\r\n|---|---|---|\r\n| base | 43.50 | 24.88 |\r\n| tuned | 43.50 | 3.50 |\r\n"
    marks = mark_figures(audit_document(parse_record(text, "record.md")))
    lines = mark_lines(text, marks)
    assert "\n".join("".join(part for part, _ in line.parts) for line in lines) == text.replace("\r\n", "\n")
    assert [[part for part, kind in line.parts if kind] for line in lines] == [
        [], [], ["43.50", "24.88"], ["43.50", "3.50"], []]
