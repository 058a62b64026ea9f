"""The explorer of items: selection, one item with its neighbours, export, and one question across all models."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from aftertune.comparison import compare
from aftertune.comparison.flips import flips
from aftertune.comparison.paired_items import PairedItem, PairedItems, paired_items
from aftertune.ledger import Ledger
from aftertune.values import Answer, FlipSide
from aftertune.view.item_texts import MOST_WORDS, choice_bars, word_diff
from aftertune.view.links import question_path, stored_path
from aftertune.view.pages import items as items_module
from demo_cases import demo_evaluations
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


def test_a_task_and_an_item_may_have_any_letters(browser: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = browser.get(question_path("知識/a b?#", "none"))
    assert "no evaluation in the ledger asked the item" in answer.text
    found = items_module.listed_items

    def renamed(*arguments: Any, **named: Any) -> PairedItems:
        listed = found(*arguments, **named)
        return replace(listed, task="知識/b", items=tuple(replace(i, question="\ud800") for i in listed.items))

    monkeypatch.setattr(items_module, "listed_items", renamed)
    answer = browser.get("/items/smollm2/careless/export?task=hellaswag&show=lost")
    assert answer.headers["content-disposition"] == 'attachment; filename="---b-lost-items.jsonl"'
    margins = browser.get("/items/smollm2/careless/margins?task=hellaswag").json()
    assert set(margins["text"]) == {"⟨U+D800⟩"}


def test_the_items_are_those_of_the_comparison_that_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def with_acc(**values: Any) -> Answer:  # a second metric that is right or wrong, with other values
        (value,) = values["metrics"].values()
        other = {"acc,none": 1 - value if values["index"] % 2 else value} if values["task"] == "hellaswag" else {}
        return Answer(**{**values, "metrics": values["metrics"] | other})

    monkeypatch.setattr("demo_cases.Answer", with_acc)
    path = tmp_path / "ledger.db"
    with Ledger(path) as ledger:
        base, _, tuned = (replace(e, tasks=tuple(replace(t, primary="acc,none") if t.task == "hellaswag" else t
                                                 for t in e.tasks)) for e in demo_evaluations(ledger))
        by_acc = compare(base, tuned, ledger=ledger, tasks=["hellaswag"], margins=0.05)
        newest = compare("smollm2", "careless", ledger=ledger, tasks=["hellaswag"], margins=0.03)
    browser = client(path)
    counts = set()
    for comparison in (by_acc, newest):
        page = browser.get(stored_path(comparison)).text
        row = next(r for r in comparison.rows if r.primary)
        link = next(v["href"] for tag, v in tags(page) if tag == "a" and "show=lost" in v.get("href", ""))
        assert comparison.id in link
        items = browser.get(link).text
        assert f"lost {row.lost}</a>" in items
        export = next(v["href"] for tag, v in tags(items) if tag == "a" and "/export?" in v.get("href", ""))
        assert len(browser.get(export).text.splitlines()) == row.lost
        hidden = {v["name"]: v["value"] for tag, v in tags(items) if tag == "input" and v.get("type") == "hidden"}
        assert hidden["id"] == comparison.id  # a filter stays with the comparison
        assert any(stored_path(comparison) == v.get("href") for tag, v in tags(items) if tag == "a")
        counts.add(row.lost)
    assert len(counts) == 2
    assert "aftertune compare e-smollm2 e-careless --margin 5 --primary hellaswag=acc<" in browser.get(
        stored_path(by_acc)).text
    assert "aftertune compare e-smollm2 e-careless --margin 3<" in browser.get(stored_path(newest)).text
    overview = [v["href"] for tag, v in tags(browser.get("/").text) if tag == "a" and "task=" in v.get("href", "")]
    assert all("id=" in link for link in overview)


def test_of_several_right_choices_each_is_marked_and_one_is_trained_on() -> None:
    side = FlipSide(right=True, chosen="a", scores=(-1.0, -2.0, -3.0, -4.0))
    item = PairedItem(task="t", index=0, item="h", kind="both right", question="q", choices=("a", "a | b", "b", "c"),
                      gold="a | b | c", golds=(1, 3), base=side, tuned=side)
    assert [bar.right for bar in choice_bars(item)] == [False, True, False, True]
    assert list(items_module.training_rows([item])) == [{"prompt": "q", "completion": "a | b"}]


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


def test_the_documents_of_a_task_are_read_once(ledger_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = 0
    stored = Ledger.each_item

    def counted(self: Ledger, *words: Any, **options: Any) -> Any:
        nonlocal read
        for item in stored(self, *words, **options):
            read += 1
            yield item

    monkeypatch.setattr(Ledger, "each_item", counted)
    with Ledger(ledger_path, read_only=True) as ledger:
        assert len(paired_items("smollm2", "careless", "hellaswag", ledger=ledger).items) == read


def test_a_question_shows_every_model_with_the_metric_that_judges_it(tmp_path: Path) -> None:
    path = demo_ledger(tmp_path / "ledger.db")
    with Ledger(path) as ledger:
        base = ledger.find_evaluation("e-smollm2")
        settings = base.task("hellaswag")
        assert settings is not None
        items, answers = ledger.items(base.id, "hellaswag"), ledger.answers(base.id, "hellaswag")
        other = replace(base, id="e-other00001", name="other", scores=(), tasks=(replace(
            settings, primary="likeness,none", higher_is_better={"likeness": True, "acc": True}),))
        ledger.store_evaluation(other, zip(items, (replace(a, metrics={"likeness,none": 0.25, "acc,none": 1.0})
                                                   for a in answers), strict=True))
    page = client(path).get(question_path("hellaswag", items[0].hash)).text
    assert "of 3 models right" in page
    assert re.findall(r"<h3>Judged by ([^<]*)</h3>", page) == ["Normalized Accuracy", "likeness"]
    assert re.search(r">other</a>\s*<span class=\"state\">0.250</span>", page)
    assert "Accuracy 1.000" in page
