"""The simulations of verdicts: many orders at once say what one order says, and sections stay apart."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from aftertune.stats.sequential import PairedSequential

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import average_verdicts
import collapse_signs
import cures
import fixed_verdicts
import verdicts
from document import write_section


@pytest.mark.parametrize("scenario", [s for s in verdicts.SCENARIOS if s.items < 2000], ids=lambda s: s.name)
def test_many_orders_at_once_say_what_one_says(scenario: verdicts.Scenario) -> None:
    orders = scenario.orders(4, 7)
    said, at = verdicts.verdicts(orders, scenario.margin)
    for order, verdict, when in zip(orders, said, at, strict=True):
        one = PairedSequential(scenario.items, scenario.margin)
        one.update(order)
        assert (one.verdict, one.decided_at) == (verdict, when)


def test_a_scenario_meets_its_bars_and_a_broken_one_is_told() -> None:
    scenario = verdicts.SCENARIOS[0]
    found = verdicts.run(scenario, 200)
    assert not list(verdicts.broken(scenario, found))
    assert 20 < found["median"] < found["q90"] < 80
    assert found["batches"] % 32 == 0
    told = list(verdicts.broken(scenario, {**found, "wrong": 30, "median": 60}))
    assert len(told) == 2
    page = "\n".join(verdicts.lines([found], 2e-4))
    assert "200 permutations" in page
    assert "200 microseconds" in page


def test_the_truth_one_item_beyond_the_margin_is_lower() -> None:
    beyond, inside = verdicts.SCENARIOS[-2:]
    assert (beyond.truth, inside.truth) == ("lower", "within")
    assert beyond.lost - beyond.gained == inside.lost - inside.gained + 1


@pytest.mark.parametrize("scenario", fixed_verdicts.FIXED, ids=lambda s: f"{s.part}, {s.name}")
def test_a_fixed_scenario_gives_verdicts_of_the_program(scenario: fixed_verdicts.FixedScenario) -> None:
    found = fixed_verdicts.run_fixed(scenario, 8)
    assert found == fixed_verdicts.run_fixed(scenario, 8)
    assert 0 <= found["within"] + found["moved"] <= 2 * 8
    assert {len(scenario.judge(np.random.default_rng(k))) for k in range(2)} == {3 if scenario.part == "family" else 1}


def test_a_fixed_scenario_that_is_wrong_is_told() -> None:
    scenario = fixed_verdicts.FIXED[0]
    always = fixed_verdicts.FixedScenario("shares", "always kept", lambda _: ["within"])
    assert not list(fixed_verdicts.broken_fixed(scenario.name, fixed_verdicts.run_fixed(scenario, 20)))
    assert len(list(fixed_verdicts.broken_fixed(always.name, fixed_verdicts.run_fixed(always, 100)))) == 1
    plan = fixed_verdicts.run_plan(0.0, 0.1, 5, 200)
    assert not list(fixed_verdicts.broken_fixed("plan", plan))
    assert len(list(fixed_verdicts.broken_fixed("plan", {**plan, "decided": 100}))) == 1
    page = "\n".join(fixed_verdicts.fixed_lines([fixed_verdicts.run_fixed(scenario, 20)], [plan]))
    assert "| shares | rare complete failures, 8 items | 0.0% ± 4.9% |" in page


def test_signs_of_collapse_are_counted_and_false_ones_are_reported() -> None:
    usual, broken = collapse_signs.COLLAPSES[2], next(s for s in collapse_signs.COLLAPSES if s.name == "does not end")
    found = collapse_signs.run_collapse(usual, 50)
    assert found == {"shown": {"any": 0}, "comparisons": 50} == collapse_signs.run_collapse(usual, 50)
    assert not list(collapse_signs.broken_collapse(usual, found))
    ended = collapse_signs.run_collapse(broken, 50)
    assert ended["shown"]["endless"] == ended["shown"]["any"] > 45
    assert not list(collapse_signs.broken_collapse(broken, ended))
    assert len(list(collapse_signs.broken_collapse(usual, ended))) == 1
    page = "\n".join(collapse_signs.collapse_lines([(usual, found), (broken, ended)]))
    assert "| no change, usual | 100 | 0.00 % | 0.00 % | 0.00 % | 0.00 % | 0.00 % | **0.00 %** |" in page


@pytest.mark.parametrize("scenario", average_verdicts.AVERAGES, ids=lambda s: f"{s.name}, {s.truth}")
def test_an_average_scenario_gives_verdicts_of_the_program(scenario: average_verdicts.AverageScenario) -> None:
    found = average_verdicts.run_average(scenario, 2)
    assert sum(found["said"].values()) == 2
    assert set(found["said"]) <= {"lower", "higher", "within", "worse", "better", "no_loss", "undecided"}
    wrong = dict.fromkeys(found["said"], 0) | {"no_loss": 90, "lower": 90}
    assert list(average_verdicts.broken_average(scenario, {"said": wrong | {"within": 0, "higher": 0, "worse": 0,
                                                                           "better": 0}, "comparisons": 100}))


def test_six_tasks_are_kept_on_average_and_not_one_by_one() -> None:
    found = average_verdicts.run_compared(6, 600, 0.0, 20)
    assert found["average"]["within"] >= 17
    assert found["every"]["within"] == 0
    page = "\n".join(average_verdicts.average_lines(
        [found] * len(average_verdicts.COMPARED), [{"said": found["average"], "comparisons": 20}]
        * len(average_verdicts.AVERAGES)))
    assert "| 6 | 600 | 0 | kept |" in page


def test_a_section_leaves_the_others_alone(tmp_path: Path) -> None:
    page = tmp_path / "benchmarks.md"
    write_section("speed", "one\n", page)
    write_section("verdicts", "two\n", page)
    write_section("speed", "three\nfour\n", page)
    text = page.read_text()
    assert text.index("three\nfour") < text.index("two")
    assert "one" not in text
    assert text.startswith("# Benchmarks\n")
    write_section("speed", "three\nfour\n", page)
    assert page.read_text() == text


def test_cured_is_claimed_falsely_on_the_items_that_chose_and_not_on_others() -> None:
    """The models lose exactly the margin, so that no claim is true."""
    scenario = next(s for s in cures.SCENARIOS if s.name == "loses the margin, independent models")
    found = cures.run_cures(scenario, 100)
    assert found[0] > 15, "of 100, on the items that chose"
    assert not list(cures.broken_cures(scenario, found, 100))
    assert list(cures.broken_cures(scenario, [found[0], 15, 15], 100)) == [
        f"{scenario.name}: claimed falsely in 15.00% ± 3.57%"]
