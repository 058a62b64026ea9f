"""The replay of early stopping on real answers: the kept file, many runs at once, and the bars."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import active
from active_answers import BASE, FILES, TUNINGS, load


@pytest.fixture(scope="module")
def gentle() -> active.Population:
    """A careful LoRA on HellaSwag, resampled to fewer items."""
    population = next(p for p in active.populations() if p.name == "HellaSwag, careful")
    return population.resampled(1500, 3)


def test_the_kept_answers_are_a_small_file_of_plain_arrays() -> None:
    assert sum(file.stat().st_size for file in FILES) < 2_000_000
    assert {m for task, a in load() for m in a.loglikelihoods if task == "hellaswag"} == {BASE, *TUNINGS}
    for _, answers in load():
        for model in answers.loglikelihoods:
            own = answers.of(model)
            outcome, margin, share = own.outcome(model), own.margin(model), own.share(model)
            assert ((margin > 0) == (outcome == 1)).mean() > 0.99  # equal log-likelihoods aside
            assert 0 <= share.min() <= share.max() <= 1
            assert own.items >= 100
        assert BASE in answers.loglikelihoods


def test_a_tuning_that_several_files_have_is_that_of_the_first_one(tmp_path: Path) -> None:
    first, second = (dict(load((file,))) for file in FILES)
    both = [(task, set(answers.loglikelihoods) - {BASE}) for task, answers in load((*FILES, *reversed(FILES)))]
    assert both == [(task, set(part[task].loglikelihoods) - {BASE}) for task in ("arc_easy", "hellaswag")
                    for part in (first, second)]
    assert list(load((tmp_path / "missing.npz",))) == []


def test_many_runs_at_once_end_as_the_truth_says(gentle: active.Population) -> None:
    play = active.Replay(gentle, 20, seed=5).play()
    assert set(play.said) == {gentle.truth}
    assert 32 < np.median(play.at) <= gentle.d.size
    again = active.Replay(gentle, 20, seed=5).play()
    assert (again.at == play.at).all()


def test_at_the_margin_hardly_anything_is_proven_before_the_last_item(gentle: active.Population) -> None:
    edge = gentle.at_margin()
    play = active.Replay(edge, 10, seed=1).play(640)
    assert sum(v not in ("", edge.truth) for v in play.said) <= 2


def test_populations_are_moved_as_they_say(gentle: active.Population) -> None:
    zero = gentle.at_zero()
    assert zero.d.sum() == 0
    assert np.count_nonzero(zero.d) == np.count_nonzero(gentle.d) - abs(gentle.d.sum())
    chance = active.tilted(gentle, -0.02)
    assert chance.sum() == pytest.approx(1)
    assert chance @ gentle.d == pytest.approx(-0.02)


def test_a_bar_that_is_missed_is_named(gentle: active.Population) -> None:
    result = active.Result(population=gentle, runs=100, wrong=0, median=300, q90=500, uniform=1000, uniform_q90=2000,
                           uniform_wrong=0, seconds=1)
    assert list(active.broken(result)) == []
    assert len(list(active.broken(replace(result, wrong=20, median=600)))) == 2
    assert "**300** (500)" in "\n".join(active.lines([result]))


def test_claims_about_the_models_are_replayed_beside_uniform_drawing(gentle: active.Population) -> None:
    claims = active.models(gentle, -0.02, 2, items=1500, each=3, most=320)
    assert (claims.runs, claims.most) == (6, 320)
    assert claims.wrong <= 1
    assert claims.median <= 320
    assert "| 1,500 | -2.00 |" in "\n".join(active.model_lines([claims]))
