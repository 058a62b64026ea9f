"""The explorer of items: selection, one item with its neighbours, export, and one question across all models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from aftertune.comparison.flips import flips
from aftertune.comparison.paired_items import paired_items
from aftertune.ledger import Ledger
from aftertune.view.item_texts import MOST_WORDS, word_diff
from view_cases import client, demo_ledger, tags

PAGE = "/compare/smollm2/careless"


@pytest.fixture(scope="module")
def ledger_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo_ledger(tmp_path_factory.mktemp("items") / "ledger.db")


@pytest.fixture(scope="module")
def browser(ledger_path: Path) -> TestClient:
    return client(ledger_path)


def opened(browser: TestClient, query: str) -> list[str]:
    """The items of a list, as its links name them."""
    answer = browser.get(f"{PAGE}?{query}")
    assert answer.status_code == 200, answer.text
    links = [v["href"] for tag, v in tags(answer.text) if tag == "a" and "data-open" in v]
    return [link.partition("item=")[2].partition("&")[0].replace("%3A", ":") for link in links]


def test_every_paired_item_has_the_kind_that_flips_say(ledger_path: Path) -> None:
    with Ledger(ledger_path, read_only=True) as ledger:
        for task in ("hellaswag", "orders"):
            listed = paired_items("smollm2", "careless", task, ledger=ledger)
            changed = flips("smollm2", "careless", task, ledger=ledger)
            assert listed.counts["lost"] == changed.lost
            assert listed.counts["gained"] == changed.gained
            assert len(listed.items) == changed.n
            by_place = {(i.task, i.index): i for i in listed.items}
            for flip in changed.flips:
                item = by_place[flip.task, flip.index]
                assert (item.kind, item.base, item.tuned) == (flip.direction, flip.base, flip.tuned)


def test_the_list_follows_the_address(browser: TestClient) -> None:
    lost = opened(browser, "task=hellaswag&show=lost")
    assert lost
    assert all(place.startswith("hellaswag:") for place in lost)
    assert not set(lost) & set(opened(browser, "task=hellaswag&show=gained"))
    down = opened(browser, "task=hellaswag&show=lost&order=desc")
    if len(lost) < 50:
        assert down == lost[::-1]
    assert opened(browser, "task=hellaswag&show=all&q=nothing+like+this") == []
    data = browser.get("/items/smollm2/careless/margins?task=hellaswag").json()
    low = sorted(data["tuned"])[len(data["tuned"]) // 2]
    half = [p for p, m in zip(data["place"], data["tuned"], strict=True) if m <= low]
    page = browser.get(f"{PAGE}?task=hellaswag&show=all&tmax={low}").text
    assert f"{len(half)} of {len(data['place'])} items" in page


@pytest.mark.parametrize("query", ["show=x", "sort=x", "tmin=x", "tmin=nan", "form=x", "task=none&show=lost", "page=0",
                                   "item=hellaswag:999999", "item=x", "item=hellaswag:-1"])
def test_a_wrong_address_is_one_line(browser: TestClient, query: str) -> None:
    answer = browser.get(f"{PAGE}?show=lost&{query}")
    assert answer.status_code in (404, 409)
    assert "Traceback" not in answer.text


def test_one_item_has_its_neighbours_and_the_way_back(browser: TestClient) -> None:
    lost = opened(browser, "task=hellaswag&show=lost")
    answer = browser.get(f"{PAGE}?task=hellaswag&show=lost&item={lost[1]}")
    links = {name: v["href"] for tag, v in tags(answer.text) for name in ("data-previous", "data-next", "data-up")
             if tag == "a" and name in v}
    assert lost[0].replace(":", "%3A") in links["data-previous"]
    assert lost[2].replace(":", "%3A") in links["data-next"]
    assert "item=" not in links["data-up"]
    assert browser.get(links["data-up"]).status_code == 200
    assert answer.text.count('class="bar-of"') == 8  # four choices of two models
    first = browser.get(f"{PAGE}?task=hellaswag&show=lost&item={lost[0]}").text
    assert "data-previous" not in first
    gained = opened(browser, "task=hellaswag&show=gained")[0]
    assert "not in the selection" in browser.get(f"{PAGE}?task=hellaswag&show=lost&item={gained}").text


def test_generated_answers_are_shown_side_by_side(browser: TestClient) -> None:
    lost = opened(browser, "task=orders&show=all")
    page = browser.get(f"{PAGE}?task=orders&show=all&item={lost[0]}").text
    assert "Answer of smollm2" in page
    assert "Answer of careless" in page
    assert 'id="scatter"' not in browser.get(f"{PAGE}?task=orders&show=all").text


def test_the_selection_is_exported(browser: TestClient) -> None:
    answer = browser.get("/items/smollm2/careless/export?task=hellaswag&show=lost")
    assert answer.headers["content-disposition"] == 'attachment; filename="hellaswag-lost-items.jsonl"'
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert {line["kind"] for line in lines} == {"lost"}
    assert [f"{x['task']}:{x['index']}" for x in lines][:50] == opened(browser, "task=hellaswag&show=lost")
    rows = [json.loads(line) for line in browser.get(
        "/items/smollm2/careless/export?task=hellaswag&show=lost&as=rows").text.splitlines()]
    assert len(rows) == len(lines)
    assert all(row.keys() == {"prompt", "completion"} for row in rows)


def test_a_question_across_all_models(browser: TestClient) -> None:
    place = opened(browser, "task=hellaswag&show=lost")[0]
    page = browser.get(f"{PAGE}?task=hellaswag&show=lost&item={place}").text
    link = next(v["href"] for tag, v in tags(page) if tag == "a" and v.get("href", "").startswith("/question/"))
    answer = browser.get(link)
    assert answer.status_code == 200
    for name in ("smollm2", "careful", "careless"):
        assert name in answer.text
    assert browser.get("/question/hellaswag/none").status_code == 404


@given(st.text(" ab\n", max_size=30), st.text(" ab\n", max_size=30))
def test_the_parts_of_a_diff_are_the_texts(before: str, after: str) -> None:
    first, second = word_diff(before, after)
    assert "".join(p.text for p in first) == before
    assert "".join(p.text for p in second) == after
    if before.split() == after.split() and before:
        assert not any(p.changed and p.text.strip() for p in first)


def test_a_long_text_is_compared_by_lines_or_not_at_all() -> None:
    long = "word " * (MOST_WORDS + 1)
    assert word_diff(long, long + "x")[1][0].changed
    many = "word\n" * (MOST_WORDS + 1)
    assert [p.changed for p in word_diff(many, many + "x")[1]] == [False]
