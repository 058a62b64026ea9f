"""Weighted drawing: the uniform case, the martingale by enumeration, bounds, errors, and fewer items than uniform."""

from __future__ import annotations

import numpy as np
import pytest

from aftertune.stats.sequential import Boundaries, PairedSequential, log_mixture
from aftertune.stats.weighted import (
    Design,
    Strata,
    WeightedDraws,
    WeightedSequential,
    best_design,
    composition_error,
    draws_of,
    log_growth,
    model_draws_of,
)


def gentle(items: int, seed: int) -> tuple[Strata, np.ndarray]:
    """Strata and differences of a tuning that changes unsure answers only, as often one way as the other."""
    rng = np.random.default_rng(seed)
    base, confidence = (rng.random(items) < 0.5).astype(float), rng.random(items)
    changes = np.zeros(items, dtype=bool)
    for side in (0, 1):
        changes[np.flatnonzero((base == side) & (confidence < 0.2))[:items // 50]] = True
    return Strata.of(base, confidence), np.where(changes, 1 - 2 * base, 0.0)


def played(strata: Strata, d: np.ndarray, test: WeightedSequential, seed: int, batch: int = 32, least: int = 0) -> int:
    """Draw until a verdict, and at least ``least`` items; the items that it took."""
    rng = np.random.default_rng(seed)
    waiting = [list(rng.permutation(np.flatnonzero(strata.of_item == k))) for k in range(strata.low.size)]
    for k, left in enumerate(waiting):
        del left[int(test.draws.unseen[0, k]):]
    while test.verdict is None or test.seen < least:
        chosen = test.draw(rng.random(batch))
        test.update(chosen, [d[waiting[k].pop()] for k in chosen])
    return test.seen


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
        assert np.logaddexp.reduce(weighted.bets.wealth[0], axis=-1) == pytest.approx(
            log_mixture(uniform._wealth[:4]), abs=1e-10)
        assert (weighted.verdict, weighted.decided_at) == (uniform.verdict, uniform.decided_at)
        assert weighted.interval() == pytest.approx(uniform.interval(), abs=1e-12)


@pytest.mark.parametrize("base", [[1, 1, 0, 0, 0], [1, 0.75, 0.25, 0.5, 0]])
def test_at_the_true_mean_every_bet_is_a_martingale_whatever_the_weights(base: list[float]) -> None:
    """Over all orders of five items, each with its probability, E[K_t] is 1 at every t. Weights adapt after each."""
    values = np.array(base)
    strata = Strata.of(values, [0.1, 0.5, 0.1, 0.4, 0.9], quantiles=2)
    d = np.array([1.0, 0, 1, 0, 0]) - values
    both = Boundaries(np.array([1.0, -1.0]), np.full(2, d.mean()))
    scales, total = np.array([0.2, 1.0, 5.0]), np.zeros((5, 2, 3))

    def go(past: list[int], chance: float, log_k: np.ndarray) -> None:
        draws = WeightedDraws(strata, 0.1)
        for item in past:
            draws.take(np.array([[strata.of_item[item]]]), d[[item]][None])
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
    strata, d = gentle(400, 3)
    draws, rng = WeightedDraws(strata, 0.02), np.random.default_rng(0)
    mu = np.bincount(strata.of_item, d) / strata.sizes
    for _ in range(3):
        design = draws.design()
        share = draws.unseen[0] * design.weights[0]
        z = [model_draws_of(strata, design, draws.unseen, np.array([[k]]), mu[[k]][None])[0].value[0]
             for k in range(mu.size)]
        assert np.dot(share / share.sum(), z) == pytest.approx(float((strata.sizes * mu).sum()), abs=1e-9)
        chosen = draws.choose(design, rng.random((1, 40)))
        draws.take(chosen, mu[chosen])


def test_no_value_of_a_draw_is_outside_its_bounds_and_no_bet_loses_more_than_it_may() -> None:
    strata, d = gentle(200, 5)
    test = WeightedSequential(strata, 0.02)
    rng = np.random.default_rng(7)
    waiting = [list(np.flatnonzero(strata.of_item == k)) for k in range(strata.low.size)]
    while test.seen < test.items:  # the draws go on after the verdict
        chosen = test.draw(rng.random(32))
        test.update(chosen, [d[waiting[k].pop()] for k in chosen])
    assert not any(waiting)
    for draw in test._history:
        assert draw.lowest - 1e-6 <= draw.value <= draw.highest + 1e-6
        growth = log_growth(draw, test.items, Boundaries.around(0.02), test.scales)
        assert growth.min() >= np.log(0.05) - 1e-9
    assert test.interval() == pytest.approx((d.mean(), d.mean()))


def test_a_gentle_tuning_is_proven_to_be_kept_on_half_the_items_of_uniform_drawing() -> None:
    uniform, weighted = [], []
    for seed in range(5):
        strata, d = gentle(2000, seed)
        test = PairedSequential(d.size, 0.02)
        test.update(np.random.default_rng(seed).permutation(d))
        one = WeightedSequential(strata, 0.02)
        weighted.append(played(strata, d, one, seed))
        uniform.append(test.decided_at)
        low, high = one.interval()
        assert (one.verdict, test.verdict) == ("within", "within")
        assert low <= d.mean() <= high
    assert np.median(weighted) < 0.6 * np.median(uniform)


def test_a_harsh_tuning_is_seen_at_once() -> None:
    strata, _ = gentle(2000, 1)
    right = strata.low < -0.5
    d = np.where(np.random.default_rng(2).random(2000) < 0.5, np.where(right[strata.of_item], -1.0, 0.0), 0.0)
    test = WeightedSequential(strata, 0.02)
    assert played(strata, d, test, 0) <= 96
    played(strata, d, test, 1, least=192)
    assert (test.verdict, test.models_verdict) == ("lower", "lower")


def test_the_same_numbers_give_the_same_draws_so_that_a_run_can_be_checked() -> None:
    strata, d = gentle(500, 4)
    runs = [WeightedSequential(strata, 0.02) for _ in range(2)]
    assert played(strata, d, runs[0], 1) == played(strata, d, runs[1], 1)
    assert runs[0].interval() == runs[1].interval()


def test_weights_fill_up_to_a_mean_of_one_and_stay_above_what_a_surprise_costs() -> None:
    sizes, second = np.array([[50.0, 30, 20]]), np.array([[0.001, 0.02, 0.24]])
    weights, stake = best_design(sizes, second, np.ones((1, 3)), np.array([0.02]))
    assert (weights * sizes).sum() / sizes.sum() == pytest.approx(1)
    assert weights[0, 0] < weights[0, 1] <= weights[0, 2]
    assert (stake[:, None] <= weights + 1e-9).all()


def test_the_error_of_the_composition_falls_with_the_items_of_the_benchmark() -> None:
    errors = []
    for items in (500, 8000):
        strata, d = gentle(items, 2)
        draws = WeightedDraws(strata, 0.02)
        draws.take(strata.of_item[None], d[None])
        errors.append(float(composition_error(strata, draws.memory)[0]))
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.2)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="all in"):
        Strata.of([0.5, 1.2])
    with pytest.raises(ValueError, match="confidence of shape"):
        Strata.of([0.5, 1], [1.0])
    with pytest.raises(ValueError, match="margin > 0"):
        WeightedSequential(Strata.single(3), 0)
    test = WeightedSequential(Strata.of([1.0, 1, 0, 0]), 0.02)
    with pytest.raises(ValueError, match="draw a batch"):
        test.update([0], [0.0])
    chosen = test.draw([0.1])
    with pytest.raises(ValueError, match="outside the bounds"):
        test.update(chosen, [-1.0 if test.strata.low[chosen[0]] == 0 else 1.0])


def test_a_design_is_of_plain_arrays() -> None:
    design = WeightedDraws(Strata.of([1.0, 0, 1, 0]), 0.02, adaptive=False).design()
    assert isinstance(design, Design)
    assert (design.weights == 1).all()
    assert (design.predictions == 0).all()
