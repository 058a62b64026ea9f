"""The checks of published figures against enumeration: every k, every rounding, every pairing."""

from __future__ import annotations

import math
from decimal import ROUND_HALF_EVEN, ROUND_HALF_UP, Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aftertune.stats.audit import (
    Figure,
    counts_of_stderr,
    detection_power,
    nearest_counts,
    p_at_every_pairing,
    pairing_bounds,
    stderr_agrees,
    stderr_of,
    stderr_span,
    unpaired_difference,
    whole_counts,
)
from aftertune.stats.paired import mcnemar_exact, mcnemar_mid
from aftertune.stats.verdict import holm


def figure(text: str) -> Figure:
    return Figure.parse(text)


def exactly(share: Fraction) -> Decimal:
    return Decimal(share.numerator) / Decimal(share.denominator)


@given(st.integers(1, 200), st.integers(0, 3), st.data())
def test_counts_are_those_that_round_to_the_figure(n: int, decimals: int, data: st.DataObject) -> None:
    """Against the definition: round 100 k/n half-up and half-even for every k."""
    ulp = Decimal(1).scaleb(-decimals)
    value = Decimal(data.draw(st.integers(0, 100 * 10**decimals))) * ulp
    by_rounding = tuple(
        k for k in range(n + 1)
        if value in {exactly(Fraction(100 * k, n)).quantize(ulp, rounding=r) for r in (ROUND_HALF_UP, ROUND_HALF_EVEN)})
    assert tuple(whole_counts(figure(f"{value:.{decimals}f}%"), n)) == by_rounding


def test_trailing_zeros_and_ties_count() -> None:
    assert tuple(whole_counts(figure("47%"), 150)) == (70, 71)  # 46.67 and 47.33
    assert tuple(whole_counts(figure("47.00%"), 150)) == ()
    assert tuple(whole_counts(figure("12.5%"), 8)) == (1,)
    assert tuple(whole_counts(figure("12%"), 8)) == (1,)  # half-even
    assert tuple(whole_counts(figure("13%"), 8)) == (1,)  # half-up
    assert tuple(whole_counts(figure("0.47"), 100)) == (47,)  # a share, not percent
    assert tuple(whole_counts(figure("0.3333333333333333"), 3)) == (1,)  # a float written out
    assert tuple(whole_counts(figure("130%"), 10)) == ()
    assert nearest_counts(figure("26.50%"), 100) == (26, 27)


@pytest.mark.parametrize("text", ["", "x", "1.2.3", "%", "1e999999", "1e999", "١٢", "1" * 50, "nan", "--1"])
def test_what_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a number"):
        Figure.parse(text)


@pytest.mark.parametrize(("value", "stderr", "n", "k", "agrees"), [
    ("47.00%", "5.02%", 100, 47, True), ("34.00%", "4.76%", 100, 34, True), ("27.00%", "4.46%", 100, 27, True),
    ("26.50%", "4.42%", 100, None, False), ("45.23%", "0.50%", 10042, 4542, True),
    ("45.61%", "0.50%", 10042, 4580, True), ("45.84%", "0.50%", 10042, 4603, True),
    ("44.98%", "0.50%", 10042, 4517, True), ("60.77%", "0.49%", 10042, 6103, True),
    ("61.20%", "0.49%", 10042, 6146, True), ("59.26%", "0.49%", 10042, 5951, True),
    ("58.35%", "0.49%", 10042, 5860, True), ("33.51%", "1.30%", 1319, 442, True), ("3.71%", "0.52%", 1319, 49, True),
    ("2.81%", "0.45%", 1319, 37, True), ("2.74%", "0.44%", 1319, None, False), ("3.11%", "0.48%", 1319, 41, True),
    ("2.20%", "0.40%", 1319, 29, True), ("2.15%", "0.39%", 1319, None, False)])
def test_the_published_figures(value: str, stderr: str, n: int, k: int | None, agrees: bool) -> None:
    assert tuple(whole_counts(figure(value), n)) == (() if k is None else (k,))
    assert stderr_agrees(figure(value), figure(stderr), n) is agrees


def test_the_error_divides_by_n_minus_1_and_names_the_counts_that_would_fit() -> None:
    assert 100 * stderr_of(0.47, 100) == pytest.approx(5.016, abs=5e-4)
    assert stderr_span(figure("26.50%"), 100) == pytest.approx((0.044353, 0.044358), abs=1e-6)
    assert counts_of_stderr(figure("4.42%"), 100, 0.265) is None
    assert counts_of_stderr(figure("0.44%"), 1319, 0.0274) == (34, 35)
    assert counts_of_stderr(figure("0.39%"), 1319, 0.0215) == (27, 27)
    low, high = counts_of_stderr(figure("0.50%"), 10042, 0.45) or (0, 0)
    assert (round(100 * low / 10042, 1), round(100 * high / 10042, 1)) == (43.7, 56.3)
    assert stderr_span(figure("50%"), 100)[1] == stderr_of(0.5, 100)


@pytest.mark.parametrize(("text", "n", "expected"), [
    ("26.50%", 100, 0.9899), ("2.74%", 1319, 0.868), ("45.23%", 10042, 0.0), ("0.4523", 10042, 0.0)])
def test_power_of_the_check(text: str, n: int, expected: float) -> None:
    assert detection_power(figure(text), n) == pytest.approx(expected, abs=5e-4)


def test_power_is_the_share_of_figures_that_no_count_gives() -> None:
    fails = sum(not whole_counts(figure(f"{i / 10:.1f}%"), 37) for i in range(1001))
    assert detection_power(figure("1.0%"), 37) == pytest.approx(fails / 1001)


def test_differences_from_summaries_with_holm() -> None:
    base = [(.47, .0502), (.4523, .005), (.6077, .0049), (.3351, .013), (.3351, .013)]
    tuned = [(.34, .0476), (.4561, .005), (.6120, .0049), (.0371, .0052), (.0311, .0048)]
    found = [unpaired_difference(a, b) for a, b in zip(base, tuned, strict=True)]
    assert [round(f.p, 2) for f in found[:3]] == [.06, .59, .53]
    assert found[0].z == pytest.approx(-1.879, abs=1e-3)
    assert max(f.p for f in found[3:]) < 1e-99
    assert [round(p, 2) for p in holm([f.p for f in found])[:3]] == [.18, 1, 1]
    assert unpaired_difference((.5, 0), (.5, 0)).p == 1
    assert unpaired_difference((.5, 0), (.6, 0)).p == 0


def test_what_pairing_could_make_of_the_published_differences() -> None:
    mmlu = pairing_bounds(47, 34, 100)
    assert (mmlu.net, mmlu.low, mmlu.high, mmlu.mid, mmlu.exact) == (-13, 13, 81, 43, 37)
    assert mmlu.independent == pytest.approx(49.04)
    third = pairing_bounds(47, 34, 100, alpha=.05 / 3)
    assert (third.mid, third.exact) == (29, 25)
    assert [round(100 * (pairing_bounds(*k, 10042).mid or 0) / 10042, 1)
            for k in ((4542, 4580), (6103, 6146), (6103, 5951))] == [3.7, 4.8, 59.9]
    gsm = pairing_bounds(442, 49, 1319)
    assert gsm.always
    assert (round(gsm.low / 1319, 3), round(gsm.high / 1319, 3)) == (.298, .372)
    assert pairing_bounds(5, 5, 10).never
    assert pairing_bounds(0, 0, 10).high == 0


@given(st.integers(1, 30), st.data())
def test_pairing_bounds_against_all_tables(n: int, data: st.DataObject) -> None:
    """Every 2x2 table with these margins, by enumeration."""
    before, after = data.draw(st.integers(0, n)), data.draw(st.integers(0, n))
    found = pairing_bounds(before, after, n)
    tables = [(after - both, before - both) for both in range(n + 1)
              if after - both >= 0 and before - both >= 0 and before + after - both <= n]
    assert {b + c for b, c in tables} == set(range(found.low, found.high + 1, 2))
    for test, largest in ((mcnemar_mid, found.mid), (mcnemar_exact, found.exact)):
        fits = [b + c for b, c in tables if test(b, c) < .05]
        assert largest == (max(fits) if fits else None)


def test_impossible_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="0 <= count <= n"):
        pairing_bounds(11, 3, 10)
    with pytest.raises(ValueError, match="n >= 1"):
        whole_counts(figure("1%"), 0)
    assert math.isclose(figure("45.2%").fraction, 0.452)


@pytest.mark.timeout(20)
def test_a_huge_number_of_items_is_not_counted_up_to() -> None:
    """Each of these took gigabytes or hours with a list of all counts, an array of n, or whole numbers of n digits."""
    n = 2**31 - 1
    counts = whole_counts(figure("50%"), n)
    assert (counts[0], counts[-1]) == (1_063_004_406, 1_084_479_241)
    assert detection_power(figure("50%"), n) == 0
    assert counts_of_stderr(figure("0.0011%"), n, 0.5) is not None
    bounds = pairing_bounds(n // 2, n // 2 + 50_000, n)
    assert bounds.mid is not None
    assert bounds.low <= bounds.mid < bounds.high
    assert p_at_every_pairing(counts, whole_counts(figure("60%"), n), n) < 1e-9


def test_probabilities_of_many_trials_are_those_of_the_exact_ones() -> None:
    for gained, lost in ((1_050, 1_000), (1_005, 1_005), (900, 1_200)):
        total, k = gained + lost, min(gained, lost)
        mass = Fraction(math.comb(total, k), 2**total)
        below = Fraction(sum(math.comb(total, i) for i in range(k + 1)), 2**total)
        exact = 1 - mass / 2 if gained == lost else 2 * below - mass
        assert mcnemar_mid(gained, lost) == pytest.approx(float(exact), rel=1e-10)
