"""The sequential verdict: golden streams, the martingale by enumeration of all orders, batches, intervals, errors."""

from __future__ import annotations

import math
import time
from fractions import Fraction
from itertools import permutations

import numpy as np
import pytest

from aftertune.stats.sequential import (
    SCALES,
    Boundaries,
    PairedSequential,
    log_factors,
    log_mixture,
    random_order_key,
    unreachable,
)

ALL = Boundaries(np.array([1.0, -1.0]), np.zeros(2))


def wealth(d: list[float], items: int, walls: Boundaries, low: float = -1.0, high: float = 1.0,
           scales: np.ndarray = SCALES) -> np.ndarray:
    """K of each test after all of ``d``, [tests, scales]."""
    values = np.asarray(d, dtype=np.float64)
    return np.exp(log_factors(values, np.asarray(0.0), 0, items, walls, low, high, scales).sum(axis=0))


def by_hand(d: list[float], items: int, bound: float, scale: float) -> float:
    """log K of one bet of the "up" test, as the formula stands in the paper's words, one item after another."""
    total, log_k = 0.0, 0.0
    for t, value in enumerate(d, start=1):
        left = items - t + 1
        mean = (items * bound - total) / left
        stake = min(scale * items / left, 0.95 / (mean + 1))
        log_k += math.log1p(stake * (value - mean))
        total += value
    return log_k


def test_the_golden_stream_of_one_bet() -> None:
    stream = [-1.0, 0.0, -1.0]
    found = np.log(wealth(stream, 1319, Boundaries.around(0.01), scales=np.array([0.5]))[:, 0])
    assert found == pytest.approx([-1.36400532, -1.41413234, 0.80036551, 0.82372554], abs=5e-9)
    assert by_hand([-x for x in stream], 1319, 0.01, 0.5) == pytest.approx(0.80036551, abs=5e-9)


def test_the_golden_stream_of_the_mixture() -> None:
    stream = [-1, 0, -1, -1, 0, 0, -1, 0, -1, -1]
    walls = Boundaries.around(0.1)
    found = log_mixture(np.log(wealth(stream, 20, walls)))
    assert found == pytest.approx([-1.640001, -2.002750, 3.276123, 5.668036], abs=1e-6)
    watch = PairedSequential(20, 0.1)
    assert watch.update(stream) is None
    assert watch.interval() == pytest.approx((-0.8, -0.1))
    hand = [math.exp(by_hand([-x for x in stream], 20, -0.1, s)) for s in SCALES]
    assert math.log(sum(hand) / 8) == pytest.approx(5.668036, abs=1e-6)


@pytest.mark.parametrize("population", [
    [1, -1, 0, 0, -1, 1, -1], [-1, -1, -1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0], [0.25, -0.5, 0.125, 1, 0, -1, 0.75]])
def test_at_the_true_mean_every_bet_is_a_martingale_from_one(population: list[float]) -> None:
    """Over all 5,040 orders of seven items E[K_t] is 1 at every t, for both sides and every bet."""
    orders = np.array(list(permutations(population)), dtype=np.float64)
    walls = Boundaries(ALL.sign, np.full(2, sum(population) / 7))
    factors = log_factors(orders, np.zeros(len(orders)), 0, 7, walls)
    mean = np.exp(np.cumsum(factors, axis=1)).mean(axis=0)
    assert mean == pytest.approx(np.ones_like(mean), abs=1e-12)


def test_with_bounds_of_its_own_too() -> None:
    orders = np.array(list(permutations([2.0, -0.5, 0.0, 1.0, 0.3, -0.2, 0.0])))
    walls = Boundaries(ALL.sign, np.full(2, float(orders[0].mean())))
    mean = np.exp(np.cumsum(log_factors(orders, np.zeros(len(orders)), 0, 7, walls, -0.5, 2.0), axis=1)).mean(axis=0)
    assert mean == pytest.approx(np.ones_like(mean), abs=1e-12)
    assert np.ptp(np.exp(log_factors(orders, np.zeros(len(orders)), 0, 7, walls, -0.5, 2.0))) > 0.1


@pytest.mark.parametrize("truth", [Fraction(-2, 7), Fraction(0), Fraction(3, 7)])
def test_the_true_mean_is_rejected_by_few_of_all_orders(truth: Fraction) -> None:
    """Ville: of all orders of a population at most alpha / 2 ever reject its own mean from one side."""
    population = [1] * max(truth.numerator, 0) + [-1] * max(-truth.numerator, 0)
    population += [1, -1] + [0] * (5 - len(population))
    orders = np.array(sorted(set(permutations(population[:7]))), dtype=np.float64)
    walls = Boundaries(ALL.sign, np.full(2, float(orders[0].mean())))
    paths = log_mixture(np.cumsum(log_factors(orders, np.zeros(len(orders)), 0, 7, walls), axis=1))
    ever = (paths >= math.log(1 / 0.3)).any(axis=1)  # a level that seven items can reach
    assert ever.any(axis=0).any()
    assert (ever.mean(axis=0) <= 0.3).all()


def test_the_wealth_falls_as_the_boundary_rises() -> None:
    rng = np.random.default_rng(5)
    for _ in range(20):
        d = rng.choice([-1.0, 0.0, 1.0], size=25, p=[0.3, 0.5, 0.2])
        for sign in (1.0, -1.0):  # "down" is "up" on the mirrored stream: its wealth falls as the boundary sinks
            walls = Boundaries(np.full(25, sign), sign * np.linspace(-0.6, 0.6, 25))
            paths = log_factors(d, np.asarray(0.0), 0, 40, walls).cumsum(axis=0)
            reachable = ~unreachable(np.cumsum(d), np.arange(1, 26), 40, walls)
            both = reachable[:, :-1] & reachable[:, 1:]
            assert both.sum() > 100
            assert (np.diff(paths, axis=1)[both] <= 1e-12).all()


def population(gained: int, lost: int, items: int, seed: int) -> np.ndarray:
    values = np.concatenate([np.ones(gained), -np.ones(lost), np.zeros(items - gained - lost)])
    return np.random.default_rng(seed).permutation(values)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("gained", "lost", "items", "margin"), [
    (8, 401, 1319, 0.01), (6, 19, 100, 0.02), (421, 383, 10_042, 0.02), (66, 66, 1319, 0.03)])
def test_batches_give_the_verdict_of_single_items_rounded_up(gained: int, lost: int, items: int, margin: float,
                                                             seed: int) -> None:
    d = population(gained, lost, items, seed)
    one, many = PairedSequential(items, margin), PairedSequential(items, margin)
    for start in range(0, items, 32):
        many.update(d[start:start + 32])
        for value in d[start:start + 32]:
            one.update([value])
        if one.verdict or many.verdict:
            break
    assert one.verdict == many.verdict is not None
    assert one.decided_at == many.decided_at
    assert many.seen == min(items, 32 * math.ceil(many.decided_at / 32))
    assert one.interval() == many.interval()
    assert one.p == pytest.approx(many.p)


def test_the_interval_is_where_the_verdict_can_be_read_off() -> None:
    for seed in range(30):
        d = population(40, 90, 500, seed)
        watch = PairedSequential(500, 0.03)
        for start in range(0, 480, 16):
            verdict = watch.update(d[start:start + 16])
            low, high = watch.interval()
            claims = {"lower": high < -0.03, "higher": low > 0.03, "within": low > -0.03 and high < 0.03}
            assert [v for v, holds in claims.items() if holds] == ([verdict] if verdict else []), (seed, start)
            if verdict:
                break


def test_the_interval_holds_the_truth_at_all_looks_at_once() -> None:
    missed = 0
    for seed in range(300):
        d = population(30, 60, 300, seed)
        watch = PairedSequential(300, 0.02)
        for start in range(0, 300, 30):
            watch.update(d[start:start + 30])
            low, high = watch.interval()
            if not low - 1e-12 <= -0.1 <= high + 1e-12:
                missed += 1
                break
    assert missed <= 0.05 * 300 + 3 * math.sqrt(300 * 0.05 * 0.95)


def test_at_the_end_the_exact_mean_decides_and_is_the_interval() -> None:
    for gained, lost, said in [(2, 1, "within"), (1, 2, "within"), (0, 6, "lower"), (6, 0, "higher"), (0, 5, "within")]:
        watch = PairedSequential(50, 0.1)
        watch.update(population(gained, lost, 50, 1))
        assert watch.verdict == said
        assert watch.interval() == pytest.approx(((gained - lost) / 50,) * 2)


def test_what_no_continuation_can_change_is_decided() -> None:
    watch = PairedSequential(10, 0.25)
    assert watch.update([-1, -1, -1, -1, -1, -1, 1, 0]) == "lower"  # -5 of 10 now, at best -3
    certain = PairedSequential(10, 0.45)
    assert certain.update([0, 0, 0, 0, 0, 0]) == "within"  # at worst 4 of 10


def test_real_scores_shift_the_interval_outward_by_one_step() -> None:
    rng = np.random.default_rng(2)
    d = rng.uniform(-0.6, 0.2, 400)
    watch = PairedSequential(400, 0.05, whole=False)
    watch.update(d[:200])
    assert watch.verdict == "lower"
    low, high = watch.interval()
    assert low < d.mean() < high < -0.05 + 1 / 400
    same = PairedSequential(400, 0.05)
    same.update(d[:200])
    inner = same.interval()
    assert (low, high) == pytest.approx((inner[0] - 1 / 400, inner[1] + 1 / 400))
    whole = PairedSequential(400, 0.05, whole=False)
    whole.update(d)
    assert whole.interval() == pytest.approx((d.mean(), d.mean()))


def test_a_verdict_stays_and_alpha_is_shared() -> None:
    d = population(0, 120, 400, 3)
    alone, shared = PairedSequential(400, 0.02), PairedSequential(400, 0.02, alpha=0.05 / 57)
    alone.update(d[:100])
    shared.update(d[:100])
    assert alone.verdict == shared.verdict == "lower"
    assert alone.decided_at < shared.decided_at
    assert shared.p * 57 <= 0.05
    at = alone.decided_at
    alone.update(np.ones(30))
    assert (alone.verdict, alone.decided_at) == ("lower", at)


@pytest.mark.parametrize("bad", [
    lambda: PairedSequential(0, 0.02), lambda: PairedSequential(10, 0.0), lambda: PairedSequential(10, 0.1, alpha=0),
    lambda: PairedSequential(10, 0.1, low=0.0), lambda: PairedSequential(10, 0.1).update([1.5]),
    lambda: PairedSequential(10, 0.1).update([math.nan]), lambda: PairedSequential(2, 0.1).update([0, 0, 0])])
def test_what_cannot_be_is_refused(bad) -> None:
    with pytest.raises(ValueError, match=r"need|allowed|full run has"):
        bad()


def test_a_look_costs_less_than_a_millisecond() -> None:
    """The best of several runs: the machine may be shared."""
    d, best = population(421, 383, 10_042, 0), math.inf
    for _ in range(5):
        watch = PairedSequential(10_042, 0.02)
        begun = time.process_time()
        for start in range(0, 1600, 32):
            watch.update(d[start:start + 32])
        best = min(best, (time.process_time() - begun) / 50)
    assert best < 0.001


def test_the_draw_is_a_seeded_order_that_keeps_in_parts() -> None:
    items = [("hellaswag", i, f"{i % 7:064x}") for i in range(500)]
    order = sorted(items, key=lambda i: random_order_key(0, *i))
    assert order != items
    assert order != sorted(items, key=lambda i: random_order_key(1, *i))
    part = [i for i in order if i[1] % 3 == 0]
    assert part == sorted((i for i in items if i[1] % 3 == 0), key=lambda i: random_order_key(0, *i))
    firsts = np.mean([[i[1] for i in sorted(items, key=lambda i, s=s: random_order_key(s, *i))[:50]]
                      for s in range(200)])
    assert abs(firsts - 249.5) < 5  # 100 draws of 50 have an error of about 1.4
