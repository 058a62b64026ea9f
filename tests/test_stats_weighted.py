"""Weighted drawing: the uniform case, the martingale by enumeration, bounds, errors, and fewer items than uniform."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from aftertune.stats.sequential import Boundaries, PairedSequential, log_mixture
from aftertune.stats.weighted import Design, Strata, WeightedDraws, best_design
from aftertune.stats.weighted_bets import draws_of, log_growth, model_draws_of, model_error
from aftertune.stats.weighted_sequential import WeightedSequential
from aftertune.values import DrawnBatch, plain, restore


def gentle(items: int, seed: int) -> tuple[Strata, np.ndarray]:
    """Strata and differences of a tuning that changes unsure answers only, as often one way as the other."""
    rng = np.random.default_rng(seed)
    base, confidence = (rng.random(items) < 0.5).astype(float), rng.random(items)
    changes = np.zeros(items, dtype=bool)
    for side in (0, 1):
        changes[rng.permutation(np.flatnonzero((base == side) & (confidence < 0.2)))[:items // 50]] = True
    return Strata.of(base, confidence), np.where(changes, 1 - 2 * base, 0.0)


def played(d: np.ndarray, test: WeightedSequential, seed: int, batch: int = 32, least: int = 0) -> int:
    """Draw until a verdict, and at least ``least`` items; the items that it took."""
    rng = np.random.default_rng(seed)
    while test.seen < test.items and (test.verdict is None or test.seen < least):
        drawn = test.draw(rng.random(batch))
        test.update(drawn, d[test.positions(drawn)])
    return test.seen


def by_weight(draws: WeightedDraws) -> Design:
    """The design of the next batch after the first ones, which have equal chances."""
    draws.weighted[:] = True
    return draws.design()


@pytest.mark.parametrize(("items", "margin"), [(20, 0.1), (300, 0.02), (1319, 0.01)])
def test_with_equal_weights_and_no_predictions_the_uniform_test_comes_out(items: int, margin: float) -> None:
    rng = np.random.default_rng(items)
    d = rng.choice([-1.0, 0.0, 1.0], items, p=[0.12, 0.83, 0.05])
    uniform = PairedSequential(items, margin)
    weighted = WeightedSequential(Strata.single(items), margin, adaptive=False)
    for start in range(0, min(items, 128), 16):
        batch = d[start:start + 16]
        uniform.update(batch)
        weighted.update(weighted.draw(rng.random(batch.size)), batch)
        assert np.logaddexp.reduce(weighted.full.wealth[0], axis=-1) == pytest.approx(
            log_mixture(uniform._wealth), abs=1e-10)
        assert (weighted.verdict, weighted.claims) == (uniform.verdict, uniform.claims)
        if weighted.seen < items:  # then all is known
            assert list(asdict(weighted.tests).values()) == pytest.approx(list(asdict(uniform.tests).values()))
        assert weighted.interval() == pytest.approx(uniform.interval(), abs=1e-12)


@pytest.mark.parametrize("base", [[1, 1, 0, 0, 0], [1, 0.75, 0.25, 0.5, 0]])
def test_at_the_true_mean_every_bet_is_a_martingale_whatever_the_weights(base: list[float]) -> None:
    """Over all orders of five items, each with its probability, E[K_t] is 1 at every t. Weights adapt after each."""
    values = np.array(base)
    strata = Strata.of(values, [0.1, 0.5, 0.1, 0.4, 0.9], quantiles=2)
    d = np.array([1.0, 0, 1, 0, 0]) - values
    both = Boundaries(np.array([1.0, -1.0]), np.full(2, d.mean()))
    scales, total = np.array([0.2, 1.0, 5.0]), np.zeros((5, 2, 3))
    weighted = WeightedDraws(strata, 0.1).design()

    def go(past: list[int], chance: float, log_k: np.ndarray) -> None:
        draws = WeightedDraws(strata, 0.1)
        for item in past:
            draws.take(weighted, np.array([[strata.of_item[item]]]), d[[item]][None])
        design, before = draws.design(), np.array([d[past].sum()])
        for item in set(range(5)) - set(past):
            k = np.array([[strata.of_item[item]]])
            q = chance * float(design.weights[0, k[0, 0]] / (draws.unseen * design.weights).sum())
            draw = draws_of(strata, design, draws.unseen, before, k, d[[item]][None])[0]
            wealth = log_k + log_growth(draw, 5, both, scales)[0]
            total[len(past)] += q * np.exp(wealth)
            go([*past, item], q, wealth)

    go([], 1.0, np.zeros((2, 3)))
    assert total == pytest.approx(np.ones_like(total), abs=1e-9)


def test_as_evidence_about_the_models_a_draw_is_unbiased_for_the_standardized_mean() -> None:
    """Also once strata are closed: their counted means stand for them."""
    strata, d = gentle(400, 3)
    draws, rng = WeightedDraws(strata, 0.02, models=True), np.random.default_rng(0)
    mu = np.bincount(strata.of_item, d) / strata.sizes
    for _ in range(9):
        design = by_weight(draws)
        share = np.where(draws.closed[0], 0, draws.unseen[0] * design.weights[0])
        if draws.unseen.sum() <= 40 or not share.any():
            break
        z = [model_draws_of(draws, design, np.array([[k]]), mu[[k]][None])[0].value[0] for k in range(mu.size)]
        assert np.dot(share / share.sum(), z) == pytest.approx(float((strata.sizes * mu).sum()), abs=1e-9)
        chosen = draws.choose(design, rng.random((1, 40)))
        draws.take(design, chosen, mu[chosen])
    assert draws.closed.any()
    assert model_error(draws).sides[0] == 2


def test_of_items_that_belong_together_only_the_first_one_counts() -> None:
    """Among the draws that count, stratum k has the probability that Z is divided by."""
    strata = Strata.of([1.0, 1, 1, 0, 0, 0, 1, 0, 1, 0, 1, 0])
    clusters = np.array([0, 0, 1, 0, 2, 3, 4, 4, 5, 6, 7, 8])
    test = WeightedSequential(strata, 0.1, models=True, clusters=clusters)
    first = test.draw([0.05])
    test.update(first, [0.0])
    seen = clusters[test.queues[first.strata[0]][0]]
    left = [i for i in range(12) if clusters[i] != seen]
    assert test.draws.fresh[0].tolist() == [sum(strata.of_item[i] == k for i in left) for k in (0, 1)]
    assert test.clusters.sizes.sum() == sum(int((clusters == c).sum()) for c in clusters)
    test.draws.weighted[:] = True
    for weighted in (False, True):  # a partner of a seen item is no bet, with equal chances and with weights
        design = replace(test.draws.design(), equal=np.array([not weighted]))
        k = np.array([[test.draws.strata.of_item[0]]])
        for counts in (False, True):
            draw, = model_draws_of(test.draws, design, k, np.array([[-1.0 * (k[0, 0] == 1)]]),
                                   test.clusters.fresh[None, None], np.array([[counts]]))
            assert bool(draw.stake[0]) == counts
    _, counted = test.clusters.take([i for i in range(12) if clusters[i] == seen])
    assert not counted.any()


def test_no_value_of_a_draw_is_outside_its_bounds_and_no_bet_loses_more_than_it_may() -> None:
    strata, d = gentle(200, 5)
    for models in (False, True):
        test = WeightedSequential(strata, 0.02, models=models)
        played(d, test, 7, least=200)  # the draws go on after the verdict
        assert test.seen == 200
        for draw in (h for h in test._history if h.stake[0]):
            assert draw.lowest - 1e-6 <= draw.value <= draw.highest + 1e-6
            growth = log_growth(draw, test.items, Boundaries.around(0.02), test.scales)
            assert growth.min() >= np.log(0.05) - 1e-9
    right = float((strata.low < 0)[strata.of_item].mean())
    assert WeightedSequential(strata, 0.02).interval() == pytest.approx((-right, 1 - right))
    full = WeightedSequential(strata, 0.02)
    played(d, full, 7, least=200)
    assert full.interval() == pytest.approx((d.mean(), d.mean()))
    assert full.verdict in full.claims


def test_a_gentle_tuning_is_proven_to_be_kept_on_half_the_items_of_uniform_drawing() -> None:
    uniform, weighted = [], []
    for seed in range(5):
        strata, d = gentle(2000, seed)
        test = PairedSequential(d.size, 0.02)
        test.update(np.random.default_rng(seed).permutation(d))
        one = WeightedSequential(strata, 0.02)
        weighted.append(played(d, one, seed))
        uniform.append(test.decided_at)
        low, high = one.interval()
        assert (one.verdict, test.verdict) == ("within", "within")
        assert low <= d.mean() <= high
    assert np.median(weighted) < 0.6 * np.median(uniform)


def test_a_harsh_tuning_is_seen_at_once() -> None:
    strata, _ = gentle(2000, 1)
    right = strata.low < -0.5
    d = np.where(np.random.default_rng(2).random(2000) < 0.5, np.where(right[strata.of_item], -1.0, 0.0), 0.0)
    for models in (False, True):
        test = WeightedSequential(strata, 0.02, models=models)
        assert played(d, test, 0) <= 96 + 96 * models
        assert test.verdict == "lower"
        assert {"lower", "worse"} <= test.claims


def shares(harsh: bool, items: int, seed: int) -> tuple[Strata, np.ndarray]:
    """Strata and differences of expected accuracy: a tuning by chance, or one that turns unsure answers."""
    rng = np.random.default_rng(seed)
    base = rng.beta(0.35, 0.5, items)
    tuned = rng.beta(0.5, 1.0, items) if harsh else np.where(
        (abs(base - 0.5) < 0.3) & (rng.random(items) < 0.3), 1 - base, base + (0.5 - base) * 0.02 * rng.random(items))
    return Strata.of(base, abs(np.log(base / (1 - base)))), tuned - base


@pytest.mark.parametrize(("harsh", "most"), [(True, 1.1), (False, 0.9)])
def test_by_expected_accuracy_weighted_drawing_is_no_later_than_uniform(harsh: bool, most: float) -> None:
    uniform, weighted, verdict = [], [], "lower" if harsh else "within"
    for seed in range(8):
        strata, d = shares(harsh, 4000, seed)
        test = PairedSequential(d.size, 0.02)
        test.update(np.random.default_rng(seed).permutation(d))
        one = WeightedSequential(strata, 0.02, whole=False)
        weighted.append(played(d, one, seed))
        uniform.append(test.decided_at)
        assert (one.verdict, test.verdict) == (verdict, verdict)
    assert np.median(weighted) <= most * np.median(uniform)


def test_claims_intervals_and_estimates_about_the_models_agree() -> None:
    """What is proven is read off the interval, and both are about the population: 16 benchmarks without a change."""
    inside, estimates = [], []
    for seed in range(16):
        strata, d = gentle(3000, seed)
        test = WeightedSequential(strata, 0.02, models=True)
        rng = np.random.default_rng(seed)
        for _ in range(12):
            drawn = test.draw(rng.random(32))
            test.update(drawn, d[test.positions(drawn)])
        low, high = test.interval()
        if "no_loss" in test.claims:
            assert low >= -0.02 - 1e-6
        if "lower" in test.claims:
            assert high <= -0.02 + 1e-6
        inside.append(low <= 0 <= high)
        estimates.append(test.estimate - d.mean())
        assert test.draws.weighted.all()
    assert all(inside)
    assert abs(np.mean(estimates)) < 3 * np.std(estimates) / np.sqrt(16)
    assert np.std(estimates) < 0.01


def test_an_estimate_is_that_of_all_items_where_their_drawn_mean_is_not() -> None:
    """A tuning that changes unsure answers alone: the mean of the drawn items is several times the truth."""
    rng = np.random.default_rng(4)
    base, confidence = (rng.random(3000) < 0.6).astype(float), rng.random(3000)
    strata = Strata.of(base, confidence)
    d = np.where((base == 1) & (confidence < 0.05), -1.0, 0.0)
    test, raw = WeightedSequential(strata, 0.05, models=True), []
    for _ in range(12):
        drawn = test.draw(rng.random(32))
        raw += d[test.positions(drawn)].tolist()
        test.update(drawn, d[test.positions(drawn)])
    assert np.mean(raw) < 1.3 * d.mean() < 0
    assert test.estimate == pytest.approx(d.mean(), abs=0.01)


def test_batches_and_answers_repeat_a_run_at_any_margin_and_about_either_target() -> None:
    strata, d = gentle(500, 4)
    made, rng, batches = WeightedSequential(strata, 0.02, models=True), np.random.default_rng(1), []
    for _ in range(6):
        batches.append(made.draw(rng.random(32)))
        assert batches[-1] == restore(DrawnBatch, json.loads(json.dumps(plain(batches[-1]))))
        made.update(batches[-1], d[made.positions(batches[-1])])
    for models, margin in ((True, 0.02), (True, 0.05), (False, 0.02)):
        again = WeightedSequential(strata, margin, models=models)
        for batch in batches:
            again.update(batch, d[again.positions(batch)])
        assert again.estimate == made.estimate
        assert again.seen == made.seen
        if (models, margin) == (True, 0.02):
            assert (again.tests, again.interval()) == (made.tests, made.interval())


def test_earlier_tunings_change_the_draws_and_not_what_is_proven_of_them() -> None:
    strata, d = gentle(500, 4)
    flat = np.full((1, strata.low.size), 0.2)
    known, unknown = (WeightedSequential(strata, 0.02, models=True, earlier=e) for e in (flat, None))
    numbers = np.random.default_rng(1).random(32)
    for test in (known, unknown):
        test.draws.weighted[:] = True
    batch = unknown.draw(numbers)
    assert known.draw(numbers) != batch
    for test in (known, unknown):
        test.update(batch, d[test.positions(batch)])
    assert known.tests == unknown.tests
    assert known.interval() == unknown.interval()


def test_weights_fill_up_to_a_mean_of_one_and_stay_above_what_a_surprise_costs() -> None:
    sizes, second = np.array([[50.0, 30, 20]]), np.array([[0.001, 0.02, 0.24]])
    weights, stake = best_design(sizes, second, np.ones((1, 3)), np.array([0.02]))
    assert (weights * sizes).sum() / sizes.sum() == pytest.approx(1)
    assert weights[0, 0] < weights[0, 1] <= weights[0, 2]
    assert (stake[:, None] <= weights + 1e-9).all()


def test_the_error_of_the_benchmark_falls_with_its_items() -> None:
    errors, larger = [], []
    for items in (500, 8000):
        strata, _ = gentle(items, 2)
        draws = WeightedDraws(strata, 0.02, models=True)
        assert model_error(draws).standard[0] == 0  # as long as the items have equal chances
        draws.weighted[:] = True
        errors.append(float(model_error(draws).standard[0]))
        larger.append(float(model_error(draws, 2 * strata.sizes).standard[0]))  # pairs of items that belong together
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.2)
    assert np.array(larger) / errors == pytest.approx(np.sqrt(2))


def test_the_error_of_a_benchmark_without_fresh_items_is_that_of_its_mean() -> None:
    """Once all strata are closed, nothing but the mean of the items is left: its usual standard error."""
    strata, d = gentle(800, 2)
    draws = WeightedDraws(strata, 0.02, models=True)
    draws.take(replace(draws.design(), equal=np.array([False])), strata.of_item[None], d[None])
    assert draws.closed.all()
    assert float(model_error(draws).standard[0]) == pytest.approx(d.std() / np.sqrt(800), rel=0.25)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="all in"):
        Strata.of([0.5, 1.2])
    with pytest.raises(ValueError, match="confidence of shape"):
        Strata.of([0.5, 1], [1.0])
    with pytest.raises(ValueError, match="margin > 0"):
        WeightedSequential(Strata.single(3), 0)
    test = WeightedSequential(Strata.of([1.0, 1, 0, 0]), 0.02)
    batch = test.draw([0.1])
    with pytest.raises(ValueError, match="one difference for each item"):
        test.update(batch, [0.0, 0.0])
    with pytest.raises(ValueError, match="outside the bounds"):
        test.update(batch, [-1.0 if test.strata.low[batch.strata[0]] == 0 else 1.0])
    with pytest.raises(ValueError, match="no item of stratum 0 is left"):
        test.update(replace(batch, strata=(0, 0, 0)), [0.0] * 3)


def test_a_design_is_of_plain_arrays() -> None:
    design = WeightedDraws(Strata.of([1.0, 0, 1, 0]), 0.02, adaptive=False).design()
    assert isinstance(design, Design)
    assert (design.weights == 1).all()
    assert (design.predictions == 0).all()
