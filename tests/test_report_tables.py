"""Score and verdict tables: the rows that the record, the page and the terminal share."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from rich.console import Console

import report_cases as cases
from aftertune.report import score_table, terminal_scores, terminal_table, verdict_table
from aftertune.report.table import beyond_noise, performance, proven_best, score_interval
from aftertune.values import Score


def test_a_score_line_has_the_reference_form():
    line = next(x for x in score_table(cases.EVALUATIONS[0]) if x.title.startswith("MMLU"))
    assert (line.metric, line.result, line.error, line.n, line.part) == (
        "Accuracy", "27.00%", "±4.46%", "100", "")
    assert line.interval == "19.27% to 36.43%"


def test_partial_tasks_say_which_items_were_used():
    parts = {x.task: x.part for x in score_table(cases.EVALUATIONS[0])}
    assert parts["hellaswag"] == "random 300 of 10,042, seed 0"
    assert parts["gsm8k_cot"] == "first 8 of 1,319"
    assert parts["orders"] == ""


@pytest.mark.parametrize(("found", "interval"), [
    (Score(task="t", metric="f", filter="none", value=0.3141, stderr=0.02, n=10), (0.274901, 0.353299)),
    (Score(task="t", metric="f", filter="none", value=0.9941, stderr=0.02, n=10), (0.954901, 1.0)),
    (Score(task="t", metric="word_perplexity", filter="none", value=20.0, stderr=1.0, n=9),
     (18.040036, 21.959964)),
])
def test_intervals_are_normal_where_the_value_is_no_proportion(found, interval):
    assert score_interval(found) == pytest.approx(interval, abs=1e-6)


@pytest.mark.parametrize(("k", "n"), [(0, 8), (47, 100), (4118, 10_042), (8, 8)])
def test_intervals_of_proportions_are_wilsons(k, n):
    """By its definition: the values v with (k/n - v)² = z² v(1 - v)/n; beyond 0 and 1 at the ends."""
    found = score_interval(Score(task="t", metric="acc", filter="none", value=k / n, stderr=None, n=n))
    assert found is not None
    for v, end in zip(found, (k == 0, k == n), strict=True):
        gap = (k / n - v) ** 2 - 1.959963984540054**2 * v * (1 - v) / n
        assert gap == pytest.approx(0, abs=1e-12)
        assert not end or v in (0.0, 1.0)


def test_a_mean_of_shares_that_is_k_of_n_by_chance_keeps_its_own_error():
    """Field accuracy .425 over 40 items is 17/40, but no item counts as whole: SE .0298, not .0792."""
    score = Score(task="t", metric="field_accuracy", filter="none", value=0.425, stderr=0.0298, n=40)
    assert score_interval(score) == pytest.approx((0.3666, 0.4834), abs=1e-4)
    share = replace(score, stderr=math.sqrt(0.425 * 0.575 / 39))
    assert score_interval(share) == pytest.approx((0.2851, 0.5780), abs=1e-4)
    assert score_interval(replace(share, value=1.0, stderr=0.0, n=1)) == pytest.approx((0.2065, 1.0), abs=1e-4)


def test_without_a_standard_error_there_is_no_interval():
    line = next(x for x in score_table(cases.EVALUATIONS[0]) if x.metric == "Field Accuracy")
    assert (line.error, line.interval) == ("–", "–")


def test_a_group_score_is_not_taken_for_a_proportion():
    group = Score(task="mmlu", metric="acc", filter="none", value=0.5, stderr=0.01, n=100, group=True)
    assert score_interval(group) == pytest.approx((0.4804, 0.5196), abs=1e-5)


def test_a_verdict_line_shows_points_p_and_flips():
    line = verdict_table(cases.COMPARISONS[1])[0]
    assert (line["base"], line["tuned"], line["delta"], line["interval"]) == (
        "41.00%", "30.00%", "−11.00", "−16.10 to −6.20")
    assert (line["p_adjusted"], line["flips"], line.label, line.verdict, line["margin"]) == (
        "<0.001", "12 / 45", "forgot", "lower", "±5.00")


def test_primary_rows_come_first_and_secondary_rows_have_no_verdict():
    lines = verdict_table(cases.COMPARISONS[0])
    assert [x.row.primary for x in lines] == [True] * 5 + [False]
    assert (lines[-1].verdict, lines[-1].label, lines[-1]["p_adjusted"]) == (None, "", "–")


def test_at_the_floor_within_is_undecided_and_says_why():
    line = verdict_table(cases.COMPARISONS[1])[-1]
    assert (line.verdict, line.label, line.note) == (
        "undecided", "undecided", "at floor: nothing to forget")


def test_undecided_rows_say_how_many_items_would_decide():
    notes = {x.row.task: x.note for x in verdict_table(cases.COMPARISONS[0])}
    assert notes["mmlu_high_school_computer_science"] == "about 752 items would decide it if the models do not differ"
    assert notes["gsm8k_cot"].startswith("at floor: nothing to forget; cannot be")
    apart = replace(cases.CAREFUL_ROWS[2], low=-0.1, high=-0.01)
    line, = verdict_table(replace(cases.COMPARISONS[0], rows=(apart,)))
    assert line.note == "about 752 items would decide it at this difference"


def test_without_lineage_nothing_is_called_forgotten():
    rows = tuple(replace(r, told="") for r in cases.CARELESS_ROWS)
    comparison = replace(cases.COMPARISONS[1], lineage=False, rows=rows)
    assert [x.label for x in verdict_table(comparison)] == ["lower", "lower", "undecided"]


def test_best_needs_a_verdict_against_every_other_column():
    table = performance(cases.EVALUATIONS)
    better = beyond_noise(cases.COMPARISONS)
    orders = ("orders", "exact_match", "none")
    hella = ("hellaswag", "acc_norm", "none")
    assert proven_best(hella, table[hella], better) is None  # careful kept: no winner
    two = {k: v for k, v in table[orders].items() if k != "e-careless01"}
    assert proven_best(orders, two, better) == "e-careful001"
    assert proven_best(orders, table[orders], better) is None  # nothing compares careless on it


@pytest.mark.parametrize(("gain", "loss"), [("higher", "lower"), ("better", "worse")])
def test_better_than_is_transitive_but_never_from_a_forced_comparison(gain, loss):
    up = replace(cases.CAREFUL_ROWS[0], verdict=gain)
    first = replace(cases.COMPARISONS[0], rows=(up,))
    second = replace(cases.COMPARISONS[1], rows=(replace(up, verdict=loss),))
    key = ("hellaswag", "acc_norm", "none")
    cells = performance(cases.EVALUATIONS)[key]
    assert proven_best(key, cells, beyond_noise([first, second])) == "e-careful001"
    assert proven_best(key, cells, beyond_noise([first, replace(second, forced=True)])) is None


def rendered(table, width):
    console = Console(width=width, color_system=None, legacy_windows=False)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


SHOWN = ("+84.17", "+76.40 to +89.60", "<0.001", "101 / 0", "improved", "kept", "undecided", "c-aaaaaaaaaa",
         "Held-out loss 1.912 before, 0.214 after", "if the models do not differ", "±5.00")


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_the_terminal_table_fits_and_shows_every_figure(width):
    text = rendered(terminal_table(cases.COMPARISONS[0], width=width), width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for figure in SHOWN:
        assert figure in " ".join(text.split())


@pytest.mark.parametrize("width", [80, 100, 140])
def test_every_metric_has_one_line_with_its_figures_below_its_task(width):
    lines = rendered(terminal_table(cases.COMPARISONS[0], width=width), width).splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("hellaswag"))
    assert lines[at + 1].startswith("  acc_norm ")
    assert ("Normalized Accuracy" in lines[at + 1]) is (width == 140)
    figures = ("300", "34.67%", "35.00%", "+0.33", "−2.60 to +3.30", "10 / 9")
    assert lines[at + 2].startswith("  acc ")
    assert all(figure in lines[at + 2] for figure in figures)


def test_secondary_rows_are_dim_and_their_notes_are_told():
    row = replace(cases.CAREFUL_ROWS[5], note="cluster-robust 95 % interval −2.00 to +3.00 (9 clusters)")
    comparison = replace(cases.COMPARISONS[0], rows=(cases.CAREFUL_ROWS[0], row))
    console = Console(width=80, force_terminal=True, color_system="standard", legacy_windows=False)
    with console.capture() as capture:
        console.print(terminal_table(comparison, width=80))
    lines = [line for line in capture.get().splitlines() if "acc_norm" in line or " acc " in line or "acc: " in line]
    assert [line.strip().startswith("\x1b[2m") for line in lines] == [False, True, True]
    assert "cluster-robust 95 % interval −2.00 to +3.00" in lines[2]


def test_long_names_fold_and_leave_the_figures_whole():
    row = replace(cases.CAREFUL_ROWS[0], task="t" * 300, metric="m" * 300)
    text = rendered(terminal_table(replace(cases.COMPARISONS[0], rows=(row,)), width=80), 80)
    assert ("".join(text.split()).count("t") >= 300, "−2.50 to +3.20" in text, "41.00%" in text) == (True, True, True)
    assert "".join(text.split()).count("m") >= 300


def test_a_metric_that_is_no_share_says_so():
    row = replace(cases.CAREFUL_ROWS[0], metric="word_perplexity", kind="real", gained=None, lost=None)
    line, = verdict_table(replace(cases.COMPARISONS[0], rows=(row,)))
    assert (line["delta"], line["flips"]) == ("+0.0033", "–")
    assert line.note == "in the metric's own unit, not points"


def test_a_forced_comparison_is_watermarked_on_the_terminal():
    assert "FORCED COMPARISON" in rendered(terminal_table(cases.FORCED), 80)


def test_terminal_scores_show_the_columns_and_the_parts():
    text = rendered(terminal_scores(cases.EVALUATIONS[0]), 100)
    for figure in ("Stderr", "41.00%", "±2.84%", "hellaswag: random 300 of 10,042, seed 0"):
        assert figure in text


@pytest.mark.parametrize("width", range(60, 201, 20))
def test_scores_fit_and_no_name_of_a_task_is_cut(width):
    text = rendered(terminal_scores(cases.EVALUATIONS[0], width=width), width)
    assert max(map(len, text.splitlines())) <= width
    assert {score.task for score in cases.EVALUATIONS[0].scores} <= set(text.split())
    assert ("Normalized Accuracy" in text) is (width >= 120)
    assert "acc_norm" in text


def test_names_with_markup_are_shown_as_they_are():
    odd = replace(cases.COMPARISONS[1], tuned_name="[red]x[/nothing]")
    assert "[red]x[/nothing]" in rendered(terminal_table(odd, width=140), 140)


def test_a_comparison_without_rows_is_shown_without_a_table():
    text = rendered(terminal_table(replace(cases.COMPARISONS[0], rows=()), width=80), 80)
    assert "Margin in points: –." in text
    assert "Held-out loss 1.912 before" in text


def test_task_and_metric_names_with_markup_are_shown_as_they_are():
    row = replace(cases.CAREFUL_ROWS[2], task="[red]t", metric="[/bold]m", note="[link=x]n")
    for width in (60, 80, 140):
        text = rendered(terminal_table(replace(cases.COMPARISONS[0], rows=(row,)), width=width), width)
        assert all(name in text for name in ("[red]t", "[/bold]m", "[link=x]n"))
    odd = replace(cases.EVALUATIONS[0], name="[red]x", scores=(replace(cases.EVALUATIONS[0].scores[0], task="[b]"),))
    assert all(name in rendered(terminal_scores(odd), 100) for name in ("[red]x", "[b]"))
