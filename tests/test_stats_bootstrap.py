"""The BCa bootstrap of a mean: golden acceleration, scipy's interval, and when it is asked for."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as oracle

from aftertune.stats import Case, decide, paired_evidence, paired_mean
from aftertune.stats.bootstrap import acceleration, bca_mean, needs_bootstrap

SLEEP = np.array([0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]) - np.array(
    [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4])


def test_golden_acceleration_and_the_jackknife() -> None:
    assert acceleration(SLEEP) == pytest.approx(-.077580, abs=6e-7)
    left_out = np.array([np.delete(SLEEP, i).mean() for i in range(SLEEP.size)])
    u = (SLEEP.size - 1) * (left_out.mean() - left_out)
    assert acceleration(SLEEP) == pytest.approx((u**3).sum() / (6 * (u**2).sum() ** 1.5), rel=1e-12)


@pytest.mark.parametrize("d", [SLEEP, np.random.default_rng(3).exponential(size=40) - .7], ids=["sleep", "skewed"])
def test_the_interval_is_scipys(d: np.ndarray) -> None:
    mine = bca_mean(d)
    assert mine is not None
    theirs = oracle.bootstrap((d,), np.mean, method="BCa", n_resamples=20_000, rng=np.random.default_rng(1))
    spread = paired_mean(d).se
    assert mine.interval() == pytest.approx(tuple(theirs.confidence_interval), abs=.06 * spread)


def test_tests_agree_with_the_intervals() -> None:
    random = np.random.default_rng(5)
    seen = set()
    for shift in np.linspace(-.3, .3, 25):
        d = random.normal(shift, .2, 30)
        found = bca_mean(d)
        assert found is not None
        tests, (low, high), (inner_low, inner_high) = found.tests(.1), found.interval(), found.interval(.90)
        assert abs((tests.lower < .05) - (high < -.1)) == 0 or abs(high + .1) < .01
        assert abs((tests.higher < .05) - (low > .1)) == 0 or abs(low - .1) < .01
        assert abs((tests.within < .05) - (inner_low > -.1 and inner_high < .1)) == 0 or min(
            abs(inner_low + .1), abs(inner_high - .1)) < .01
        seen.add((tests.lower < .05, tests.higher < .05, tests.within < .05))
    assert len(seen) >= 3


def test_it_is_asked_for_where_t_is_doubtful() -> None:
    random = np.random.default_rng(0)
    assert needs_bootstrap(random.normal(size=99))
    assert not needs_bootstrap(random.normal(size=400))
    rare = np.zeros(400)
    rare[:3] = 1.0  # three items of 400 moved: skewness 11.5, so 25 skew**2 is about 3,300
    assert needs_bootstrap(rare)
    assert 25 * oracle.skew(rare) ** 2 == pytest.approx(25 * (6 * acceleration(rare)) ** 2 * 400)
    assert bca_mean(random.normal(size=400)) is None
    assert bca_mean([.2] * 50) is None
    assert bca_mean(SLEEP[:7]) is None


def test_it_is_seeded_and_cheap_for_many_values() -> None:
    rare = np.zeros(10_000)
    rare[:20] = -1.0
    first, second = bca_mean(rare), bca_mean(rare)
    assert first is not None
    assert second is not None
    assert first.interval() == second.interval()
    assert first.means.size == 2_000


def test_a_skewed_metric_takes_the_weaker_verdict() -> None:
    """One item of 60 lost everything: t calls the mean within four points, the bootstrap does not."""
    base = np.full(60, .9)
    tuned = base.copy()
    tuned[:2] = 0.0
    tuned[2:] += np.linspace(-.001, .001, 58)
    evidence = paired_evidence(base, tuned, margin=.06)
    assert evidence.bootstrap is not None
    assert "bootstrap (BCa) 95 % interval \N{MINUS SIGN}" in evidence.details[0]
    decision, = decide([Case(tests=evidence.tests, bootstrap=evidence.bootstrap)])
    alone, = decide([Case(tests=evidence.tests)])
    assert evidence.bootstrap.within != evidence.tests.within
    assert decision.p >= alone.p
