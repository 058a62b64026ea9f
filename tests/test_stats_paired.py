"""Paired formulas against published values and against their slow literal definitions."""

import math
from itertools import product

import numpy as np
import pytest
from scipy import stats as oracle
from scipy.optimize import minimize_scalar

from aftertune.stats import (
    Estimate,
    mcnemar_exact,
    mcnemar_mid,
    paired_mean,
    tango_interval,
    tango_statistic,
    tango_tests,
    wilson,
)

# Published in Tango 1998, Newcombe 1998, Agresti & Min 2005, Tang 2010, Fagerland et al. 2013/14:
# (n, gained, lost), exact, mid-p, asymptotic McNemar, Tango 95 %.
PUBLISHED = [
    pytest.param(21, 1, 7, .0703125, .0390625, .0338949, -.517232, -.026003, id="bentur"),
    pytest.param(32, 9, 3, .145996, .092285, .083265, -.027090, .389697, id="tango"),
    pytest.param(86, 16, 8, .151590, .107752, .102470, -.019659, .206911, id="agresti-min"),
    pytest.param(50, 12, 2, .012939, .007385, .007526, .061112, .344709, id="newcombe"),
    pytest.param(14, 3, 1, .625, .375, .317311, -.166975, .432664, id="tang"),
    pytest.param(102, 25, 2, 6e-6, 3e-6, 1e-5, .139183, .321330, id="chang"),
]
SLEEP = np.array([0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]) - np.array(
    [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4])


@pytest.mark.parametrize(("n", "gained", "lost", "exact", "mid", "asymptotic", "low", "high"), PUBLISHED)
def test_published_tables(n, gained, lost, exact, mid, asymptotic, low, high):
    assert mcnemar_exact(gained, lost) == pytest.approx(exact, abs=6e-7)
    assert mcnemar_mid(gained, lost) == pytest.approx(mid, abs=6e-7)
    z = tango_statistic(gained, lost, n, 0.0)
    assert 2 * oracle.norm.sf(abs(z)) == pytest.approx(asymptotic, abs=6e-7)
    assert tango_interval(gained, lost, n) == pytest.approx((low, high), abs=6e-7)


def test_tango_published_90_percent():
    assert tango_interval(0, 1, 44, 0.90) == pytest.approx((-.095662, .036517), abs=6e-7)


@pytest.mark.parametrize(("gained", "lost", "n", "level", "low", "high"), [
    (6, 19, 100, .95, -.229610, -.034313), (6, 19, 100, .90, -.212811, -.050363),
    (421, 383, 10042, .95, -.001754, .009336), (421, 383, 10042, .90, -.000862, .008440),
    (8, 401, 1319, .95, -.323807, -.273061), (1, 0, 100, .95, -.027363, .054486),
    (0, 5, 100, .95, -.111750, -.011157), (0, 100, 100, .95, -1, -.926013),
])
def test_tango_on_benchmark_sizes(gained, lost, n, level, low, high):
    assert tango_interval(gained, lost, n, level) == pytest.approx((low, high), abs=6e-7)


def test_mid_p_and_margin_statistic_on_benchmark_sizes():
    assert mcnemar_mid(6, 19) == pytest.approx(.009355, abs=6e-7)
    assert mcnemar_mid(421, 383) == pytest.approx(.180429, abs=6e-7)
    assert tango_statistic(6, 19, 100, -.02) == pytest.approx(-2.232655, abs=6e-7)


@pytest.mark.parametrize("n", [1, 7, 100, 1319, 10042])
def test_no_discordant_items_leave_the_closed_form(n):
    z2 = oracle.norm.ppf(.975) ** 2
    assert tango_interval(0, 0, n) == pytest.approx((-z2 / (n + z2), z2 / (n + z2)), abs=1e-11)
    assert mcnemar_exact(0, 0) == mcnemar_mid(0, 0) == 1.0
    assert tango_statistic(0, 0, n, 0.0) == 0.0


def literal_tango(gained, lost, n, delta):
    """The statistic from its definition: the restricted likelihood is maximised numerically."""
    low, high = max(0.0, -delta), (1 - delta) / 2

    def minus_log_likelihood(q):
        cells = ((gained, q + delta), (lost, q), (n - gained - lost, 1 - 2 * q - delta))
        return -sum(k * math.log(max(p, 1e-300)) for k, p in cells if k)

    q = minimize_scalar(minus_log_likelihood, bounds=(low, high), options={"xatol": 1e-12}).x
    return (gained - lost - n * delta) / math.sqrt(n * (2 * q + delta - delta**2))


@pytest.mark.parametrize(("gained", "lost", "n"), [(3, 1, 14), (9, 3, 32), (6, 19, 100), (5, 5, 12)])
def test_tango_statistic_is_its_literal_definition(gained, lost, n):
    for delta in (-.6, -.2, -.05, -.01, .01, .05, .2, .6):
        assert tango_statistic(gained, lost, n, delta) == pytest.approx(
            literal_tango(gained, lost, n, delta), rel=2e-4, abs=1e-6)


def test_tango_interval_is_the_set_of_accepted_differences():
    """Brute force over every table of 9 items: inside is accepted, just outside rejected, T never rises."""
    z, checked = oracle.norm.ppf(.975), 0
    grid = np.linspace(-1, 1, 201)
    for gained, lost in product(range(10), range(10)):
        if gained + lost > 9:
            continue
        values = np.array([tango_statistic(gained, lost, 9, float(x)) for x in grid])
        assert np.isfinite(values).all()
        assert (np.diff(values) <= 1e-9).all()
        low, high = tango_interval(gained, lost, 9)
        inside = (grid > low + 1e-9) & (grid < high - 1e-9)
        assert (np.abs(values[inside]) <= z).all()
        outside = (grid < low - 1e-9) | (grid > high + 1e-9)
        assert (np.abs(values[outside]) > z).all()
        checked += 1
    assert checked == 55


def test_tango_is_antisymmetric_and_margin_tests_follow_the_intervals():
    for gained, lost, n in product((0, 2, 9, 30), (0, 3, 14, 30), (60, 300)):
        assert tango_interval(gained, lost, n) == pytest.approx(
            tuple(-x for x in reversed(tango_interval(lost, gained, n))), abs=1e-12)
        tests = tango_tests(gained, lost, n, .05)
        low, high = tango_interval(gained, lost, n)
        inner_low, inner_high = tango_interval(gained, lost, n, .90)
        assert (tests.lower < .05) == (high < -.05)
        assert (tests.higher < .05) == (low > .05)
        assert (tests.within < .05) == (inner_low > -.05 and inner_high < .05)
        assert all(0 <= p <= 1 for p in (tests.lower, tests.higher, tests.within))


def test_tango_at_a_margin_of_all_points():
    assert tango_tests(0, 3, 10, 1.0).within == 0.0
    assert tango_tests(0, 10, 10, 1.0).lower == 1.0


def test_tango_covers_by_exact_enumeration():
    """n = 100, p(gained) = .01, p(lost) = .04: coverage .939, where Wald's interval has .902."""
    n, up, down, covered = 100, .01, .04, 0.0
    for gained in range(8):
        for lost in range(20):
            weight = oracle.multinomial.pmf([gained, lost, n - gained - lost], n, [up, down, 1 - up - down])
            if weight < 1e-9:
                continue
            low, high = tango_interval(gained, lost, n)
            covered += weight * (low <= up - down <= high)
    assert covered == pytest.approx(.939, abs=1e-3)


def test_mcnemar_is_its_enumeration():
    """All 2**M orders of M discordant items: share as extreme (exact), half weight to the observed (mid)."""
    for total in range(1, 11):
        counts = np.array([sum(bits) for bits in product((0, 1), repeat=total)])
        extremeness = np.abs(2 * counts - total)
        for gained in range(total + 1):
            seen = abs(2 * gained - total)
            as_extreme, same = float((extremeness >= seen).mean()), float((extremeness == seen).mean())
            assert mcnemar_exact(gained, total - gained) == pytest.approx(as_extreme, abs=1e-12)
            assert mcnemar_mid(gained, total - gained) == pytest.approx(as_extreme - same / 2, abs=1e-12)


def test_impossible_counts_are_refused():
    for gained, lost, n in ((-1, 0, 5), (3, 3, 5), (0, 0, 0)):
        with pytest.raises(ValueError, match="need counts"):
            tango_interval(gained, lost, n)
        with pytest.raises(ValueError, match="need counts"):
            tango_tests(gained, lost, n, .02)


@pytest.mark.parametrize(("k", "n"), [(0, 8), (8, 8), (47, 100), (33, 135), (4542, 10042)])
def test_wilson_solves_its_quadratic(k, n):
    expected = oracle.binomtest(k, n).proportion_ci(.95, method="wilson")
    assert wilson(k, n) == pytest.approx((expected.low, expected.high), abs=1e-12)
    z = oracle.norm.ppf(.975)
    for end in wilson(k, n):
        assert (k / n - end) ** 2 == pytest.approx(z * z * end * (1 - end) / n, abs=1e-12)


def test_wilson_refuses_impossible_counts():
    with pytest.raises(ValueError, match="successes=5"):
        wilson(5, 4)


def test_paired_t_on_student_sleep():
    estimate = paired_mean(SLEEP)
    assert estimate.mean / estimate.se == pytest.approx(-4.0621277, abs=6e-8)
    assert estimate.df == 9
    assert estimate.p == pytest.approx(.00283289, abs=6e-9)
    assert estimate.interval() == pytest.approx((-2.4598858, -.7001142), abs=6e-8)
    assert estimate.tests(3.0).within == pytest.approx(.00265557, abs=6e-9)


def test_paired_t_is_scipys():
    d = np.random.default_rng(5).normal(.1, .4, 77)
    estimate, expected = paired_mean(d), oracle.ttest_1samp(d, 0.0)
    assert estimate.p == pytest.approx(expected.pvalue, abs=1e-12)
    for level in (.90, .95):
        interval = expected.confidence_interval(level)
        assert estimate.interval(level) == pytest.approx((interval.low, interval.high), abs=1e-12)
    tests = estimate.tests(.05)
    assert tests.higher == pytest.approx(min(1, 2 * oracle.ttest_1samp(d, .05, alternative="greater").pvalue))
    assert tests.lower == pytest.approx(min(1, 2 * oracle.ttest_1samp(d, -.05, alternative="less").pvalue))
    assert tests.within == pytest.approx(max(oracle.ttest_1samp(d, -.05, alternative="greater").pvalue,
                                             oracle.ttest_1samp(d, .05, alternative="less").pvalue))


@pytest.mark.parametrize(("d", "mean", "p"), [
    ([0.0] * 5, 0.0, 1.0), ([.3] * 4, .3, 0.0), ([.1 + .2 - .3, 0.0, 0.0], 0.0, 1.0), ([.7], .7, 1.0),
])
def test_equal_differences_are_degenerate_but_never_nan(d, mean, p):
    estimate = paired_mean(d)
    assert estimate.degenerate
    assert estimate.interval() == (pytest.approx(mean), pytest.approx(mean))
    assert estimate.p == p
    assert (estimate.tests(.02).lower, estimate.tests(.02).higher, estimate.tests(.02).within) == (1, 1, 1)


def test_values_that_are_no_numbers_are_refused():
    for d in ([], [1.0, math.nan], [math.inf]):
        with pytest.raises(ValueError, match="need finite ones"):
            paired_mean(d)
    assert not Estimate(0.1, 0.2, 3).degenerate
