"""Adjusted p-values against published values and their definitions."""

import numpy as np
import pytest

from aftertune.stats import benjamini_hochberg, holm

P = [.01, .04, .03, .005]


def test_golden_values():
    assert holm(P) == pytest.approx([.03, .06, .06, .02])
    assert benjamini_hochberg(P) == pytest.approx([.02, .04, .04, .02])


def literal_holm(p, i):
    """max over all j with p_j <= p_i of (how many are not smaller than p_j in rank) * p_j."""
    ranked = sorted(p)
    return min(1.0, max((len(p) - r) * q for r, q in enumerate(ranked) if q <= p[i]))


def literal_benjamini_hochberg(p, i):
    """min over all j with p_j >= p_i of (number of tests / rank of p_j) * p_j, at most 1; equal to the last bit."""
    ranked = sorted(p)
    return min(1.0, min(len(p) / r * q for r, q in enumerate(ranked, start=1) if q >= p[i]))


def test_against_literal_definitions_on_random_families():
    rng = np.random.default_rng(11)
    for size in range(1, 12):
        p = list(rng.uniform(size=size) ** 3)
        assert holm(p) == pytest.approx([literal_holm(p, i) for i in range(size)])
        assert benjamini_hochberg(p) == [literal_benjamini_hochberg(p, i) for i in range(size)]


def test_ties_ones_and_nothing():
    assert holm([]) == benjamini_hochberg([]) == []
    assert holm([.02, .02]) == [.04, .04]
    assert holm([1.0, 1.0, .5]) == [1.0, 1.0, 1.0]
    assert holm([.2]) == benjamini_hochberg([.2]) == [.2]


@pytest.mark.parametrize("adjust", [holm, benjamini_hochberg])
def test_what_is_no_p_value_is_refused(adjust):
    for wrong in (-.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="is not in"):
            adjust([.1, wrong])
