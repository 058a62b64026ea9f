"""The bound on losses that were not seen, and what may be said of few shares, small groups and repeated items."""

import math
from collections import Counter

import numpy as np
import pytest
from scipy.stats import beta, binom

from aftertune.stats import Case, decide, group_evidence, paired_evidence, paired_mean
from aftertune.stats.bounded import bounded_interval, bounded_tests, p_at_most

MARGIN = .02


def verdict(evidence):
    decision, = decide([Case(tests=evidence.tests, clustered=evidence.clustered, bootstrap=evidence.bootstrap)])
    return decision.verdict


@pytest.mark.parametrize("n", [1, 10, 134, 149, 300, 5000])
@pytest.mark.parametrize("lost", [0, 1, 3, 20])
def test_with_whole_losses_it_is_clopper_and_pearsons_test(n, lost):
    if lost > n:
        return
    d = np.array([-1.0] * lost + [0.0] * (n - lost))
    assert p_at_most(d, -MARGIN) == pytest.approx(binom.cdf(lost, n, MARGIN), rel=.02, abs=1e-9)
    if 0 < lost < n:
        low = bounded_interval(d)[0]
        assert -low == pytest.approx(beta.ppf(.975, lost + 1, n - lost), rel=.02)


def test_it_is_the_tail_of_a_mean_with_random_weights():
    values = np.array([-.5, .1, .3, 0, 0, .02])
    weights = np.random.default_rng(1).dirichlet(np.ones(7), 200_000)
    for mean in (-.4, -.2, 0, .1):
        literal = float((weights @ np.append(values, -1) <= mean).mean())
        assert p_at_most(values, mean) == pytest.approx(literal, abs=.004)


def test_interval_and_tests_agree_and_turn_with_the_sign():
    d = np.random.default_rng(3).normal(-.03, .2, 200).clip(-1, 1)
    low, high = bounded_interval(d)
    assert bounded_tests(d, -low).lower > .05 > bounded_tests(d, -low - .001).no_drop
    assert p_at_most(d, low) == pytest.approx(.025, abs=1e-6)
    assert p_at_most(-d, -high) == pytest.approx(.025, abs=1e-6)
    assert bounded_interval(-d) == pytest.approx((-high, -low))
    one, other = bounded_tests(d, MARGIN), bounded_tests(-d, MARGIN)
    assert (one.lower, one.higher, one.within) == pytest.approx((other.higher, other.lower, other.within))


def test_with_many_values_it_is_close_to_students_t():
    d = np.random.default_rng(4).normal(.01, .3, 5000).clip(-1, 1)
    assert bounded_interval(d) == pytest.approx(paired_mean(d).interval(), abs=6e-4)


def test_an_answer_that_moves_a_little_proves_nothing():
    """At 140 items 2 % of complete failures are unseen with a probability of 6 %."""
    base = np.full(140, 1.0)
    tuned = base.copy()
    assert verdict(paired_evidence(base * .9, base * .9, margin=MARGIN)) == "undecided"
    tuned[0] = .99
    assert verdict(paired_evidence(base, tuned, margin=MARGIN)) == "undecided"
    more = np.full(200, 1.0)
    assert verdict(paired_evidence(more, np.append(more[1:], .99), margin=MARGIN)) == "within"


def test_the_interval_of_shares_is_never_narrower_than_that_of_items_without_a_change():
    z = 1.959963984540054
    for n in (8, 50, 300):
        d = np.zeros(n)
        d[0] = -.001
        evidence = paired_evidence(np.full(n, .5), .5 + d, margin=MARGIN)
        for side in (evidence.delta - evidence.low, evidence.high - evidence.delta):
            assert side >= z * z / (n + z * z) - 1e-12


def rare_losses(rng, n):
    """Shares that hardly move, and 2 points lost on average by answers that fail completely: the margin itself."""
    base = rng.uniform(.85, .95, n)
    failed = rng.random(n) < MARGIN / .9
    return base, np.where(failed, 0.0, (base + rng.normal(0, .01, n)).clip(0, 1))


def groups(rng, sizes):
    """Right answers, of which 2 % are lost."""
    base = [np.ones(n) for n in sizes]
    return base, [np.where(rng.random(n) < MARGIN, 0.0, 1.0) for n in sizes]


def repeated(rng, distinct, copies):
    """Distinct items asked several times; 11 % lost and 9 % gained."""
    u = rng.random(distinct)
    base, tuned = (np.repeat(side, copies) for side in ((u < .11) * 1.0, ((u >= .11) & (u < .2)) * 1.0))
    return base, tuned, np.repeat(np.arange(distinct), copies).tolist()


@pytest.mark.parametrize("n", [8, 50, 100, 150])
def test_false_verdicts_on_shares(n):
    rng = np.random.default_rng(n)
    said = Counter(verdict(paired_evidence(*rare_losses(rng, n), margin=MARGIN)) for _ in range(60))
    assert said["lower"] + said["higher"] + said["within"] <= 60 * .05 + 2 * math.sqrt(60 * .05 * .95)


@pytest.mark.parametrize("sizes", [(45,) * 3, (3,) * 57, (50,) * 4])
def test_false_verdicts_on_groups_with_few_subjects(sizes):
    rng = np.random.default_rng(sizes[0])
    said = Counter(verdict(group_evidence(*groups(rng, sizes), margin=MARGIN)) for _ in range(100))
    assert said["lower"] + said["higher"] + said["within"] <= 100 * .05 + 2 * math.sqrt(100 * .05 * .95)


@pytest.mark.parametrize(("distinct", "copies"), [(100, 10), (10, 100), (400, 3)])
def test_false_verdicts_on_repeated_items(distinct, copies):
    rng = np.random.default_rng(distinct)
    said = Counter()
    for _ in range(100):
        base, tuned, labels = repeated(rng, distinct, copies)
        said[verdict(paired_evidence(base, tuned, margin=MARGIN, clusters=labels))] += 1
    assert said["lower"] + said["higher"] + said["within"] <= 100 * .05 + 2 * math.sqrt(100 * .05 * .95)


def test_ten_items_asked_a_hundred_times_are_ten_items():
    base = np.ones(1000)
    labels = [k // 100 for k in range(1000)]
    assert verdict(paired_evidence(base, base, margin=MARGIN)) == "within"
    assert verdict(paired_evidence(base, base, margin=MARGIN, clusters=labels)) == "undecided"
    assert verdict(paired_evidence(base, base, margin=.4, clusters=labels)) == "within"


def test_a_group_counts_the_items_that_its_tasks_share():
    rng = np.random.default_rng(5)
    base = [(rng.random(200) < .7) * 1.0] * 2
    tuned = [np.where(rng.random(200) < .2, 0.0, base[0])] * 2
    shared = [list(range(200))] * 2
    alone, together = group_evidence(base, tuned, margin=MARGIN), group_evidence(base, tuned, margin=MARGIN,
                                                                                clusters=shared)
    assert alone.clustered is None
    assert together.clustered.lower > alone.tests.lower
    assert together.psi == pytest.approx(2 * alone.psi, rel=.02)
    unknown = group_evidence(base, tuned, margin=MARGIN, clusters=[shared[0], [None] * 200])
    assert verdict(unknown) == "undecided"
