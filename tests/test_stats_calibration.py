"""Calibration: golden values by hand, the definitions written out, and what sampling noise does to them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import integrate
from scipy import stats as oracle

from aftertune.stats.calibration import brier_score, calibration_error


def test_the_brier_score_by_hand() -> None:
    assert brier_score([.7, .2, .1], 0) == pytest.approx(.14)
    assert brier_score([.7, .2, .1], 2) == pytest.approx(.49 + .04 + .81)
    assert brier_score([1.0, 0.0], 0) == 0
    assert brier_score([1.0, 0.0], 1) == 2


def test_the_calibration_error_by_hand() -> None:
    """Ten items at .6 of which five are right, and ten at .9 of which seven are: gaps of .1 and .2."""
    error = calibration_error([.6] * 10 + [.9] * 10, [1] * 5 + [0] * 5 + [1] * 7 + [0] * 3)
    assert error is not None
    assert (error.plain, error.bins) == (pytest.approx(.15), 2)
    half_normal = math.sqrt(2 / math.pi)
    assert error.by_chance == pytest.approx(half_normal * (math.sqrt(.24 / 10) + math.sqrt(.09 / 10)) / 2)
    assert error.by_chance == pytest.approx(.0996507, abs=1e-6)
    expected = [integrate.quad(lambda x, mu=mu, sd=sd: abs(x) * oracle.norm.pdf(x, mu, sd), -2, 2, points=[0])[0]
                for mu, sd in ((-.1, math.sqrt(.25 / 10)), (-.2, math.sqrt(.21 / 10)))]
    assert error.debiased == pytest.approx(2 * .15 - sum(expected) / 2, abs=1e-6)
    assert error.debiased < error.plain


def defined(confidence: np.ndarray, right: np.ndarray, bins: int) -> float:
    """The definition: groups of equal size by probability, as `sklearn.calibration` makes quantile bins."""
    order = np.argsort(confidence, kind="stable")
    return sum(len(part) / len(order) * abs(right[part].mean() - confidence[part].mean())
               for part in np.array_split(order, bins))


@pytest.mark.parametrize(("n", "bins"), [(20, 2), (57, 5), (100, 10), (1234, 10)])
def test_it_is_the_definition_over_groups_of_at_least_ten(n: int, bins: int) -> None:
    random = np.random.default_rng(n)
    confidence = random.uniform(.25, 1, n)
    right = (random.uniform(size=n) < confidence**2).astype(float)
    error = calibration_error(confidence, right)
    assert error is not None
    assert (error.plain, error.bins) == (pytest.approx(defined(confidence, right, bins)), bins)


def test_a_calibrated_model_shows_what_chance_predicts_and_the_debiased_value_is_nearer_to_zero() -> None:
    random, errors = np.random.default_rng(0), []
    for _ in range(200):
        confidence = random.uniform(.3, 1, 200)
        errors.append(calibration_error(confidence, (random.uniform(size=200) < confidence).astype(float)))
    plain, debiased, by_chance = (np.mean([getattr(e, f) for e in errors]) for f in ("plain", "debiased", "by_chance"))
    assert plain == pytest.approx(by_chance, rel=.05)
    assert plain > .06  # of a model without any error
    assert debiased < .65 * plain


def test_too_few_items_have_none_and_lengths_must_agree() -> None:
    assert calibration_error([.5] * 19, [1.0] * 19) is None
    certain = calibration_error([1.0] * 20, [1.0] * 20)
    assert certain is not None
    assert (certain.plain, certain.debiased, certain.by_chance) == (0, 0, 0)
    with pytest.raises(ValueError, match="2 probabilities but 1 outcomes"):
        calibration_error([.5, .5], [1.0])
