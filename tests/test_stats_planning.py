"""Planning formulas against golden values, exact power, and each other."""

import math

import numpy as np
import pytest
from scipy.stats import binom, chi2

from aftertune.stats import (
    items_for_difference,
    items_for_equivalence,
    items_needed,
    mcnemar_mid,
    smallest_difference,
    tango_tests,
    wilson,
)
from aftertune.stats.planning import (
    discordance_bound,
    items_above,
    items_beyond,
    items_for_average,
    items_for_verdicts,
    items_to_decide,
    items_without_failure,
    variance_bound,
)

DETECTABLE = {  # points at 80 % power, by n and psi = .02, .05, .10, .20, .30
    100: (None, None, 8.76, 12.38, 15.16), 1319: (1.09, 1.72, 2.44, 3.45, 4.22),
    10042: (.40, .63, .88, 1.25, 1.53), 14042: (.33, .53, .75, 1.06, 1.29),
}


def test_golden_sizes():
    assert items_for_difference(.15, .05) == pytest.approx(468.57, abs=.005)
    assert math.ceil(items_for_equivalence(.08, .01)) == 6852
    assert math.ceil(items_for_equivalence(.08, .02)) == items_needed(.08, .02) == 1713


@pytest.mark.parametrize("n", DETECTABLE)
def test_golden_smallest_differences(n):
    for psi, points in zip((.02, .05, .10, .20, .30), DETECTABLE[n], strict=True):
        found = smallest_difference(psi, n)
        if points is None:
            assert found is None
        else:
            assert 100 * found == pytest.approx(points, abs=.0051)
            assert items_for_difference(psi, found) == pytest.approx(n, rel=1e-9)


def test_exact_power_of_the_planned_size():
    """469 items, psi .15, difference .05: mid-p McNemar finds it with probability .8066 (enumeration)."""
    power = 0.0
    for discordant in range(30, 121):
        weight = binom.pmf(discordant, 469, .15)
        power += weight * sum(binom.pmf(up, discordant, .10 / .15) for up in range(discordant + 1)
                              if mcnemar_mid(up, discordant - up) < .05)
    assert power == pytest.approx(.8066, abs=5e-4)


def test_exact_power_of_items_needed():
    """Two models that do not differ, psi .08, margin 2 points, 1713 items: "within" with about 80 %."""
    power = 0.0
    for discordant in range(90, 190):
        weight = binom.pmf(discordant, 1713, .08)
        power += weight * sum(binom.pmf(up, discordant, .5) for up in range(discordant + 1)
                              if tango_tests(up, discordant - up, 1713, .02).within < .05)
    assert power == pytest.approx(.80, abs=.02)


def test_items_that_show_a_loss_beyond_the_margin():
    """A true loss of 8 points at psi .30 and a margin of 5: by simulation of Tango's test, power 80 %."""
    n = math.ceil(items_beyond(.30, .05, -.08))
    assert n == items_needed(.30, .05, -.08) == 2561
    rng = np.random.default_rng(0)
    draws = rng.multinomial(n, [.11, .19, .70], size=2000)
    found = np.mean([tango_tests(int(up), int(down), n, .05).lower < .05 for up, down, _ in draws])
    assert found == pytest.approx(.80, abs=.03)


def test_no_number_of_items_decides_a_difference_that_is_the_margin():
    assert items_needed(.30, .05, -.05) is None
    assert items_needed(.30, .05, .049) > 100_000
    with pytest.raises(ValueError, match="margin"):
        items_beyond(.3, .05, .05)


@pytest.mark.parametrize(("share", "floor"), [(.27, .25), (.3, .25), (.03, .02), (.9, .5)])
def test_items_above_a_floor_are_the_first_at_which_wilsons_interval_clears_it(share, floor):
    n = items_above(share, floor)
    assert wilson(share * n, n)[0] > floor >= wilson(share * (n - 1), n - 1)[0]


def test_a_share_at_its_floor_or_below_never_clears_it():
    assert items_above(.25, .25) is None
    assert items_above(.1, .25) is None


def test_upper_bounds():
    assert discordance_bound(0, 100) == pytest.approx(.0369935, abs=1e-7)
    assert variance_bound(4.0, 9) == pytest.approx(4 * 9 / chi2.ppf(.025, 9))
    assert variance_bound(4.0, 9) > 4.0


def test_impossible_plans_are_refused():
    with pytest.raises(ValueError, match="delta"):
        items_for_difference(.05, .10)
    with pytest.raises(ValueError, match="margin"):
        items_for_equivalence(.08, .02, .02)
    with pytest.raises(ValueError, match="psi"):
        smallest_difference(0.0, 100)
    assert items_for_equivalence(.08, .02, .01) > items_for_equivalence(.08, .02)


def test_what_a_task_needs():
    """The golden sizes in one answer; all items show "kept" at the least margin, and not just below it."""
    plan = items_for_verdicts(.08, .02, total=10_042)
    assert (plan.kept, plan.can_show_kept) == (1713, True)
    assert plan.smallest == smallest_difference(.08, 10_042)
    assert items_for_equivalence(.08, plan.kept_at) == pytest.approx(10_042, rel=1e-9)
    assert [loss for loss, _ in plan.lost] == pytest.approx([.03, .04, .06])
    assert [n for _, n in items_for_verdicts(.30, .05, total=1319, losses=(1.6,)).lost] == [2561]


def test_a_task_that_cannot_show_kept():
    plan = items_for_verdicts(.10, .02, total=100)
    assert not plan.can_show_kept
    assert plan.kept_at > .02
    assert 100 * plan.smallest == pytest.approx(8.76, abs=.0051)
    assert items_for_verdicts(.02, .02, total=100).smallest is None


@pytest.mark.parametrize("wrong", [{"psi": 0}, {"psi": 1.1}, {"margin": 0}, {"total": 0}, {"losses": (1.0,)}])
def test_needs_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match="need 0 < psi"):
        items_for_verdicts(**{"psi": .1, "margin": .02, "total": 100, **wrong})


def test_items_to_decide_says_for_which_true_difference():
    psi = .1
    zero = items_to_decide(psi, .02, -.003, includes_zero=True, seen=500, total=10_042)
    assert (zero.at, zero.power, zero.items) == (0.0, .8, items_needed(psi, .02))
    after_holm = items_to_decide(psi, .02, -.003, includes_zero=True, seen=500, total=10_042, alpha=.05 / 5)
    assert after_holm.items > 1.3 * zero.items
    assert items_to_decide(psi, .02, -.003, includes_zero=True, seen=100, total=1319).items is None
    lost = items_to_decide(psi, .02, -.06, includes_zero=False, seen=100, total=1319)
    assert (lost.at, lost.items, lost.near_margin) == (-.06, items_needed(psi + .06**2, .02, -.06), False)


def test_near_the_margin_no_affordable_number_decides():
    near = items_to_decide(.1, .02, -.018, includes_zero=True, seen=500, total=10_042)
    assert (near.items, near.at, near.near_margin) == (None, -.018, True)
    assert near.needed > 100_000
    assert near.if_equal == items_needed(.1, .02)
    assert items_to_decide(.1, .02, -.02, includes_zero=False, seen=500, total=10_042).needed is None


def test_the_number_decides_as_often_as_it_says():
    """At the stated true difference, after Holm over four tests; exact over the multinomial would say the same."""
    rng, psi, alpha = np.random.default_rng(3), .1, .05 / 4
    for delta in (0.0, -.012, -.05):
        found = items_to_decide(psi, .02, delta, includes_zero=delta > -.03, seen=1, total=10**6, alpha=alpha)
        assert found.at == delta
        decided = 0
        for _ in range(400):
            gained, lost, _ = rng.multinomial(found.items, [(psi + delta) / 2, (psi - delta) / 2, 1 - psi])
            tests = tango_tests(int(gained), int(lost), found.items, .02)
            decided += tests.within < alpha if abs(delta) < .02 else tests.lower < alpha
        assert decided / 400 > .74


def test_few_changes_do_not_make_items_needless():
    """With less than ln(20) / margin items a few complete failures are unseen, however seldom the models differ."""
    assert items_without_failure(.02) == 149
    assert items_to_decide(.001, .02, 0.0, includes_zero=True, seen=8, total=1319).items == 149
    assert items_for_verdicts(.001, .02, total=1319).kept == 149
    assert items_to_decide(.001, .02, 0.0, includes_zero=True, seen=1, total=1319, shares=False).items < 40


def test_items_of_each_task_for_their_average() -> None:
    assert [items_for_average([.1] * k, .02) for k in (3, 6, 10)] == [714, 357, 215]
    assert items_for_average([.1], .02) == math.ceil(items_for_equivalence(.1, .02))
    # a task that has fewer items is asked all of them, and the others more
    n = items_for_average([.1, .1, .1], .02, [500, 10_000, 10_000])
    assert n is not None
    z = math.sqrt(items_for_equivalence(.1, .02) * .02**2 / .1)
    assert z**2 * (.1 / 500 + .2 / n) / 9 <= .02**2 < z**2 * (.1 / 500 + .2 / (n - 1)) / 9
    assert items_for_average([.1, .1], .02, [100, 5000]) is None
    # nothing differs: what losses that were not seen need, over all tasks
    assert items_for_average([.0001] * 3, .02) == math.ceil(149 / 3)
    assert items_for_average([.0001] * 3, .02, [49, 500, 500]) is None
