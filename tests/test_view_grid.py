"""The grid: models against tasks, filtered by verdict, sorted by task, seeds of a recipe in one row."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from aftertune.comparison import compare
from aftertune.comparison.across_seeds import recipe_changes
from aftertune.ledger import Ledger
from aftertune.report import formatting as fmt
from aftertune.stats.across_seeds import seed_errors
from demo_cases import MODELS
from early_cases import changed, store
from report_cases import TUNINGS
from view_cases import client, demo_ledger, tags


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo, and a recipe with three seeds."""
    path = demo_ledger(tmp_path_factory.mktemp("grid") / "ledger.db")
    with Ledger(path) as ledger:
        values = {seed: changed(200, 0.5, 4, 60 + 10 * seed) for seed in range(3)}
        base = store(ledger, "root", replace(MODELS[0], weights="wr"), {"hellaswag": values[0][0]})
        for seed in range(3):
            model = replace(MODELS[0], source=f"out/s{seed}", weights=f"ws{seed}")
            tuned = store(ledger, f"full-s{seed}", model, {"hellaswag": values[seed][1]})
            ledger.save_tuning(replace(TUNINGS[1], id=f"t-seed00000{seed}", name=f"full-s{seed}", seed=seed,
                                       base=replace(MODELS[0], weights="wr"), result=model.fingerprint))
            compare(base, tuned, ledger=ledger)
    return path


def rows(path: Path, query: str = "") -> list[str]:
    page = client(path).get(f"/grid?{query}")
    assert page.status_code == 200
    return [v["href"] for tag, v in tags(page.text) if tag == "a" and "data-open" in v]


def test_seeds_of_a_recipe_are_one_row(path: Path) -> None:
    page = client(path).get("/grid").text
    assert "3 seeds" in page
    assert "mean " in page
    assert len(rows(path)) == 3
    [folded] = [r for r in rows(path) if "recipe=" in r]
    assert len(rows(path, folded.partition("?")[2])) == 3
    assert len(rows(path, "seeds=1")) == 5


def test_the_row_of_a_recipe_has_the_interval_over_its_seeds(path: Path) -> None:
    """It is that of a contrast whose other side has no seeds."""
    with Ledger(path, read_only=True) as ledger:
        sides = [ledger.answers(f"e-{name}", "hellaswag") for name in ("root", "full-s0", "full-s1", "full-s2")]
        base, *tuned = (np.array([a.metrics["acc,none"] for a in answers]) for answers in sides)
        low, high = seed_errors([np.array([t - base for t in tuned])], bounded=True).interval()
        changes = recipe_changes(ledger.find_evaluation("e-root"),
                                 [ledger.find_evaluation(f"e-full-s{n}") for n in range(3)], ledger)
    assert (changes["hellaswag"].low, changes["hellaswag"].high) == pytest.approx((low, high))
    assert changes["hellaswag"].mean == pytest.approx(float(np.mean(tuned) - np.mean(base)))
    assert low < changes["hellaswag"].mean < high
    page = client(path).get("/grid").text
    assert f"95 % {fmt.points(low)} to {fmt.points(high)}" in page
    assert page.count("95 % ") == 2  # and the sentence below the table
    assert "95 % −" not in client(path).get("/grid?seeds=1").text


def test_rows_are_filtered_and_sorted(path: Path) -> None:
    lost = rows(path, "verdict=lower&seeds=1")
    assert lost
    assert len(lost) < 5 or rows(path, "verdict=within&seeds=1")
    up, down = rows(path, "sort=hellaswag&seeds=1"), rows(path, "sort=hellaswag&order=desc&seeds=1")
    assert up == down[::-1]
    assert len(rows(path, "q=careless")) == 1
    assert rows(path, "q=nothing+like+this") == []
    assert len(rows(path, "base=smollm2")) == 2
    assert len(rows(path, "task=orders")) == 2
    for query in ("verdict=x", "order=x", "page=0", "sort=hellaswagg"):
        assert client(path).get(f"/grid?{query}").status_code == 404


def test_cells_open_the_comparison_of_their_task(path: Path) -> None:
    browser = client(path)
    page = browser.get("/grid?seeds=1").text
    cells = [v["href"] for tag, v in tags(page) if tag == "a" and v.get("class", "").startswith("badge")]
    assert len(cells) >= 7
    assert all("task=" in c or "id=" in c for c in cells)
    for cell in cells[:3]:
        assert browser.get(cell).status_code == 200


def test_an_empty_ledger_has_an_empty_grid(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.db"):
        pass
    assert "Nothing has been compared yet" in client(tmp_path / "ledger.db").get("/grid").text
    assert "No study has been run" in client(tmp_path / "ledger.db").get("/studies").text
