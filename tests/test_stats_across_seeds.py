"""Recipes over training seeds: the estimate by its definition, and its level by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from aftertune.stats.across_seeds import ENOUGH_SEEDS, pooled_spread, seed_contrast, seed_errors
from aftertune.stats.paired import paired_mean


def test_the_interval_is_its_definition() -> None:
    d = np.random.default_rng(0).normal(size=(4, 30))
    found = seed_contrast(d)
    seeds, items = paired_mean(d.mean(axis=1)), paired_mean(d.mean(axis=0))
    half = np.hypot(seeds.interval()[1] - seeds.mean, items.interval()[1] - items.mean)
    assert found.mean == pytest.approx(d.mean())
    assert found.interval() == pytest.approx((d.mean() - half, d.mean() + half))


def test_one_source_of_error_alone() -> None:
    """Seeds that agree leave the items' error; items that agree leave the t over the seeds."""
    items = np.random.default_rng(1).normal(size=50)
    found, alone = seed_contrast(np.tile(items, (3, 1))), paired_mean(items)
    assert found.interval() == pytest.approx(alone.interval())
    assert [found.tests(.1).lower, found.tests(.1).within] == pytest.approx(
        [alone.tests(.1).lower, alone.tests(.1).within], abs=1e-9)
    seeds = np.array([.1, .2, .4])
    found = seed_contrast(np.tile(seeds[:, None], (1, 50)))
    assert found.interval() == pytest.approx(paired_mean(seeds).interval())
    assert found.tests(.02).higher == pytest.approx(paired_mean(seeds).tests(.02).higher, abs=1e-9)
    assert seed_contrast(np.full((3, 5), .25)).degenerate
    assert seed_contrast(np.full((3, 5), .25)).tests(.02).higher == 1.0
    assert seed_contrast(seeds[:, None]).interval() == pytest.approx(paired_mean(seeds).interval())


def test_tests_agree_with_the_intervals() -> None:
    random, seen = np.random.default_rng(2), set()
    for shift in np.linspace(-.3, .3, 13):
        found = seed_contrast(random.normal(shift, .05, (3, 200)))
        tests, (low, high), inner = found.tests(.1), found.interval(), found.interval(.90)
        assert (tests.lower < .05) == (high < -.1)
        assert (tests.higher < .05) == (low > .1)
        assert (tests.within < .05) == (inner[0] > -.1 and inner[1] < .1)
        seen.add((tests.lower < .05, tests.higher < .05, tests.within < .05))
    assert len(seen) >= 3


@pytest.mark.parametrize("spread", [0.0, .01, .04, .08])
def test_seeds_that_vary_prove_less_than_items_alone_say(spread: float) -> None:
    """Recipes that do not differ, the seeds move each mean by ``spread``: false differences stay below 5 %.

    Items alone cry difference in more than a fifth of the cases at 4 points.
    """
    random = np.random.default_rng(7)
    wrong = naive = 0
    for _ in range(500):
        d = random.normal(0, spread, (3, 1)) + random.normal(0, .2, (1, 400)) + random.normal(0, .3, (3, 400))
        low, high = seed_contrast(d).interval()
        wrong += not low <= 0 <= high
        low, high = paired_mean(d.mean(axis=0)).interval()
        naive += not low <= 0 <= high
    assert wrong / 500 <= .05
    assert spread < .04 or naive / 500 > .2


@pytest.mark.parametrize("d", [np.zeros((2, 5)), np.zeros((3, 0)), np.zeros(3), np.full((3, 2), np.nan)])
def test_what_says_nothing_of_a_recipe_is_refused(d: np.ndarray) -> None:
    with pytest.raises(ValueError, match="of 3 seeds or more"):
        seed_contrast(d)


# --- The error between seeds, pooled over the recipes of a study ---

def test_the_pooled_variance_is_the_mean_over_the_recipes() -> None:
    random = np.random.default_rng(3)
    scores = [random.normal(0.5, 0.02, 3) for _ in range(4)]
    found = pooled_spread(scores[:2], scores[2:])
    assert found is not None
    assert (found.df, found.recipes) == (8, 4)
    assert found.variance == pytest.approx(np.mean([s.var(ddof=1) for s in scores]))
    a, b = (float(s.var(ddof=1)) for s in scores[:2])
    welch = 2 * (a + b) ** 2 / (a**2 + b**2)
    assert pooled_spread(scores[:2]).df == pytest.approx(welch)
    assert pooled_spread(scores[:2], [random.normal(0.5, 0.02, 1)]).df == pytest.approx(welch)  # one seed says nothing


def test_recipes_that_vary_more_than_the_others_keep_their_own_error() -> None:
    quiet, wild = [np.array([0.5, 0.51, 0.49])] * 4, [np.array([0.5, 0.6, 0.3])] * 2
    assert pooled_spread(wild, quiet) == pooled_spread(wild)
    assert pooled_spread(quiet[:2], [*quiet[2:], *wild]) is not None  # theirs is the wider one
    assert pooled_spread(wild, [np.full(3, 0.5)]) == pooled_spread(wild)
    assert pooled_spread([np.full(3, 0.5)] * 2, [np.full(3, 0.4)]) is None


def test_two_recipes_of_which_one_varies_more_keep_the_level() -> None:
    """With 2 (S - 1) degrees of freedom the interval missed a difference of 0 in about a tenth of such comparisons."""
    random, missed = np.random.default_rng(11), {"welch": 0, "equal": 0}
    for _ in range(3000):
        scores = [random.normal(0.5, 0.03, 3), random.normal(0.5, 0.001, 3)]
        spread = pooled_spread(scores)
        away = abs(scores[0].mean() - scores[1].mean()) / np.sqrt(2 * spread.variance / 3)
        missed["welch"] += away > stats.t.ppf(0.975, spread.df)
        missed["equal"] += away > stats.t.ppf(0.975, 4)
    assert missed["welch"] / 3000 < 0.06
    assert missed["equal"] / 3000 > 0.09


def test_the_pooled_interval_is_narrower_and_keeps_its_level() -> None:
    """Four recipes of three seeds that do not differ; the score of a model varies by 2 points between seeds."""
    random, widths, missed = np.random.default_rng(11), [], [0, 0]
    for _ in range(300):
        d = random.normal(0, 0.02, (4, 3, 1)) + random.normal(0, 0.3, (4, 3, 500))
        scores = list(d.mean(axis=2))
        ends = [seed_errors([d[1] - d[0]], spread=s).interval() for s in (None, pooled_spread(scores[:2], scores[2:]))]
        missed = [m + (low > 0 or high < 0) for m, (low, high) in zip(missed, ends, strict=True)]
        widths.append([high - low for low, high in ends])
    own, pooled = np.mean(widths, axis=0)
    assert pooled < 0.7 * own
    assert max(missed) / 300 <= 0.05
    assert d.shape[1] == ENOUGH_SEEDS
