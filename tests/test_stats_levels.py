"""What the paired tests claim, by enumeration of every outcome: levels, coverage, power, and what they are not."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
from scipy import stats as oracle

from aftertune.stats import (
    mcnemar_exact,
    mcnemar_mid,
    paired_mean,
    tango_interval,
    tango_statistic,
    tango_tests,
    wilson,
)

# (a, b, c, d) of the published tables, and Newcombe's method 10 (95 %) as published.
NEWCOMBE = [
    ((1, 1, 7, 12), -.506920, -.025559), ((4, 9, 3, 16), -.027348, .380672), ((53, 16, 8, 9), -.020104, .203916),
    ((20, 12, 2, 16), .056156, .329207), ((36, 12, 2, 0), .056930, .340428), ((8, 3, 1, 2), -.157437, .413639),
    ((7, 25, 2, 68), .132949, .318475),
]


def newcombe(a: int, b: int, c: int, d: int) -> tuple[float, float]:
    """Newcombe 1998 (Stat Med 17:2635), method 10, from the Wilson intervals of both margins."""
    n = a + b + c + d
    p, q = (a + b) / n, (a + c) / n
    (l1, u1), (l2, u2) = wilson(a + b, n), wilson(a + c, n)
    product = (a + b) * (c + d) * (a + c) * (b + d)
    top = a * d - b * c
    top = max(0.0, top - n / 2) if top > 0 else top
    phi = top / math.sqrt(product) if product else 0.0
    low = math.sqrt((p - l1) ** 2 - 2 * phi * (p - l1) * (u2 - q) + (u2 - q) ** 2)
    high = math.sqrt((q - l2) ** 2 - 2 * phi * (q - l2) * (u1 - p) + (u1 - p) ** 2)
    return p - q - low, p - q + high


@pytest.mark.parametrize(("table", "low", "high"), NEWCOMBE)
def test_newcombe_needs_the_margins_and_tango_does_not(table: tuple[int, ...], low: float, high: float) -> None:
    """The published intervals from our Wilson; Tango's looks at the discordant items alone and lies near."""
    a, b, c, d = table
    assert newcombe(a, b, c, d) == pytest.approx((low, high), abs=6e-7)
    ours = tango_interval(b, c, a + b + c + d)
    assert ours == pytest.approx((low, high), abs=.025)
    if table == (36, 12, 2, 0):
        assert ours == tango_interval(12, 2, 50) == pytest.approx((.061112, .344709), abs=6e-7)


def test_a_table_with_one_discordant_item() -> None:
    assert (mcnemar_exact(0, 1), mcnemar_mid(0, 1)) == (1, .5)
    assert 2 * oracle.norm.sf(abs(tango_statistic(0, 1, 44, 0.0))) == pytest.approx(.317311, abs=6e-7)


@pytest.mark.parametrize(("n", "points"), [(100, 3.6993), (1319, .2904), (10042, .0382)])
def test_no_discordant_items_leave_the_published_width(n: int, points: float) -> None:
    assert 100 * tango_interval(0, 0, n)[1] == pytest.approx(points, abs=6e-5)
    empty = newcombe(n // 2, 0, 0, n - n // 2)
    assert tango_interval(0, 0, n)[1] > empty[1]  # Newcombe's is narrower, Wald's has no width at all


def test_few_discordant_items() -> None:
    """Tango's interval may exclude 0 where the exact p is above .05; with fewer than 6 it is always above."""
    assert mcnemar_exact(0, 5) == .0625
    assert mcnemar_mid(0, 5) == .03125
    assert tango_interval(0, 5, 100)[1] < 0
    assert min(mcnemar_exact(b, m - b) for m in range(6) for b in range(m + 1)) > .05 > mcnemar_exact(0, 6)


@cache
def outcomes(n: int, psi: float) -> tuple[tuple[int, int, float], ...]:
    """(gained, lost, probability) of every table of n items at a true difference of 0."""
    return tuple((up, m - up, float(oracle.binom.pmf(m, n, psi) * oracle.binom.pmf(up, m, .5)))
                 for m in range(n + 1) for up in range(m + 1) if oracle.binom.pmf(m, n, psi) > 1e-12)


def levels(n: int, psi: float) -> tuple[float, float, float]:
    """Chance of a false difference at .05: exact, mid-p and asymptotic McNemar."""
    z = oracle.norm.ppf(.975)
    found = np.zeros(3)
    for up, down, weight in outcomes(n, psi):
        found += weight * np.array([mcnemar_exact(up, down) <= .05, mcnemar_mid(up, down) <= .05,
                                    abs(tango_statistic(up, down, n, 0.0)) >= z])
    return float(found[0]), float(found[1]), float(found[2])


@pytest.mark.parametrize(("psi", "expected"), [
    (.04, (.005, .017, .042)), (.10, (.022, .041, .043)), (.30, (.031, .045, .052))])
def test_golden_levels_at_a_hundred_items(psi: float, expected: tuple[float, ...]) -> None:
    assert levels(100, psi) == pytest.approx(expected, abs=5.1e-4)


def test_levels_of_small_samples() -> None:
    """Every n up to 30: exact is always safe; mid-p and Tango's (asymptotic) are where half or fewer items differ.

    If all items differ (no two models that are compared do) mid-p reaches 7.7 % and the asymptotic test 12.5 %.
    """
    usual, odd = np.zeros(3), np.zeros(3)
    for n in range(1, 31):
        for psi in (.02, .05, .1, .2, .3, .5):
            usual = np.maximum(usual, levels(n, psi))
        for psi in (.75, 1.0):
            odd = np.maximum(odd, levels(n, psi))
    assert max(usual[0], odd[0]) <= .05
    assert usual == pytest.approx([.0278, .0469, .0537], abs=1e-4)
    assert (odd[1], odd[2]) == pytest.approx((.0768, .1250), abs=1e-4)


@pytest.mark.parametrize("n", [10, 20, 30])
def test_level_of_the_margin_test(n: int) -> None:
    """A true loss of just the margin (10 points): "lower" is proven with 2.5 %, at most a little more."""
    worst = 0.0
    for up in (.0, .02, .05, .1, .2, .3):
        down = up + .10
        chance = 0.0
        for gained in range(n + 1):
            for lost in range(n + 1 - gained):
                weight = oracle.multinomial.pmf([gained, lost, n - gained - lost], n, [up, down, 1 - up - down])
                if weight > 1e-12:
                    chance += float(weight) * (tango_tests(gained, lost, n, .10).lower < .05)
        worst = max(worst, chance)
    assert .01 < worst < .05


def test_wald_covers_less_than_it_says() -> None:
    """n = 100, p(gained) .01, p(lost) .04: Wald's interval has .902 where Tango's has .939."""
    n, covered = 100, 0.0
    for gained in range(9):
        for lost in range(21):
            weight = oracle.multinomial.pmf([gained, lost, n - gained - lost], n, [.01, .04, .95])
            d = (gained - lost) / n
            half = oracle.norm.ppf(.975) * math.sqrt((gained + lost) / n - d * d) / math.sqrt(n)
            covered += float(weight) * (d - half <= -.03 <= d + half)
    assert covered == pytest.approx(.902, abs=1e-3)


def test_power_of_469_items() -> None:
    """psi .15, difference .05: exact .7756, mid-p .8066, asymptotic .8096; a simpler published rule says 464."""
    power, z = np.zeros(3), oracle.norm.ppf(.975)
    for m in range(30, 121):
        weights = oracle.binom.pmf(m, 469, .15) * oracle.binom.pmf(range(m + 1), m, .10 / .15)
        for up in range(m + 1):
            power += weights[up] * np.array([mcnemar_exact(up, m - up) <= .05, mcnemar_mid(up, m - up) <= .05,
                                             abs(tango_statistic(up, m - up, 469, 0.0)) >= z])
    assert tuple(power) == pytest.approx((.7756, .8066, .8096), abs=6e-4)


def test_no_drop_is_one_side_of_within() -> None:
    """What a gate asks: a gain beyond the margin is no drop, though it is not within."""
    gain = tango_tests(40, 0, 400, .02)
    assert gain.no_drop < 1e-6
    assert gain.within > .9
    alike = tango_tests(10, 10, 2000, .02)
    assert alike.within == pytest.approx(alike.no_drop)
    estimate = paired_mean([.01, -.02, .03, .0, .02, .01])
    assert estimate.tests(.05).no_drop == pytest.approx(
        oracle.ttest_1samp([.01, -.02, .03, .0, .02, .01], -.05, alternative="greater").pvalue)
