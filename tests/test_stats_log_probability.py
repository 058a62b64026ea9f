"""Moves of log-probabilities: golden values, rounding, clusters, few items and Holm's correction."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as oracle

from aftertune.stats import holm
from aftertune.stats.log_probability import ROUNDING, adjusted_moves, log_probability_move, mean_change

SLEEP = np.array([0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]) - np.array(
    [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4])


def test_golden_sleep() -> None:
    move = log_probability_move("text", [SLEEP])
    assert (move.n, move.mean) == (10, pytest.approx(-1.58))
    assert move.z == pytest.approx(-4.0621277)
    assert move.low <= -2.4598858 + 1e-6  # at least as wide as Student's t; few values have a bootstrap too
    assert move.high >= -.7001142 - 1e-6
    assert move.moved


def test_many_items_are_scipys_paired_t_test() -> None:
    random = np.random.default_rng(1)
    before = random.normal(-20, 3, 300)
    after = before + random.normal(-.1, .5, 300)
    move, test = log_probability_move("choice", [after - before]), oracle.ttest_rel(after, before)
    ends = test.confidence_interval()
    assert move.z == pytest.approx(test.statistic)
    assert (move.low, move.high) == (pytest.approx(ends.low), pytest.approx(ends.high))
    assert move.p == pytest.approx(oracle.ttest_1samp(after - before + ROUNDING, 0).pvalue)


def test_rounding_is_no_move_however_certain_it_is() -> None:
    noise = np.random.default_rng(2).normal(0, 1e-5, 500)
    rounding, real = (log_probability_move("text", [noise + mean]) for mean in (8e-4, 3e-3))
    assert rounding.z is not None
    assert rounding.z > 100
    assert not rounding.moved
    assert real.moved


def test_clusters_widen_the_interval_and_can_take_the_proof_away() -> None:
    random = np.random.default_rng(3)
    labels = np.repeat(np.arange(12), 20)
    d = (random.normal(.12, .3, 12))[labels] + random.normal(0, .05, labels.size)
    free, clustered = (log_probability_move("text", [d], c) for c in (None, [labels.tolist()]))
    e = d - d.mean()
    sums = np.bincount(labels, weights=e)
    assert clustered.z == pytest.approx(d.mean() / (np.sqrt(12 / 11 * (sums**2).sum()) / d.size))
    assert (free.moved, clustered.moved, clustered.clustered) == (True, False, True)
    assert clustered.high - clustered.low > free.high - free.low


@pytest.mark.parametrize(("d", "clusters", "problem"), [
    (np.full(7, -1.0) + np.arange(7) / 100, None, "fewer than 8 items"),
    (np.arange(40) / 10 + 5, [["a", "b", "c", "d"] * 10], "fewer than 8 clusters of items"),
    (np.arange(40) / 10 + 5, [[None, *range(39)]], "the clusters of 1 of 40 items are not known"),
    (np.arange(40) / 10 + 5, [["one"] * 40], "all items are one cluster")])
def test_what_proves_nothing_says_why(d: np.ndarray, clusters: list[list[object]] | None, problem: str) -> None:
    move = log_probability_move("text", [d], clusters)
    assert (move.moved, move.p, move.problem) == (False, 1.0, problem)


def test_no_change_at_all_has_no_error_and_is_no_move() -> None:
    move = log_probability_move("choice", [np.zeros(50)])
    assert (move.mean, move.low, move.high, move.z, move.moved, move.problem) == (0, 0, 0, None, False, "")


def test_the_same_change_on_every_item_is_a_move_by_the_sign_test() -> None:
    move = log_probability_move("text", [np.full(20, -.25)])
    assert (move.z, move.p, move.moved) == (None, 2 * .5**20, True)
    assert not log_probability_move("text", [np.full(20, ROUNDING / 2)]).moved


def test_the_tasks_of_a_group_are_strata() -> None:
    strata = [np.random.default_rng(k).normal(k, 1, 50 * k) for k in (1, 2, 3)]
    change = mean_change(strata)
    assert change.mean == pytest.approx(np.concatenate(strata).mean())
    se = np.sqrt(sum((len(s) / 300) ** 2 * s.var(ddof=1) / len(s) for s in strata))
    assert change.high - change.mean == pytest.approx(oracle.t.ppf(.975, 297) * se)


def test_holm_over_all_moves() -> None:
    random = np.random.default_rng(4)
    moves = [log_probability_move("text", [random.normal(mean, 1, 400)]) for mean in (.1, .12, .2, 0)]
    adjusted = adjusted_moves(moves)
    assert [m.p_adjusted for m in adjusted] == holm([m.p for m in moves])
    assert [m.moved for m in adjusted] == [m.p_adjusted < .05 for m in adjusted]
    assert adjusted_moves([]) == []
