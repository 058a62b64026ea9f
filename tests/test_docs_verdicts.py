"""The figures of docs/verdicts.md are those that the program computes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from aftertune.stats.paired import mcnemar_exact, mcnemar_mid, tango_interval, tango_statistic, tango_tests
from aftertune.stats.planning import items_without_failure
from aftertune.stats.sequential import PairedSequential
from aftertune.stats.verdict import Case, decide, holm
from aftertune.values import VERDICT_LABELS
from aftertune.values.comparison import NEUTRAL_LABELS

TEXT = (Path(__file__).parents[1] / "docs" / "verdicts.md").read_text(encoding="utf-8").replace("−", "-")


def table(start: str) -> list[list[str]]:
    """The cells of the rows of the table whose head begins so."""
    lines = TEXT[TEXT.index(f"\n{start}") + 1:].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_words_and_their_order_are_those_of_the_program():
    rows = table("| label | stored as |")
    assert [(row[0], row[1].strip("`"), row[3]) for row in rows] == [
        (VERDICT_LABELS[verdict], verdict, NEUTRAL_LABELS[verdict]) for verdict in VERDICT_LABELS]


@pytest.mark.parametrize("row", table("| gained | lost | difference |"), ids=lambda row: row[4])
def test_each_example_has_its_interval_and_its_verdict(row):
    gained, lost = int(row[0]), int(row[1])
    low, high = tango_interval(gained, lost, 1000)
    [decision] = decide([Case(tests=tango_tests(gained, lost, 1000, 0.02))])
    assert float(row[2]) == (gained - lost) / 10
    assert row[3] == f"{100 * low:+.2f} to {100 * high:+.2f}"
    assert row[4] == VERDICT_LABELS[decision.verdict]


@pytest.mark.parametrize("row", table("| gained | lost | n |"), ids=lambda row: " ".join(row[:3]))
def test_each_golden_value_is_what_the_program_computes(row):
    gained, lost, n = map(int, row[:3])
    low, high = tango_interval(gained, lost, n)
    inner, outer = tango_interval(gained, lost, n, 0.9)
    computed = [f"{mcnemar_exact(gained, lost):.6f}", f"{mcnemar_mid(gained, lost):.6f}", f"{low:.6f} to {high:.6f}",
                f"{inner:.6f} to {outer:.6f}", f"{tango_statistic(gained, lost, n, -0.02):.6f}"]
    assert row[3:] == computed


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", text)]


def test_the_other_figures_are_what_the_program_computes():
    p, adjusted = re.search(r"Holm's correction of (.*) gives (.*)\. A stream", TEXT).groups()
    assert holm(numbers(p)) == pytest.approx(numbers(adjusted))
    stream = PairedSequential(20, 0.1)
    stream.update(numbers(re.search(r"begins (.*) has the full-run", TEXT)[1]))
    assert stream.interval() == pytest.approx(numbers(re.search(r"full-run interval (.*): \*worse", TEXT)[1]))
    assert stream.claims == {"worse"}
    assert items_without_failure(0.02) == 149
    low, high = tango_interval(0, 0, 100)
    assert -low == high == pytest.approx(1.959964**2 / (100 + 1.959964**2))
