"""Recipes over seeds: what belongs together, what is compared, and that one seed says nothing of a recipe."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aftertune.comparison.across_seeds import contrasts_across_seeds, group_by_recipe
from aftertune.ledger import Ledger
from aftertune.pipeline import run
from aftertune.report import write_record
from aftertune.stats.across_seeds import pooled_spread, seed_contrast, seed_errors
from aftertune.study import Study
from eval_cases import CHAT, byte_folder
from test_cli import call
from tuning_cases import easy_rows, write_rows

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A study of two learning rates with three seeds each, run."""
    folder = tmp_path_factory.mktemp("seeds")
    byte_folder(folder / "base", template=CHAT, window=4096)
    write_rows(folder / "rows.jsonl", easy_rows())
    (folder / "study.yaml").write_text(
        "study: own\nmargin: 5\ndtype: float32\ntask_source: pack\nbases: {b: {model: BASE}}\n"
        "tasks: [{name: arc_easy, sample: 8}, {name: sciq, limit: 6}]\n"
        "matrix: {base: b, data: rows.jsonl, learning_rate: [1e-3, 3e-2], max_steps: 2, seed: [0, 1, 2]}\n"
        .replace("BASE", str(folder / "base")), encoding="utf-8")
    with Ledger(folder / "ledger.db") as ledger:
        return folder, run(Study.load(folder / "study.yaml"), ledger=ledger, out=folder / "out")


def test_recipes_are_fine_tunes_that_differ_in_their_seed_alone(place: tuple[Path, Any]) -> None:
    _, result = place
    found = group_by_recipe(result.results.evaluations, result.results.tunings)
    assert [(r.name, list(r.members)) for r in found] == [("lr0.001", [0, 1, 2]), ("lr0.03", [0, 1, 2])]


def test_a_contrast_is_the_paired_difference_over_seeds_and_items(place: tuple[Path, Any]) -> None:
    """Held against the differences of the answers themselves."""
    folder, result = place
    [one] = result.results.contrasts
    assert (one.factor, one.left, one.right, one.seeds) == ("learning rate", "lr0.001", "lr0.03", (0, 1, 2))
    assert one.settings == (("learning_rate", "0.001", "0.03"),)
    with Ledger(folder / "ledger.db") as ledger:
        for row in one.rows:
            key = f"{row.metric},{row.filter}"
            values = [[[a.metrics[key] for a in ledger.answers(e, row.task)] for e in pair] for pair in one.evaluations]
            d = np.array([np.subtract(b, a) for a, b in values])
            assert row.delta == pytest.approx(seed_contrast(d).mean)
            spread = pooled_spread([np.array([np.mean(pair[k]) for pair in values]) for k in (0, 1)])
            # the row's interval is at least as wide as the bound on losses that were not seen
            low, high = seed_errors([d], spread=spread).interval()
            assert row.low <= low + 1e-12
            assert row.high >= high - 1e-12
            assert row.margin == 0.05
    assert [row.task for row in one.rows] == ["arc_easy", "sciq"]


def test_a_watch_that_only_looks_is_no_other_recipe_and_parts_of_a_setting_are_shown_alone(
        place: tuple[Path, Any]) -> None:
    folder, result = place
    looks = {"watch": {"every": 10, "stop": False}, "watched": {"all": {}}, "keep_checkpoints": "all"}
    written = {"replay_base": {"answers": 100, "max_tokens": 192}}
    tunings = [replace(t, settings={**t.settings, **looks} if "0.001" in t.name else
                       {**t.settings, **written, "learning_rate": 1e-3}) for t in result.results.tunings]
    with Ledger(folder / "ledger.db") as ledger:
        [one] = contrasts_across_seeds(result.results.evaluations, tunings, margins=0.02, ledger=ledger)
        assert one.factor == "replay"
        assert one.settings == (("replay_base answers", "–", "100"), ("replay_base max_tokens", "–", "192"))
        stops = [replace(t, settings={**t.settings, "watch": {"every": 10, "stop": True}}) if "0.001" in t.name else t
                 for t in tunings]
        [other] = contrasts_across_seeds(result.results.evaluations, stops, margins=0.02, ledger=ledger)
        assert other.factor == "recipe"
        assert ("watch stop", "yes", "–") in other.settings


def test_two_seeds_say_nothing_of_a_recipe(place: tuple[Path, Any]) -> None:
    folder, result = place
    with Ledger(folder / "ledger.db") as ledger:
        two = [t for t in result.results.tunings if t.seed < 2]
        assert contrasts_across_seeds(result.results.evaluations, two, margins=0.02, ledger=ledger) == []


def test_the_record_and_the_terminal_tell_it(place: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch,
                                             capsys: pytest.CaptureFixture[str]) -> None:
    folder, result = place
    text = result.record.read_text(encoding="utf-8")
    assert "### Over Seeds" in text
    assert "lr0.03 against lr0.001 (learning rate)" in text
    assert "Recipe (over 3 seeds)" in text
    assert "lr0.03" in result.page.read_text(encoding="utf-8")
    assert "Over Seeds" not in write_record(replace(result.results, contrasts=()), title="t")
    monkeypatch.setenv("AFTERTUNE_LEDGER", str(folder / "ledger.db"))
    monkeypatch.chdir(folder)
    assert call(monkeypatch, "run", "study.yaml", "--out", "out") == 0
    assert "Recipe (over 3 seeds): " in capsys.readouterr().out
    assert call(monkeypatch, "record", "--out", "-") == 0
    assert "### Over Seeds" in capsys.readouterr().out
