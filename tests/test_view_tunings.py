"""The pages of fine-tunes: curves, examples with what is learned, overlap, and a folder that moved."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aftertune import bounds
from aftertune.ledger import Ledger
from aftertune.tuning.previews import EXAMPLES, PreviewRow, read_examples, write_examples
from aftertune.values import Overlap, WatchPoint
from report_cases import TUNINGS
from view_cases import client, demo_ledger, tags

POINTS = tuple(WatchPoint(step=step, task="hellaswag", metric="acc_norm", n=100, base=0.4, tuned=0.4 - step / 1000,
                          delta=-step / 1000, low=-0.1, high=0.02, verdict="undecided") for step in (20, 40, 60))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = demo_ledger(tmp_path / "ledger.db")
    with Ledger(path) as ledger:
        out = tmp_path / "out"
        out.mkdir()
        parts = [("<b>say</b>", False), ("w1 <i>w1</i>", True)]
        write_examples(out, [PreviewRow("/home/x/orders.jsonl:3", parts, 5, 3)])
        steps = tuple({"step": float(n), "loss": 2 - n / 100, "learning_rate": 1e-4,
                       **({"validation_loss": 1.5} if n % 20 == 0 else {})} for n in range(1, 61))
        ledger.save_tuning(replace(
            TUNINGS[0], id="t-curves0001", name="curves", result="f" * 64, output=str(out), steps=steps, watch=POINTS,
            settings={**TUNINGS[0].settings, "watch": {"margin": 2.0}}, overlap=(
                Overlap(task="hellaswag", n=400, exact=(3,), ngram=(3, 7), found=(
                    {"item": 3, "in": "/home/x/orders.jsonl:12", "words": "<script>alert(1)</script>"},)),
                Overlap(task="arc_easy", n=450))))
    return path


def curves_of(html: str) -> Any:
    return json.loads(html.partition('id="curves">')[2].partition("</script>")[0])


def test_the_page_has_curves_examples_and_overlap(path: Path, tmp_path: Path) -> None:
    page = client(path).get("/tuning/curves").text
    curves = curves_of(page)
    assert curves["loss"][0][0] == 1
    assert len(curves["loss"][0]) == 60
    assert curves["validation"] == [[20.0, 40.0, 60.0], [1.5, 1.5, 1.5]]
    assert curves["tasks"][0]["points"][0] == [20, -2.0, -10.0, 2.0, "undecided"]
    assert curves["margin"] == 2.0
    assert '<mark class="learned">w1 &lt;i&gt;w1&lt;/i&gt;</mark>' in page
    assert "orders.jsonl:3" in page
    assert "/home/x" not in page
    assert "1 of 400 items are in the training data exactly" in page
    assert "none of 450 items" in page
    assert "<script>alert" not in page
    assert "aftertune tune" in page
    assert "not where the ledger says" not in page


def test_charts_can_be_had_without_scripts(path: Path) -> None:
    browser = client(path)
    assert '<svg role="img"' not in browser.get("/tuning/curves").text
    assert browser.get("/tuning/curves?charts=1").text.count('<svg role="img"') == 4  # two charts in two widths


def test_a_folder_that_moved_is_one_line(path: Path, tmp_path: Path) -> None:
    (tmp_path / "out").rename(tmp_path / "elsewhere")
    page = client(path).get("/tuning/curves").text
    assert "not where the ledger says" in page
    assert str(tmp_path / "elsewhere") not in page
    assert curves_of(page)["loss"][0]


def test_examples_are_read_within_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_examples(tmp_path) == ()
    file = tmp_path / EXAMPLES
    write_examples(tmp_path, [PreviewRow(f"d:{n}", [("x" * 20_000, True)] * 30, 9, 9) for n in range(3)])
    found = read_examples(tmp_path)
    assert len(found) == 3
    assert len(found[0].parts) == bounds.EXAMPLES_PARTS
    assert len(found[0].parts[0][0]) <= bounds.EXAMPLES_TEXT + 3
    assert file.stat().st_size < bounds.EXAMPLES_BYTES
    monkeypatch.setattr(bounds, "EXAMPLES_BYTES", 10)
    assert read_examples(tmp_path) == ()
    monkeypatch.undo()
    for broken in ("{", "[1]", '[{"where": "x"}]', "[" * 100_000, '"x"', "3"):
        file.write_text(broken)
        assert read_examples(tmp_path) == ()
    file.unlink()
    (tmp_path / "secret.json").write_text('[{"where": "x", "parts": [["secret", true]], "tokens": 1, "learned": 1}]')
    file.symlink_to(tmp_path / "secret.json")
    assert read_examples(tmp_path) == ()


def test_the_list_is_searched_and_links_to_each(path: Path) -> None:
    browser = client(path)
    rows = [v["href"] for tag, v in tags(browser.get("/tunings").text) if tag == "a" and "data-open" in v]
    assert rows == ["/tuning/t-curves0001", "/tuning/t-careless01", "/tuning/t-careful001"]
    rows = [v["href"] for tag, v in tags(browser.get("/tunings?q=careless").text) if tag == "a" and "data-open" in v]
    assert rows == ["/tuning/t-careless01"]
    for row in rows:
        assert browser.get(row).status_code == 200
    assert browser.get("/tuning/none").status_code == 404
    assert browser.get("/tunings?page=0").status_code == 404


@pytest.mark.parametrize(("status", "said"), [("done", "made without training"), ("running", "No step is stored")])
def test_a_fine_tune_without_steps_says_why(tmp_path: Path, status: Any, said: str) -> None:
    """One that a study made at less strength was waiting for its first step."""
    place = tmp_path / "ledger.db"
    with Ledger(place) as ledger:
        ledger.save_tuning(replace(TUNINGS[0], status=status, steps=(), cure=None))
    assert said in client(place).get(f"/tuning/{TUNINGS[0].id}").text


def test_a_fact_stands_once(path: Path) -> None:
    page = client(path).get("/tuning/curves").text
    assert "1 of 400 items are in the training data exactly" in page
    assert "Data Overlap" not in page  # as the provenance of a report has it
    assert "Training Command" not in page
