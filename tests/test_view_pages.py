"""The pages of the view: overview, runs, comparison and entry."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from aftertune.comparison import compare
from aftertune.ledger import EntryLabel, EntryQuery, Ledger
from aftertune.values import Asked, Overlap, Provenance
from aftertune.view.app import make_app
from aftertune.view.guard import Access
from aftertune.view.ledgers import LedgerSource
from aftertune.view.links import question_path
from aftertune.view.pages import comparison as comparison_module
from aftertune.view.static_site import write_static_site
from early_cases import STRANGER, changed, store
from view_cases import HOST, ORIGIN, client, demo_ledger, tags

XSS = ('<img src=x onerror=alert(1)>', '"><script>alert(1)</script>', "'onmouseover='alert(1)", "{{7*7}}",
       "javascript:alert(1)", "</textarea><svg onload=alert(1)>", "\u202e<b>")


@pytest.fixture(scope="module")
def ledger_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = demo_ledger(tmp_path_factory.mktemp("view") / "ledger.db")
    with Ledger(path) as ledger:
        base, tuned = changed(40, 0.5, 3, 2)
        store(ledger, "other", STRANGER, {"hellaswag": tuned, "own": base})
        ledger.save_label("e-careless", EntryLabel(tags=("paper",), note="seed 0"))
    return path


@pytest.fixture
def browser(ledger_path: Path) -> TestClient:
    return client(ledger_path)


def links(html: str) -> list[str]:
    return [v["href"] for tag, v in tags(html) if tag == "a" and "href" in v]


def test_the_overview_has_the_headline_of_each_comparison(browser: TestClient) -> None:
    page = browser.get("/").text
    assert "careless <span class=\"against\">against</span> smollm2" in page
    assert "No process works on this ledger" in page
    assert page.index("careless <span") < page.index("careful <span")  # the newest first
    for link in links(page):
        assert browser.get(link, follow_redirects=True).status_code == 200, link


def test_a_server_that_is_ready_has_loaded_what_the_first_request_needs(
        ledger_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def late(*_: object, **__: object) -> None:
        raise AssertionError("a template is compiled while a person waits")

    app = make_app(LedgerSource(ledger_path), Access(hosts=frozenset({HOST})), ready=True)
    make_app(LedgerSource(tmp_path / "absent.db"), Access(hosts=frozenset({HOST})), ready=True)  # its page says why
    monkeypatch.setattr("jinja2.Environment.compile", late)
    browser = TestClient(app, base_url=ORIGIN)
    assert browser.get("/").status_code == 200
    assert browser.get("/runs").status_code == 200
    assert browser.get("/audit").status_code == 200
    assert "matplotlib.figure" in sys.modules


def test_an_empty_ledger_says_what_to_do(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.db"):
        pass
    browser = client(tmp_path / "ledger.db")
    assert "aftertune eval MODEL" in browser.get("/").text
    assert "No entry fits" in browser.get("/runs").text


def test_runs_are_filtered_sorted_and_searched(browser: TestClient) -> None:
    def names(query: str) -> list[str]:
        page = browser.get(f"/runs?{query}")
        assert page.status_code == 200
        return [v["href"] for tag, v in tags(page.text) if tag == "a" and "data-open" in v]

    assert len(names("")) == 8
    assert names("kind=evaluation&sort=name") == [f"/entry/e-{n}" for n in ("careful", "careless", "other", "smollm2")]
    assert names("kind=evaluation&sort=name&order=desc")[0] == "/entry/e-smollm2"
    assert names("tag=paper") == ["/entry/e-careless"]
    assert names("task=own") == ["/entry/e-other"]
    assert names("q=SEED+careless") == ["/entry/e-careless"]
    assert names("q=nothing+like+this") == []
    assert set(names("kind=tuning")) == {"/entry/t-careful001", "/entry/t-careless01"}
    assert names("base=other&kind=evaluation") == ["/entry/e-other"]
    for query in ("kind=x", "sort=x", "order=x", "page=0", "page=x", "status=x", "archived=2"):
        assert browser.get(f"/runs?{query}").status_code == 404


def test_pages_of_a_list_have_all_rows_once(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.db") as ledger:
        values, _ = changed(2, 0.5, 0, 0)
        for number in range(60):
            store(ledger, f"run-{number:03}", replace(STRANGER, weights=f"w{number}"), {"hellaswag": values})
        rows = [r.id for page in range(3) for r in ledger.entry_page(
            EntryQuery(sort="name", descending=False, limit=25, offset=25 * page)).rows]
    assert rows == [f"e-run-{number:03}" for number in range(60)]
    browser = client(tmp_path / "ledger.db")
    page = browser.get("/runs?sort=name&page=2").text
    assert "page 2 of 2" in page
    assert "/runs?sort=name" in links(page)
    assert "/runs?sort=name&page=1" not in links(page)


@pytest.mark.parametrize("path", ["/", "/runs", "/tunings", "/grid",
                                  "/compare/smollm2/careless?task=hellaswag&show=all"])
def test_a_page_after_the_last_one_says_so(browser: TestClient, path: str) -> None:
    page = browser.get(f"{path}{'&' if '?' in path else '?'}page=70").text
    assert re.search(r"There is no page 70; the list has \d+ pages?\.", page)
    back = re.search(r'\. <a href="([^"]*)">(?:The last page|Show it)<', page)
    assert back is not None
    assert "There is no page" not in browser.get(back[1].replace("&amp;", "&")).text
    assert "page 70 of" not in page


def test_two_runs_are_compared_with_the_base_first(browser: TestClient) -> None:
    for first, second in (("e-smollm2", "e-careful"), ("e-careful", "e-smollm2")):
        answer = browser.get(f"/compare?pick={first}&pick={second}", follow_redirects=False)
        assert answer.headers["location"] == "/compare/e-smollm2/e-careful"
    assert "can be compared" in browser.get("/compare-reason?pick=e-smollm2&pick=e-careful").text
    reason = browser.get("/compare-reason?pick=e-smollm2&pick=e-other").text
    assert "cannot be compared" in reason
    assert "choose two" in browser.get("/compare?pick=e-smollm2").text
    answer = browser.get("/compare/e-smollm2/e-other")
    assert answer.status_code == 200
    assert "cannot be compared" in answer.text
    assert "What differs" in answer.text


def test_a_stored_comparison_is_shown_with_its_charts(browser: TestClient) -> None:
    page = browser.get("/compare/smollm2/careless").text
    assert "forest" not in page
    assert page.count('<svg role="img"') > 1
    assert "aftertune compare e-smollm2 e-careless" in page
    assert "HellaSwag" in page
    one = browser.get("/compare/smollm2/careless?task=hellaswag").text
    assert one.count("<tr") < page.count("<tr")
    assert browser.get("/compare/smollm2/careless?task=nothing").status_code == 404
    assert browser.get("/compare/smollm2/careless?id=c-none").status_code == 404
    assert browser.get("/compare/smollm2/careless?margin=0").status_code == 404
    assert "Not stored" in browser.get("/compare/smollm2/careless?margin=5").text


def test_two_evaluations_without_a_stored_comparison_are_compared(browser: TestClient, ledger_path: Path,
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    page = browser.get("/compare/careful/careless").text
    assert "Not stored" in page
    with Ledger(ledger_path, read_only=True) as ledger:
        assert len(ledger.comparisons()) == 2
    monkeypatch.setattr(comparison_module, "MOST_ITEMS", 10)
    assert "take too long" in browser.get("/compare/careless/careful").text


def test_an_entry_has_its_provenance_and_its_relatives(browser: TestClient) -> None:
    page = browser.get("/entry/t-careful001").text
    assert "aftertune tune" in page
    assert "Training Data" in page
    page = browser.get("/entry/e-careful").text
    assert "/compare/e-smollm2/e-careful" in page
    assert "Scores" in page
    assert "evaluation</span></h1>" in browser.get("/entry/careful").text  # a name finds the evaluation first
    assert browser.get("/entry/none-such").status_code == 404


@pytest.mark.parametrize("text", XSS)
def test_foreign_text_stays_text(tmp_path: Path, text: str) -> None:
    path = tmp_path / "ledger.db"
    with Ledger(path) as ledger:
        base, tuned = changed(40, 0.5, 3, 2)
        task = f"task {text}"
        left = store(ledger, f"base {text}", replace(STRANGER, source=text), {task: base})
        right = store(ledger, f"tuned {text}", replace(STRANGER, source=f"a/{text}", weights="w2"), {task: tuned})
        from aftertune.comparison import compare

        made = compare(left, right, ledger=ledger)
        ledger.save_label(left.id, EntryLabel(tags=(text,), note=text))
        ledger.save_label(made.id, EntryLabel(tags=(text,), note=text))
    browser = client(path)
    paths = {"/", "/runs", f"/compare/{made.base}/{made.tuned}"}
    seen: set[str] = set()
    while paths - seen and len(seen) < 40:
        here = min(paths - seen)
        seen.add(here)
        answer = browser.get(here)
        found = tags(answer.text)
        for tag, values in found:
            assert tag not in ("img", "b"), (here, tag, values)
            assert not [name for name in values if name.startswith("on") or name == "style"], (here, tag, values)
            assert tag != "script" or values.get("src", "").startswith("/static/"), (here, values)
        paths |= {link for link in links(answer.text) if link.startswith("/")}
    assert len(seen) > 8


PRIVATE, SECRET = "/srv/private-rooms/thing", "hf_abcdefgh12345678"
FOREIGN = f"see {PRIVATE}/x.txt with {SECRET}"


def private_ledger(path: Path) -> Path:
    """A ledger whose free texts have a folder of this machine and a token."""
    path = demo_ledger(path)
    with Ledger(path) as ledger:
        base, tuned = ledger.find_evaluation("e-smollm2"), ledger.find_evaluation("e-careful")
        made = []
        for side, name in ((base, "left"), (tuned, "right")):
            items = [replace(i, asked=Asked(question=f"{i.index} {SECRET}", choices=i.asked.choices, gold=i.asked.gold)
                             if i.asked else None) for i in ledger.items(side.id, "hellaswag")]
            tasks = (replace(side.tasks[0], task="hellaswag", system_instruction=f"{FOREIGN} {name}"),)
            made.append(ledger.store_evaluation(
                replace(side, id=f"e-{name}00001", name=name, tasks=tasks, warnings=(FOREIGN,), stated={"url": FOREIGN},
                        dtype=f"float32 {FOREIGN}", failed={"other": FOREIGN}, engine_note=FOREIGN, scores=tuple(
                            s for s in side.scores if s.task == "hellaswag"),
                        model=replace(side.model, source=f"{PRIVATE}/{name}", weights=name),
                        provenance=Provenance(command=f"aftertune eval m --note {SECRET}", started="2026-01-01T00:00",
                                              hardware={"cpu": FOREIGN}, versions={"torch": FOREIGN})),
                zip(items, ledger.answers(side.id, "hellaswag"), strict=True)))
            ledger.save_label(made[-1].id, EntryLabel(note=FOREIGN))
        forced = compare(*made, ledger=ledger, force=True)
        ledger.save_label(forced.id, EntryLabel(note=FOREIGN))
        ledger.save_tuning(replace(
            ledger.tunings()[0], id="t-private0001", name="private", data_source=f"{PRIVATE}/rows.jsonl",
            notes=(FOREIGN,), output=f"{PRIVATE}/out", settings={"template": FOREIGN}, base=made[0].model, overlap=(
                Overlap(task="hellaswag", n=9, exact=(1,), found=(
                    {"item": 1, "in": f"{PRIVATE}/rows.jsonl:1", "words": SECRET},)),)))
        ledger.save_study("rooms", "h", "{}")
        ledger.save_cell("rooms", "tune private", "failed", None, FOREIGN)
    return path


def test_no_page_has_a_secret_or_a_folder_of_this_machine(tmp_path: Path) -> None:
    path = private_ledger(tmp_path / "ledger.db")
    with Ledger(path, read_only=True) as ledger:
        forced = next(c for c in ledger.comparisons() if c.forced)
        place = ledger.items("left", "hellaswag")[0]
        write_static_site(ledger, tmp_path / "site", [forced])
    browser = client(path)
    pair = f"/compare/left/right?id={forced.id}"
    pages = ("/", "/runs", "/tunings", "/studies", "/study/rooms", "/grid", "/entry/left", "/entry/right",
             "/tuning/private", "/entry/private", pair, "/compare/left/right?margin=3",
             f"{pair}&task=hellaswag&show=all", f"{pair}&task=hellaswag&show=all&item=hellaswag:{place.index}",
             question_path("hellaswag", place.hash),
             "/items/left/right/margins?task=hellaswag&forced=1", "/items/left/right/export?task=hellaswag&forced=1",
             "/compare-reason?pick=left&pick=right")
    texts = {page: browser.get(page) for page in pages}
    for page, answer in texts.items():
        assert answer.status_code == 200, (page, answer.text[:500])
        without_form = re.sub(r"<textarea.*?</textarea>", "", answer.text, flags=re.S)  # a note is edited as it is
        assert not re.search("private-rooms|/srv/", without_form), page
        assert SECRET not in answer.text, page
    assert "see x.txt" in texts["/runs"].text  # the rest of the text is there
    for file in (p for p in (tmp_path / "site").rglob("*") if p.suffix in (".html", ".js")):
        assert "private-rooms" not in file.read_text(encoding="utf-8"), file
        assert SECRET not in file.read_text(encoding="utf-8"), file
