"""Cluster-robust errors and group means against golden values and literal definitions."""

import math
from itertools import product

import numpy as np
import pytest
from scipy.stats import t

from aftertune.stats import clustered_mean, group_evidence, paired_evidence, paired_mean, stratified_mean
from aftertune.stats.bounded import bounded_interval
from aftertune.stats.clustered import mean_interval, stratified_clustered_mean

D = [1, 0, 0, -1, 0, 0, 1, 1, 0, -1, -1, 0]
G = [0, 0, 0, 1, 1, 2, 2, 2, 3, 3, 3, 3]
SUBJECTS = [np.array([1.0] * k + [0.0] * (n - k)) for k, n in ((47, 100), (60, 135), (121, 152))]


def test_golden_cluster_errors():
    estimate = clustered_mean(D, G)
    assert (estimate.mean, estimate.df) == (0, 3)
    assert estimate.se == pytest.approx(.3042903, abs=6e-8)
    assert estimate.se * math.sqrt(3 / 4) == pytest.approx(.2635231, abs=6e-8)
    assert paired_mean(D).se == pytest.approx(.2132007, abs=6e-8)


def test_cluster_error_is_the_sum_over_pairs_of_one_cluster():
    rng = np.random.default_rng(3)
    d, labels = rng.normal(size=60), [f"passage {i}" for i in rng.integers(0, 14, 60)]
    e, groups = d - d.mean(), len(set(labels))
    same = [(i, j) for i, j in product(range(60), repeat=2) if labels[i] == labels[j]]
    literal = sum(e[i] * e[j] for i, j in same) / 60**2 * groups / (groups - 1)
    assert clustered_mean(d, labels).se == pytest.approx(math.sqrt(literal), rel=1e-12)


def test_clusters_of_one_item_give_the_plain_error():
    d = np.random.default_rng(4).normal(size=30)
    plain, single = paired_mean(d), clustered_mean(d, range(30))
    assert single.se == pytest.approx(plain.se, rel=1e-12)
    assert single.df == plain.df


def test_degenerate_clusters():
    assert clustered_mean([0.0] * 6, [0, 0, 1, 1, 2, 2]).degenerate
    assert clustered_mean([1, 0, -1], ["a"] * 3).degenerate
    assert clustered_mean([1, -1, 1, -1], [0, 0, 1, 1]).degenerate  # every cluster sums to nothing
    with pytest.raises(ValueError, match="need one per item"):
        clustered_mean([1, 0], [1])


def test_golden_group_means():
    micro, macro = stratified_mean(SUBJECTS, "micro"), stratified_mean(SUBJECTS, "macro")
    assert (micro.mean, micro.se) == (pytest.approx(.5891473, abs=6e-8), pytest.approx(.0236240, abs=6e-8))
    assert (macro.mean, macro.se) == (pytest.approx(.5701657, abs=6e-8), pytest.approx(.0245719, abs=6e-8))
    assert micro.df == 387 - 3
    assert paired_mean(np.concatenate(SUBJECTS)).se == pytest.approx(.0250416, abs=6e-8)  # what it is not


def test_lm_evals_own_pooled_error_is_another_formula():
    from lm_eval.api.metrics import pooled_sample_stderr

    errors = [float(s.std(ddof=1)) / math.sqrt(s.size) for s in SUBJECTS]
    assert pooled_sample_stderr(errors, [s.size for s in SUBJECTS]) == pytest.approx(.0236217, abs=6e-8)


def test_many_tasks_are_also_looked_at_as_a_sample_of_tasks():
    rng = np.random.default_rng(4)
    base = [binary(rng, 40, .6) for _ in range(12)]
    tuned = [b if k % 3 else np.zeros(40) for k, b in enumerate(base)]  # four of twelve subjects lost
    found = group_evidence(base, tuned, margin=.02)
    d = [t - b for b, t in zip(base, tuned, strict=True)]
    labels = [k for k in range(12) for _ in range(40)]
    assert found.clustered == clustered_mean(np.concatenate(d), labels).tests(.02)
    assert found.clustered.lower > found.tests.lower
    assert "(12 tasks; fewer than 20, so it is too narrow)" in found.details[0]
    assert "macro mean" in found.details[1]
    macro = group_evidence(base, tuned, margin=.02, weighting="macro")
    assert macro.clustered == paired_mean([float(x.mean()) for x in d]).tests(.02)
    assert group_evidence(base[:3], tuned[:3], margin=.02).clustered is None


def test_group_mean_is_its_literal_definition():
    rng = np.random.default_rng(8)
    strata = [rng.normal(i / 10, 1, n) for i, n in enumerate((5, 40, 17))]
    for weighting, share in (("micro", [5 / 62, 40 / 62, 17 / 62]), ("macro", [1 / 3] * 3)):
        estimate = stratified_mean(strata, weighting)
        assert estimate.mean == pytest.approx(sum(w * s.mean() for w, s in zip(share, strata, strict=True)))
        variance = sum(w**2 * s.var(ddof=1) / s.size for w, s in zip(share, strata, strict=True))
        assert estimate.se == pytest.approx(math.sqrt(variance))


def test_a_stratum_of_one_item_takes_the_variance_of_all():
    strata = [np.array([1.0]), np.array([0.0, 1.0, -1.0, 0.0])]
    whole = np.concatenate(strata).var(ddof=1)
    literal = (1 / 5) ** 2 * whole + (4 / 5) ** 2 * strata[1].var(ddof=1) / 4
    assert stratified_mean(strata).se == pytest.approx(math.sqrt(literal))
    singles = stratified_mean([np.array([x]) for x in (1.0, 0.0, 0.0)])
    assert (singles.se, singles.df) == (pytest.approx(paired_mean([1.0, 0.0, 0.0]).se), 2)
    with pytest.raises(ValueError, match="at least one task"):
        stratified_mean([])


def binary(rng, n, share):
    return (rng.uniform(size=n) < share).astype(float)


def test_group_evidence_pairs_each_subject():
    rng = np.random.default_rng(21)
    base = [binary(rng, n, .6) for n in (100, 135, 152)]
    tuned = [np.where(rng.uniform(size=b.size) < .1, 1 - b, b) for b in base]
    evidence = group_evidence(base, tuned, margin=.02)
    d = [a - b for b, a in zip(base, tuned, strict=True)]
    variance = sum((x.size / 387) ** 2 * x.var(ddof=1) / x.size for x in d)
    assert evidence.delta == pytest.approx(np.concatenate(d).mean())
    half = t.ppf(.975, 384) * math.sqrt(variance)
    low, high = bounded_interval(np.concatenate(d))
    assert evidence.low == pytest.approx(min(low, evidence.delta - half))
    assert evidence.high == pytest.approx(max(high, evidence.delta + half))
    assert (evidence.gained, evidence.lost) == (int((np.concatenate(d) > 0).sum()),
                                                int((np.concatenate(d) < 0).sum()))
    assert (evidence.n, evidence.kind) == (387, "binary")
    assert evidence.base_low == pytest.approx(stratified_mean(base).interval()[0])


def test_a_group_in_which_no_item_changed_is_bounded_like_one_task():
    base = [np.array([1.0, 0.0] * 200), np.array([0.0, 1.0] * 100)]
    together = np.concatenate(base)
    whole = paired_evidence(together, together, margin=.02)
    parts = group_evidence(base, base, margin=.02)
    assert (parts.low, parts.high) == pytest.approx((whole.low, whole.high))
    assert parts.psi == whole.psi
    assert parts.tests.within == pytest.approx(.98**600, rel=.03)  # exact; Tango's is an approximation


def test_the_mean_of_intervals_adds_their_margins_in_squares() -> None:
    assert mean_interval([(0.1, -0.2, 0.3)]) == pytest.approx((0.1, -0.2, 0.3))
    parts = [(0.02, -0.01, 0.06), (-0.04, -0.08, -0.01), (0.05, 0.0, 0.08)]
    mean, low, high = mean_interval(parts)
    assert mean == pytest.approx(0.01)
    assert low == pytest.approx(0.01 - (0.03**2 + 0.04**2 + 0.05**2) ** 0.5 / 3)
    assert high == pytest.approx(0.01 + (0.04**2 + 0.03**2 + 0.03**2) ** 0.5 / 3)
    with pytest.raises(ValueError, match="no estimates"):
        mean_interval([])


def test_the_mean_of_intervals_covers_the_mean_of_tasks() -> None:
    """95 % of 2,000 draws of three tasks with normal errors, within four standard errors of that share."""
    draw = np.random.default_rng(0)
    errors = np.array([0.01, 0.03, 0.02])
    hits = 0
    for values in draw.normal(0.0, errors, size=(2000, 3)):
        _, low, high = mean_interval([(v, v - 1.96 * e, v + 1.96 * e) for v, e in zip(values, errors, strict=True)])
        hits += low <= 0.0 <= high
    assert hits / 2000 == pytest.approx(0.95, abs=4 * (0.95 * 0.05 / 2000) ** 0.5)


def test_clusters_within_strata_add_the_errors_of_the_strata():
    rng = np.random.default_rng(11)
    strata = [rng.normal(size=n) for n in (40, 60)]
    labels = [[(k, i // 4) for i in range(s.size)] for k, s in enumerate(strata)]
    whole = stratified_clustered_mean(strata, labels)
    parts = [clustered_mean(s, c) for s, c in zip(strata, labels, strict=True)]
    assert whole.se == pytest.approx(math.sqrt(sum((s.size / 100 * e.se) ** 2
                                                   for s, e in zip(strata, parts, strict=True))))
    assert whole.df == 10 + 15 - 2
    single = stratified_clustered_mean(strata, [list(range(40)), list(range(40, 100))])
    assert single.se == pytest.approx(stratified_mean(strata).se)
    assert stratified_clustered_mean(strata, [["one"] * 40, list(range(60))]).degenerate
