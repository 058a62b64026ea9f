"""The pages of studies: cells with their state, what they cost, verdicts as they come, and the linked scatter."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest

from aftertune.comparison import compare
from aftertune.ledger import Ledger
from aftertune.ledger.running import step_mark
from aftertune.sources.folder_lock import folder_lock
from aftertune.view.study_cells import study_view
from report_cases import TUNINGS
from view_cases import client, demo_ledger, tags

STUDY = {"study": "orders", "bases": {"smollm2": {"model": "m"}}, "tunings": {
    name: {"base": "smollm2", "method": "lora", "seed": seed, "data": {"file": "x.jsonl", "examples": 600}}
    for seed, name in enumerate(("careful", "careless", "third", "fourth"))}}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = demo_ledger(tmp_path / "ledger.db")
    with Ledger(path) as ledger:
        base, *tuned = (ledger.find_evaluation(f"e-{name}") for name in ("smollm2", "careful", "careless"))
        for tuning, after in zip(TUNINGS, tuned, strict=True):
            ledger.save_tuning(replace(tuning, cost={"seconds": 60.0}, base=base.model,
                                       result=after.model.fingerprint))
        for after in tuned:
            compare(base, after, ledger=ledger, tasks=["hellaswag", "orders"])
        ledger.save_study("orders", "h", json.dumps(STUDY))
        for name, status, ref, error in (
                ("evaluate smollm2", "done", "e-smollm2", None), ("tune careful", "done", "t-careful001", None),
                ("tune careless", "done", "t-careless01", None), ("tune third", "running", None, None),
                ("tune fourth", "failed", None, "/home/x/data.jsonl: <b>no such file</b>"),
                ("evaluate careful", "done", "e-careful", None), ("evaluate careless", "done", "e-careless", None),
                ("evaluate third", "planned", None, None),
                ("evaluate fourth", "planned", None, "needs tune fourth, which failed")):
            ledger.save_cell("orders", name, status, ref, error)
    return path


def test_the_grid_has_each_cell_with_its_state(path: Path) -> None:
    page = client(path).get("/study/orders").text
    assert "5 of 9 done" in page
    assert "1 failed" in page
    assert "&lt;b&gt;no such file&lt;/b&gt;" in page
    assert "/home/x" not in page
    assert "needs tune fourth, which failed" in page
    assert "no process is seen at it" in page
    assert "LoRA, 600 examples, seed 0" in page
    assert re.search(r'/compare/e-smollm2/e-careful\?id=c-\w+&amp;task=hellaswag"', page)  # the one of the study
    assert "2 min 0 s so far" in page


def test_a_running_cell_moves_and_says_what_is_left(path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "third"
    folder.mkdir()
    with Ledger(path) as ledger, folder_lock(folder, "trains"):
        ledger.save_tuning(replace(TUNINGS[0], id="t-third00001", name="third", status="running", result=None,
                                   held_out=None, steps=(), output=str(folder)))
        for step in (1, 2):
            ledger.save_step("t-third00001", step, {"loss": 1.0, **step_mark(10)})
        view = study_view(ledger, "orders")
        cell = next(r for r in view.rows if r.name == "third").cells["tune"]
        assert cell.state == "running"
        assert cell.path == "/tuning/t-third00001"
        assert cell.progress is not None
        assert cell.progress.total == 10
        assert view.running
    page = client(path).get("/studies").text
    assert "5 of 9 done" in page


def test_points_of_the_scatter_open_their_comparison(path: Path) -> None:
    browser = client(path)
    page = browser.get("/study/orders").text
    points = [v for tag, v in tags(page) if tag == "a" and v.get("class") == "point"]
    assert len(points) == 4  # two fine-tunes, in two widths
    for point in points:
        assert point["aria-label"]
        assert browser.get(point["href"], follow_redirects=True).status_code == 200
    assert " style=" not in page
    [current] = [v["href"] for tag, v in tags(page) if tag == "a" and v.get("aria-current") == "page"]
    assert current == "/studies"


def test_a_study_that_this_version_cannot_read_still_has_its_cells(path: Path) -> None:
    with Ledger(path) as ledger:
        ledger.save_study("orders", "h", "not json")
    page = client(path).get("/study/orders").text
    assert "5 of 9 done" in page
    browser = client(path)
    assert browser.get("/study/none").status_code == 404
    assert "/study/orders" in browser.get("/studies").text


def test_a_scatter_that_is_not_drawn_says_why(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "Learned against forgotten is not drawn" not in client(path).get("/study/orders").text
    monkeypatch.setattr(import_module("aftertune.view.pages.studies"), "linked_balances", lambda *_: [])
    assert "Learned against forgotten is not drawn: it needs" in client(path).get("/study/orders").text
