"""The words of a verdict: readings of one interval, their order, their levels, and the models' test with its end."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest

from aftertune.stats import (
    Case,
    MarginTests,
    PairedSequential,
    decide,
    label_of,
    paired_mean,
    tango_interval,
    tango_tests,
)
from aftertune.stats.across_seeds import seed_contrast
from aftertune.stats.bootstrap import bca_mean
from aftertune.stats.bounded import bounded_interval, bounded_tests
from aftertune.stats.sequential import CLAIMS, LOOKS, after_looks, first_of_clusters, no_drop_after_looks
from aftertune.stats.verdict import QUESTIONS

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import word_verdicts

M = .02


def reading(low: float, high: float, inner: tuple[float, float]) -> str:
    """The word of an interval, in the order of the table of docs/verdicts.md. inner: the 90 % interval."""
    words = {"lower": high < -M, "higher": low > M, "within": inner[0] > -M and inner[1] < M, "worse": high < 0,
             "better": low > 0, "no_loss": low > -M}
    return next((word for word, holds in words.items() if holds), "undecided")


def test_every_word_is_a_reading_of_one_interval() -> None:
    seen = set()
    for n in (300, 1000, 3000):
        for gained in range(0, n // 8, n // 60):
            for lost in range(0, n // 8, n // 60):
                word, = (d.verdict for d in decide([Case(tests=tango_tests(gained, lost, n, M))]))
                assert word == reading(*tango_interval(gained, lost, n), tango_interval(gained, lost, n, .90))
                seen.add(word)
    assert seen == {*CLAIMS, "undecided"}


def test_the_tests_against_zero_agree_with_the_intervals_of_every_kind() -> None:
    rng = np.random.default_rng(3)
    for shift in (-.08, -.03, 0, .02, .09):
        d = rng.normal(shift, .1, 60).clip(-1, 1)
        kinds = {
            "t": (paired_mean(d).tests(M), paired_mean(d).interval()),
            "bounded": (bounded_tests(d, M), bounded_interval(d)),
            "bootstrap": (bca_mean(d).tests(M), bca_mean(d).interval()),
            "seeds": (seed_contrast(d.reshape(3, 20)).tests(M), seed_contrast(d.reshape(3, 20)).interval()),
        }
        for tests, (low, high) in kinds.values():
            assert (tests.worse < .05, tests.better < .05, tests.no_loss < .05) == (high < 0, low > 0, low > -M)


def test_the_order_of_the_words() -> None:
    everything = dict.fromkeys(("lower", "higher", "within", "worse", "better"), 1.0) | {"no_drop": 1.0}
    for k, claim in enumerate(CLAIMS):
        weaker = {("no_drop" if c == "no_loss" else c): .001 for c in CLAIMS[k:]}
        tests = MarginTests(**everything | weaker)
        # of the two sides of a question only one can be proven
        expected = {"lower": "lower", "higher": "higher", "worse": "worse"}.get(claim, claim)
        assert decide([Case(tests=tests)])[0].verdict == expected
    assert tuple(claim for question in QUESTIONS for claim in question) == CLAIMS


def test_each_question_has_its_own_correction() -> None:
    """Beside a clear loss, "no loss" at p .03 is corrected over both rows, and "worse" is corrected apart from it."""
    clear = MarginTests(lower=1e-9, higher=1, within=1, worse=1e-12)
    for no_drop, verdict in ((.015, "undecided"), (.012, "no_loss")):
        row = decide([Case(tests=clear), Case(tests=MarginTests(1, 1, 1, no_drop=no_drop))])[1]
        assert row.verdict == verdict
        if verdict == "no_loss":
            assert (row.p, row.p_adjusted) == (2 * no_drop, 4 * no_drop)
    worse, = decide([Case(tests=MarginTests(.06, 1, 1, worse=.04))])
    assert (worse.verdict, worse.p, worse.p_adjusted) == ("worse", .04, .04)
    beside = decide([Case(tests=MarginTests(.06, 1, 1, worse=.04)), Case(tests=clear)])[0]
    assert (beside.verdict, beside.p_adjusted) == ("worse", .04)  # Holm: the clear one has the smaller p


def test_what_all_kinds_of_test_prove_is_said() -> None:
    lower, worse = MarginTests(.001, 1, 1, worse=.0001), MarginTests(.2, 1, 1, worse=.01)
    found, = decide([Case(tests=lower, clustered=worse)])
    assert (found.verdict, found.p) == ("worse", .01)
    assert found.note == ("worse, because the tests disagree: lower by the item-wise test, worse by the cluster-robust "
                          "test")
    kept, = decide([Case(tests=MarginTests(1, 1, .01, no_drop=.001), clustered=MarginTests(1, 1, .2, no_drop=.004))])
    assert kept.verdict == "no_loss"
    assert "not lower, because the tests disagree: within by" in kept.note


@pytest.mark.parametrize(("tests", "verdict"), [
    (MarginTests(1, 1, 1, no_drop=.001), "undecided"), (MarginTests(1, 1, .001, no_drop=.001), "undecided"),
    (MarginTests(1, 1, 1, worse=.001), "worse"), (MarginTests(1, 1, 1, no_drop=.001, better=.001), "better")])
def test_at_the_floor_only_a_change_is_said(tests: MarginTests, verdict: str) -> None:
    found, = decide([Case(tests=tests, at_floor=True)])
    assert (found.verdict, found.at_floor) == (verdict, verdict == "undecided")


def test_words_with_and_without_lineage() -> None:
    assert [label_of(claim, lineage=True) for claim in CLAIMS] == ["forgot", "improved", "kept", "worse", "better",
                                                                   "no loss"]
    assert [label_of(claim, lineage=False) for claim in CLAIMS] == ["lower", "higher", "within", "worse", "better",
                                                                    "not lower"]


# --- The models' test ---

def test_the_models_are_the_full_run_of_endlessly_many_items() -> None:
    d = np.random.default_rng(1).choice([-1.0, 0.0, 1.0], 400, p=[.09, .86, .05])
    models, endless = PairedSequential(None, M), PairedSequential(10**9, M, alpha=LOOKS * .05)
    models.update(d)
    endless.update(d)
    assert np.allclose(models._wealth, endless._wealth, atol=1e-4)
    assert np.allclose(models.interval(), endless.interval(), atol=3e-6)
    assert models.claims - {"within"} == endless.claims - {"within"}


def test_claims_are_readings_of_the_anytime_interval() -> None:
    rng = np.random.default_rng(5)
    seen = set()
    for shift, psi in ((-.12, .14), (-.05, .14), (0, .14), (0, .04), (.04, .14), (.12, .14)):
        d = rng.choice([-1.0, 0.0, 1.0], 3000, p=[(psi - shift) / 2, 1 - psi, (psi + shift) / 2])
        for items in (None, 3000):
            test = PairedSequential(items, M)
            test.update(d[:2000])
            low, high = test.interval()
            holds = {"lower": high < -M, "higher": low > M, "within": low > -M and high < M, "worse": high < 0,
                     "better": low > 0, "no_loss": low > -M}
            claims = set(test.claims)
            if items is None and not holds["within"]:
                claims -= {"within"}  # needs a little less than the interval
            assert {claim for claim, proven in holds.items() if proven} == claims
            seen |= claims
    assert seen == set(CLAIMS)


def test_asking_everything_can_only_add() -> None:
    """A claim of the looks stays a claim at the end, at the level that the looks have; so does one of the end."""
    nothing = MarginTests(1, 1, 1)
    for claim in ("lower", "higher", "worse", "better"):
        looks = MarginTests(**dict.fromkeys(("lower", "higher", "within"), 1.0) | {claim: .05 * LOOKS * .999})
        assert getattr(after_looks(looks, nothing), claim) < .05
        fixed = MarginTests(**dict.fromkeys(("lower", "higher", "within"), 1.0) | {claim: .05 * (1 - LOOKS) * .999})
        assert getattr(after_looks(nothing, fixed), claim) < .05
        assert getattr(after_looks(nothing, looks), claim) > .05
    test = PairedSequential(None, M, alpha=.05)
    test.update(np.zeros(600))
    assert test.claims >= {"within", "no_loss"}
    both = after_looks(test.tests, nothing)
    assert both.within < .05
    assert both.no_loss < .05
    late = PairedSequential(None, M, alpha=.05)
    late.update(np.zeros(60))
    assert after_looks(late.tests, nothing).within > .05


def test_what_is_kept_after_looks_passes_a_gate() -> None:
    """The end proves "within", and not "no loss", which has less of the level there."""
    nothing, fixed = MarginTests(1, 1, 1), MarginTests(1, 1, .02, no_drop=.02)
    both = after_looks(nothing, fixed)
    assert both.within == no_drop_after_looks(nothing, .02) == .04
    assert both.no_loss > .05
    assert no_drop_after_looks(MarginTests(1, 1, 1, no_drop=.02), 1.0) == .04


def test_the_end_after_looks_is_a_p_value() -> None:
    """At the margin, the looks and the end together say "within" in at most 5 % and "lower" in at most 2.5 %."""
    scenario = word_verdicts.WordScenario(items=500, psi=.06, truth=-M, early=True)
    found = word_verdicts.run_words(scenario, 1280)
    assert not list(word_verdicts.broken_words(scenario, found))
    assert found["ended"] > 1000
    assert found["said"]["worse"] > 100  # true there, so the simulation can say it


def test_the_simulation_says_what_the_test_says() -> None:
    d = np.random.default_rng(8).choice([-1.0, 0.0, 1.0], (6, 900), p=[.09, .88, .03])
    for row, (word, at) in zip(d, word_verdicts.early_words(d), strict=True):
        test = PairedSequential(None, M, alpha=.05)
        test.update(row)
        if test.verdict is not None:
            assert (word, at) == (test.verdict, test.decided_at)
        else:
            fixed = tango_tests(int((row > 0).sum()), int((row < 0).sum()), 900, M)
            assert (word, at) == (decide([Case(tests=after_looks(test.tests, fixed))])[0].verdict, 900)


def test_of_a_cluster_the_first_item_counts() -> None:
    assert first_of_clusters(None, 3).tolist() == [True] * 3
    assert first_of_clusters(["a", "b", "a", "c", "b"], 5).tolist() == [True, True, False, True, False]
    assert not first_of_clusters(["a", None, "b"], 3).any()


def test_most_undecided_rows_of_a_gain_have_no_loss_proven() -> None:
    """n=1,000, 10 % differ, margin 2: of a true gain of one point most rows used to be undecided."""
    scenario = next(s for s in word_verdicts.FIXED_WORDS if s.truth == .01)
    found = word_verdicts.run_words(scenario, 4000)
    said = {word: count / 4000 for word, count in found["said"].items()}
    before = 1 - said["within"] - said["higher"] - said.get("lower", 0)
    assert before == pytest.approx(.83, abs=.03)
    assert said["no_loss"] + said["better"] == pytest.approx(.74, abs=.03)
    at_margin = next(s for s in word_verdicts.FIXED_WORDS if s.truth == -M)
    found = word_verdicts.run_words(at_margin, 4000)
    assert not list(word_verdicts.broken_words(at_margin, found))
    worse = word_verdicts.WordScenario(items=1000, psi=.1, truth=0)
    assert len(list(word_verdicts.broken_words(worse, {**found, "comparisons": 4000}))) == 1  # "worse" is false at 0
    assert math.isclose(sum(found["said"].values()), 4000)
