"""The rules of section "verdicts": which test applies, families, floors, clusters, words."""

import math
from dataclasses import FrozenInstanceError

import numpy as np
import pytest

from aftertune.stats import (
    Case,
    MarginTests,
    at_floor,
    clustered_mean,
    decide,
    label_of,
    paired_evidence,
    paired_mean,
    tango_interval,
    tango_tests,
    wilson,
)
from aftertune.stats.bounded import bounded_interval, bounded_tests
from aftertune.stats.paired import weakest

NOTHING = MarginTests(1.0, 1.0, 1.0)


def one(gained, lost, n, margin=.02, **more):
    return decide([Case(tests=tango_tests(gained, lost, n, margin), **more)])[0]


def pair(gained, lost, both, neither):
    """Binary arrays with these cells."""
    base = np.array([0.0] * gained + [1.0] * lost + [1.0] * both + [0.0] * neither)
    tuned = np.array([1.0] * gained + [0.0] * lost + [1.0] * both + [0.0] * neither)
    return base, tuned


@pytest.mark.parametrize(("gained", "lost", "n", "verdict"), [
    (8, 401, 1319, "lower"), (401, 8, 1319, "higher"),
    (421, 383, 10042, "within"), (10, 10, 100, "undecided"),
    (6, 19, 100, "lower"), (0, 0, 100, "undecided"), (0, 0, 300, "within"), (8, 17, 100, "undecided"),
])
def test_one_row(gained, lost, n, verdict):
    decision = one(gained, lost, n)
    assert decision.verdict == verdict
    low, high = tango_interval(gained, lost, n)
    inner = tango_interval(gained, lost, n, .90)
    assert (verdict == "lower") == (high < -.02)
    assert (verdict == "higher") == (low > .02)
    assert (verdict == "within") == (inner[0] > -.02 and inner[1] < .02)


def test_p_is_of_the_test_that_the_verdict_stands_on():
    tests = tango_tests(421, 383, 10042, .02)
    assert one(421, 383, 10042).p == tests.within
    assert one(6, 19, 100).p == p_moved(6, 19) == pytest.approx(2 * .0127843, abs=1e-5)
    assert one(10, 10, 100).p == p_moved(10, 10) == 1.0


def p_moved(gained, lost):
    return tango_tests(gained, lost, 100, .02).moved


def test_two_holm_families():
    """p .0256 alone is proven; beside a second undecided test it is not (Holm doubles the smallest)."""
    alone, = decide([Case(tests=tango_tests(6, 19, 100, .02))])
    pair_of_two = decide([Case(tests=tango_tests(6, 19, 100, .02)), Case(tests=NOTHING)])
    assert (alone.verdict, pair_of_two[0].verdict) == ("lower", "worse")  # worse at all stays proven
    assert pair_of_two[0].p_adjusted == pytest.approx(2 * tango_tests(6, 19, 100, .02).worse)
    assert 2 * alone.p > .05
    # a clear loss leaves the `within` family its own correction: .03 * 2 > .05, .01 * 2 < .05
    lost = MarginTests(lower=1e-9, higher=1.0, within=1.0)
    for within, verdict in ((.03, "undecided"), (.01, "within")):
        first, second = decide([Case(tests=lost), Case(tests=MarginTests(1.0, 1.0, within))])
        assert (first.verdict, second.verdict) == ("lower", verdict)
        if verdict == "within":
            assert second.p_adjusted == pytest.approx(2 * within)
    assert decide([]) == ()


def test_the_verdict_is_read_off_the_adjusted_p():
    rng = np.random.default_rng(2)
    seen = set()
    for _ in range(200):
        family = [Case(tests=tango_tests(int(rng.integers(0, 40)), int(rng.integers(0, 40)), 400, .03))
                  for _ in range(4)]
        for decision in decide(family):
            assert (decision.verdict != "undecided") == (decision.p_adjusted < .05)
            assert decision.p_adjusted >= decision.p
            seen.add(decision.verdict)
    assert seen == {"lower", "higher", "within", "worse", "better", "no_loss", "undecided"}


def test_at_the_floor_nothing_is_kept():
    floor = one(0, 0, 300, at_floor=True)
    assert (floor.verdict, floor.at_floor) == ("undecided", True)
    assert one(0, 0, 300).verdict == "within"
    assert floor.p_adjusted > .05, "the p of what is not said would contradict the word"
    told = label_of(floor.verdict, lineage=True, at_floor=floor.at_floor)
    assert told == "undecided (at floor: nothing to forget)"
    assert one(60, 2, 300, at_floor=True).verdict == "higher"
    assert not one(60, 2, 300, at_floor=True).at_floor
    assert one(10, 10, 100, at_floor=True).at_floor


def test_where_the_floor_is():
    assert at_floor(wilson(25, 100)[0], .25)
    assert at_floor(wilson(10, 100)[0], .25)       # below chance: nothing to forget either
    assert not at_floor(wilson(47, 100)[0], .25)
    assert at_floor(wilson(0, 8)[0], None)
    assert not at_floor(wilson(5, 8)[0], None)


@pytest.mark.parametrize(("verdict", "told"), [
    ("lower", "forgot"), ("higher", "improved"), ("within", "kept"), ("undecided", "undecided")])
def test_words_need_lineage(verdict, told):
    assert label_of(verdict, lineage=True) == told
    assert label_of(verdict, lineage=False) == verdict


def test_the_weaker_of_two_verdicts_stands():
    strong, weak = MarginTests(.001, 1.0, 1.0), MarginTests(.20, 1.0, .9)
    both, = decide([Case(tests=strong, clustered=weak)])
    assert (both.verdict, both.p, both.p_adjusted) == ("undecided", .20, .20)
    assert "lower by the item-wise test, undecided by the cluster-robust test" in both.note
    other_way, = decide([Case(tests=weak, clustered=strong)])
    assert other_way.verdict == "undecided"
    agreed, = decide([Case(tests=strong, clustered=MarginTests(.03, 1.0, 1.0))])
    assert (agreed.verdict, agreed.p, agreed.note) == ("lower", .03, "")
    apart, = decide([Case(tests=strong, clustered=MarginTests(1.0, 1.0, .01))])
    assert apart.verdict == "undecided"


def test_clusters_that_move_together_weaken_a_verdict():
    """40 sources of 10 items; in two of them all items are lost: 20 of 400 items, but two accidents."""
    base, tuned = np.ones(400), np.ones(400)
    tuned[:20] = 0
    clusters = [i // 10 for i in range(400)]
    evidence = paired_evidence(base, tuned, margin=.02, clusters=clusters)
    assert paired_evidence(base, tuned, margin=.02).clustered is None
    assert one(0, 20, 400).verdict == "lower"
    decision, = decide([Case(tests=evidence.tests, clustered=evidence.clustered)])
    assert decision.verdict == "undecided"
    assert any("40 clusters" in note for note in evidence.notes)
    assert evidence.psi > paired_evidence(base, tuned, margin=.02).psi


def test_cluster_intervals_are_told_in_points_for_shares_only():
    base, tuned = pair(9, 6, 20, 25)
    clusters = [i % 30 for i in range(60)]
    note, = paired_evidence(base, tuned, margin=.02, clusters=clusters).notes
    low, high = clustered_mean(tuned - base, clusters).interval()
    ends = bounded_interval([(tuned - base)[k::30].mean() for k in range(30)])
    low, high = min(low, ends[0]), max(high, ends[1])
    assert note == (f"cluster-robust 95 % interval {100 * low:+.2f} to {100 * high:+.2f} (30 clusters)"
                    .replace("-", "−").replace("cluster−", "cluster-"))
    low, high = clustered_mean(tuned - base, clusters).interval()
    note, = paired_evidence(2 * base, 2 * tuned, margin=.02, clusters=clusters).notes
    assert f"to {2 * high:+.4f} (30 clusters)" in note


def test_few_clusters_warn_and_one_cluster_has_no_error():
    base, tuned = pair(9, 6, 20, 25)
    few = paired_evidence(2 * base, 2 * tuned, margin=.02, clusters=[i % 7 for i in range(60)])
    assert any("fewer than 20 clusters" in note for note in few.notes)
    single = paired_evidence(base, tuned, margin=.02, clusters=["one"] * 60)
    assert single.clustered == NOTHING
    assert single.notes == ("all items are one cluster, so no error can be estimated and nothing is proven",)
    unknown = paired_evidence(base, tuned, margin=.02, clusters=[None, *range(59)])
    assert unknown.clustered == NOTHING
    assert unknown.notes[0].startswith("the clusters of 1 of 60 items are not known")
    assert paired_evidence(base, tuned, margin=.02, clusters=range(60)).clustered is None


def test_binary_evidence():
    base, tuned = pair(6, 19, 50, 25)
    evidence = paired_evidence(base, tuned, margin=.02)
    assert (evidence.kind, evidence.gained, evidence.lost, evidence.n) == ("binary", 6, 19, 100)
    assert (evidence.base, evidence.tuned, evidence.delta) == pytest.approx((.69, .56, -.13))
    assert (evidence.low, evidence.high) == pytest.approx((-.229610, -.034313), abs=6e-7)
    assert evidence.p_mid == pytest.approx(.009355, abs=6e-7)
    assert evidence.base_low == wilson(69, 100)[0]
    assert (evidence.psi, evidence.shares) == (wilson(25, 100)[1], True)
    with pytest.raises(FrozenInstanceError):
        evidence.n = 5


def test_lower_is_better_turns_the_sign():
    base, tuned = pair(6, 19, 50, 25)
    evidence = paired_evidence(base, tuned, margin=.02, higher_is_better=False)
    assert (evidence.delta, evidence.gained, evidence.lost) == (pytest.approx(.13), 19, 6)
    assert (evidence.base, evidence.tuned) == pytest.approx((.69, .56))
    assert evidence.base_low is None


def test_real_evidence():
    rng = np.random.default_rng(9)
    base = rng.uniform(size=80)
    tuned = np.clip(base + rng.normal(-.05, .1, 80), 0, 1)
    evidence, estimate = paired_evidence(base, tuned, margin=.02), paired_mean(tuned - base)
    assert (evidence.kind, evidence.gained, evidence.lost, evidence.p_exact) == ("real", None, None, None)
    low, high = bounded_interval(tuned - base)
    assert evidence.low == min(low, estimate.interval()[0])
    assert evidence.high == max(high, estimate.interval()[1])
    assert evidence.tests == weakest(estimate.tests(.02), bounded_tests(tuned - base, .02))
    assert evidence.base_low == paired_mean(base).interval()[0]
    outside, estimate = paired_evidence(3 * base, 3 * tuned, margin=.02), paired_mean(3 * (tuned - base))
    assert (outside.low, outside.high, outside.tests) == (*estimate.interval(), estimate.tests(.02))


def test_real_values_that_all_move_alike_prove_nothing():
    base = np.array([2.0, 3.0, 4.5])
    for tuned, note in ((base + 1, "same amount"), (base, "same amount")):
        evidence = paired_evidence(base, tuned, margin=.02)
        assert evidence.tests == NOTHING
        assert (evidence.low, evidence.high) == (evidence.delta, evidence.delta)
        assert evidence.psi is None
        assert note in evidence.notes[0]
    assert "only one item" in paired_evidence(base[:1], base[:1] + 1, margin=.02).notes[0]


def test_shares_that_do_not_move_are_bounded_by_their_number():
    for n, verdict in ((50, "undecided"), (300, "within")):
        values = np.linspace(.2, .9, n)
        evidence = paired_evidence(values, values, margin=.02)
        assert (evidence.low, evidence.high) == pytest.approx(tango_interval(0, 0, n))
        assert evidence.tests.within == pytest.approx(.98**n, rel=.03)
        assert decide([Case(tests=evidence.tests)])[0].verdict == verdict
        assert all(math.isfinite(x) for x in (evidence.low, evidence.high, evidence.delta))


def test_arrays_that_do_not_match_are_refused():
    square = np.ones((2, 2))
    for base, tuned in ((np.ones(3), np.ones(4)), (np.ones(0), np.ones(0)), (square, square)):
        with pytest.raises(ValueError, match="need two arrays"):
            paired_evidence(base, tuned, margin=.02)


def test_what_cannot_be_lost_is_no_member_of_the_family():
    """A loss at p .02 beside a task at the floor and the tuning's own target: it is a family of one."""
    lost = MarginTests(.02, 1.0, 1.0)
    cases = [Case(tests=lost), Case(tests=NOTHING, at_floor=True), Case(tests=NOTHING, target=True),
             Case(tests=NOTHING, target=True)]
    first, floor, *targets = decide(cases)
    assert (first.verdict, first.p_adjusted, first.members) == ("lower", .02, 1)
    assert (floor.at_floor, floor.members) == (True, 1)
    assert [t.members for t in targets] == [2, 2]
    two_floors = decide([Case(tests=MarginTests(1.0, .03, 1.0), at_floor=True), Case(tests=NOTHING, at_floor=True)])
    assert two_floors[0].p_adjusted == .06  # a gain at the floor is corrected over the tasks at the floor
